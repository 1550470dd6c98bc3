"""Draws the example data and writes the tiny models: python -m examples.make --output-dir demo."""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.benchmarks import make_benchmarks
from examples.scenes import make_dataset, sample_texts
from free2ds_common.errors import StageError
from free2ds_common.failure import run_reported
from free2ds_common.storage import atomic_writer

# Raised when the same settings give other bytes than before.
VERSION = 3
MARKER = ".finished.json"
PARTS = ("dataset.json", "images", "models", "benchmarks")


def make(folder: Path, num_records: int, seed: int) -> None:
    """Write `dataset.json`, `images/`, `models/` and `benchmarks/`, or leave a finished set of the same settings alone.

    Args:
        folder: Where to write; what an earlier set left in these places is removed.
        num_records: Records in the data set.
        seed: Of the scenes; the models are always the same.

    Raises:
        StageError: One of these places holds something that this command did not write.
    """
    settings = {"num_records": num_records, "seed": seed, "version": VERSION}
    finished = {**settings, "finished": True}
    marker, places = folder / MARKER, [folder / part for part in PARTS]
    if marker.is_file():
        if json.loads(marker.read_text(encoding="utf-8")) == finished and all(place.exists() for place in places):
            print(f"example data: {folder} is there already")
            return
        for place in places:
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    for place in places:
        if place.exists():
            raise StageError(f"{place}: is there and was not made by examples.make. Give another --output-dir.")
    _write_marker(marker, {**settings, "finished": False})
    records = make_dataset(folder, num_records, seed)
    pictures = len({record["image"] for record in records if "image" in record})
    print(f"example data: {len(records)} records about {pictures} drawn pictures in {folder}", flush=True)
    make_benchmarks(folder / "benchmarks")
    # Here, not at the top: --help does not wait for torch.
    from transformers.utils.logging import disable_progress_bar

    from examples.models import train_tokenizer, write_bert, write_llava, write_mgm

    disable_progress_bar()
    texts = sample_texts()
    tokenizer = train_tokenizer(texts)
    write_llava(folder / "models/llava", tokenizer)
    write_mgm(folder / "models/mgm", tokenizer)
    write_bert(folder / "models/bert", texts)
    _write_marker(marker, finished)
    print(f"example models: LLaVA, MGM and BERT, tiny and with random weights, in {folder}/models")


def _write_marker(marker: Path, content: dict[str, Any]) -> None:
    with atomic_writer(marker, "w") as handle:
        json.dump(content, handle)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.make", description=__doc__)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder to write")
    parser.add_argument("--num-records", type=int, default=240, help="records to draw")
    parser.add_argument("--seed", type=int, default=7, help="of the scenes")
    options = parser.parse_args(argv)
    if options.num_records < 1:
        parser.error("--num-records: wanted at least 1")
    return run_reported("examples.make", lambda: make(options.output_dir, options.num_records, options.seed))


if __name__ == "__main__":
    sys.exit(main())
