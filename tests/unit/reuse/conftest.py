"""A results store made by hand: no model is needed to know what one said."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.llava_attention.config import LlavaAttentionSettings
from components.mgm_attention.config import MgmAttentionSettings
from components.reuse.config import ReuseConfig
from free2ds_common.inference.asked import remember_settings
from free2ds_common.inference.attention_results import asked_images, result_keys, results_store
from free2ds_common.results_store.pictures import picture_identities
from tests.support.records import record_row, write_records

REVISION = "3 files " + "0" * 32
# By number: two on one picture, one without a picture, one without a question, and three more.
ROWS = [
    record_row(1, image="a.png", question="What?"),
    record_row(2, image="a.png", question="Why?"),
    record_row(3),
    record_row(4, image="b.png"),
    record_row(5, image="b.png", question="Where?"),
    record_row(6, image="c.png", question="word " * 200),
    record_row(7, image="c.png", question="Who?"),
]
OUTCOMES = {1: "ok", 2: "eos_only", 5: "ok", 6: "prompt_too_long", 7: "ok"}
SETTINGS = {
    "model_fingerprint": "sha256 " + "1" * 64,
    "prompt": {"style": "method"},
    "preprocessing": {"size": [24, 24]},
    "max_new_tokens": 100,
    "dtype": "float32",
    "grid": 2,
    "capture_version": 1,
}


@pytest.fixture
def images(tmp_path):
    root = tmp_path / "images"
    root.mkdir()
    for number, name in enumerate(("a.png", "b.png", "c.png")):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(root / name)
    return root


@pytest.fixture
def config(tmp_path, images):
    return ReuseConfig(
        records=write_records(tmp_path / "records", ROWS, rows_per_part=3),
        image_root_uri=str(images),
        cache_uri=str(tmp_path / "store"),
        llava_model="somewhere/llava",
        llava_revision=REVISION,
        mgm_model="somewhere/mgm",
        mgm_revision=REVISION,
        llava_finished=str(tmp_path / "llava_finished"),
        mgm_finished=str(tmp_path / "mgm_finished"),
        llava_missing=str(tmp_path / "llava_missing"),
        mgm_missing=str(tmp_path / "mgm_missing"),
    )


def map_of(number):
    """Of the record of that number."""
    return [number / 8, 0.5, 0.25, 0.125]


@pytest.fixture
def remember(config):
    """Put results of records into the store, as an attention stage of that model does."""
    kinds = {"llava": LlavaAttentionSettings, "mgm": MgmAttentionSettings}

    def put(name, numbers, settings=SETTINGS, on_gpu=False, unknown=0, **changes):
        asked = kinds[name](
            **{
                "model": f"somewhere/{name}",
                "revision": REVISION,
                "image_root_uri": config.image_root_uri,
                "cache_uri": config.cache_uri,
                **changes,
            }
        )
        remember_settings(asked, settings, [Path(asked.model)], on_gpu=on_gpu)
        rows = [row for row in ROWS if row["unique_id"] in numbers]
        store = results_store(asked, settings)
        keys = result_keys(store, picture_identities(config.image_root_uri, asked_images(rows)), rows)
        results = []
        for index, (key, bucket) in keys.items():
            number = rows[index]["unique_id"]
            values = np.array(map_of(number), np.float32) if OUTCOMES[number] == "ok" else None
            result = {"outcome": OUTCOMES[number], "num_steps": number, "tokens": 4, "unknown_tokens": unknown}
            results.append({"key": key, "bucket": bucket, **result, "map": values})
        store.write(results)

    return put
