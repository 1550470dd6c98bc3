"""A command's ports may be URIs: the work sees paths of this machine alone, and what it wrote is published after it.

Inputs come as copies in a scratch folder. Outputs are written there too and then stored: of sealed folders the manifest
of an earlier run goes first and the new one comes last, so that whoever reads meanwhile is refused a mixture.
"""

import dataclasses
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import fsspec
from fsspec.implementations.local import LocalFileSystem

from free2ds_common.datasets import MANIFEST
from free2ds_common.downloads import local_folder
from free2ds_common.errors import SettingError, StageError, first_line
from free2ds_common.redact import redacted
from free2ds_common.retry import StoreError, retried
from free2ds_common.settings import Dataclass, Port
from free2ds_common.storage import WEB, atomic_writer, filesystem, open_binary, room_on_disk

logger = logging.getLogger(__name__)

_OUTPUTS = (Port.OUTPUT, Port.NEW_OUTPUT, Port.OUTPUT_OF_FAILURES)
# Files on their way into a store: a large one is sent in several parts already.
_AT_A_TIME = 4
_COPIED_BYTES = 4 << 20
_WRITTEN = "written"


Config = TypeVar("Config", bound=Dataclass)


def ports_of(config: type[Dataclass]) -> dict[str, Port]:
    """What lies at each port of a command, by the name of its option."""
    found = {}
    for name, hint in get_type_hints(config, include_extras=True).items():
        # Of a list, those of its items.
        parts = [hint, *(get_args(hint) if get_origin(hint) is not None else ())]
        for mark in (mark for part in parts for mark in getattr(part, "__metadata__", ())):
            if isinstance(mark, Port):
                found[name] = mark
    return found


@dataclass(frozen=True)
class _Output:
    """An output that goes to a store.

    Attributes:
        name: Of the port.
        kind: What it is.
        uri: Where it goes.
        path: Where it is written first.
    """

    name: str
    kind: Port
    uri: str
    path: Path

    def files(self) -> dict[str, Path]:
        """What was written, by path below the URI; "" for the URI itself."""
        if not self.path.is_dir():
            return {"": self.path} if self.path.exists() else {}
        below = (path for path in sorted(self.path.rglob("*")) if path.is_file())
        return {path.relative_to(self.path).as_posix(): path for path in below}


class Ports(Generic[Config]):
    """A command's ports on this machine. Use as a context manager; the scratch folder is removed at its end."""

    def __init__(self, config: Config) -> None:
        """Take a command's settings and ports, as they were given."""
        self._given = config
        self._scratch: Path | None = None
        self._outputs: list[_Output] = []
        # By path in the scratch folder.
        self._uris: dict[str, str] = {}
        self._is_kept = False

    def __enter__(self) -> "Ports[Config]":
        """Return the ports."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """After an error, publish what explains it; remove the scratch folder."""
        try:
            if isinstance(error, Exception) and not self._is_kept:
                with self._kept_in_log():
                    self._publish([output for output in self._outputs if output.kind is Port.OUTPUT_OF_FAILURES])
        finally:
            if self._scratch is not None:
                shutil.rmtree(self._scratch / "inputs" if self._is_kept else self._scratch, ignore_errors=True)

    def fetched(self) -> Config:
        """The config with paths of this machine in place of URIs, and copies of the inputs there.

        Raises:
            StageError: A port is no URI, an input is not there or cannot be read, or an output can only be read.
            StoreError: A store does not answer.
        """
        kinds = ports_of(type(self._given))
        changed: dict[str, Any] = {}
        # Hours of work are not begun for a place that cannot be written to.
        for name, kind in sorted(kinds.items(), key=lambda port: port[1] not in _OUTPUTS):
            given: str | Sequence[str] = getattr(self._given, name)
            take = partial(self._output if kind in _OUTPUTS else self._input, name, kind)
            with _of_port(name):
                found = take(given) if isinstance(given, str) else [take(uri) for uri in given]
            if found != given:
                changed[name] = found
        return dataclasses.replace(self._given, **changed)

    def publish(self) -> None:
        """Store the outputs of a command that succeeded.

        Raises:
            StageError: A store refuses them. What was written stays in the scratch folder, which the message names.
            StoreError: A store does not answer; the same.
        """
        self._publish(self._outputs)

    def as_given(self, text: str) -> str:
        """A message with URIs in place of paths in the scratch folder."""
        for path, uri in sorted(self._uris.items(), key=lambda place: -len(place[0])):
            text = text.replace(path, uri)
        return text

    def _output(self, name: str, kind: Port, uri: str) -> str:
        if "://" not in uri:
            return uri
        if uri.startswith(WEB):
            raise SettingError(
                name, f"got {redacted(uri)}, which can only be read. Give a folder of this machine or an object store."
            )
        fs, path = filesystem(uri)
        if isinstance(fs, LocalFileSystem):
            return path
        # A store that refuses does so now.
        if _below(fs, path, uri) and kind is Port.NEW_OUTPUT:
            raise StageError(f"{redacted(uri)}: is there already, wanted a new or an empty folder.")
        output = _Output(name, kind, uri.rstrip("/"), self._place(f"outputs/{name}", uri))
        self._outputs.append(output)
        return str(output.path)

    def _input(self, name: str, kind: Port, uri: str) -> str:
        if "://" not in uri:
            return uri
        fs, path = filesystem(uri)
        if isinstance(fs, LocalFileSystem):
            return path
        place = self._place(f"inputs/{name}-{len(self._uris)}", uri)
        is_sealed = kind is not Port.INPUT_FILE and _is_there(f"{uri.rstrip('/')}/{MANIFEST}")
        # Few web servers list a folder.
        if is_sealed and uri.startswith(WEB):
            _copy_sealed(uri.rstrip("/"), place)
            return str(place)
        if is_sealed or kind is Port.INPUT_FOLDER:
            folder = local_folder(uri, str(place))
            self._uris[folder] = redacted(uri)
            return folder
        # The name may tell what the file is.
        target = place / (path.rstrip("/").rpartition("/")[2].partition("?")[0] or "file")
        self._uris[str(target)] = redacted(uri)
        try:
            _copy(uri, target)
        except (FileNotFoundError, IsADirectoryError):
            raise StageError(f"{redacted(uri)}: nothing there. Give the URI of a file.") from None
        return str(target)

    def _place(self, below: str, uri: str) -> Path:
        """A path in the scratch folder."""
        with room_on_disk(tempfile.gettempdir()):
            self._scratch = self._scratch or Path(tempfile.mkdtemp(prefix="free2ds-ports-"))
            place = self._scratch / below
            place.parent.mkdir(parents=True, exist_ok=True)
        self._uris[str(place)] = redacted(uri.rstrip("/"))
        return place

    def _publish(self, outputs: Iterable[_Output]) -> None:
        written = {output: files for output in outputs if (files := output.files())}
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="publish") as pool:
            stale = {output: self._unseal(output, files) for output, files in written.items()}
            for is_last in (False, True):
                for output, files in written.items():
                    chosen = {below: path for below, path in files.items() if _is_last(below) is is_last}
                    with self._kept(output):
                        # The first error cancels what has not begun.
                        list(pool.map(partial(_store, output.uri), chosen, chosen.values()))
                        _remove(output.uri, () if is_last else stale[output])

    def _unseal(self, output: _Output, files: dict[str, Path]) -> list[str]:
        """Remove the manifests of an earlier run; returns what else of it has to go."""
        if "" in files:
            return []
        with self._kept(output):
            fs, path = filesystem(output.uri)
            # Names as this run has them, of other parts or shards; whatever else lies there is not ours.
            shapes = {_shape(below) for below in files}
            earlier = [below for below in _below(fs, path, output.uri) if _shape(below) in shapes]
            _remove(output.uri, [below for below in earlier if _is_last(below)])
            return [below for below in earlier if below not in files and not _is_last(below)]

    @contextmanager
    def _kept(self, output: _Output) -> Iterator[None]:
        """Keep what was written where it cannot be stored, and say so."""
        try:
            yield
        except (StageError, StoreError, OSError) as error:
            self._is_kept = True
            kind = StoreError if isinstance(error, StoreError) else StageError
            said = redacted(str(error)) if isinstance(error, (StageError, StoreError)) else first_line(error)
            if isinstance(error, FileNotFoundError):
                said = f"{redacted(output.uri)}: cannot be written to, perhaps there is no such bucket."
            raise kind(f"{output.name}: {said} What was written is kept in {output.path.parent}.") from error

    @contextmanager
    def _kept_in_log(self) -> Iterator[None]:
        """Log an error, where another one is being told."""
        try:
            yield
        except (StageError, StoreError) as error:
            logger.warning("%s", error)


def _is_last(below: str) -> bool:
    """Whether a file says that others are complete, or stands for itself."""
    return not below or below.rpartition("/")[2] == MANIFEST


def _shape(below: str) -> str:
    """A path without its numbers: the same for all parts, and for all shards."""
    return re.sub(r"\d+", "0", below)


def _is_there(uri: str) -> bool:
    fs, path = filesystem(uri)
    try:
        retried(uri, lambda: fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _copy_sealed(uri: str, folder: Path) -> None:
    """Copy a sealed folder without listing it; what is missing or altered is found when it is opened."""
    _copy(f"{uri}/{MANIFEST}", folder / MANIFEST)
    with suppress(ValueError, KeyError, TypeError, FileNotFoundError):
        parts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["parts"]
        for name in [Path(part["file"]).name for part in parts]:
            _copy(f"{uri}/{name}", folder / name)


def _copy(uri: str, target: Path) -> None:
    with open_binary(uri) as source, atomic_writer(target) as copy:
        while block := source.read(_COPIED_BYTES):
            copy.write(block)


def _below(fs: fsspec.AbstractFileSystem, root: str, uri: str) -> list[str]:
    """Paths of the files below a folder of a store, relative to it."""

    def find() -> list[str]:
        fs.invalidate_cache()
        found: list[str] = fs.find(root)
        fs.invalidate_cache()
        return found

    start = root.rstrip("/") + "/"
    try:
        return [path.removeprefix(start) for path in retried(uri, find) if path.startswith(start)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _store(root: str, below: str, path: Path) -> None:
    uri = f"{root}/{below}" if below else root
    fs, target = filesystem(uri)
    retried(uri, lambda: fs.put_file(str(path), target), _WRITTEN)


def _remove(root: str, files: Iterable[str]) -> None:
    for below in files:
        fs, path = filesystem(f"{root}/{below}")
        with suppress(FileNotFoundError):
            retried(f"{root}/{below}", partial(fs.rm_file, path), _WRITTEN)


@contextmanager
def _of_port(name: str) -> Iterator[None]:
    """Begin messages with the name of the port."""
    try:
        yield
    except SettingError:
        raise
    except StageError as error:
        raise StageError(f"{name}: {error}", error.counts) from error
    except StoreError as error:
        raise StoreError(f"{name}: {error}") from error
