"""Opening one picture of a data set, or saying in a fixed word why it cannot be used."""

import io
import os
import struct
import warnings
import zlib

from fsspec.implementations.local import LocalFileSystem
from PIL import Image, UnidentifiedImageError

from free2ds_common.redact import redacted
from free2ds_common.storage import OutsideRootError, clean_path, filesystem, read_bytes

MAX_BYTES = 256 << 20
MAX_PIXELS = 100_000_000
# The short side is scaled to 336 or 768 px before the crop: a strip of 1 x 10,000 would become 768 x 7,680,000.
MAX_ASPECT_RATIO = 100

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
    path = root.rstrip("/") + "/" + relative
    uri = redacted(image_root_uri.rstrip("/") + "/" + relative)
    if isinstance(fs, LocalFileSystem):
        if not os.path.realpath(path).startswith(os.path.realpath(root).rstrip("/") + "/"):
            raise PictureProblem("image_outside_root", f"{image!r} is a link that leaves the image root")
        # Reading a pipe or a device would never end.
        if not os.path.isfile(path):
            raise PictureProblem("image_missing", f"no file at {uri}")
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


def decode_picture(data: bytes, name: str) -> Image.Image:
    """A picture in RGB, fully decoded; transparency is dropped, as CLIP's preprocessing does.

    Args:
        data: The file's bytes.
        name: For the message.

    Raises:
        PictureProblem: Not a picture in one of `FORMATS`, truncated, larger than `MAX_PIXELS` or more elongated than
            `MAX_ASPECT_RATIO`.
    """
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise PictureProblem("image_too_large", f"{name}: {width} x {height} pixels, at most {MAX_PIXELS} are read")
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise PictureProblem(
                "image_too_large", f"{name}: {width} x {height} is more elongated than {MAX_ASPECT_RATIO} to 1"
            )
        return picture.convert("RGB")
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
