"""A store that fails: fsspec's protocol "faulty", over a folder of this machine."""

import io
import itertools
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem


class _BusyError(OSError):
    code = 503


class _Sized(io.BytesIO):
    size = 0


class FaultyFileSystem(AbstractFileSystem):
    """A folder as a store of which every k-th request goes wrong.

    Attributes:
        every: Which requests fail; 0 for none.
        how: "busy", "timeout", "reset", "truncated" or "altered"; the last two only fail where bytes come back.
        requests: How many there were.
        failed: How many of them failed.
        delay_s: Until a request is answered.
    """

    protocol = "faulty"
    cachable = False
    every, how = 0, "busy"
    requests, failed = itertools.count(1), 0
    delay_s = 0.0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._local = LocalFileSystem(auto_mkdir=True)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("faulty://").strip("/")

    def _ask(self) -> bool:
        """Count a request; returns whether its bytes are to be spoiled."""
        cls = type(self)
        time.sleep(cls.delay_s)
        if not cls.every or next(cls.requests) % cls.every:
            return False
        cls.failed += 1
        if cls.how == "busy":
            raise _BusyError("Service Unavailable")
        if cls.how == "timeout":
            raise TimeoutError("no answer")
        if cls.how == "reset":
            raise ConnectionResetError("reset by peer")
        return True

    def _spoiled(self, data: bytes) -> bytes:
        if self.how == "truncated":
            return data[: len(data) // 2]
        return data[:-1] + bytes([data[-1] ^ 1]) if data else data

    def ls(self, path: str, detail: bool = True, **_: Any) -> Any:
        self._ask()
        return self._local.ls(self._strip_protocol(path), detail=detail)

    def info(self, path: str, **_: Any) -> Any:
        self._ask()
        return self._local.info(self._strip_protocol(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        spoil = self._ask()
        data = self._local.cat_file(self._strip_protocol(path), start, end)
        return self._spoiled(data) if spoil else data

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        spoil = self._ask()
        data = Path(self._strip_protocol(path)).read_bytes()
        # fsspec's files ask for the length first.
        time.sleep(self.delay_s)
        handle = _Sized(self._spoiled(data) if spoil else data)
        handle.size = len(data)
        return handle

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        spoil = self._ask()
        # As an object store: what came in part is not there.
        if spoil:
            raise ConnectionResetError("the body ended early")
        self._local.pipe_file(self._strip_protocol(path), value)

    def rm_file(self, path: str) -> None:
        self._ask()
        self._local.rm_file(self._strip_protocol(path))


def install() -> type[FaultyFileSystem]:
    """Make the protocol known."""
    fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
    return FaultyFileSystem
