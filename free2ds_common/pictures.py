"""Opening one picture of a data set, or saying in a fixed word why it cannot be used.

One file of more than 300 lines: what may be read, what is decoded and what is refused must stay in step.
"""

import functools
import io
import itertools
import math
import os
import struct
import threading
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar, cast
from urllib.parse import quote, unquote

import fsspec
from fsspec.implementations.local import LocalFileSystem
from PIL import Image, UnidentifiedImageError

from free2ds_common.objects import protocols_of
from free2ds_common.redact import redacted
from free2ds_common.storage import OutsideRootError, clean_path, filesystem, read_bytes

MAX_BYTES = 256 << 20
MAX_PIXELS = 100_000_000
# The short side is scaled to 336 or 768 px before the crop: a strip of 1 x 10,000 would become 768 x 7,680,000.
MAX_ASPECT_RATIO = 100

# Modes with more than 8 bits a pixel, in one channel. Pillow would clip their values, or keep the upper 8 bits of 16.
_WIDE_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
# Folders whose names are remembered to say what a missing picture may have meant, and names of each.
_LISTED_FOLDERS, _LISTED_NAMES = 8, 100_000
# Nobody decodes a URL more often.
_DECODINGS = 8
# Below this a JPEG is decoded as it is.
_DRAFT_PIXELS = 1 << 20
_DRAFT_SCALE = 8
# Of 255: the colour of a drawing that is seen better on black than on white.
_LIGHT = 127

# Pillow also opens formats that run other programs (EPS) or that nobody keeps photographs in.
Image.init()
FORMATS: list[str] = [
    name
    for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "MPO", "AVIF", "JPEG2000", "PPM", "ICO", "TGA")
    if name in Image.OPEN
]
# Here MAX_PIXELS decides. Not set in decode_picture, which threads call: warning filters belong to the process.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class PictureProblem(Exception):
    """A picture that cannot be used.

    Attributes:
        reason: One of free2ds_common.outcomes.IMAGE_FAILURES.
        detail: What exactly was wrong.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Keep both parts."""
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def read_picture_bytes(image_root_uri: str, image: str) -> bytes:
    """The bytes of a picture.

    Args:
        image_root_uri: The folder that record images are relative to.
        image: The record's `image`.

    Raises:
        PictureProblem: The path leaves the root, nothing is there, or the file may not be read or is larger than
            `MAX_BYTES`.
        StageError: The store refuses to give it.
        StoreError: The store does not answer.
    """
    fs, path, uri = picture_location(image_root_uri, image)
    if isinstance(fs, LocalFileSystem):
        root, relative = filesystem(image_root_uri)[1], clean_path(image)
        if not os.path.realpath(path).startswith(os.path.realpath(root).rstrip("/") + "/"):
            raise PictureProblem("image_outside_root", f"{image!r} is a link that leaves the image root")
        # Reading a pipe or a device would never end.
        if not os.path.isfile(path):
            raise PictureProblem("image_missing", f"no file at {uri}{_name_alike(root, relative)}")
    try:
        data = read_bytes(fs, path, MAX_BYTES + 1, uri)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise PictureProblem("image_missing", f"no file at {uri}") from None
    except PermissionError as error:
        if error.errno is None:
            raise  # no answer of this machine's
        raise PictureProblem("image_unreadable", f"{uri}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise PictureProblem("image_too_large", f"{uri} has more than {MAX_BYTES} bytes")
    return data


def picture_location(image_root_uri: str, image: str) -> tuple[fsspec.AbstractFileSystem, str, str]:
    """Where a picture is: its file system, its path there, and its URI for messages, without credentials.

    Args:
        image_root_uri: The folder that record images are relative to.
        image: The record's `image`.

    Raises:
        PictureProblem: The path leaves the root, or names no file.
        StageError: The root cannot be opened.
    """
    try:
        relative = clean_path(image)
    except OutsideRootError:
        raise PictureProblem("image_outside_root", f"{image!r} is not a path below the image root") from None
    try:
        image.encode()
    except UnicodeEncodeError:
        raise PictureProblem("image_missing", f"{image!r} is not valid Unicode and names no file") from None
    fs, root = filesystem(image_root_uri)
    # Joined inside the file system: a name with "::" would be a chain of file systems in a URI.
    path = root.rstrip("/") + "/" + (_quoted(relative, image) if is_http(fs) else relative)
    uri = redacted(image_root_uri.rstrip("/") + "/" + relative)
    return fs, path, uri


def is_http(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system is a web server, which lists nothing."""
    return not {"http", "https"}.isdisjoint(protocols_of(fs))


def _quoted(relative: str, image: str) -> str:
    """A path as it stands in a URL.

    Raises:
        PictureProblem: A server that decodes twice would leave the root.
    """
    decoded = relative
    for _ in range(_DECODINGS):
        decoded = unquote(decoded)
    try:
        clean_path(decoded)
        if decoded != unquote(decoded):
            raise OutsideRootError(relative)
    except OutsideRootError:
        raise PictureProblem("image_outside_root", f"{image!r} is not a path below the image root") from None
    return quote(relative)


def _name_alike(root: str, relative: str) -> str:
    """What to add about a missing file where names differ from it only in case or Unicode form; "" otherwise."""
    folder, found = root.rstrip("/") or "/", []
    inside = os.path.realpath(folder).rstrip("/") + "/"
    for part in relative.split("/"):
        if not (os.path.realpath(folder) + "/").startswith(inside):
            return ""
        if not os.path.lexists(os.path.join(folder, part)):
            with _LISTING:
                part = _names_alike(folder).get(_plain(part), "")
        if not part:
            return ""
        found.append(part)
        folder = os.path.join(folder, part)
    alike = "/".join(found)
    if alike == relative or not os.path.isfile(folder):
        return ""
    return f"; {alike!a} is there, whose name differs only in case or Unicode form"


# The threads of a run ask for the same folder at the same time.
_LISTING = threading.Lock()


@functools.lru_cache(_LISTED_FOLDERS)
def _names_alike(folder: str) -> Mapping[str, str]:
    """The names in a folder, by their plain form."""
    try:
        with os.scandir(folder) as entries:
            return {_plain(entry.name): entry.name for entry in itertools.islice(entries, _LISTED_NAMES)}
    except OSError:
        return {}


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def decode_picture(data: bytes, name: str) -> Image.Image:
    """A picture in RGB, fully decoded.

    Transparency is dropped, as CLIP's preprocessing does, unless nothing but transparency draws the picture: one colour
    throughout is laid on white, a light one on black. More than 8 bits a pixel are scaled from the picture's own range.

    Args:
        data: The file's bytes.
        name: For the message.

    Raises:
        PictureProblem: Not a picture in one of `FORMATS`, truncated, larger than `MAX_PIXELS`, more elongated than
            `MAX_ASPECT_RATIO`, or with values that are not numbers.
    """
    return _decoding(name, lambda: _as_rgb(_opened(data, name)))


def picture_pixels(data: bytes, name: str) -> int:
    """How many pixels a picture has, by its header; arguments and errors as `decode_picture`."""

    def count() -> int:
        picture = _opened(data, name)
        return picture.width * picture.height

    return _decoding(name, count)


def check_picture(data: bytes, name: str, budget: "PixelBudget") -> bool:
    """Decode a picture as `decode_picture` does, with less memory where its pixels are not needed.

    Args:
        data: The file's bytes.
        name: For the message.
        budget: Waited for before the pixels are decoded.

    Returns:
        Whether it has one colour only.

    Raises:
        PictureProblem: As `decode_picture`.
    """

    def check() -> bool:
        picture = _opened(data, name)
        pixels = picture.width * picture.height
        with budget.taken(pixels):
            if picture.format in ("JPEG", "MPO") and pixels > _DRAFT_PIXELS:
                # Reads the file to its end, but computes fewer pixels.
                picture.draft(None, (picture.width // _DRAFT_SCALE, picture.height // _DRAFT_SCALE))
                if not is_one_colour(picture):
                    return False
                picture = _opened(data, name)
            if picture.mode in _WIDE_MODES:
                lowest, highest = _range(picture)
                return lowest == highest
            if picture.has_transparency_data:
                # Channel by channel: no copy of the whole picture. Where only the last differs it draws the picture.
                channels = picture if picture.mode == "RGBA" else picture.convert("RGBA")
                return all(lowest == highest for lowest, highest in map(_ends, channels.getextrema()))
            # Gray and RGB become RGB without a change of value.
            return is_one_colour(picture if picture.mode in ("L", "RGB") else _as_rgb(picture))

    return _decoding(name, check)


def is_one_colour(picture: Image.Image) -> bool:
    """Whether all pixels have the same value."""
    return picture.getcolors(1) is not None


class PixelBudget:
    """Limits the pixels that threads decode at a time; a picture larger than the limit goes alone."""

    def __init__(self, limit: int) -> None:
        """Allow `limit` pixels."""
        self._limit, self._taken = limit, 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for so many pixels, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._limit)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


def _opened(data: bytes, name: str) -> Image.Image:
    """A picture whose pixels are still to be decoded, of an accepted size and shape."""
    picture = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise PictureProblem("image_too_large", f"{name}: {width} x {height} pixels, at most {MAX_PIXELS} are read")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise PictureProblem(
            "image_too_large", f"{name}: {width} x {height} is more elongated than {MAX_ASPECT_RATIO} to 1"
        )
    return picture


def _as_rgb(picture: Image.Image) -> Image.Image:
    """See `decode_picture`."""
    if picture.mode in _WIDE_MODES:
        return _eight_bits(picture).convert("RGB")
    rgb = picture.convert("RGB")
    if not picture.has_transparency_data or not is_one_colour(rgb):
        return rgb
    alpha = (picture if "A" in picture.getbands() else picture.convert("RGBA")).getchannel("A")
    lowest, highest = _ends(alpha.getextrema())
    if lowest == highest:
        return rgb
    corner = rgb.crop((0, 0, 1, 1))
    shade, _ = _ends(corner.convert("L").getextrema())
    colour = cast(tuple[int, ...], corner.getpixel((0, 0)))
    rgb.paste("black" if shade > _LIGHT else "white", (0, 0, *rgb.size))
    rgb.paste(colour, (0, 0, *rgb.size), alpha)
    return rgb


def _ends(extrema: object) -> tuple[float, float]:
    """The lowest and the highest value of one channel."""
    return cast(tuple[float, float], extrema)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of one wide channel in gray, 0 for its lowest value and 255 for its highest; errors of `_range`."""
    lowest, highest = _range(picture)
    if lowest == highest:
        return Image.new("L", picture.size)
    scale = 255 / (highest - lowest)
    whole = picture if picture.mode == "F" else picture.convert("I")
    # Pillow wants a factor and an offset; half a step rounds.
    return whole.point(lambda value: value * scale + (0.5 - lowest * scale)).convert("L")


def _range(picture: Image.Image) -> tuple[float, float]:
    """The lowest and the highest value of one wide channel.

    Raises:
        ValueError: It holds infinity or NaN.
    """
    if picture.mode != "F":
        return _ends(picture.convert("I").getextrema())
    # The sum is finite only if all values are: no 100 million float32 reach the end of float64.
    if not math.isfinite(sum(memoryview(picture.tobytes()).cast("f"))):
        raise ValueError("holds values that are not numbers")
    return _ends(picture.getextrema())


Result = TypeVar("Result")


def _decoding(name: str, work: Callable[[], Result]) -> Result:
    """Run what decodes a picture, and name what is wrong with it.

    Raises:
        PictureProblem: The file is broken or no picture.
    """
    try:
        return work()
    except Image.DecompressionBombError:
        raise PictureProblem("image_too_large", f"{name}: far more than {MAX_PIXELS} pixels") from None
    except UnidentifiedImageError:  # its own message holds a memory address
        raise PictureProblem("image_unreadable", f"{name}: not a picture in a known format") from None
    # What Pillow's decoders raise for broken files.
    except (
        OSError,
        ValueError,
        SyntaxError,
        TypeError,
        LookupError,
        OverflowError,
        EOFError,
        RuntimeError,
        struct.error,
        zlib.error,
    ) as error:
        raise PictureProblem("image_unreadable", f"{name}: {error}") from None


def load_picture(image_root_uri: str, image: str) -> Image.Image:
    """Read and decode a record's picture; arguments and errors of `read_picture_bytes` and `decode_picture`."""
    return decode_picture(read_picture_bytes(image_root_uri, image), image)
