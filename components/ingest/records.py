"""What makes a record usable, and what is taken from it."""

import hashlib
import itertools
import json
import re
from dataclasses import dataclass

from free2ds_common.storage import OutsideRootError, clean_path

PLACEHOLDER = "<image>"
TEXT_ONLY_SOURCE = "text-only"
NO_FOLDER_SOURCE = "images"
# Python parses and writes JSON by recursion, and gives up at about 990 levels, fewer where its stack is deeper already.
MAX_NESTING = 500
TOO_DEEP = "nested_too_deeply"

_PLACEHOLDERS = re.compile("<image>|<Image>")
_LONE_SURROGATES = re.compile("[\ud800-\udfff]")


class RecordProblem(Exception):
    """A record that cannot be used.

    Attributes:
        reason: A fixed word.
        detail: What exactly was wrong.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Keep both parts."""
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class CheckedRecord:
    """The columns of records/1 that come from the record alone; `unique_id` follows once the picture is known."""

    record_key: str
    image: str | None
    source: str
    question: str | None
    messages: list[str]
    raw: str


def check_record(record: object) -> CheckedRecord:
    """Check a record of the data set and take from it what the stages need.

    Args:
        record: A parsed JSON value.

    Raises:
        RecordProblem: It is not a usable LLaVA record. Its picture is not looked at.
    """
    if (levels := nesting(record)) > MAX_NESTING:
        raise RecordProblem(TOO_DEEP, f"is nested {levels} levels deep, at most {MAX_NESTING} are read")
    if not isinstance(record, dict):
        raise RecordProblem("not_an_object", f"is {_kind(record)}, wanted an object")
    turns = _turns(record.get("conversations"))
    messages = [clean_message(value) for speaker, value in turns if speaker == "human"]
    if not messages:
        raise RecordProblem("no_human_turn", f"none of the {len(turns)} turns is from human")
    image = _image(record.get("image"))
    return CheckedRecord(
        record_key=record_key(record),
        image=image,
        source=_source(record.get("source"), image),
        question=question(turns),
        messages=messages,
        raw=json.dumps(record, separators=(",", ":")),
    )


def nesting(value: object) -> int:
    """Levels of lists and objects in a JSON value, 0 for a scalar. Does not recurse."""
    levels, level = 0, [value]
    while containers := [inner for inner in level if isinstance(inner, (list, dict))]:
        levels += 1
        level = [inner for outer in containers for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return levels


def record_key(record: object) -> str:
    """Hex sha256 of the record's canonical JSON: sorted keys, no spaces, UTF-8 (lone surrogates passed through)."""
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()


def question(turns: list[tuple[str, str]]) -> str | None:
    """The value of the first human turn that is directly followed by a gpt turn, or None.

    Args:
        turns: (from, value), in order.

    Source:
        docs/method.md, section 1.
    """
    for (speaker, value), (next_speaker, _) in itertools.pairwise(turns):
        if speaker == "human" and next_speaker == "gpt":
            return _valid_text(value)
    return None


def clean_message(value: str) -> str:
    """A human turn without image placeholders and surrounding white space.

    Source:
        docs/method.md, section 4.
    """
    return _valid_text(_PLACEHOLDERS.sub("", value).strip())


def _turns(conversations: object) -> list[tuple[str, str]]:
    """The turns as (from, value). Every value must be text, whoever says it."""
    if not isinstance(conversations, list) or not conversations:
        raise RecordProblem("conversations_missing", f"conversations is {_kind(conversations)}, wanted a list of turns")
    turns = []
    for number, turn in enumerate(conversations):
        if not isinstance(turn, dict) or not isinstance(turn.get("from"), str):
            raise RecordProblem("turn_malformed", f"turn {number} is no object with a text in `from`")
        if not isinstance(turn.get("value"), str):
            raise RecordProblem("value_not_string", f"the value of turn {number} is {_kind(turn.get('value'))}")
        turns.append((turn["from"], turn["value"]))
    return turns


def _image(image: object) -> str | None:
    """The path of the picture in normal form, or None for a text-only record."""
    if image is None or image == "":
        return None
    if isinstance(image, list):
        raise RecordProblem("image_list", f"image is a list of {len(image)}, wanted one path")
    if not isinstance(image, str):
        raise RecordProblem("image_not_string", f"image is {_kind(image)}, wanted a path")
    try:
        path = clean_path(image)
    except OutsideRootError:
        raise RecordProblem("image_outside_root", f"{image!r} is not a path below the image root") from None
    if _LONE_SURROGATES.search(path):
        raise RecordProblem("image_missing", f"{image!r} is not valid Unicode and names no file")
    return path


def _source(source: object, image: str | None) -> str:
    """The record's own `source`, else its picture's first folder (coco, gqa, ...), else a fixed word."""
    if isinstance(source, str) and source.strip():
        return _valid_text(source)
    if image is None:
        return TEXT_ONLY_SOURCE
    return image.split("/")[0] if "/" in image else NO_FOLDER_SOURCE


def _valid_text(text: str) -> str:
    """The text with lone surrogates, which neither Parquet nor a tokenizer takes, as U+FFFD; `raw` keeps them."""
    return _LONE_SURROGATES.sub("\ufffd", text)


def _kind(value: object) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "missing or null"
    if isinstance(value, list) and not value:
        return "an empty list"
    names = {
        bool: "true or false",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
        dict: "an object",
    }
    return names[type(value)]
