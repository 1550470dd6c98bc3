"""What a table was made from, kept in its manifest: each holds its whole ancestry, so that no other one is needed.

An ancestor is an `origin`: the table's schema, rows, checksum, code version, image and facts (settings, model and its
fingerprint, the data set and its checksum), and what it was made from in turn.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from free2ds_common.datasets import MANIFEST, Dataset
from free2ds_common.left_over import LEFT_OVER

MADE_FROM = "made_from"
# Told by entries of an origin's own, or folders of a machine that is gone.
_NO_FACTS = {
    "schema",
    "rows",
    "parts",
    "sha256",
    "code_version",
    "image",
    MADE_FROM,
    "records",
    "records_uri",
    LEFT_OVER,
}
# A fact is read by people: longer lists are none.
_LONGEST_FACT = 20


def made_from(**folders: str | Sequence[str]) -> dict[str, Any]:
    """The ancestry of a table, for its manifest.

    Args:
        **folders: By port, the sealed folder or folders that the stage reads; their manifests alone are read.

    Returns:
        An origin by port; several folders of a port become one.

    Raises:
        OSError: A folder has no manifest.
        ValueError: One is no JSON.
    """
    found = {}
    for port, given in folders.items():
        every = [given] if isinstance(given, str) else given
        found[port] = merged([origin(_manifest(folder)) for folder in every])
    return found


def origin(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What later manifests say of a table.

    Args:
        manifest: Its own.
    """
    facts = {name: value for name, value in manifest.items() if name not in _NO_FACTS and _is_short(value)}
    return {
        "schema": manifest["schema"],
        "rows": manifest["rows"],
        "sha256": Dataset(Path(), manifest).sha256,
        "code_version": manifest["code_version"],
        "image": manifest.get("image", ""),
        "facts": facts,
        MADE_FROM: manifest.get(MADE_FROM, {}),
    }


def digests(origins: Mapping[str, Any]) -> dict[str, str]:
    """A checksum per port: of several parts, over theirs, sorted; short enough for an artifact's metadata.

    Args:
        origins: As of `made_from`.
    """
    listed = {port: sorted(_listed(one["sha256"])) for port, one in origins.items()}
    return {
        port: every[0] if len(every) == 1 else hashlib.sha256(" ".join(every).encode()).hexdigest()
        for port, every in listed.items()
    }


def merged(origins: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The origins of a table's parts as one.

    Rows are added up, checksums that differ are listed, facts that differ are left out: those of a shard, such as its
    number.
    """
    first = dict(origins[0])
    if len(origins) == 1:
        return first
    facts = first["facts"].items()
    for other in origins[1:]:
        facts = [(name, value) for name, value in facts if other["facts"].get(name) == value]
    checksums = list(dict.fromkeys(sha256 for one in origins for sha256 in _listed(one["sha256"])))
    return first | {
        # The parts of one table, or one table that several parts were made from.
        "rows": sum(one["rows"] for one in origins) if len(checksums) > 1 else first["rows"],
        "sha256": checksums if len(checksums) > 1 else checksums[0],
        "facts": dict(facts),
        MADE_FROM: {
            port: merged([one[MADE_FROM][port] for one in origins if port in one[MADE_FROM]])
            for port in dict.fromkeys(port for one in origins for port in one[MADE_FROM])
        },
    }


def _listed(sha256: str | list[str]) -> list[str]:
    return [sha256] if isinstance(sha256, str) else sha256


def _is_short(value: object) -> bool:
    return not isinstance(value, list | dict) or len(value) <= _LONGEST_FACT


def _manifest(folder: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((Path(folder) / MANIFEST).read_text(encoding="utf-8"))
    return found
