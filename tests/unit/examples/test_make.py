import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from components.bert_features.encoder import load_encoder
from components.llava_attention.model import load_llava
from components.mgm_attention.model import load_mgm
from examples.make import main, make
from examples.scenes import make_dataset
from free2ds_common.datasets import sha256_of_file
from free2ds_common.inference.generation import AnswerGenerator, PictureGroup, Question
from free2ds_common.pictures import load_picture


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    make(folder, 60, 3)
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): sha256_of_file(path) for path in folder.rglob("*") if path.is_file()}


def test_same_settings_same_bytes(made, tmp_path):
    make(tmp_path, 60, 3)
    assert contents(tmp_path) == contents(made)


def test_finished_set_is_left_alone_and_another_is_not(tmp_path, capsys):
    make(tmp_path, 5, 1)
    first = contents(tmp_path)
    make(tmp_path, 5, 1)
    assert "is there already" in capsys.readouterr().out
    make(tmp_path, 5, 2)
    assert contents(tmp_path) != first


def test_what_is_not_from_here_is_not_overwritten(tmp_path, capsys):
    (tmp_path / "dataset.json").write_text("[1]")
    assert main(["--output-dir", str(tmp_path), "--num-records", "5"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/dataset.json: is there and was not made by examples.make. Give another --output-dir.\n"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]


def test_a_set_that_was_cut_off_is_made_again(made, tmp_path):
    make(tmp_path, 5, 3)
    marker = tmp_path / ".finished.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "num_records": 60, "finished": False}))
    make(tmp_path, 60, 3)
    assert contents(tmp_path) == contents(made)


def test_records_are_what_the_readme_says(tmp_path):
    records = make_dataset(tmp_path, 200, 7)
    assert len(records) == 200 == len({record["id"] for record in records})
    assert sum("image" not in record for record in records) == 20
    per_picture = Counter(record["image"] for record in records if "image" in record)
    assert max(per_picture.values()) == 4
    assert len(set(per_picture.values())) > 2
    assert any(len(record["conversations"]) > 2 for record in records)
    firsts = [record["conversations"][0]["value"] for record in records if "image" in record]
    assert all(first.count("<image>") == 1 for first in firsts)
    assert {first.startswith("<image>\n") for first in firsts} == {True, False}
    modes = {load_image_mode(tmp_path / "images" / image) for image in per_picture}
    assert modes >= {"RGB", "L", "RGBA"}


def load_image_mode(path):
    from PIL import Image

    with Image.open(path) as picture:
        return picture.mode


@pytest.mark.parametrize(("load", "name"), [(load_llava, "llava"), (load_mgm, "mgm")])
def test_models_load_and_answers_differ_in_length(made, load, name):
    model = load(made / "models" / name, torch.device("cpu"), torch.float32)
    assert model.grid == 24
    records = [r for r in json.loads((made / "dataset.json").read_text()) if "image" in r][:16]
    groups = []
    for number, record in enumerate(records):
        prompt = model.prompt(record["conversations"][0]["value"])
        pixels = model.preprocess(load_picture(str(made / "images"), record["image"]))
        groups.append(PictureGroup(pixels, (Question(number, prompt),)))
    answers = list(AnswerGenerator(model, 20, 16).generate(groups))
    assert len({len(answer.tokens) for answer in answers}) >= 3


def test_bert_loads(made):
    encoder = load_encoder(made / "models/bert", "auto")
    tokens = encoder.tokenize(["how many circles are there?", "explain jazz"])
    embedded = encoder.embed(tokens, np.array([0, 1]))
    assert embedded.shape == (2, 64)
    assert np.abs(embedded[0] - embedded[1]).max() > 0.1


def test_wrong_number_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--output-dir", str(tmp_path), "--num-records", "0"])
    assert stop.value.code == 2
    assert "wanted at least 1" in capsys.readouterr().err
