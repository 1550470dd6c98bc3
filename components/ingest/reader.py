"""Reads a LLaVA data set record by record: a JSON list or JSON lines, gzip'ed or not, told apart by the bytes."""

import codecs
import gzip
import hashlib
import io
import itertools
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, TYPE_CHECKING, cast

from components.ingest.values import BLANKS, DECODER, BrokenRecord, ValueEnd, parse, parse_line, too_large
from free2ds_common.errors import StageError
from free2ds_common.storage import ByteSource, open_binary

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK_BYTES = 4 << 20
# Of one record. The longest conversations that people publish have some hundred kilobytes.
MAX_RECORD_BYTES = 8 << 20
# What is kept of a larger one.
_HEAD = 1000
GZIP_MAGIC = b"\x1f\x8b"
_BLANK_BYTES = BLANKS.encode()
_BLANKS = re.compile(r"[ \t\r\n]*")
_LINE_END = re.compile(rb"\n[ \t\r\n]*")
# A JSON error this close to the end of what was read may only mean that the rest is still to come: "tru" of true,
# "-Infinit" of -Infinity, "\ud83" of an escape.
_CUT_TOKEN = 16
_LOOK_AT_LINES = 16


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
        self._head = self._head.removeprefix(codecs.BOM_UTF8).lstrip(_BLANK_BYTES)
        while not self._head and not ended:
            block = self._read(CHUNK_BYTES)
            self._head, ended = block.lstrip(_BLANK_BYTES), len(block) < CHUNK_BYTES
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
        if not self._head:
            raise StageError(f"{self.uri}: is empty, wanted a JSON list of records or one JSON object a line.")
        start = self._head[:40].decode(errors="replace")
        *whole_lines, rest = _LINE_END.split(self._head)
        lines = [line for line in (*whole_lines, *([rest] if ended else [])) if line]
        if start[0] == "[":
            # A list, unless it is only a useless first line of JSON lines.
            first_two = [parse_line(line) for line in lines[:2]]
            return not (len(first_two) == 2 and isinstance(first_two[0], list) and _is_object(first_two[1]))
        whole = parse_line(self._head) if ended else None
        if isinstance(whole, dict) and not (len(lines) == 1 and {"conversations", "messages"} & whole.keys()):
            raise StageError(f"{self.uri}: holds one JSON object, wanted a list of records or one record a line.")
        if ended and not isinstance(whole, (dict, BrokenRecord)):
            raise StageError(f"{self.uri}: is JSON but not a list of records; it starts with {start!r}.")
        # Several lines decide, so that one broken line does not condemn a file of JSON lines.
        if any(_is_object(parse_line(line)) for line in lines[:_LOOK_AT_LINES]):
            return False
        if not lines and start[0] == "{":
            return False  # a first line longer than what was read
        raise StageError(
            f"{self.uri}: is neither a JSON list of records nor one JSON object a line; it starts with {start!r}."
        )

    def __iter__(self) -> Iterator[object]:
        """Yield the records as parsed JSON; `BrokenRecord` for one that cannot be parsed, or is too large.

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
        line = _Line()
        for chunk in itertools.chain(self._chunks(), [b"\n"]):
            # A run of blank lines is one end of a line.
            first, *others = _LINE_END.split(chunk.lstrip(_BLANK_BYTES) if not line.size else chunk)
            line.add(first)
            for other in others:
                if line.size:
                    yield line.value()
                line = _Line()
                line.add(other)

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


class _Line:
    """One line of JSON lines, of which no more than a record may have is in memory.

    Attributes:
        size: Bytes so far.
    """

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        """Append bytes."""
        self.size += len(piece)
        self._pieces.append(piece)
        if self.size > MAX_RECORD_BYTES:
            self._pieces = [b"".join(self._pieces)[:_HEAD]]

    def value(self) -> object:
        """The parsed line."""
        line = b"".join(self._pieces)
        if self.size > MAX_RECORD_BYTES:
            return too_large(line.decode("utf-8", errors="backslashreplace"), MAX_RECORD_BYTES)
        return parse_line(line)


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
            blanks = _BLANKS.match(self._text, self._at)
            self._at = blanks.end() if blanks else self._at
            if self._at < len(self._text):
                return self._text[self._at]
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
                value, end = DECODER.raw_decode(self._text, start)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _CUT_TOKEN
                if cut and len(self._text) - start > MAX_RECORD_BYTES:
                    return self._step_over()
                if cut and self._more():
                    continue
                self._at += error.pos - start  # `_more` moves both
                raise self.error(f"wanted JSON ({error.msg})") from None
            # Python can or may not read it, or only not this part of it; the list goes on behind it.
            except (ValueError, RecursionError):
                return self._step_over()
            # A number at the end may go on in the next chunk: 1 as 12, 1.5e- as 1.5e-07.
            if end > len(self._text) - _CUT_TOKEN and self._more():
                continue
            self._at += end - start
            self._values += 1
            # A character has at most four bytes.
            if end - start > MAX_RECORD_BYTES // 4 and len(self._text[self._at - (end - start) : self._at].encode()) > (
                MAX_RECORD_BYTES
            ):
                return too_large(self._text[self._at - (end - start) :][:_HEAD], MAX_RECORD_BYTES)
            return value

    def _step_over(self) -> object:
        """Find where a value ends without parsing it; parsed afterwards if it is of a record's size."""
        ending, size = ValueEnd(), 0
        pieces: list[str] = []
        while True:
            end = ending.find(self._text, self._at)
            piece = self._text[self._at : len(self._text) if end is None else end]
            size += len(piece.encode())
            pieces.append(piece)
            if size > MAX_RECORD_BYTES:
                pieces = ["".join(pieces)[:_HEAD]]
            self._at += len(piece)
            if end is not None:
                self._values += 1
                text = "".join(pieces)
                return too_large(text, MAX_RECORD_BYTES) if size > MAX_RECORD_BYTES else parse(text)
            if not self._more():
                raise self.error("wanted the end of a record")


def _is_object(value: object) -> bool:
    """Whether a line holds an object, one that may not be read included."""
    if isinstance(value, BrokenRecord):
        return value.reason != "not_json" and value.text.startswith("{")
    return isinstance(value, dict)


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
