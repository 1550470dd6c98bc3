"""Under which key a result is kept: sha256 over everything that decides it. Standard library only."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Places of records (free2ds_common.places) in so many ranges of equal length: a shard is some of them.
BUCKETS = 1024
_PLACE_BITS = 64


def canonical(value: object) -> bytes:
    """JSON in one form: sorted names, no blanks, ASCII alone, so that half of a surrogate pair has one too.

    Raises:
        ValueError: A number is NaN or infinite.
        TypeError: There is something else than JSON values.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def settings_key(settings: Mapping[str, Any]) -> str:
    """What all results of one model and its settings have in common, 32 hex digits: the name of their folder.

    Args:
        settings: JSON values; everything that decides a result, besides what the model is asked.
    """
    return hashlib.sha256(canonical(settings)).hexdigest()[:32]


def result_key(settings: str, asked: Mapping[str, Any]) -> bytes:
    """The key of a result, 32 bytes.

    Args:
        settings: Of `settings_key`.
        asked: JSON values; what the model reads: a question and its picture, or a message.
    """
    return hashlib.sha256(canonical([settings, asked])).digest()


def bucket_of(place: int) -> int:
    """The bucket of a place, in [0, `BUCKETS`)."""
    return place * BUCKETS >> _PLACE_BITS
