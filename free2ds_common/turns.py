"""What a record says and shows: its turns and the path of its picture, in LLaVA's words or those of chat templates."""

from collections.abc import Mapping

from free2ds_common.storage import OutsideRootError, clean_path

HUMAN, GPT, SYSTEM = "human", "gpt", "system"
# LLaVA's words and those of chat templates.
SPEAKERS: Mapping[str, str] = {HUMAN: HUMAN, "user": HUMAN, GPT: GPT, "assistant": GPT, SYSTEM: SYSTEM}


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


def turns_of(record: Mapping[str, object]) -> list[tuple[str, str]]:
    """The turns as (speaker, value), from `conversations` or `messages`.

    Args:
        record: A parsed JSON object.

    Returns:
        In order; the speaker is `HUMAN`, `GPT` or `SYSTEM`.

    Raises:
        RecordProblem: There are none, or one that is no text of a known speaker.
    """
    given = {key: record[key] for key in ("conversations", "messages") if record.get(key) not in (None, [])}
    if not given:
        raise RecordProblem(
            "conversations_missing",
            f"conversations is {kind_of(record.get('conversations'))} and messages is "
            f"{kind_of(record.get('messages'))}, wanted a list of turns in one of them",
        )
    turns = []
    for key, listed in given.items():
        if not isinstance(listed, list):
            raise RecordProblem("conversations_missing", f"{key} is {kind_of(listed)}, wanted a list of turns")
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
            raise RecordProblem("value_not_string", f"the value of turn {number} is {kind_of(value)}")
    speakers = {SPEAKERS[name] for name in said_by}
    if len(speakers) > 1 or len(set(values)) > 1:
        raise RecordProblem("keys_disagree", f"turn {number} has from and role, or value and content, that differ")
    return speakers.pop(), values[0]


def image_of(record: Mapping[str, object]) -> str | None:
    """The path of the picture in normal form, from `image` or `images`; None for a text-only record.

    Args:
        record: A parsed JSON object.

    Raises:
        RecordProblem: There are several, or one that is no path below the image root.
    """
    images = record.get("images")
    if images is not None and not isinstance(images, list):
        raise RecordProblem("image_not_string", f"images is {kind_of(images)}, wanted a list of one path")
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
        raise RecordProblem("image_not_string", f"image is {kind_of(image)}, wanted a path")
    try:
        return clean_path(image)
    except OutsideRootError:
        raise RecordProblem("image_outside_root", f"{image!r} is not a path below the image root") from None


def kind_of(value: object) -> str:
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
