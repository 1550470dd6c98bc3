"""The attention stages from the shell, on the parity models."""

import json

import pytest

from components.ingest.__main__ import main as ingest
from components.llava_attention.__main__ import main as llava
from components.mgm_attention.__main__ import main as mgm
from free2ds_common.datasets import open_dataset
from free2ds_common.schemas import attention_schema


@pytest.fixture
def records(shared, tmp_path):
    chosen = [r for r in json.loads((shared / "parity/samples.json").read_text()) if r["unique_id"] in (2, 5, 10)]
    (tmp_path / "dataset.json").write_text(json.dumps(chosen))
    images = str(shared / "parity/images")
    arguments = ["--dataset-uri", str(tmp_path / "dataset.json"), "--image-root-uri", images]
    assert ingest([*arguments, "--records", str(tmp_path / "records"), "--rejects", str(tmp_path / "rejects")]) == 0
    return ["--shard", str(tmp_path / "records"), "--image-root-uri", images]


@pytest.mark.parametrize(("main", "name", "steps"), [(llava, "llava", 2), (llava, "llava_hf", 2), (mgm, "mgm", 19)])
def test_maps_of_three_records(records, shared, tmp_path, main, name, steps):
    model = str(shared / "parity/models" / name)
    assert main([*records, "--model", model, "--attention", str(tmp_path / "attention")]) == 0
    rows = list(open_dataset(tmp_path / "attention", attention_schema()).rows())
    assert [(row["outcome"], row["num_steps"]) for row in rows] == [("ok", steps), ("text_only", 0), ("eos_only", 1)]
    assert sum(rows[0]["map"]) == pytest.approx(1, abs=1e-5)


def test_seeds_do_not_change_mgms_maps(records, shared, tmp_path):
    """Eval mode: no DropPath."""
    import torch

    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        assert mgm([*records, "--model", str(shared / "parity/models/mgm"), "--attention", str(tmp_path / "a")]) == 0
        found.append([row["map"] for row in open_dataset(tmp_path / "a", attention_schema()).rows()])
    assert found[0] == found[1] and found[0][0] is not None


@pytest.mark.parametrize("main", [llava, mgm])
def test_the_other_models_folder_is_one_sentence_and_exit_2(records, shared, tmp_path, main, capsys):
    other = "mgm" if main is llava else "llava"
    arguments = [*records, "--model", str(shared / "parity/models" / other), "--attention", str(tmp_path / "a")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "architecture" in error
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("main", [llava, mgm])
def test_help_explains_every_option(main, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for option in "shard image-root-uri model revision vision-tower max-new-tokens batch-size dtype attention".split():
        assert f"--{option}" in shown
