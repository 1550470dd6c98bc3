"""A record's place among all records: shards and the results store are cut along it. Standard library only."""

import hashlib


def place(image: str | None, record_key: str) -> int:
    """A record's place among all records: a hash, uniform in [0, 2**64).

    Args:
        image: Path of the picture; records of one picture get one place.
        record_key: Decides for records without a picture.
    """
    name = f"text {record_key}" if image is None else f"image {image}"
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
