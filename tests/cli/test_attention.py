"""The attention stages from the shell, on tiny models."""

import json
import re
import shutil

import pytest
import torch

from components.ingest.__main__ import main as ingest
from components.llava_attention.__main__ import main as llava
from components.llava_attention.model import load_llava
from components.mgm_attention.__main__ import main as mgm
from components.mgm_attention.model import load_mgm
from examples.models import CLIP_NAME, CONVNEXT_NAME
from free2ds_common.checkpoints import fingerprint
from free2ds_common.datasets import open_dataset
from free2ds_common.inference.prompts import LLAVA_SYSTEM, MGM_SYSTEM
from free2ds_common.schemas import attention_schema
from tests.support.checkpoints import (
    CPU,
    FP32,
    QUESTIONS,
    answers_of,
    change_config,
    copy_checkpoint,
    picture,
    without_towers,
)


@pytest.fixture
def records(tmp_path):
    """Options for three questions about one picture with a record without a picture among them."""
    root = tmp_path / "images"
    root.mkdir()
    picture().save(root / "noise.png")
    turns = [[{"from": "human", "value": text}, {"from": "gpt", "value": "?"}] for text in QUESTIONS]
    data = [{"id": str(number), "image": "noise.png", "conversations": said} for number, said in enumerate(turns)]
    data.insert(1, {"id": "text", "conversations": turns[0]})
    (tmp_path / "dataset.json").write_text(json.dumps(data))
    arguments = ["--dataset-uri", str(tmp_path / "dataset.json"), "--image-root-uri", str(root)]
    assert ingest([*arguments, "--records", str(tmp_path / "records"), "--rejects", str(tmp_path / "rejects")]) == 0
    return ["--shard", str(tmp_path / "records"), "--image-root-uri", str(root)]


@pytest.fixture
def run(records, tmp_path):
    """Run a stage; returns its rows and its manifest."""

    def run_stage(main, folder, *options):
        output = tmp_path / "attention"
        assert main([*records, "--model", str(folder), "--attention", str(output), *options]) == 0
        rows = list(open_dataset(output, attention_schema()).rows())
        return rows, json.loads((output / "_manifest.json").read_text())

    return run_stage


@pytest.mark.parametrize(
    ("main", "load", "name"), [(llava, load_llava, "llava"), (llava, load_llava, "llava_hf"), (mgm, load_mgm, "mgm")]
)
def test_a_row_per_record(run, tmp_path, main, load, name):
    folder = copy_checkpoint(name, tmp_path / name)
    rows, manifest = run(main, folder, "--max-new-tokens", "6")
    wanted = answers_of(load(folder, CPU, FP32), max_new_tokens=6)
    wanted.insert(1, ((), None))
    assert [row["outcome"] for row in rows] == ["ok", "text_only", "ok", "ok"]
    for row, (tokens, values) in zip(rows, wanted, strict=True):
        assert row["num_steps"] == len(tokens)
        assert row["map"] == (None if values is None else pytest.approx(values.tolist(), abs=1e-6))
    assert manifest["model_fingerprint"] == fingerprint(folder)


@pytest.mark.parametrize(("main", "name"), [(llava, "llava"), (mgm, "mgm")])
def test_settings_of_generation(run, tmp_path, main, name):
    folder = copy_checkpoint(name, tmp_path / name)
    rows, manifest = run(main, folder, "--max-new-tokens", "2", "--dtype", "bfloat16", "--batch-size", "1")
    assert {row["num_steps"] for row in rows} == {0, 2}
    assert (manifest["max_new_tokens"], manifest["dtype"]) == (2, "bfloat16")


def test_seeds_do_not_change_mgms_maps(run, tmp_path):
    """Eval mode: no dropout, whatever the config's rate."""
    folder = copy_checkpoint("mgm", tmp_path / "mgm")
    change_config(folder / CLIP_NAME, attention_dropout=0.5)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        rows, _ = run(mgm, folder, "--max-new-tokens", "2")
        found.append([row["map"] for row in rows])
    assert found[0] == found[1]
    assert found[0][0] is not None


def test_each_encoder_option_reaches_mgms_loader(run, tmp_path):
    folder = copy_checkpoint("mgm", tmp_path / "mgm")
    without_towers(folder)
    tower, aux = tmp_path / "clip", tmp_path / "convnext"
    shutil.move(folder / CLIP_NAME, tower)
    shutil.move(folder / CONVNEXT_NAME, aux)
    _, manifest = run(mgm, folder, "--vision-tower", str(tower), "--vision-tower-aux", str(aux))
    assert manifest["model_fingerprint"].split(", ") == [fingerprint(part) for part in (folder, tower, aux)]


def test_the_encoder_option_reaches_llavas_loader(run, tmp_path):
    folder = copy_checkpoint("llava", tmp_path / "llava")
    without_towers(folder)
    tower = tmp_path / "clip"
    shutil.move(folder / CLIP_NAME, tower)
    _, manifest = run(llava, folder, "--vision-tower", str(tower))
    assert manifest["model_fingerprint"].split(", ") == [fingerprint(folder), fingerprint(tower)]


@pytest.mark.parametrize(("main", "system"), [(llava, LLAVA_SYSTEM), (mgm, MGM_SYSTEM)])
def test_another_model_on_a_side_is_asked_with_the_sides_system_text(run, tmp_path, main, system):
    """A LLaVA folder loads as any model of transformers does."""
    rows, manifest = run(main, copy_checkpoint("llava_hf", tmp_path / "other"), "--model-type", "auto")
    assert manifest["prompt"]["system"] == system
    assert [row["outcome"] for row in rows] == ["ok", "text_only", "ok", "ok"]


def test_chat_needs_a_chat_template(records, tmp_path, capsys):
    folder = copy_checkpoint("llava_hf", tmp_path / "other")
    options = ["--model", str(folder), "--model-type", "auto", "--prompt", "chat", "--attention", str(tmp_path / "a")]
    assert llava([*records, *options]) == 2
    assert "no usable chat template" in capsys.readouterr().err


@pytest.mark.parametrize(("main", "other"), [(llava, "mgm"), (mgm, "llava")])
def test_the_other_models_folder_is_one_sentence_and_exit_2(records, tmp_path, main, other, capsys):
    folder = copy_checkpoint(other, tmp_path / other)
    assert main([*records, "--model", str(folder), "--attention", str(tmp_path / "a")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "architecture" in error
    assert not (tmp_path / "a").exists()


OPTIONS = (
    "shard",
    "attention",
    "image-root-uri",
    "model",
    "revision",
    "model-type",
    "prompt",
    "vision-tower",
    "max-new-tokens",
    "batch-size",
    "dtype",
    "cache-uri",
    "require-gpu",
    "no-require-gpu",
)


@pytest.mark.parametrize(("main", "options"), [(llava, OPTIONS), (mgm, (*OPTIONS, "vision-tower-aux"))])
def test_help_explains_every_option(main, options, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert set(re.findall("--([a-z][a-z-]*)", shown)) == {*options, "help"}
