"""One picture: opened, or a fixed word why not."""

import errno
import io
import os
import zipfile

import fsspec
import pytest
from PIL import Image

from free2ds_common import pictures
from free2ds_common.outcomes import IMAGE_FAILURES
from free2ds_common.pictures import FORMATS, PictureProblem, decode_picture, load_picture, read_picture_bytes


def encoded(picture, kind="PNG", **options):
    data = io.BytesIO()
    picture.save(data, kind, **options)
    return data.getvalue()


def problem(call, *arguments):
    with pytest.raises(PictureProblem) as caught:
        call(*arguments)
    assert caught.value.reason in IMAGE_FAILURES
    assert str(caught.value) == f"{caught.value.reason}: {caught.value.detail}"
    return caught.value.reason, caught.value.detail


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats(kind):
    picture = decode_picture(
        encoded(Image.new("RGB", (5, 4), "red"), kind, **({"quality": 100} if kind == "JPEG" else {})), "n"
    )
    assert picture.mode == "RGB"
    assert picture.size == (5, 4)
    assert all(abs(one - other) <= 2 for one, other in zip(picture.getpixel((2, 2)), (255, 0, 0), strict=True))


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (Image.new("L", (2, 2), 7), (7, 7, 7)),
        (Image.new("1", (2, 2), 1), (255, 255, 255)),
        (Image.new("RGBA", (2, 2), (1, 2, 3, 0)), (1, 2, 3)),  # invisible, and yet its colour
        (Image.new("LA", (2, 2), (9, 0)), (9, 9, 9)),
        (Image.new("RGB", (2, 2), (1, 2, 3)).quantize(2), (1, 2, 3)),
    ],
)
def test_every_mode_becomes_rgb(picture, expected):
    assert decode_picture(encoded(picture), "n").getpixel((0, 0)) == expected


@pytest.mark.parametrize(
    "data", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]
)
def test_no_picture(data):
    assert problem(decode_picture, data, "a.jpg") == ("image_unreadable", "a.jpg: not a picture in a known format")


def test_formats_that_run_programs_are_not_opened():
    assert "EPS" not in FORMATS
    assert "JPEG" in FORMATS
    assert "PNG" in FORMATS


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated(kind):
    data = encoded(Image.effect_noise((64, 64), 50), kind)
    assert problem(decode_picture, data[: len(data) * 2 // 3], "a")[0] == "image_unreadable"


def test_damaged_in_ways_pillow_has_odd_errors_for(monkeypatch):
    for error in (RuntimeError("avif"), NotImplementedError("dds"), IndexError("x"), MemoryError("y")):

        def broken(*arguments, error=error, **options):
            raise error

        monkeypatch.setattr(pictures.Image, "open", broken)
        if isinstance(error, MemoryError):  # says nothing about the picture
            with pytest.raises(MemoryError):
                decode_picture(b"", "a")
        else:
            assert problem(decode_picture, b"", "a") == ("image_unreadable", f"a: {error}")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_absurdly_large(monkeypatch):
    assert problem(decode_picture, encoded(Image.new("1", (10_001, 10_000))), "a") == (
        "image_too_large",
        "a: 10001 x 10000 pixels, at most 100000000 are read",
    )
    assert problem(decode_picture, encoded(Image.new("1", (20_000, 20_000))), "a") == (
        "image_too_large",
        "a: far more than 100000000 pixels",
    )
    assert problem(decode_picture, encoded(Image.new("1", (101, 1))), "a") == (
        "image_too_large",
        "a: 101 x 1 is more elongated than 100 to 1",
    )
    assert decode_picture(encoded(Image.new("1", (1, 100))), "a").size == (1, 100)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 12)
    assert decode_picture(encoded(Image.new("1", (4, 3))), "a").size == (4, 3)


def test_file_size(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"1234")
    monkeypatch.setattr(pictures, "MAX_BYTES", 4)
    assert read_picture_bytes(str(tmp_path), "a") == b"1234"
    monkeypatch.setattr(pictures, "MAX_BYTES", 3)
    assert problem(read_picture_bytes, str(tmp_path), "a") == (
        "image_too_large",
        f"{tmp_path}/a has more than 3 bytes",
    )


@pytest.fixture
def root(tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "coco").mkdir(parents=True)
    (root / "coco" / "a.jpg").write_bytes(b"a")
    return root


def test_names(root):
    assert read_picture_bytes(str(root), "coco/a.jpg") == b"a"
    assert read_picture_bytes(f"{root}/", "./coco//a.jpg") == b"a"
    assert read_picture_bytes(f"file://{root}", "coco/a.jpg") == b"a"
    for name in ("ab::c.jpg", "file::coco", "a#b?c%20.jpg", "~", "ü 1.jpg", "[a].jpg"):
        (root / name).write_bytes(name.encode())
        assert read_picture_bytes(str(root), name) == name.encode()


def test_a_name_with_colons_is_no_chain_of_file_systems(root):
    assert problem(read_picture_bytes, str(root), "coco/a.jpg::b") == (
        "image_missing",
        f"no file at {root}/coco/a.jpg::b",
    )


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "coco/../../secret", "file:///etc/passwd", "..\\secret", "\x00"]
)
def test_outside_root(root, name):
    assert problem(read_picture_bytes, str(root), name) == (
        "image_outside_root",
        f"{name!r} is not a path below the image root",
    )


def test_links(root, tmp_path):
    (root / "inside").symlink_to(root / "coco" / "a.jpg")
    (root / "outside").symlink_to(tmp_path / "secret")
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to(root / "loop")
    assert read_picture_bytes(str(root), "inside") == b"a"
    for name in ("outside", "up/secret"):
        assert problem(read_picture_bytes, str(root), name) == (
            "image_outside_root",
            f"{name!r} is a link that leaves the image root",
        )
    assert problem(read_picture_bytes, str(root), "loop")[0] == "image_missing"
    (tmp_path / "root-linked").symlink_to(root)
    assert read_picture_bytes(str(tmp_path / "root-linked"), "coco/a.jpg") == b"a"


def test_a_link_to_a_folder_beside_the_root_whose_name_begins_alike(root, tmp_path):
    beside = tmp_path / "root-private"
    beside.mkdir()
    (beside / "x.jpg").write_bytes(b"secret")
    (root / "link.jpg").symlink_to(beside / "x.jpg")
    (root / "folder").symlink_to(beside)
    for name in ("link.jpg", "folder/x.jpg"):
        assert problem(read_picture_bytes, str(root), name) == (
            "image_outside_root",
            f"{name!r} is a link that leaves the image root",
        )


def test_a_store_that_lies_about_a_size_is_not_read_to_its_end(monkeypatch):
    """The file says 1 byte and never ends."""
    asked = []

    class Endless(io.RawIOBase):
        size = 1

        def read(self, size=-1):
            asked.append(size)
            return bytes(max(size, 0))

    memory = fsspec.filesystem("memory")
    monkeypatch.setattr(type(memory), "info", lambda self, path, **options: {"name": path, "size": 1, "type": "file"})
    monkeypatch.setattr(type(memory), "open", lambda self, path, mode="rb", **options: Endless())
    monkeypatch.setattr(pictures, "MAX_BYTES", 4)
    assert problem(read_picture_bytes, "memory://images-test", "a.jpg") == (
        "image_too_large",
        "memory://images-test/a.jpg has more than 4 bytes",
    )
    assert asked == [5]


def test_missing(root):
    os.mkfifo(root / "pipe")
    for name in ("none.jpg", "coco", "coco/a.jpg/b", "x" * 300, "pipe"):
        assert problem(read_picture_bytes, str(root), name) == ("image_missing", f"no file at {root}/{name}")
    assert problem(read_picture_bytes, str(root), "\ud800.jpg")[0] == "image_missing"


def test_may_not_be_read_and_disk_errors(root, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    def fail_with(error):
        def failing(*arguments, **options):
            raise error

        monkeypatch.setattr(LocalFileSystem, "open", failing)

    fail_with(PermissionError(errno.EACCES, "Permission denied"))
    assert problem(read_picture_bytes, str(root), "coco/a.jpg") == (
        "image_unreadable",
        f"{root}/coco/a.jpg: Permission denied",
    )
    for error in (
        OSError(errno.EIO, "Input/output error"),
        OSError("the store does not answer"),
        PermissionError("403"),
    ):
        fail_with(error)
        with pytest.raises(type(error)):
            read_picture_bytes(str(root), "coco/a.jpg")


def test_object_store():
    memory = fsspec.filesystem("memory")
    memory.pipe("/images-test/x/a::b.jpg", b"ab")
    assert read_picture_bytes("memory://images-test", "x/a::b.jpg") == b"ab"
    assert problem(read_picture_bytes, "memory://images-test", "x/none.jpg") == (
        "image_missing",
        "no file at memory://images-test/x/none.jpg",
    )
    assert problem(read_picture_bytes, "memory://images-test", "../other") == (
        "image_outside_root",
        "'../other' is not a path below the image root",
    )


def test_root_inside_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("coco/a.png", encoded(Image.new("RGB", (3, 2))))
    assert load_picture(f"zip://coco::file://{tmp_path}/images.zip", "a.png").size == (3, 2)
