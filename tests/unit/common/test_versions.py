"""Which version of a file or folder lies at a location."""

import hashlib
import os

import fsspec
import pytest

from free2ds_common import versions
from free2ds_common.errors import StageError
from free2ds_common.versions import file_version, folder_version, require_versions


@pytest.fixture
def memory():
    fs = fsspec.filesystem("memory")
    fs.pipe({"/b/a.txt": b"a", "/b/sub/b.txt": b"bb"})
    yield fs
    fs.rm("/b", recursive=True)


class TestFile:
    def test_of_a_local_file_is_its_content(self, tmp_path):
        (tmp_path / "d.json").write_bytes(b"[]")
        assert file_version(str(tmp_path / "d.json")) == f"sha256 {hashlib.sha256(b'[]').hexdigest()}"

    def test_of_a_store_that_says_nothing_is_its_content(self, memory):
        assert file_version("memory://b/a.txt") == f"sha256 {hashlib.sha256(b'a').hexdigest()}"

    @pytest.mark.parametrize(
        ("info", "version"),
        [
            ({"size": 1, "generation": "17", "etag": "x"}, "generation 17"),
            ({"size": 1, "ETag": '"abc-2"', "LastModified": "today"}, "etag abc-2"),
            ({"size": 1, "md5Hash": "m"}, "md5hash m"),
        ],
    )
    def test_of_a_store_is_what_it_says(self, monkeypatch, info, version):
        class Store:
            def info(self, path):
                return info

        monkeypatch.setattr(versions, "filesystem", lambda uri: (Store(), "b/d.json"))
        assert file_version("gs://b/d.json") == version

    @pytest.mark.parametrize("uri", ["memory://b/none.json", "/nowhere/none.json"])
    def test_nothing_there(self, uri):
        with pytest.raises(StageError, match=rf"^{uri}: nothing there that can be read\. Check the URI\."):
            file_version(uri)


class TestFolder:
    def test_of_a_local_folder(self, tmp_path):
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub/a.png").write_bytes(b"a")
        (tmp_path / "b.png").write_bytes(b"b")
        found = folder_version(str(tmp_path))
        assert found == folder_version(f"file://{tmp_path}")
        assert found.startswith("2 files ")

    @pytest.mark.parametrize("change", ["touch", "grow", "rename", "add", "remove"])
    def test_every_change_is_another_version(self, tmp_path, change):
        for name in ("a", "b"):
            (tmp_path / name).write_bytes(b"1")
            os.utime(tmp_path / name, ns=(10**18, 10**18))
        before = folder_version(str(tmp_path))
        file = tmp_path / "b"
        if change == "touch":
            os.utime(file, ns=(10**18, 10**18 + 1))
        elif change == "grow":
            file.write_bytes(b"12")
            os.utime(file, ns=(10**18, 10**18))
        elif change == "rename":
            file.rename(tmp_path / "c")
        elif change == "add":
            (tmp_path / "c").write_bytes(b"")
        else:
            file.unlink()
        assert folder_version(str(tmp_path)) != before

    def test_a_link_counts_as_what_it_leads_to(self, tmp_path):
        (tmp_path / "blobs").mkdir()
        (tmp_path / "model").mkdir()
        (tmp_path / "blobs/x").write_bytes(b"1")
        (tmp_path / "model/x").symlink_to("../blobs/x")
        (tmp_path / "model/gone").symlink_to("../blobs/gone")
        before = folder_version(str(tmp_path / "model"))
        assert before.startswith("1 files ")
        (tmp_path / "blobs/x").write_bytes(b"12")
        assert folder_version(str(tmp_path / "model")) != before

    def test_of_a_store(self, memory):
        before = folder_version("memory://b")
        assert before.startswith("2 files ")
        assert folder_version("memory://b/") == before
        memory.pipe("/b/sub/b.txt", b"bbb")
        assert folder_version("memory://b") != before

    def test_an_empty_folder_of_a_store_is_a_wrong_uri(self, memory):
        with pytest.raises(StageError, match=r"^memory://nothing: no file there\. Check the URI\."):
            folder_version("memory://nothing")

    def test_a_web_server_is_never_the_same(self):
        assert folder_version("https://host/images") != folder_version("https://host/images")


class TestEveryKindOfLocation:
    """A path, file://, memory://, http:// and real servers of S3 and GCS (`place`)."""

    def test_a_file(self, place):
        place.put("folder/d.json", b"[]")
        before = file_version(f"{place.uri}/folder/d.json")
        assert file_version(f"{place.uri}/folder/d.json") == before
        place.put("folder/d.json", b"[1]")
        assert file_version(f"{place.uri}/folder/d.json") != before

    def test_a_folder(self, place):
        place.put("pictures/a.png", b"a")
        place.put("pictures/sub/b.png", b"b")
        before = folder_version(f"{place.uri}/pictures")
        if place.uri.startswith("http"):
            assert before.startswith("unknown ")
            return
        assert before.startswith("2 files ")
        assert folder_version(f"{place.uri}/pictures") == before
        place.put("pictures/sub/b.png", b"c")
        assert folder_version(f"{place.uri}/pictures") != before


class TestRequired:
    """Folders that have to be as they were."""

    @pytest.fixture
    def folders(self, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_text(name)
        return [str(tmp_path / name) for name in ("a", "b")]

    def test_as_they_were(self, folders):
        require_versions("benchmarks", folders, ", ".join(map(folder_version, folders)))

    @pytest.mark.parametrize("changed", [0, 1])
    def test_one_that_changed(self, folders, changed):
        before = ", ".join(map(folder_version, folders))
        with open(f"{folders[changed]}/file", "a") as handle:
            handle.write("x")
        sentence = rf"^benchmarks: {folders[changed]} has changed since the run began\. Start the run again\.$"
        with pytest.raises(StageError, match=sentence):
            require_versions("benchmarks", folders, before)

    @pytest.mark.parametrize("version", ["", "main", "0" * 40, "unknown 1", "unknown 1, unknown 2"])
    def test_what_is_no_version_of_a_folder_says_nothing(self, folders, version):
        require_versions("model", folders, version)
