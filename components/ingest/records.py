"""What makes a record usable, and what is taken from it."""

import itertools
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from components.ingest.canonical import line_and_key
from components.ingest.values import TOO_DEEP
from free2ds_common.storage import OutsideRootError, clean_path

PLACEHOLDER = "<image>"
TEXT_ONLY_SOURCE = "text-only"
NO_FOLDER_SOURCE = "images"
# Python parses and writes JSON by recursion, and gives up at about 990 levels, fewer where its stack is deeper already.
MAX_NESTING = 500
HUMAN, GPT, SYSTEM = "human", "gpt", "system"
# LLaVA's words and those of chat templates.
SPEAKERS: Mapping[str, str] = {HUMAN: HUMAN, "user": HUMAN, GPT: GPT, "assistant": GPT, SYSTEM: SYSTEM}

_PLACEHOLDERS = re.compile("<image>|<Image>")
# A record is rejected where one of these keys holds anything: it would pass for a record without a picture.
_OTHER_MEDIA = re.compile(r"(video|audio|sound|speech)s?([_-]?(path|file|name|url|uri)s?)?", re.IGNORECASE)
_OTHER_PICTURES = re.compile(r"(image|img|picture|photo)s?([_-]?(path|file|filename|name|url|uri)s?)?", re.IGNORECASE)
_READ_KEYS = {"id", "image", "images", "conversations", "messages", "source"}
_MEDIA_PLACEHOLDER = re.compile("<(video|audio)>")


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
        raise RecordProblem("not_an_object", f"is {_kind(record)}, wanted an object")
    raw, key = _line_and_key(record)
    turns = _turns(record)
    messages = [clean_message(value) for speaker, value in turns if speaker == HUMAN]
    if not messages:
        raise RecordProblem("no_human_turn", f"none of the {len(turns)} turns is from human or user")
    image = _image(record)
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


def _turns(record: Mapping[str, object]) -> list[tuple[str, str]]:
    """The turns as (speaker, value), from `conversations` or `messages`. Every value must be text, whoever says it."""
    given = {key: record[key] for key in ("conversations", "messages") if record.get(key) not in (None, [])}
    if not given:
        raise RecordProblem(
            "conversations_missing",
            f"conversations is {_kind(record.get('conversations'))} and messages is {_kind(record.get('messages'))}, "
            "wanted a list of turns in one of them",
        )
    turns = []
    for key, listed in given.items():
        if not isinstance(listed, list):
            raise RecordProblem("conversations_missing", f"{key} is {_kind(listed)}, wanted a list of turns")
        turns.append([_turn(number, turn) for number, turn in enumerate(listed)])
    if any(other != turns[0] for other in turns):
        raise RecordProblem("keys_disagree", "conversations and messages hold different turns")
    return turns[0]


def _turn(number: int, turn: object) -> tuple[str, str]:
    """One turn as (speaker, value): `from` and `value` as LLaVA writes it, or `role` and `content`."""
    if not isinstance(turn, dict):
        raise RecordProblem("turn_malformed", f"turn {number} is no object")
    # The usual turn first: `from` and `value` and nothing that could disagree with them.
    if len(turn) == 2:
        name, said = turn.get("from"), turn.get("value")
        if isinstance(name, str) and isinstance(said, str) and name in SPEAKERS:
            return SPEAKERS[name], said
    said_by = [turn[key] for key in ("from", "role") if turn.get(key) is not None]
    if not said_by or not all(isinstance(name, str) for name in said_by):
        raise RecordProblem("turn_malformed", f"turn {number} is no object with a text in `from` or `role`")
    for name in said_by:
        if name not in SPEAKERS:
            raise RecordProblem("unknown_role", f"turn {number} is from {name[:100]!r}, wanted one of {[*SPEAKERS]}")
    values = [turn[key] for key in ("value", "content") if turn.get(key) is not None]
    if isinstance(turn.get("content"), list):
        raise RecordProblem("content_parts", f"the content of turn {number} is a list of parts, wanted a text")
    for value in values or [None]:
        if not isinstance(value, str):
            raise RecordProblem("value_not_string", f"the value of turn {number} is {_kind(value)}")
    speakers = {SPEAKERS[name] for name in said_by}
    if len(speakers) > 1 or len(set(values)) > 1:
        raise RecordProblem("keys_disagree", f"turn {number} has from and role, or value and content, that differ")
    return speakers.pop(), values[0]


def _image(record: Mapping[str, object]) -> str | None:
    """The path of the picture in normal form, from `image` or `images`; None for a text-only record."""
    images = record.get("images")
    if images is not None and not isinstance(images, list):
        raise RecordProblem("image_not_string", f"images is {_kind(images)}, wanted a list of one path")
    if images and len(images) > 1:
        raise RecordProblem("image_list", f"images is a list of {len(images)}, wanted one path")
    given = [_path(image) for image in (*_one_or_none(record.get("image")), *(images or []))]
    if len(set(given)) > 1:
        raise RecordProblem("keys_disagree", f"image is {given[0]!r}, images holds {given[1]!r}")
    return given[0] if given else None


def _one_or_none(value: object) -> list[object]:
    """Null and "" are no value."""
    return [] if value is None or value == "" else [value]


def _path(image: object) -> str:
    """A picture's path in normal form."""
    if isinstance(image, list):
        raise RecordProblem("image_list", f"image is a list of {len(image)}, wanted one path")
    if not isinstance(image, str):
        raise RecordProblem("image_not_string", f"image is {_kind(image)}, wanted a path")
    try:
        return clean_path(image)
    except OutsideRootError:
        raise RecordProblem("image_outside_root", f"{image!r} is not a path below the image root") from None


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
