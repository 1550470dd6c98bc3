"""What an error of a store means, and trying again where that may help. Standard library only.

Every store's library has error classes of its own, and some hide one answer behind another: fsspec's HTTP file system
says FileNotFoundError for a 503. So errors are told apart by the status that they or their causes carry, then by the
names of their classes, which need no import of aiohttp, botocore, gcsfs, google.auth, httpx or requests.
"""

import errno
import logging
import random
import time
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TypeVar

from free2ds_common.errors import StageError, first_line
from free2ds_common.redact import redacted

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

MAX_TRIES = 8
# The pause doubles from the first to the longest: 47 s in all, less some chance.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 16.0
# No try begins later than this after the first one: gcsfs and s3fs try again by themselves before they fail.
MAX_S = 120.0

_LATER_STATUS = {408, 425, 429, *range(500, 600)}
_MISSING_STATUS = {404, 410}
_REFUSED_STATUS = {401, 403, 407}
_LATER_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    getattr(errno, "EREMOTEIO", errno.EAGAIN),
}
_LATER_NAMES = {
    # Python, and by inheritance fsspec's time-out.
    *("ConnectionError", "TimeoutError", "gaierror", "HTTPException"),
    # aiohttp; requests; httpx.
    *("ClientConnectionError", "ClientPayloadError", "ChunkedEncodingError", "Timeout", "TransportError"),
    # botocore; gcsfs.
    *("HTTPClientError", "IncompleteReadError", "ResponseParserError", "ChecksumError"),
    # An answer of GCS about an object that was cut off; google-cloud-storage.
    *("JSONDecodeError", "DataCorruption"),
}
_REFUSED_NAMES = {
    "PermissionError",
    # botocore
    *("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound"),
    *("NoAuthTokenError", "SSOError", "TokenRetrievalError"),
    # google.auth
    *("DefaultCredentialsError", "RefreshError"),
}
_WRONG_URI_NAMES = {"ParamValidationError"}  # botocore
# What this machine says while a file is written.
_DISK_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}


class StoreError(Exception):
    """A store that does not answer, or not as it should: exit code 1, one sentence. No setting mends it."""


class ShortBodyError(ConnectionError):
    """A file that ended before its length, or came with other bytes than the store has."""


class Meaning(Enum):
    """What an error of a store means."""

    MISSING = "missing"  # the store says that nothing is there
    REFUSED = "refused"  # no credentials, or they may not read it
    WRONG_URI = "wrong uri"  # no store was asked
    LATER = "later"  # it may be there in a moment
    UNKNOWN = "unknown"


def meaning(error: BaseException) -> Meaning:
    """What an error of a store means; the first in the chain of causes that says something decides.

    "Not found" of a library counts last: the cause of it may be that the store did not answer.
    """
    chain = list(_causes(error))
    # A ConnectionError by class, but the user's own setting, HF_HUB_OFFLINE.
    if any("OfflineModeIsEnabled" in _names(link) for link in chain):
        return Meaning.WRONG_URI
    for link in chain:
        found = _of_status(_status(link)) or _of_class(link)
        if found is not None:
            return found
    if http_status(error):
        return Meaning.UNKNOWN
    # s3fs says so of every answer that it has no other word for, a refusal (401) too: only where no answer is known.
    if any(isinstance(link, OSError) and link.errno == errno.EIO for link in chain):
        return Meaning.LATER
    if isinstance(error, ValueError) or isinstance(error.__cause__, ValueError):
        return Meaning.WRONG_URI
    return Meaning.MISSING if isinstance(error, FileNotFoundError) else Meaning.UNKNOWN


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def http_status(error: BaseException) -> int:
    """The HTTP status of an error or of what caused it; 0 for none."""
    return next((status for link in _causes(error) if (status := _status(link))), 0)


def _status(error: BaseException) -> int:
    """The HTTP status of an error; 0 for none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    # requests and httpx; aiohttp, which warns of the last one; gcsfs, which also has text, google.api_core and urllib.
    for source, name in ((response, "status_code"), (error, "status"), (error, "code")):
        found = str(getattr(source, name, ""))
        if found.isdecimal():
            return int(found)
    return 0


def _of_status(status: int) -> Meaning | None:
    if status in _LATER_STATUS:
        return Meaning.LATER
    if status in _MISSING_STATUS:
        return Meaning.MISSING
    return Meaning.REFUSED if status in _REFUSED_STATUS else None


def _of_class(error: BaseException) -> Meaning | None:
    names = _names(error)
    # gcsfs makes an OSError without a number of a 403.
    if names & _REFUSED_NAMES or (isinstance(error, OSError) and str(error).startswith("Forbidden: ")):
        return Meaning.REFUSED
    if names & _LATER_NAMES or (isinstance(error, OSError) and error.errno in _LATER_ERRNO):
        return Meaning.LATER
    return Meaning.WRONG_URI if names & _WRONG_URI_NAMES else None


def is_full_disk(error: BaseException) -> bool:
    """Whether this machine could not write: its disk is full or read-only."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRNO


def retried(uri: str, work: Callable[[], Result], done: str = "read") -> Result:
    """Ask a store, again and again while it says that it is busy or does not answer.

    Args:
        uri: What is asked for, for messages.
        work: Asks; may be called several times.
        done: What is asked: that it be "read" or "written", for messages.

    Raises:
        FileNotFoundError: The store says that nothing is there.
        IsADirectoryError: It is a folder.
        StageError: The store refuses it, or it is no URI of a store.
        StoreError: The store does not answer, or not as it should.
    """
    began = time.monotonic()
    tries = 0
    while True:
        tries += 1
        try:
            return work()
        except (StageError, StoreError, MemoryError, IsADirectoryError, NotADirectoryError):
            raise
        # Every store has error classes of its own.
        except Exception as error:
            if is_full_disk(error):
                raise
            _raise_unless_later(uri, error, done)
            seconds = time.monotonic() - began
            pause = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tries - 1)) * random.uniform(0.5, 1)
            if tries == MAX_TRIES or seconds + pause > MAX_S:
                raise StoreError(
                    f"{redacted(uri)}: "
                    + _worded(f"could not be read in {tries} tries within {seconds:.0f} s ({_saying(error)})", done)
                ) from error
            logger.warning("%s: %s; trying again in %.1f s", redacted(uri), _saying(error), pause)
        time.sleep(pause)


def _raise_unless_later(uri: str, error: Exception, done: str) -> None:
    shown, what = redacted(uri), _saying(error)
    match meaning(error):
        case Meaning.MISSING:
            raise FileNotFoundError(errno.ENOENT, "nothing there", shown) from error
        case Meaning.REFUSED:
            said = (
                f"may not be read ({what}). Give credentials that may read it; "
                "without the right to list, some stores say the same of what is not there."
            )
            raise StageError(f"{shown}: {_worded(said, done)}") from error
        case Meaning.WRONG_URI:
            raise StageError(f"{shown}: {_worded(f'cannot be read ({what}). Check the URI.', done)}") from error
        case Meaning.UNKNOWN:
            raise StoreError(f"{shown}: {_worded(f'could not be read ({what})', done)}") from error


def _worded(said: str, done: str) -> str:
    """What is said of reading, of writing where that was asked for."""
    if done == "read":
        return said
    return said.replace("not be read", f"not be {done}", 1).replace("that may read", "that may write", 1)


def _saying(error: Exception) -> str:
    """What the store said, in a few words."""
    chain = list(_causes(error))
    telling = next((link for link in chain if _status(link) or _of_class(link)), error)
    said = first_line(telling) if isinstance(telling, Exception) else type(telling).__name__
    return redacted(f"{type(telling).__name__}: {said}" if said != type(telling).__name__ else said).rstrip(".")
