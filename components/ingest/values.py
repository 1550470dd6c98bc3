"""Strict JSON values: what Python's parser would change without a word is refused, and a value can be stepped over."""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

TOO_DEEP = "nested_too_deeply"

# Possessive: nothing is kept for a way back, however long the text is.
_INSIDE_TEXT = re.compile(r'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_WHOLE_TEXTS = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKETS_AND_TEXTS = re.compile(rf'{_WHOLE_TEXTS.pattern}|[\[\]{{}}"]', re.DOTALL)
_AFTER_SCALAR = re.compile(r"[ \t\r\n,\[\]{}]")
BLANKS = " \t\r\n"
# Looked at in one go. Small: most values that are stepped over are a few hundred bytes long.
_WINDOW = 4096


@dataclass(frozen=True)
class BrokenRecord:
    """A record that cannot be parsed, or may not be.

    Attributes:
        text: The record, or its beginning if it is too large; bytes that are not UTF-8 as backslash escapes.
        reason: A fixed word.
        detail: What is wrong with it.
    """

    text: str
    reason: str
    detail: str


class _RefusedError(ValueError):
    """JSON, or nearly, whose meaning Python's parser would change."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, none of whose keys stands there twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _RefusedError("duplicate_keys", f"has the key {twice[:100]!r} twice in one object")
    return found


def _float(digits: str) -> float:
    """A number that became neither infinity nor zero."""
    value = float(digits)
    if math.isinf(value):
        raise _RefusedError("number_not_finite", f"holds {digits[:40]}, which is larger than any number here")
    if not value and digits.lower().partition("e")[0].strip("-0."):
        raise _RefusedError("number_too_small", f"holds {digits[:40]}, which is nearer to 0 than any number here")
    return value


def _constant(name: str) -> float:
    """Python reads NaN and Infinity."""
    raise _RefusedError("number_not_finite", f"holds {name}, which is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_constant=_constant)


def parse(text: str) -> object:
    """The JSON value that a text is, or a `BrokenRecord`."""
    try:
        value: object = DECODER.decode(text)
    except _RefusedError as error:
        return BrokenRecord(text, error.reason, str(error))
    except RecursionError:
        return BrokenRecord(text, TOO_DEEP, "is nested deeper than can be read")
    except json.JSONDecodeError as error:
        return BrokenRecord(text, "not_json", str(error))
    except ValueError as error:
        return BrokenRecord(text, "number_too_long", str(error))
    return value


def parse_line(line: bytes) -> object:
    """The JSON value of one line, or a `BrokenRecord`."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return BrokenRecord(line.decode("utf-8", errors="backslashreplace").strip(BLANKS), "not_json", str(error))
    return parse(text.strip(BLANKS))


def too_large(beginning: str, max_bytes: int) -> BrokenRecord:
    """A record of more than `max_bytes`."""
    return BrokenRecord(beginning, "record_too_large", f"has more than {max_bytes} bytes; its beginning is kept")


class ValueEnd:
    """Finds where a JSON value ends by brackets and quotes alone, so that size and depth do not matter."""

    def __init__(self) -> None:
        """Stand before the value."""
        self._depth = 0
        self._in_text = self._escaped = self._in_scalar = False

    def find(self, text: str, at: int) -> int | None:
        """Go through the next piece of the value.

        Args:
            text: Holds the piece.
            at: Where it starts.

        Returns:
            Where the value ends in `text`, or None if it goes on in the next piece.
        """
        while at < len(text):
            if self._in_text:
                at = self._leave_text(text, at)
                if not self._in_text and not self._depth:
                    return at
            elif self._depth:
                at = self._leave_brackets(text, at)
                if not self._depth:
                    return at
            elif self._in_scalar or text[at] not in '"[{':
                self._in_scalar = True
                after = _AFTER_SCALAR.search(text, at)
                return after.start() if after else None
            else:
                self._in_text, self._depth = text[at] == '"', int(text[at] != '"')
                at += 1
        return None

    def _leave_text(self, text: str, at: int) -> int:
        """Behind the quote that ends a text, or at the end of the piece."""
        if self._escaped:
            self._escaped = False
            return at + 1
        inside = _INSIDE_TEXT.match(text, at)
        at = inside.end() if inside else at
        if at == len(text):
            return at
        # What stops the pattern otherwise: the last character is a backslash.
        self._escaped = text[at] == "\\"
        self._in_text = self._escaped
        return at + 1

    def _leave_brackets(self, text: str, at: int) -> int:
        """Behind the last bracket, or at the end of a window of the piece."""
        window = text[at : at + _WINDOW]
        # A quote that is left over starts a text that the window cuts.
        outside, quote, inside = _WHOLE_TEXTS.sub("", window).partition('"')
        closing = outside.count("]") + outside.count("}")
        if closing < self._depth:
            self._depth += outside.count("[") + outside.count("{") - closing
            self._in_text = bool(quote)
            self._escaped = (len(inside) - len(inside.rstrip("\\"))) % 2 == 1
            return at + len(window)
        for found in _BRACKETS_AND_TEXTS.finditer(window):
            if found[0] == '"':
                break  # the text that the window cuts
            if len(found[0]) == 1:
                self._depth += 1 if found[0] in "[{" else -1
            if not self._depth:
                return at + found.end()
        self._in_text = bool(quote)
        self._escaped = (len(inside) - len(inside.rstrip("\\"))) % 2 == 1
        return at + len(window)
