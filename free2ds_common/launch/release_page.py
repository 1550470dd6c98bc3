"""A release's README.md: a data set card, which says to Hugging Face's `datasets` which files there are."""

from collections.abc import Mapping
from typing import Any

_MODEL_FACTS = ("model", "revision", "model_fingerprint")


def release_page(card: Mapping[str, Any]) -> str:
    """The page of a release.

    Args:
        card: Its card.
    """
    counts, dataset = card["counts"], card["dataset"]
    lines = [
        "---",
        "configs:",
        "- config_name: default",
        "  data_files:",
        "  - split: selected",
        "    path: selected.json",
        "  - split: random",
        "    path: random.json",
        "---",
        "# A selection by Free2DS",
        "",
        f"{counts['selected']:,} of {counts['pool']:,} usable records of the data set, and as a control a random draw "
        f"of {counts['random']:,} from the same records ({counts['in_both']:,} are in both). Train on both: the "
        "difference counts.",
        "",
        "| file | what |",
        "| --- | --- |",
        "| `selected.json` | the selected records in LLaVA's format, in input order; `unique_id`: their numbers |",
        "| `random.json` | the control, in the same format |",
        "| `card.json` | all below and the whole ancestry; `free2ds verify FOLDER` checks files and records by it |",
        "",
        "| of | value |",
        "| --- | --- |",
        f"| data set | {_code(dataset['uri'])} |",
        f"| its sha256 | {_code(dataset['sha256'])} |",
        *(f"| which records, sha256 ({name}) | {_code(one)} |" for name, one in card["selection_sha256"].items()),
        *(
            f"| {side}: {fact.replace('_', ' ')} | {_code(facts[fact])} |"
            for side, facts in card["models"].items()
            for fact in _MODEL_FACTS
            if fact in facts
        ),
        *(f"| {name} | {_code(value)} |" for name, value in card["parameters"].items() if value != ""),
        f"| free2ds | {_code(card['versions']['free2ds'])} |",
        f"| made | {_code(card['run']['started'])} |",
        "",
        "Pictures are not included: `image` is a path below the data set's own folder of pictures. The data set's "
        "licence holds for its records.",
    ]
    if card["as_text"]:
        names = ", ".join(map(_code, card["as_text"]))
        lines.append(f"\nValues of {names} had several types and are JSON texts here.")
    if card["converted"]:
        lines.append(f"\n{card['converted']:,} records had other keys than LLaVA's and were rewritten.")
    if counts["not_for_llava"]:
        lines.append(
            f"\n{counts['not_for_llava']:,} records do not take turns as LLaVA's trainer wants it, which stops at them."
        )
    return "\n".join(lines) + "\n"


def _code(value: object) -> str:
    """A value of a table's cell, as code."""
    text = str(value).replace("|", "\\|").replace("\n", " ").replace("`", "'")
    return f"`{text}`" if text else "not known"
