"""`python -m components.ingest`."""

import json
import os

import pytest

from components.ingest.__main__ import main
from free2ds_common.datasets import open_dataset
from free2ds_common.schemas import RECORDS

GOOD = {"id": 1, "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


@pytest.fixture
def arguments(tmp_path):
    def build(content, *more):
        (tmp_path / "data.json").write_text(content)
        return [
            "--dataset-uri",
            str(tmp_path / "data.json"),
            "--image-root-uri",
            "",
            "--records",
            str(tmp_path / "records"),
            "--rejects",
            str(tmp_path / "rejects.jsonl"),
            *more,
        ]

    return build


def test_help_explains_every_port(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in ("--dataset-uri", "--image-root-uri", "--max-reject-fraction", "--records", "--rejects"):
        assert option in text
    assert "(default: 0.05)" in text
    assert "None" not in text


def test_run(arguments, tmp_path, capsys):
    assert main(arguments(json.dumps([GOOD]))) == 0
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert counts == {
        "read": 1,
        "written": 1,
        "dropped": 0,
        "rejected": 0,
        "records_with_image": 0,
        "records_text_only": 1,
        "pictures_of_one_colour": 0,
    }
    assert open_dataset(tmp_path / "records", RECORDS).num_rows == 1


def test_default_reject_fraction_stops_the_run(arguments, tmp_path, capsys):
    assert main(arguments(json.dumps([GOOD, {}]))) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "1 of 2 records rejected (conversations_missing 1)" in error
    assert len((tmp_path / "rejects.jsonl").read_text().splitlines()) == 1
    assert main(arguments(json.dumps([GOOD, {}]), "--max-reject-fraction", "0.5")) == 0


@pytest.mark.parametrize("content", ["", "nonsense", "{}", "[]", "[1"])
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, capsys, content):
    assert main(arguments(content)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_a_pipe_as_data_set_is_refused_at_once(arguments, tmp_path, capsys):
    given = arguments("")
    os.mkfifo(tmp_path / "pipe")
    given[1] = str(tmp_path / "pipe")
    assert main(given) == 2
    sentence = f"error: {tmp_path}/pipe: is a pipe, a socket or a device, wanted a regular file.\n"
    assert capsys.readouterr().err == sentence


def test_missing_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--dataset-uri", "x"])
    assert stopped.value.code == 2
    assert "--image-root-uri" in capsys.readouterr().err
