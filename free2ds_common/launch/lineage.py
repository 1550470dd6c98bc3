"""From a selection back to data set, models and images: as JSON, and as a tree that a person reads."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from free2ds_common.errors import StageError
from free2ds_common.launch.results import SELECTED, Results
from free2ds_common.redact import redacted
from free2ds_common.storage import sha256_of

# Of a checksum; enough to tell two apart and to search for.
_DIGITS = 12


def lineage_of(results: Results) -> dict[str, Any]:
    """A selection's ancestry, as the run that made it wrote it down.

    Args:
        results: Of the run.

    Returns:
        `selected` (place, sha256, records), `parameters`, `code_version`, `image` and `made_from`: an `origin` of
        free2ds_common/lineage.py by port.

    Raises:
        StageError: The run wrote none down, or the selection is not the file that it wrote.
        StoreError: The store does not answer.
    """
    summary = results.summary()
    told = summary.get("lineage")
    if not told:
        raise StageError(f"{results.title}: its summary has no lineage; an earlier version made it. Run again.")
    uri = results.uris[SELECTED]
    sha256 = sha256_of(uri)
    if sha256 != told["outputs"][SELECTED]:
        raise StageError(
            f"{redacted(uri)}: is not the file that this run wrote (sha256 {sha256[:_DIGITS]}, wanted "
            f"{told['outputs'][SELECTED][:_DIGITS]}). Take the run's own, or that file's summary."
        )
    counts = summary["counts"]
    return {
        "selected": {"place": redacted(uri), "sha256": sha256, "records": counts["written"], "of": counts["read"]},
        "run": summary["run"],
        "parameters": summary["parameters"],
        "code_version": summary["code_version"],
        "image": told["image"],
        "made_from": told["made_from"],
    }


def tree(lineage: Mapping[str, Any]) -> list[str]:
    """Lines of a drawn tree: the selection at the top, the data set and the models as its leaves.

    Args:
        lineage: As `lineage_of` makes it.
    """
    selected = lineage["selected"]
    parameters = ", ".join(f"{name}={value}" for name, value in lineage["parameters"].items() if value != "")
    shown: set[str] = set()
    lines = [
        f"selected: {selected['records']:,} of {selected['of']:,} records, sha256 {selected['sha256'][:_DIGITS]}",
        f"│   {selected['place']}",
        f"│   {_made_by(lineage)}",
        f"│   {parameters}",
    ]
    return [*lines, *_branches(lineage["made_from"], shown)]


def _branches(origins: Mapping[str, Any], shown: set[str]) -> Iterator[str]:
    """The lines of what something was made from."""
    for port, origin in origins.items():
        last = port == list(origins)[-1]
        corner, below = ("└── ", "    ") if last else ("├── ", "│   ")
        head, *rest = _of_origin(port, origin, shown)
        yield corner + head
        yield from (below + line for line in rest)


def _of_origin(port: str, origin: Mapping[str, Any], shown: set[str]) -> Iterator[str]:
    """The lines of one table; one that stands further up is only named."""
    checksums = [origin["sha256"]] if isinstance(origin["sha256"], str) else origin["sha256"]
    parts = f" in {len(checksums)} parts" if len(checksums) > 1 else ""
    head = f"{port}: {origin['schema']}, {origin['rows']:,} rows{parts}, sha256 {checksums[0][:_DIGITS]}"
    if checksums[0] in shown:
        yield f"{head} (see above)"
        return
    shown.update(checksums)
    yield head
    facts, made_from = origin["facts"], origin["made_from"]
    stem = "│   " if made_from else "    "
    yield stem + _made_by(origin)
    yield from (stem + leaf for leaf in _leaves(facts))
    yield from _branches(made_from, shown)


def _made_by(made: Mapping[str, Any]) -> str:
    return f"free2ds {made['code_version']}" + (f" in {made['image']}" if made["image"] else "")


def _shortened(fingerprint: str) -> str:
    """Fingerprints, of which there may be several, with less of each checksum."""
    return re.sub(rf"([0-9a-f]{{{_DIGITS}}})[0-9a-f]+", r"\1", fingerprint)


def _leaves(facts: Mapping[str, Any]) -> Iterator[str]:
    """What did not come from this pipeline."""
    if uri := facts.get("dataset_uri"):
        yield f"data set {uri}, sha256 {facts.get('dataset_sha256', '')[:_DIGITS]}"
    if facts.get("image_root_uri"):
        yield f"pictures {facts['image_root_uri']}"
    if model := facts.get("model"):
        fingerprint = _shortened(facts.get("model_fingerprint", ""))
        yield f"model {model}, revision {facts.get('revision', '')}, {fingerprint}"
    if uri := facts.get("kmeans_uri"):
        yield f"centroids {uri}"
