"""What makes a record usable, and what is taken from it."""

import itertools
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from components.ingest.canonical import line_and_key
from components.ingest.values import TOO_DEEP
from free2ds_common.turns import GPT, HUMAN, RecordProblem, image_of, kind_of, turns_of

PLACEHOLDER = "<image>"
TEXT_ONLY_SOURCE = "text-only"
NO_FOLDER_SOURCE = "images"
# Python parses and writes JSON by recursion, and gives up at about 990 levels, fewer where its stack is deeper already.
MAX_NESTING = 500

_PLACEHOLDERS = re.compile("<image>|<Image>")
# A record is rejected where one of these keys holds anything: it would pass for a record without a picture.
_OTHER_MEDIA = re.compile(r"(video|audio|sound|speech)s?([_-]?(path|file|name|url|uri)s?)?", re.IGNORECASE)
_OTHER_PICTURES = re.compile(r"(image|img|picture|photo)s?([_-]?(path|file|filename|name|url|uri)s?)?", re.IGNORECASE)
_READ_KEYS = {"id", "image", "images", "conversations", "messages", "source"}
_MEDIA_PLACEHOLDER = re.compile("<(video|audio)>")


class CheckedRecord(NamedTuple):
    """The columns of records/2 that come from the record alone; its numbers follow once the picture is known."""

    record_key: str
    id: str | None
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
    if not isinstance(record, dict):
        _refuse_depth(record)
        raise RecordProblem("not_an_object", f"is {kind_of(record)}, wanted an object")
    raw, key = _line_and_key(record)
    turns = turns_of(record)
    messages = [clean_message(value) for speaker, value in turns if speaker == HUMAN]
    if not messages:
        raise RecordProblem("no_human_turn", f"none of the {len(turns)} turns is from human or user")
    image = image_of(record)
    _refuse_other_media(record, turns, image)
    return CheckedRecord(
        record_key=key,
        id=_own_id(record.get("id")),
        image=image,
        source=_source(record.get("source"), image),
        question=question(turns),
        messages=messages,
        raw=raw,
    )


def _line_and_key(record: dict[str, object]) -> tuple[str, str]:
    """The record's JSON in one line, and its key.

    Raises:
        RecordProblem: It is nested too deeply, perhaps too deeply to be written, or holds a lone surrogate.
    """
    try:
        line, key = line_and_key(record)
    except RecursionError:
        _refuse_depth(record)
        raise
    except UnicodeEncodeError as error:
        _refuse_depth(record)
        half = error.object[error.start]
        raise RecordProblem("lone_surrogate", f"holds {half!r}, half of a character, which is no Unicode") from None
    # Levels are counted only where there are brackets enough for so many: few records have 500.
    if line.count("[") + line.count("{") > MAX_NESTING:
        _refuse_depth(record)
    return line, key


def _refuse_depth(record: object) -> None:
    if (levels := nesting(record)) > MAX_NESTING:
        raise RecordProblem(TOO_DEEP, f"is nested {levels} levels deep, at most {MAX_NESTING} are read")


def _own_id(value: object) -> str | None:
    """A record's own id as text: what is no string as its JSON; None without one."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def nesting(value: object) -> int:
    """Levels of lists and objects in a JSON value, 0 for a scalar. Does not recurse."""
    levels, level = 0, [value]
    while containers := [inner for inner in level if isinstance(inner, (list, dict))]:
        levels += 1
        level = [inner for outer in containers for inner in (outer.values() if isinstance(outer, dict) else outer)]
    return levels


def question(turns: list[tuple[str, str]]) -> str | None:
    """The value of the first human turn that is directly followed by a gpt turn, or None.

    Args:
        turns: (speaker, value) in order; the speaker is human, gpt or system.

    Source:
        docs/method.md, section 1.
    """
    for (speaker, value), (next_speaker, _) in itertools.pairwise(turns):
        if speaker == HUMAN and next_speaker == GPT:
            return value
    return None


def clean_message(value: str) -> str:
    """A human turn without image placeholders and surrounding white space.

    Source:
        docs/method.md, section 4.
    """
    return (_PLACEHOLDERS.sub("", value) if "<" in value else value).strip()


def _refuse_other_media(record: Mapping[str, object], turns: list[tuple[str, str]], image: str | None) -> None:
    """Refuse a record whose pictures, videos or sounds stand where they are not looked for.

    Raises:
        RecordProblem: There are some.
    """
    for key, value in record.items():
        if key in _READ_KEYS or value in (None, "", False) or value in ([], {}):
            continue
        if _OTHER_MEDIA.fullmatch(key):
            raise RecordProblem("not_a_picture", f"has {key}; only pictures are read")
        if image is None and _OTHER_PICTURES.fullmatch(key):
            raise RecordProblem("image_key_unknown", f"has {key}, wanted the picture's path in image or images")
    for speaker, value in turns:
        found = _MEDIA_PLACEHOLDER.search(value) if speaker == HUMAN and "<" in value else None
        # With its closing tag it is HTML.
        if found and f"</{found[1]}>" not in value:
            raise RecordProblem("not_a_picture", f"a human turn holds {found[0]}; only pictures are read")


def _source(source: object, image: str | None) -> str:
    """The record's own `source`, else its picture's first folder (coco, gqa, ...), else a fixed word."""
    if isinstance(source, str) and source.strip():
        return source
    if image is None:
        return TEXT_ONLY_SOURCE
    return image.split("/")[0] if "/" in image else NO_FOLDER_SOURCE
