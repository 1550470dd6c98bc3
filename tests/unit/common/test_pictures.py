"""One picture: opened, or a fixed word why not."""

import contextlib
import errno
import http.server
import io
import math
import os
import threading
import zipfile

import fsspec
import pytest
from PIL import Image

from free2ds_common import pictures
from free2ds_common.outcomes import IMAGE_FAILURES
from free2ds_common.pictures import (
    FORMATS,
    PictureProblem,
    PixelBudget,
    check_picture,
    decode_picture,
    is_one_colour,
    load_picture,
    read_picture_bytes,
)


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


def wide(mode, values):
    picture = Image.new(mode, (len(values), 1))
    for place, value in enumerate(values):
        picture.putpixel((place, 0), value)
    return picture


def grays(data):
    picture = decode_picture(data, "n")
    return [picture.getpixel((place, 0)) for place in range(picture.width)]


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("I;16", "PNG"), ("I;16", "TIFF"), ("I;16B", "TIFF"), ("I", "TIFF"), ("F", "TIFF"), ("I;16", "PPM")],
)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([100, 300, 500], [0, 128, 255]),  # (300 - 100) / 400 * 255 = 127.5
        ([0, 1, 65535], [0, 0, 255]),
        ([60000, 60001, 60001], [0, 255, 255]),
        ([700, 700, 700], [0, 0, 0]),
    ],
)
def test_more_than_8_bits_are_scaled_by_range(mode, kind, values, expected):
    assert grays(encoded(wide(mode, values), kind)) == [(value, value, value) for value in expected]


def test_values_below_zero_and_tiny_ones():
    assert grays(encoded(wide("I", [-(2**31), 0, 2**31 - 1]), "TIFF")) == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]
    assert grays(encoded(wide("F", [-1e-30, 0, 1e-30]), "TIFF")) == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]
    assert grays(encoded(wide("F", [-3e38, 0, 3e38]), "TIFF")) == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 1])
def test_values_that_are_no_numbers(value, place):
    data = encoded(wide("F", [value, 1.0] if place == 0 else [1.0, value]), "TIFF")
    assert problem(decode_picture, data, "a.tif") == ("image_unreadable", "a.tif: holds values that are not numbers")
    assert problem(check_picture, data, "a.tif", PixelBudget(9))[0] == "image_unreadable"


def drawn_in_alpha(mode, colour, alphas):
    picture = Image.new(mode, (len(alphas), 1))
    for place, alpha in enumerate(alphas):
        picture.putpixel((place, 0), (*colour, alpha))
    return picture


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        (drawn_in_alpha("RGBA", (0, 0, 0), [0, 255, 102]), [(255,) * 3, (0,) * 3, (153,) * 3]),
        (drawn_in_alpha("LA", (0,), [0, 255, 255]), [(255,) * 3, (0,) * 3, (0,) * 3]),
        (drawn_in_alpha("RGBA", (200, 0, 0), [0, 255, 255]), [(255,) * 3, (200, 0, 0), (200, 0, 0)]),
        (drawn_in_alpha("RGBA", (255, 255, 255), [0, 255, 102]), [(0,) * 3, (255,) * 3, (102,) * 3]),  # light, on black
        (drawn_in_alpha("RGBA", (9, 9, 9), [0, 0, 0]), [(9,) * 3] * 3),
        (drawn_in_alpha("RGBA", (9, 9, 9), [77, 77, 77]), [(9,) * 3] * 3),
    ],
)
def test_what_only_transparency_draws_is_laid_on_a_ground(picture, expected):
    assert grays(encoded(picture)) == expected


def test_what_only_a_transparent_palette_entry_draws():
    picture = wide("P", [0, 1, 1])
    picture.putpalette([0, 0, 0, 0, 0, 0])
    assert grays(encoded(picture, transparency=0)) == [(255,) * 3, (0,) * 3, (0,) * 3]


def test_transparency_is_dropped_where_there_is_more_than_one_colour():
    picture = drawn_in_alpha("RGBA", (0, 0, 0), [0, 255, 128])
    picture.putpixel((0, 0), (0, 0, 1, 0))
    assert grays(encoded(picture)) == [(0, 0, 1), (0, 0, 0), (0, 0, 0)]


@pytest.mark.parametrize(
    ("picture", "kind", "one_colour"),
    [
        (Image.new("RGB", (3, 1), "red"), "PNG", True),
        (wide("L", [7, 7, 7]), "PNG", True),
        (wide("L", [7, 7, 8]), "PNG", False),
        (wide("I;16", [700, 700, 700]), "PNG", True),
        (wide("I;16", [700, 700, 701]), "PNG", False),
        (wide("F", [0.1, 0.1, 0.2]), "TIFF", False),
        (drawn_in_alpha("RGBA", (0, 0, 0), [0, 255, 255]), "PNG", False),
        (drawn_in_alpha("RGBA", (0, 0, 0), [0, 0, 0]), "PNG", True),
        (Image.new("CMYK", (3, 1), (1, 2, 3, 4)), "TIFF", True),
    ],
)
def test_a_picture_of_one_colour(picture, kind, one_colour):
    data = encoded(picture, kind)
    assert check_picture(data, "n", PixelBudget(9)) is one_colour
    assert is_one_colour(decode_picture(data, "n")) is one_colour


@pytest.mark.parametrize("size", [(1500, 1000), (40, 30)])
def test_a_jpeg_is_checked_to_its_end_with_fewer_pixels(size):
    noise = encoded(Image.effect_noise(size, 80), "JPEG")
    assert check_picture(noise, "n", PixelBudget(9)) is False
    assert check_picture(encoded(Image.new("RGB", size, "red"), "JPEG"), "n", PixelBudget(9)) is True
    for length in (len(noise) - 100, len(noise) * 2 // 3, len(noise) // 10):
        assert problem(check_picture, noise[:length], "n", PixelBudget(9))[0] == "image_unreadable"
        assert problem(decode_picture, noise[:length], "n")[0] == "image_unreadable"


def test_a_jpeg_with_one_odd_spot_that_fewer_pixels_do_not_show(monkeypatch):
    widths = []
    monkeypatch.setattr(
        pictures,
        "is_one_colour",
        lambda picture: widths.append(picture.width) or picture.width < 1500 or is_one_colour(picture),
    )
    picture = Image.new("L", (1500, 1000), 128)
    picture.paste(200, (8, 8, 16, 16))
    assert check_picture(encoded(picture, "JPEG"), "n", PixelBudget(9)) is False
    assert widths == [188, 1500]  # an eighth, rounded up


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16"])
def test_a_check_copies_no_picture_to_rgb(monkeypatch, mode):
    monkeypatch.delattr(pictures, "_as_rgb")
    assert check_picture(encoded(Image.new(mode, (3, 2))), "n", PixelBudget(9)) is True


def test_one_colour_with_a_transparent_one():
    """All of it is transparent: the colour stays, as the method has it."""
    data = encoded(Image.new("L", (3, 2), 5), transparency=5)
    assert check_picture(data, "n", PixelBudget(9)) is True
    assert decode_picture(data, "n").getpixel((0, 0)) == (5, 5, 5)


def test_pixel_budget():
    budget, waited = PixelBudget(100), threading.Event()

    def third():
        with budget.taken(20):
            waited.set()

    with budget.taken(45), contextlib.ExitStack() as inner:
        inner.enter_context(budget.taken(45))
        thread = threading.Thread(target=third)
        thread.start()
        assert not waited.wait(0.05)
        inner.close()
        assert waited.wait(10)
        thread.join()
    with budget.taken(1000):  # alone, since nothing else is under way
        pass
    with budget.taken(100):
        pass


def test_a_failure_gives_its_pixels_back():
    budget = PixelBudget(100)
    data = encoded(Image.effect_noise((64, 64), 50))
    assert problem(check_picture, data[:-100], "n", budget)[0] == "image_unreadable"
    with budget.taken(100):
        pass


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


@pytest.fixture
def server(root):
    """Serves `root` at /root and the secret beside it; says what was asked for."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(root.parent))

        def log_message(self, *arguments):
            asked.append(self.path)

    asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}/root", asked
        listening.shutdown()


@pytest.mark.parametrize(
    "name",
    [
        "a#b.jpg",
        "a?b=c.jpg",
        "a%20b.jpg",
        "100%.jpg",
        "a b.jpg",
        "ü 1.jpg",
        "a+b&c.jpg",
        "[a];'\"<>^`{|}.jpg",
        "a~:.jpg",
    ],
)
def test_names_on_an_http_root(root, server, name):
    (root / "coco" / name).write_bytes(name.encode())
    assert read_picture_bytes(server[0], f"coco/{name}") == name.encode()


@pytest.mark.parametrize(
    "name",
    [
        "%2e%2e/secret",
        "%252e%252e/secret",
        "..%2fsecret",
        "coco/%2E./%2e%2E/secret",
        "%2fsecret",
        "a%5cb",
        "%00",
        "%" + "25" * 9 + "2e.jpg",
    ],
)
def test_escapes_from_an_http_root_are_not_asked_for(server, name):
    assert problem(read_picture_bytes, server[0], name) == (
        "image_outside_root",
        f"{name!r} is not a path below the image root",
    )
    assert server[1] == []


def test_a_local_name_with_percent_signs_is_only_a_name(root):
    (root / "%2e%2e").write_bytes(b"a")
    assert read_picture_bytes(str(root), "%2e%2e") == b"a"


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ("coco/B.JPG", "coco/b.jpg"),
        ("coco/b.jpg", "COCO/B.jpg"),
        ("coco/u\u0308.jpg", "coco/\u00fc.jpg"),
        ("coco/\u00dc.jpg", "coco/u\u0308.jpg"),
        ("Stra\u00dfe/a.jpg", "strasse/a.jpg"),
    ],
)
def test_a_name_that_differs_in_case_or_unicode_form_is_told(root, there, asked):
    (root / there).parent.mkdir(exist_ok=True)
    (root / there).write_bytes(b"a")
    assert problem(read_picture_bytes, str(root), asked) == (
        "image_missing",
        f"no file at {root}/{asked}; {there!a} is there, whose name differs only in case or Unicode form",
    )


def test_no_name_alike_is_told_that_lies_outside_or_is_no_file(root, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "A.jpg").write_bytes(b"a")
    (root / "Link").symlink_to(tmp_path / "other")
    (root / "Folder.jpg").mkdir()
    for asked in ("link/a.jpg", "folder.jpg", "coco/none.jpg", "none/a.jpg"):
        assert problem(read_picture_bytes, str(root), asked) == ("image_missing", f"no file at {root}/{asked}")


def test_a_folder_is_listed_once_and_not_to_its_end(root, monkeypatch):
    listed, scandir = [], os.scandir
    monkeypatch.setattr(pictures.os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    for number in range(5):
        problem(read_picture_bytes, str(root), f"coco/{number}.jpg")
    assert listed == [f"{root}/coco"]
    monkeypatch.setattr(pictures, "_LISTED_NAMES", 0)
    pictures._names_alike.cache_clear()
    assert problem(read_picture_bytes, str(root), "coco/A.jpg")[1] == f"no file at {root}/coco/A.jpg"


def test_root_inside_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("coco/a.png", encoded(Image.new("RGB", (3, 2))))
    assert load_picture(f"zip://coco::file://{tmp_path}/images.zip", "a.png").size == (3, 2)
