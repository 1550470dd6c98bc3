"""Ports of commands that are URIs: what the work sees, what is published, and what is said when it goes wrong."""

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import fsspec
import pyarrow as pa
import pytest

from components.evaluate.config import ConvertConfig
from components.finetune.start import StartConfig
from components.joint_selection.config import SweepConfig
from free2ds_common import ports
from free2ds_common.cli import stage_main
from free2ds_common.datasets import MANIFEST, DatasetWriter, open_dataset
from free2ds_common.errors import StageError
from free2ds_common.ports import ports_of
from free2ds_common.result import Counts, StageResult
from free2ds_common.schemas import Schema
from free2ds_common.settings import Input, InputFile, InputFolder, NewOutput, Output, OutputOfFailures, Port
from free2ds_common.storage import filesystem, open_binary
from tests.support.buckets import BUCKET
from tests.support.stores import Answer

REPOSITORY = Path(__file__).resolve().parents[3]
STAGES = sorted(path.parent.name for path in REPOSITORY.glob("components/*/stage.py"))
NUMBERS = Schema("numbers/1", pa.schema([pa.field("number", pa.int64(), nullable=False)]))
DONE = StageResult(Counts(read=0, written=0))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Double the numbers.

    Attributes:
        numbers: Input folder.
        doubled: Output folder.
        more: Input folders.
        note: Input file.
        either: Input, a file or a sealed folder.
        page: Output file.
        rejects: Output file, also of a failure.
        new: Output folder, new.
    """

    numbers: InputFolder = ""
    doubled: Output = ""
    more: Sequence[InputFolder] = ()
    note: InputFile = ""
    either: Input = ""
    page: Output = ""
    rejects: OutputOfFailures = ""
    new: NewOutput = ""


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a stage whose work is given; returns exit code, stdout and stderr."""

    def start(work, **options):
        monkeypatch.setitem(sys.modules, "components.invented.stage", SimpleNamespace(run=work))
        argv = []
        for name, value in options.items():
            argv += [f"--{name}", *([value] if isinstance(value, str) else value)]
        code = stage_main("invented", Config, argv)
        return code, *capsys.readouterr()

    return start


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Where scratch folders are made; empty again after every test that does not look."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.fixture
def memory(tmp_path):
    """A folder of a store."""
    return f"memory://{tmp_path.name}"


def numbers(folder, values, rows_per_part=2):
    with DatasetWriter(folder, NUMBERS, rows_per_part) as writer:
        writer.write([{"number": value} for value in values])


def read(folder):
    return [row["number"] for row in open_dataset(folder, NUMBERS).rows()]


def double(config):
    numbers(config.doubled, [2 * number for number in read(config.numbers)])
    return DONE


def stored(uri):
    """Files below a URI, their bytes by path."""
    fs, root = filesystem(uri)
    fs.invalidate_cache()
    return {path.removeprefix(root.rstrip("/") + "/"): fs.cat_file(path) for path in fs.find(root)}


def fetched(uri, folder):
    """A copy of what is stored."""
    for below, content in stored(uri).items():
        (folder / below).parent.mkdir(parents=True, exist_ok=True)
        (folder / below).write_bytes(content)
    return folder


def put(place, folder, below):
    for path in folder.iterdir():
        place.put(f"{below}/{path.name}", path.read_bytes())


# Every stage


def config_of(stage):
    name = "".join(word.title() for word in stage.split("_")) + "Config"
    return getattr(importlib.import_module(f"components.{stage}.config"), name)


CONFIGS = [*map(config_of, STAGES), SweepConfig, ConvertConfig, StartConfig]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_what_is_described_as_a_port_is_one(config):
    """A port's description begins with Input or Output, and that of nothing else."""
    described = {}
    for part in reversed(config.__mro__):
        lines = (part.__doc__ or "").partition("Attributes:")[2].splitlines()
        described |= {
            name.strip(): text.split()[0].rstrip(",")
            for name, colon, text in (line.partition(":") for line in lines if line[8:9] != " ")
            if colon
        }
    wanted = {name: text for name, text in described.items() if text in ("Input", "Output")}
    if config is ConvertConfig:
        wanted |= {"files": "Input", "images": "Input", "output": "Output"}
    found = {name: "Output" if "output" in kind.value else "Input" for name, kind in ports_of(config).items()}
    assert found == wanted


@pytest.mark.parametrize("protocol", ["memory", "file"])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_works_on_uris(stage, protocol, tmp_path, monkeypatch, capsys):
    """Its work sees what lies at each port, as a path, and what it writes comes to where it belongs."""
    config = config_of(stage)
    root = f"{protocol}://{tmp_path}/{stage}"
    kinds = ports_of(config)
    inputs = {port for port, kind in kinds.items() if "input" in kind.value}
    folders = {port for port in inputs if kinds[port] is Port.INPUT_FOLDER}
    for port in inputs:
        fs, path = filesystem(f"{root}/{port}" + ("/file" if port in folders else ""))
        fs.makedirs(path.rpartition("/")[0], exist_ok=True)
        fs.pipe(path, port.encode())
    lists = {port for port in inputs if "Sequence" in str(config.__dataclass_fields__[port].type)}

    def work(local):
        for port in inputs:
            given = getattr(local, port)
            (path,) = given if port in lists else [given]
            assert (Path(path) / "file" if port in folders else Path(path)).read_bytes() == port.encode()
        for port in kinds.keys() - inputs:
            path = Path(getattr(local, port))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{port} of {stage}".encode())
        return StageResult(Counts(read=0, written=0), metadata={"shards": ["shard"], "sentence": "Nothing."})

    monkeypatch.setitem(sys.modules, f"components.{stage}.stage", SimpleNamespace(run=work))
    required = {"dataset-uri": "d", "image-root-uri": "i", "model": "m", "benchmarks": "b", "arms": "selected:1"}
    required |= {"llava-model": "l", "mgm-model": "m"}
    known = {field.replace("_", "-") for field in config.__dataclass_fields__}
    options = {option: value for option, value in required.items() if option in known}
    options |= {port.replace("_", "-"): f"{root}/{port}" for port in kinds}
    main = importlib.import_module(f"components.{stage}.__main__").main
    assert main([word for option, value in options.items() for word in (f"--{option}", value)]) == 0
    for port in kinds.keys() - inputs:
        with open_binary(f"{root}/{port}") as written:
            assert written.read(100) == f"{port} of {stage}".encode()
    assert "free2ds-ports-" not in capsys.readouterr().out


# Every kind of place


def test_a_folder_of_any_place_is_read(place, run, tmp_path):
    numbers(tmp_path / "in", [1, 2, 3])
    put(place, tmp_path / "in", "numbers")
    assert run(double, numbers=f"{place.uri}/numbers", doubled=str(tmp_path / "out"))[0] == 0
    assert read(tmp_path / "out") == [2, 4, 6]


@pytest.mark.parametrize("place", ["plain path", "file", "memory", "s3", "gs"], indirect=True)
def test_a_folder_of_any_place_is_written(place, run, tmp_path):
    """The parts of an earlier run, which were more, are gone; what else lies there stays."""
    place.put("doubled/part-of-mine.txt", b"mine")
    for values in ([1, 2, 3, 4, 5], [1, 2, 3]):
        numbers(tmp_path / "in", values)
        assert run(double, numbers=str(tmp_path / "in"), doubled=f"{place.uri}/doubled")[0] == 0
    found = fetched(f"{place.uri}/doubled", tmp_path / "copy")
    assert read(found) == [2, 4, 6]
    assert sorted(path.name for path in found.iterdir()) == [
        *(MANIFEST, "part-00000.parquet", "part-00001.parquet", "part-of-mine.txt")
    ]


def test_a_sealed_folder_of_a_web_server_that_lists_none(store, run, tmp_path):
    numbers(tmp_path / "in", [1, 2, 3])
    for path in (tmp_path / "in").iterdir():
        store.script(f"/numbers/{path.name}", Answer(body=path.read_bytes()))
    assert run(double, numbers=f"{store.url}/numbers", doubled=str(tmp_path / "out"))[0] == 0
    assert read(tmp_path / "out") == [2, 4, 6]


def test_a_file_is_read_and_written(place, run, tmp_path):
    place.put("a b.txt", b"one")
    seen = []
    assert run(lambda config: (seen.append(config.note), DONE)[1], note=str(tmp_path / "x"))[0] == 0

    def work(config):
        seen.append(Path(config.note).name)
        Path(config.page).write_bytes(Path(config.note).read_bytes() * 2)
        return DONE

    name = "a%20b.txt" if place.uri.startswith("http") else "a b.txt"
    target = "memory://page" if place.uri.startswith("http") else f"{place.uri}/page"
    assert run(work, note=f"{place.uri}/{name}", page=target)[0] == 0
    with open_binary(target) as page:
        assert page.read(100) == b"oneone"
    assert seen == [str(tmp_path / "x"), name]


def test_a_port_for_a_file_or_a_sealed_folder(memory, run, tmp_path):
    numbers(tmp_path / "in", [7])
    files = fsspec.filesystem("memory")
    for path in (tmp_path / "in").iterdir():
        files.pipe(f"/{tmp_path.name}/folder/{path.name}", path.read_bytes())
    files.pipe(f"/{tmp_path.name}/list.json", b"[7]")
    found = []

    def work(config):
        path = Path(config.either)
        found.append(read(path) if path.is_dir() else json.loads(path.read_text()))
        return DONE

    assert [run(work, either=f"{memory}/{name}")[0] for name in ("folder", "list.json")] == [0, 0]
    assert found == [[7], [7]]


def test_several_folders_of_one_port(memory, run, tmp_path):
    for name in ("one", "two"):
        numbers(tmp_path / name, [len(name)])
        for path in (tmp_path / name).iterdir():
            fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/{name}/{path.name}", path.read_bytes())
    found = []
    run(lambda config: (found.extend(map(read, config.more)), DONE)[1], more=[f"{memory}/one", str(tmp_path / "two")])
    assert found == [[3], [3]]


# Publishing


@pytest.fixture
def asked(monkeypatch):
    """What was removed from and put into a store of memory, in order."""
    calls = []
    files = type(fsspec.filesystem("memory"))
    for name, argument in (("put_file", 1), ("rm_file", 0)):
        work = getattr(files, name)

        def counted(self, *paths, _work=work, _name=name, _argument=argument, **options):
            calls.append((_name, paths[_argument].rpartition("/")[2]))
            return _work(self, *paths, **options)

        monkeypatch.setattr(files, name, counted)
    return calls


def test_the_old_manifest_goes_first_and_the_new_one_comes_last(memory, run, tmp_path, asked, monkeypatch):
    monkeypatch.setattr(ports, "_AT_A_TIME", 1)
    for values in ([1, 2, 3], [1]):
        asked.clear()
        numbers(tmp_path / "in", values)
        run(double, numbers=str(tmp_path / "in"), doubled=f"{memory}/doubled")
    assert asked == [
        ("rm_file", MANIFEST),
        ("put_file", "part-00000.parquet"),
        ("rm_file", "part-00001.parquet"),
        ("put_file", MANIFEST),
    ]


def test_shards_of_an_earlier_run_are_removed_whatever_their_number(memory, run, tmp_path):
    def work(count):
        def write(config):
            for shard in range(count):
                numbers(Path(config.doubled) / f"shard-{shard:05d}-of-{count:05d}", [shard])
            return DONE

        return write

    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/shards/mine/{MANIFEST}", b"{}")
    for count in (3, 2):
        assert run(work(count), doubled=f"{memory}/shards")[0] == 0
    assert sorted({path.partition("/")[0] for path in stored(f"{memory}/shards")}) == [
        *("mine", "shard-00000-of-00002", "shard-00001-of-00002")
    ]


def test_a_stage_that_fails_publishes_nothing_but_what_explains_it(memory, run, tmp_path, scratch):
    def work(config):
        numbers(config.doubled, [1])
        Path(config.rejects).write_text("one")
        raise StageError("too many rejected.")

    code, _, said = run(work, doubled=f"{memory}/doubled", rejects=f"{memory}/rejects")
    assert (code, said) == (2, "error: too many rejected.\n")
    assert stored(f"{memory}/doubled") == {}
    with open_binary(f"{memory}/rejects") as rejects:
        assert rejects.read(100) == b"one"
    assert list(scratch.iterdir()) == []


def test_a_store_that_takes_nothing_keeps_what_was_written(memory, run, tmp_path, monkeypatch, scratch):
    def refuse(*_, **__):
        raise PermissionError("Forbidden")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", refuse)
    numbers(tmp_path / "in", [1])
    files = fsspec.filesystem("memory")
    for path in (tmp_path / "in").iterdir():
        files.pipe(f"/{tmp_path.name}/numbers/{path.name}", path.read_bytes())
    code, _, said = run(double, numbers=f"{memory}/numbers", doubled=f"{memory}/doubled")
    assert code == 2
    (kept,) = scratch.iterdir()
    assert [path.name for path in kept.iterdir()] == ["outputs"]
    assert said.startswith(f"error: doubled: {memory}/doubled/part-00000.parquet: may not be written (PermissionError")
    assert "Give credentials that may write it" in said
    assert said.endswith(f"What was written is kept in {kept}/outputs.\n")
    assert read(kept / "outputs/doubled") == [2]


def test_a_bucket_that_is_not_there(s3, run, tmp_path):
    numbers(tmp_path / "in", [1])
    code, _, said = run(double, numbers=str(tmp_path / "in"), doubled="s3://no-such-bucket/doubled")
    assert code == 2
    assert "doubled: s3://no-such-bucket/doubled: cannot be written to, perhaps there is no such bucket." in said


@pytest.mark.parametrize("bucket", ["s3", "gcs"])
def test_a_bucket_that_fails_for_a_moment_while_it_is_written(bucket, run, tmp_path, pauses, request):
    bucket = request.getfixturevalue(bucket)
    numbers(tmp_path / "in", [1, 2, 3])

    def work(config):
        bucket.faults[:] = [Answer(503)] * 3
        return double(config)

    uri = f"{bucket.scheme}{BUCKET}/{tmp_path.name}/doubled"
    assert run(work, numbers=str(tmp_path / "in"), doubled=uri)[0] == 0
    assert bucket.faults == []
    assert read(fetched(uri, tmp_path / "copy")) == [2, 4, 6]


def test_a_file_that_is_not_taken_at_once_is_stored_again(memory, run, tmp_path, pauses, monkeypatch):
    files = type(fsspec.filesystem("memory"))
    store, calls = files.put_file, []

    def fail_twice(self, *paths, **options):
        calls.append(paths)
        if len(calls) < 3:
            raise ConnectionResetError("reset by peer")
        return store(self, *paths, **options)

    monkeypatch.setattr(files, "put_file", fail_twice)
    assert run(lambda config: (Path(config.page).write_bytes(b"page"), DONE)[1], page=f"{memory}/page")[0] == 0
    assert stored(memory) == {"page": b"page"}
    assert len(calls) == 3


# What is said


def refused(run, **options):
    code, _, said = run(lambda _: pytest.fail("it was run"), **options)
    assert code == 2
    return said


def test_a_web_server_is_not_written_to(run):
    assert refused(run, doubled="https://me:secret@example.org/x") == (
        "error: doubled: got https://***@example.org/x, which can only be read. "
        "Give a folder of this machine or an object store.\n"
    )


def test_a_folder_that_is_not_there(memory, run):
    assert refused(run, numbers=f"{memory}/none").startswith(f"error: numbers: {memory}/none: no folder with files")


def test_a_file_that_is_not_there(memory, run):
    assert refused(run, note=f"{memory}/none.json") == (
        f"error: note: {memory}/none.json: nothing there. Give the URI of a file.\n"
    )


def test_an_unknown_protocol(run):
    assert refused(run, numbers="nowhere://x").startswith("error: numbers: nowhere://x: cannot be opened")


def test_a_new_folder_that_is_there_already(memory, run, tmp_path):
    fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/new/x", b"x")
    said = refused(run, new=f"{memory}/new")
    assert said == f"error: new: {memory}/new: is there already, wanted a new or an empty folder.\n"


def test_an_altered_part_is_named_by_its_uri(memory, run, tmp_path, scratch):
    numbers(tmp_path / "in", [1])
    for path in (tmp_path / "in").iterdir():
        content = path.read_bytes() + b"x" * (path.suffix == ".parquet")
        fsspec.filesystem("memory").pipe(f"/{tmp_path.name}/numbers/{path.name}", content)
    code, _, said = run(double, numbers=f"{memory}/numbers", doubled=f"{memory}/doubled")
    assert code == 2
    assert said.startswith(f"error: {memory}/numbers: part-00000.parquet is not the file that was written")
    assert list(scratch.iterdir()) == []


def test_plain_paths_are_handed_on_as_they_are(run, scratch):
    seen = []
    run(lambda config: (seen.append(config), DONE)[1], numbers="a/../b", doubled="c", more=["d::e"])
    assert seen == [Config(numbers="a/../b", doubled="c", more=["d::e"])]
    assert list(scratch.iterdir()) == []
