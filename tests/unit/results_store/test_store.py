import hashlib
import shutil
import threading

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest

from free2ds_common.errors import StageError
from free2ds_common.results_store import parts as parts_module
from free2ds_common.results_store import store as store_module
from free2ds_common.results_store.parts import Part
from free2ds_common.results_store.writer import PartWriter
from tests.support.results import KIND, key, open_store, parts, row

ALL = range(1024)


@pytest.fixture(params=["local", "memory"])
def root(request, tmp_path):
    """A store's location; the two are read in different ways."""
    if request.param == "local":
        yield str(tmp_path / "store")
        return
    yield f"memory://results-{tmp_path.name}/store"
    fsspec.filesystem("memory").store.clear()


def taken(store, numbers, tmp_path, buckets=ALL):
    found = store.take([key(number) for number in numbers], buckets, tmp_path)
    return {number: found.row(key(number)) for number in numbers if key(number) in found}


def test_an_empty_store_has_nothing(root, tmp_path):
    found = open_store(root).take([key(1)], ALL, tmp_path)
    assert (len(found), found.broken) == (0, [])


def test_what_is_written_is_found_by_its_key(root, tmp_path):
    store = open_store(root)
    store.write([row(1), row(2)])
    store.write([row(5), row(7)])
    found = taken(store, [1, 5, 6, 7], tmp_path)
    assert [(number, result["number"]) for number, result in found.items()] == [(1, 1), (5, 5), (7, 7)]
    assert found[5]["map"] is None
    np.testing.assert_array_equal(found[7]["map"], np.full(4, 7, np.float32))
    assert found[7]["map"].dtype == np.float32


def test_other_settings_are_another_folder(root, tmp_path):
    open_store(root, dtype="float32").write([row(1)])
    assert taken(open_store(root, dtype="bfloat16"), [1], tmp_path) == {}
    assert list(taken(open_store(root, dtype="float32"), [1], tmp_path)) == [1]


def test_only_parts_with_a_wanted_bucket_are_looked_at(root, tmp_path, monkeypatch):
    store = open_store(root)
    for bucket in (0, 16, 31):
        store.write([row(bucket + 1, bucket), row(bucket + 2, bucket + 1)])
    looked_at = []
    read_keys = store_module.read_keys
    monkeypatch.setattr(
        store_module, "read_keys", lambda fs, part: (looked_at.append((part.first, part.last)), read_keys(fs, part))[1]
    )
    assert list(taken(store, range(1, 100), tmp_path, range(17, 32))) == [17, 18, 32, 33]
    assert sorted(looked_at) == [(16, 17), (31, 32)]


def test_rows_are_read_of_parts_that_have_a_wanted_key(root, tmp_path, monkeypatch):
    store = open_store(root)
    for number in (1, 2, 3):
        store.write([row(number)])
    read = []
    read_part = store_module.read_part
    monkeypatch.setattr(
        store_module, "read_part", lambda fs, part, columns: (read.append(1), read_part(fs, part, columns))[1]
    )
    assert list(taken(store, [2], tmp_path)) == [2]
    assert len(read) == 1


def test_the_keys_alone_are_read_from_a_store(tmp_path, monkeypatch):
    """Of a large part: its end, with the footer, and the column of the keys."""
    store = open_store("memory://keys/store")
    noise = np.random.default_rng(0).normal(size=(20_000, 4)).astype(np.float32)
    store.write([{**row(number), "map": noise[number]} for number in range(20_000)])
    (part,) = store._parts([0])
    asked = []
    fs = fsspec.filesystem("memory")
    cat_file = fs.cat_file
    monkeypatch.setattr(
        fs, "cat_file", lambda path, start, end: (asked.append(end - start), cat_file(path, start=start, end=end))[1]
    )
    assert parts_module.read_keys(fs, part) == [key(number) for number in range(20_000)]
    assert sum(asked) < part.size / 2
    fs.store.clear()


def test_of_one_key_in_two_parts_the_first_by_name_is_taken(root, tmp_path):
    store = open_store(root)
    for value in (11.0, 12.0, 13.0):
        store.write([row(1, value=value), row(2)])
    names = [part.name for part in store._parts([0])]
    first = pq.read_table(_open(root, store, names[0])).column("map")[0].as_py()
    assert taken(store, [1, 2], tmp_path)[1]["map"].tolist() == first


def _open(root, store, name):
    fs, _ = fsspec.core.url_to_fs(root)
    return fs.open(f"{store._folder}/{name}", "rb")


def test_names_say_what_is_inside(tmp_path):
    store = open_store(tmp_path)
    store.write([row(1, 900), row(2, 17), row(3, 17)])
    (path,) = parts(tmp_path)
    first, last, rows, digest, unique = path.stem.split("-")
    assert (first, last, rows, len(unique)) == ("0017", "0900", "3", 8)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert Part.of(str(path), "u", 7) == Part(str(path), "u", 7, 17, 900, 3, digest)


@pytest.mark.parametrize("name", ["x.parquet", ".0001-0002-3-" + "a" * 64 + "-01234567.parquet.abc", "_settings.json"])
def test_other_files_are_no_parts(tmp_path, name):
    store = open_store(tmp_path)
    store.write([row(1)])
    (path,) = parts(tmp_path)
    (path.parent / name).write_bytes(b"?")
    found = store.take([key(1)], ALL, tmp_path)
    assert (len(found), found.broken) == (1, [])


def test_two_writers_of_the_same_results_do_not_meet(root, tmp_path):
    """Each its own part, at the same time; a reader has one of them or both."""
    stores = [open_store(root) for _ in range(2)]
    start = threading.Barrier(2)

    def work(store):
        start.wait()
        for number in range(20):
            store.write([row(number + 1), row(number + 2)])

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(stores[0]._parts([0])) == 40
    assert list(taken(open_store(root), range(1, 30), tmp_path)) == list(range(1, 22))


def damaged(path, how):
    data = path.read_bytes()
    middle = len(data) // 2
    path.write_bytes(
        {
            "cut off": data[:middle],
            "empty": b"",
            "altered": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "longer": data + b"x",
            "no parquet": b"x" * len(data),
            "end": data[:-1] + b"?",
        }[how]
    )


@pytest.mark.parametrize("how", ["cut off", "empty", "altered", "longer", "no parquet", "end"])
def test_a_part_that_is_not_as_written_is_named_and_left_out(tmp_path, caplog, how):
    store = open_store(tmp_path / "store")
    store.write([row(1), row(2)])
    (path,) = parts(tmp_path / "store")
    damaged(path, how)
    store.write([row(3)])
    found = store.take([key(number) for number in (1, 2, 3)], ALL, tmp_path)
    assert [number for number in (1, 2, 3) if key(number) in found] == [3]
    assert found.broken == [path.name]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert path.name in warning
    assert "is not as it was written" in warning
    assert "are computed again" in warning


def test_any_altered_byte_is_noticed(tmp_path):
    """Whatever a changed byte does to Parquet: never another result."""
    store = open_store(tmp_path / "store")
    store.write([row(1), row(2), row(5)])
    (path,) = parts(tmp_path / "store")
    data = path.read_bytes()
    for place in (*range(0, len(data), 40), *range(len(data) - 9, len(data))):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        assert taken(store, [1, 2, 5], tmp_path) == {}


def test_an_altered_key_is_noticed_although_nobody_wants_it(root, tmp_path):
    store = open_store(root)
    wanted = hashlib.sha256(b"a record").digest()
    store.write([{**row(1), "key": wanted}])
    (part,) = store._parts([0])
    fs, _ = fsspec.core.url_to_fs(root)
    data = fs.cat_file(part.path)
    # Nothing can be compressed in a hash.
    place = data.index(wanted)
    fs.pipe_file(part.path, data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert store.take([wanted], ALL, tmp_path).broken == [part.name]


def test_a_part_altered_on_its_way_is_read_again(tmp_path, monkeypatch):
    store = open_store(tmp_path / "store")
    store.write([row(1)])
    read_bytes, calls = parts_module.read_bytes, []

    def once_wrong(*arguments):
        calls.append(1)
        data = read_bytes(*arguments)
        return data if len(calls) > 1 else data[:-1]

    monkeypatch.setattr(parts_module, "read_bytes", once_wrong)
    assert list(taken(store, [1], tmp_path)) == [1]
    assert len(calls) == 2


def test_keys_altered_on_their_way_are_read_again(tmp_path, monkeypatch):
    store = open_store("memory://again/store")
    store.write([row(1)])
    fs = fsspec.filesystem("memory")
    cat_file, calls = fs.cat_file, []

    def once_wrong(path, start, end):
        calls.append(1)
        data = cat_file(path, start=start, end=end)
        return data if len(calls) > 1 else b"x" * len(data)

    monkeypatch.setattr(fs, "cat_file", once_wrong)
    found = store.take([key(1)], ALL, tmp_path)
    assert (len(found), found.broken) == (1, [])
    fs.store.clear()


def test_a_part_that_goes_while_it_is_read_was_put_together_with_others(tmp_path, monkeypatch):
    store = open_store(tmp_path / "store")
    store.write([row(1)])
    (path,) = parts(tmp_path / "store")
    read_keys = store_module.read_keys

    def compacted(fs, part):
        if path.exists():
            store.write([row(1), row(2)])
            path.unlink()
        return read_keys(fs, part)

    monkeypatch.setattr(store_module, "read_keys", compacted)
    found = store.take([key(1), key(2)], ALL, tmp_path)
    assert (len(found), found.broken) == (2, [])


def test_columns_of_another_version_are_no_results(tmp_path, monkeypatch):
    store = open_store(tmp_path / "store")
    store.write([row(1)])
    monkeypatch.setattr(store, "_kind", type(KIND)("numbers", KIND.columns.remove(1)))
    found = store.take([key(1)], ALL, tmp_path)
    assert (len(found), len(found.broken)) == (0, 1)


def test_a_store_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StageError, match="lies below a file, wanted a folder for results"):
        open_store(tmp_path / "file").take([key(1)], ALL, tmp_path)


def test_a_protocol_that_nobody_knows_is_refused():
    with pytest.raises(StageError, match="nowhere://a: cannot be opened"):
        open_store("nowhere://a")


class TestWriter:
    def add(self, writer, number):
        made = row(number)
        writer.add(made.pop("key"), made.pop("bucket"), made)

    def test_a_part_ends_after_so_many_results(self, tmp_path, monkeypatch):
        monkeypatch.setattr("free2ds_common.results_store.writer.ROWS_PER_PART", 3)
        with PartWriter(open_store(tmp_path / "store")) as writer:
            sizes = []
            for number in range(1, 8):
                self.add(writer, number)
                sizes.append(len(parts(tmp_path / "store")))
        assert sizes == [0, 0, 1, 1, 1, 2, 2]
        assert len(parts(tmp_path / "store")) == 3
        assert (writer.saved, writer.lost) == (7, 0)

    def test_a_part_ends_after_so_many_seconds_since_its_first_result(self, tmp_path, monkeypatch):
        clock = iter([100.0, 100.0, 159.9, 160.0, 500.0, 500.0])
        monkeypatch.setattr("free2ds_common.results_store.writer.time.monotonic", lambda: next(clock))
        writer = PartWriter(open_store(tmp_path / "store"))
        sizes = []
        for number in range(1, 5):
            self.add(writer, number)
            sizes.append(len(parts(tmp_path / "store")))
        assert sizes == [0, 0, 1, 1]

    def test_what_is_held_is_written_when_the_work_fails(self, tmp_path):
        def work():
            with PartWriter(open_store(tmp_path / "store")) as writer:
                self.add(writer, 1)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            work()
        assert len(parts(tmp_path / "store")) == 1

    def test_a_part_that_cannot_be_written_is_a_warning(self, tmp_path, caplog):
        (tmp_path / "store").write_text("in the way")
        with PartWriter(open_store(tmp_path / "store")) as writer:
            self.add(writer, 1)
        assert (writer.saved, writer.lost) == (0, 1)
        assert "1 results could not be kept" in caplog.text

    def test_no_results_no_part(self, tmp_path):
        with PartWriter(open_store(tmp_path / "store")):
            pass
        assert parts(tmp_path) == []

    def test_a_part_of_which_writing_failed_is_not_there(self, tmp_path, monkeypatch):
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        with PartWriter(open_store(tmp_path / "store")) as writer:
            self.add(writer, 1)
        monkeypatch.undo()
        assert writer.lost == 1
        assert [path for path in (tmp_path / "store").rglob("*") if path.is_file()] == []
        shutil.rmtree(tmp_path / "store")
