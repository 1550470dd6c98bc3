"""`python -m components.split`."""

import json

import pytest

from components.split.__main__ import main
from free2ds_common.datasets import open_dataset
from free2ds_common.schemas import RECORDS
from tests.support.records import record_row, write_records


@pytest.fixture
def records(tmp_path):
    rows = [record_row(number, image=f"{number}.jpg") for number in range(1, 21)]
    return write_records(tmp_path / "records", rows)


def test_help_explains_every_port(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in ("--records", "--num-shards", "--shards", "(default: 0)", "--records-per-shard"):
        assert option in text


def test_prints_the_shards_one_a_line_and_then_the_counts(records, tmp_path, capsys):
    shards = str(tmp_path / "shards")
    assert main(["--records", records, "--num-shards", "3", "--shards", shards + "/"]) == 0
    lines = capsys.readouterr().out.splitlines()
    printed = [line for line in lines if line.startswith(shards)]
    assert printed == [f"{shards}/shard-0000{number}-of-00003" for number in range(3)]
    assert sum(open_dataset(shard, RECORDS).num_rows for shard in printed) == 20
    assert json.loads(lines[-1])["written"] == 20


def test_default_is_the_pipelines(records, tmp_path, capsys):
    assert main(["--records", records, "--shards", str(tmp_path / "shards")]) == 0
    assert len(list((tmp_path / "shards").iterdir())) == 1
    assert main(["--records", records, "--shards", str(tmp_path / "shards"), "--records-per-shard", "6"]) == 0
    assert len(list((tmp_path / "shards").iterdir())) == 4


def test_wrong_set_up_is_one_sentence_and_exit_code_2(records, tmp_path, capsys):
    assert main(["--records", records, "--num-shards", "65", "--shards", str(tmp_path / "shards")]) == 2
    assert main(["--records", str(tmp_path), "--shards", str(tmp_path / "shards")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert errors[0] == "error: num_shards: got 65, wanted 1 to 64, or 0 (by records_per_shard)."
    assert errors[1].startswith(f"error: {tmp_path}: no _manifest.json")
    assert len(errors) == 2
