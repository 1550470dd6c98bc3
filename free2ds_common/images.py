"""Opening one picture of a data set, or saying in a fixed word why it cannot be used."""

import io
import warnings

from PIL import Image

from free2ds_common.storage import OutsideRootError, filesystem, join, within_local_root

MAX_BYTES = 256 << 20
MAX_PIXELS = 100_000_000
# The short side is scaled to 336 or 768 px before the crop: a 1 x 10,000 strip would become 768 x 7,680,000.
MAX_ASPECT_RATIO = 100


class ImageProblem(Exception):
    """A picture that cannot be used.

    Attributes:
        reason: One of free2ds_common.outcomes.IMAGE_FAILURES.
        detail: What exactly was wrong.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Keep both parts."""
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def read_image_bytes(image_root_uri: str, image: str) -> bytes:
    """The bytes of a picture.

    Args:
        image_root_uri: The folder that record images are relative to.
        image: The record's `image`.

    Raises:
        ImageProblem: The path leaves the root, nothing is there, or the file is larger than `MAX_BYTES`.
    """
    try:
        uri = join(image_root_uri, image)
    except OutsideRootError:
        raise ImageProblem("image_outside_root", f"{image!r} is not a path below the image root") from None
    if not within_local_root(image_root_uri, uri):
        raise ImageProblem("image_outside_root", f"{image!r} is a link that leaves the image root")
    fs, path = filesystem(uri)
    try:
        with fs.open(path, "rb") as handle:
            data = handle.read(MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ImageProblem("image_missing", f"nothing at {uri}") from None
    except OSError as error:
        if error.errno is None:
            raise  # the object store, not the file: crash and be retried
        raise ImageProblem("image_missing", f"{uri}: {error.strerror}") from None
    if len(data) > MAX_BYTES:
        raise ImageProblem("image_too_large", f"{uri} has more than {MAX_BYTES} bytes")
    return data


def decode_image(data: bytes, name: str) -> Image.Image:
    """A picture in RGB, fully decoded; transparency is dropped, as CLIP's preprocessing does.

    Args:
        data: The file's bytes.
        name: For the message.

    Raises:
        ImageProblem: No picture, truncated, more than `MAX_PIXELS` or more elongated than `MAX_ASPECT_RATIO`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(data))
        width, height = picture.size
        if width * height > MAX_PIXELS:
            raise ImageProblem("image_too_large", f"{name}: {width} x {height} pixels, at most {MAX_PIXELS} are read")
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ImageProblem(
                "image_too_large", f"{name}: {width} x {height} is more elongated than {MAX_ASPECT_RATIO} to 1"
            )
        return picture.convert("RGB")
    except Image.DecompressionBombError:
        raise ImageProblem("image_too_large", f"{name}: far more than {MAX_PIXELS} pixels") from None
    # Pillow's decoders raise whatever a broken file makes them stumble over.
    except (OSError, ValueError, SyntaxError, TypeError, IndexError, KeyError, OverflowError, EOFError) as error:
        raise ImageProblem("image_unreadable", f"{name}: {error}") from None


def load_image(image_root_uri: str, image: str) -> Image.Image:
    """Read and decode a record's picture; arguments and errors of `read_image_bytes` and `decode_image`."""
    return decode_image(read_image_bytes(image_root_uri, image), image)
