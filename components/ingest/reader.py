"""Reads a LLaVA data set record by record: a JSON list or JSON lines, gzip'ed or not, told apart by the bytes."""

import codecs
import gzip
import hashlib
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, cast

from free2ds_common.errors import StageError
from free2ds_common.storage import ByteSource, open_binary

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 4 << 20
GZIP_MAGIC = b"\x1f\x8b"
_DECODER = json.JSONDecoder()
_BLANKS = " \t\r\n"
# A JSON error this close to the end of what was read may only mean that the rest is still to come: "tru" of true,
# "-Infinit" of -Infinity, "\ud83" of an escape.
_CUT_TOKEN = 16
_LOOK_AT_LINES = 16


@dataclass(frozen=True)
class BrokenLine:
    """A line of a JSON lines file that is not JSON.

    Attributes:
        text: The line; bytes that are not UTF-8 as backslash escapes.
        detail: What is wrong with it.
    """

    text: str
    detail: str


class _Hashing(io.RawIOBase):
    """Passes a stream through and hashes what was read."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self.digest = source, hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        view = memoryview(buffer)
        block = self._source.read(len(view))
        self.digest.update(block)
        view[: len(block)] = block
        return len(block)


class DatasetReader:
    """The records of an open data set file, once, in order.

    Attributes:
        uri: For messages.
    """

    def __init__(self, uri: str, stored: ByteSource) -> None:
        """Tell the format by the first bytes.

        Args:
            uri: Where the file comes from.
            stored: The file as it is stored.

        Raises:
            StageError: The file is empty or holds neither a JSON list nor JSON lines.
        """
        self.uri = uri
        self._hashing = _Hashing(stored)
        buffered = io.BufferedReader(self._hashing, CHUNK_BYTES)
        packed = buffered.peek(2)[:2] == GZIP_MAGIC
        self._stream: IO[bytes] = cast(IO[bytes], gzip.GzipFile(fileobj=buffered) if packed else buffered)
        self._head = self._read(CHUNK_BYTES)
        ended = len(self._head) < CHUNK_BYTES
        self._head = self._head.removeprefix(codecs.BOM_UTF8)
        self.is_list = self._starts_a_list(ended)

    @property
    def sha256(self) -> str:
        """Hex sha256 of the stored file; whole once every record has been read."""
        return self._hashing.digest.hexdigest()

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise StageError(f"{self.uri}: is a broken gzip file ({error}). Copy the file again.") from None

    def _starts_a_list(self, ended: bool) -> bool:
        """Whether the file is a JSON list; otherwise it is JSON lines.

        Args:
            ended: Whether the head is the whole file.
        """
        if not self._head.strip():
            raise StageError(f"{self.uri}: is empty, wanted a JSON list of records or one JSON object a line.")
        start = self._head.lstrip()[:40].decode(errors="replace")
        *whole_lines, rest = self._head.split(b"\n")
        lines = [line for line in (*whole_lines, *([rest] if ended else [])) if line.strip()]
        if start[0] == "[":
            # A list, unless it is only a useless first line of JSON lines.
            first_two = [_parse_line(line) for line in lines[:2]]
            return [type(value) for value in first_two] != [list, dict]
        whole = _parse_line(self._head) if ended else None
        if isinstance(whole, dict) and not (len(lines) == 1 and "conversations" in whole):
            raise StageError(f"{self.uri}: holds one JSON object, wanted a list of records or one record a line.")
        if ended and not isinstance(whole, (dict, BrokenLine)):
            raise StageError(f"{self.uri}: is JSON but not a list of records; it starts with {start!r}.")
        # Several lines decide, so that one broken line does not condemn a file of JSON lines.
        if any(isinstance(_parse_line(line), dict) for line in lines[:_LOOK_AT_LINES]):
            return False
        if not lines and start[0] == "{":
            return False  # a first line longer than what was read
        raise StageError(
            f"{self.uri}: is neither a JSON list of records nor one JSON object a line; it starts with {start!r}."
        )

    def __iter__(self) -> Iterator[object]:
        """Yield the records as parsed JSON; `BrokenLine` for a line of JSON lines that is not JSON.

        Raises:
            StageError: The list is not JSON, or the file breaks off.
        """
        return self._list_items() if self.is_list else self._line_items()

    def _chunks(self) -> Iterator[bytes]:
        yield self._head
        self._head = b""
        while chunk := self._read(CHUNK_BYTES):
            yield chunk

    def _line_items(self) -> Iterator[object]:
        rest: list[bytes] = []
        for chunk in itertools.chain(self._chunks(), [b"\n"]):
            first, *others = chunk.split(b"\n")
            rest.append(first)
            if not others:
                continue
            for line in (b"".join(rest), *others[:-1]):
                if line.strip():
                    yield _parse_line(line)
            rest = [others[-1]]

    def _list_items(self) -> Iterator[object]:
        text = _Text(self.uri, self._chunks())
        text.expect("[")
        if text.next_character() == "]":
            text.expect("]")
        else:
            while True:
                yield text.value()
                if text.next_character() != ",":
                    break
                text.expect(",")
            text.expect("]")
        if text.next_character():
            raise text.error("wanted nothing after the list")


class _Text:
    """Decoded text of which only the part around the current value is in memory."""

    def __init__(self, uri: str, chunks: Iterator[bytes]) -> None:
        self._uri, self._chunks = uri, chunks
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._text, self._at, self._dropped, self._values = "", 0, 0, 0
        self._ended = False

    def error(self, wanted: str) -> StageError:
        """What is wrong at the current place."""
        found = repr(self._text[self._at : self._at + 30]) if self._at < len(self._text) else "the end of the file"
        return StageError(
            f"{self._uri}: is not a JSON list of records: {wanted} at character {self._dropped + self._at}, "
            f"after {self._values} records, but found {found}. Copy the file again or mend it."
        )

    def _more(self) -> bool:
        """Read at least as much as is waiting, so that a huge record is not parsed over and over."""
        waiting = self._text[self._at :]
        self._dropped += self._at
        pieces, wanted = [waiting], max(1, len(waiting))
        while wanted > 0 and not self._ended:
            chunk = next(self._chunks, b"")
            self._ended = not chunk
            try:
                pieces.append(self._decoder.decode(chunk, final=self._ended))
            except UnicodeDecodeError as error:
                raise StageError(f"{self._uri}: is not UTF-8 ({error.reason}). Convert the file to UTF-8.") from None
            wanted -= len(pieces[-1])
        self._text, self._at = "".join(pieces), 0
        return len(self._text) > len(waiting)

    def next_character(self) -> str:
        """The next character that is not blank, which stays; "" at the end."""
        while True:
            while self._at < len(self._text):
                if (character := self._text[self._at]) not in _BLANKS:
                    return character
                self._at += 1
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        """Step over one character."""
        if self.next_character() != character:
            raise self.error(f"wanted {character!r}")
        self._at += 1

    def value(self) -> object:
        """The next JSON value."""
        self.next_character()
        while True:
            start = self._at
            try:
                value, end = _DECODER.raw_decode(self._text, start)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _CUT_TOKEN
                if cut and self._more():
                    continue
                self._at += error.pos - start  # `_more` moves both
                raise self.error(f"wanted JSON ({error.msg})") from None
            except (ValueError, RecursionError) as error:
                raise self.error(f"wanted JSON that can be read ({error})") from None
            # A number at the end may go on in the next chunk: 1 as 12, 1.5e- as 1.5e-07.
            if end > len(self._text) - _CUT_TOKEN and self._more():
                continue
            self._at += end - start
            self._values += 1
            return value


def _parse_line(line: bytes) -> object:
    """The JSON value of one line, or a `BrokenLine`."""
    try:
        value: object = json.loads(line.decode("utf-8"))
    # ValueError: not UTF-8, not JSON, or a number with thousands of digits.
    except (ValueError, RecursionError) as error:
        return BrokenLine(line.decode("utf-8", errors="backslashreplace").strip(), str(error))
    return value


@contextmanager
def open_records(uri: str) -> Iterator[DatasetReader]:
    """Open a data set file.

    Args:
        uri: A path or URI of a JSON list or JSON lines file, gzip'ed or not.

    Raises:
        StageError: There is no such file, it may not be read, or its first bytes are no data set.
        StoreError: The store does not answer.
    """
    with ExitStack() as stack:
        try:
            stored = stack.enter_context(open_binary(uri))
        except (FileNotFoundError, NotADirectoryError):
            raise StageError(f"{uri}: nothing there. Give the path or URI of a LLaVA JSON or JSONL file.") from None
        except IsADirectoryError:
            raise StageError(f"{uri}: is a folder. Give the JSON or JSONL file in it.") from None
        except PermissionError as error:
            raise StageError(f"{uri}: may not be read ({error}). Mend its permissions.") from None
        yield DatasetReader(uri, stored)
