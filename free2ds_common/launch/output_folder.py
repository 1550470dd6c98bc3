"""The folder in which a local run leaves its results: other files in it are never touched, and two runs never mix."""

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from free2ds_common.errors import StageError
from free2ds_common.storage import atomic_writer

LOG, REJECTS = "run.log", "rejects.jsonl"
# What a run that has not succeeded leaves; an earlier run's own stay as they were.
UNFINISHED_LOG, UNFINISHED_REJECTS = "unfinished.log", "unfinished-rejects.jsonl"
# Says which files here are of an earlier run, and so may be replaced.
MARKER, LOCK = ".free2ds.json", ".free2ds.lock"
# In a work folder: it may be removed once no run holds the lock.
_TEMPORARY = ".temporary"


class OutputFolder:
    """A locked output folder with a work folder in it. Use as a context manager.

    Attributes:
        path: The folder.
        work: Scratch space on the same file system, removed at the end unless it is to be kept.
        log_path: Where the run's log goes while it has not succeeded.
    """

    def __init__(self, path: Path, names: Iterable[str], *, keep_work: bool = False) -> None:
        """Name the folder; it is made when the block begins.

        Args:
            path: The folder.
            names: Files and folders that `publish` will put there.
            keep_work: Leave the work folder.
        """
        self.path, self.log_path = path, path / UNFINISHED_LOG
        self._names, self._keep_work = (*names, LOG), keep_work
        self.work: Path
        self._lock: IO[str]

    def __enter__(self) -> "OutputFolder":
        """Lock the folder, see that nothing of the user's is in the way, and make the work folder.

        Raises:
            StageError: It cannot be written to, another run holds it, or something there is of no earlier run.
        """
        # kfp.local replaces what looks like a placeholder of its own in every path.
        if "{{$" in str(self.path):
            raise StageError(f"--output-dir: {self.path} holds {{{{$, which Kubeflow Pipelines replaces. Rename it.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / LOCK).open("w", encoding="utf-8")
        except OSError as error:
            raise StageError(f"--output-dir: {self.path} cannot be written to ({error.strerror}).") from None
        try:
            self._take_lock()
            self._refuse_foreign()
            self._remove_stale_work()
            self.work = Path(tempfile.mkdtemp(dir=self.path, prefix="work-"))
            if not self._keep_work:
                (self.work / _TEMPORARY).touch()
        except OSError as error:
            self._lock.close()
            raise StageError(f"--output-dir: {self.path} cannot be written to ({error.strerror}).") from None
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the work folder and unlock."""
        if not self._keep_work:
            shutil.rmtree(self.work, ignore_errors=True)
        self._lock.close()

    def publish(self, results: Mapping[str, Path]) -> None:
        """Move a run's results and its log to their places, all or none; an earlier run's are replaced.

        Args:
            results: Where each of them is now, by its name in the folder; in the work folder.

        Raises:
            StageError: One cannot be moved. Then an earlier run's results are as they were, and the new ones are kept
                in the work folder.
        """
        replaced = self.work / "replaced"
        done: list[tuple[Path, Path]] = []
        try:
            replaced.mkdir()
            for name, new in {**results, LOG: self.log_path}.items():
                target = self.path / name
                if target.exists():
                    os.replace(target, replaced / name)
                    done.append((target, replaced / name))
                os.replace(new, target)
                done.append((new, target))
            with atomic_writer(self.path / MARKER, "w") as handle:
                json.dump({name: _files(self.path / name) for name in (*results, LOG)}, handle, indent=1)
        except OSError as error:
            for before, now in reversed(done):
                os.replace(now, before)
            self._keep_work = True
            (self.work / _TEMPORARY).unlink(missing_ok=True)
            raise StageError(
                f"--output-dir: the results cannot be moved to {self.path} ({error.strerror}). They are in "
                f"{self.work}; what an earlier run left is as it was."
            ) from None
        (self.path / UNFINISHED_REJECTS).unlink(missing_ok=True)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StageError(
                f"--output-dir: another run is writing to {self.path}. Wait for it, or give another folder."
            ) from None

    def _refuse_foreign(self) -> None:
        """Refuse to replace what no earlier run left."""
        known = self._read_marker()
        for name in self._names:
            path = self.path / name
            if path.is_symlink():
                raise StageError(f"--output-dir: {path} is a link. Remove it, or give another folder.")
            if not path.exists():
                continue
            if name not in known:
                raise StageError(f"--output-dir: {path} is of no earlier run. Move it away, or give another folder.")
            if added := set(_files(path)) - set(known[name]):
                raise StageError(
                    f"--output-dir: {path / min(added)} is of no earlier run. Move it away, or give another folder."
                )

    def _read_marker(self) -> dict[str, Any]:
        try:
            found = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _remove_stale_work(self) -> None:
        """Remove the work folders of runs that were killed: no other run holds the lock."""
        for marker in self.path.glob(f"work-*/{_TEMPORARY}"):
            shutil.rmtree(marker.parent, ignore_errors=True)


def _files(path: Path) -> list[str]:
    """The files below a folder, relative to it; none for a file."""
    return sorted(found.relative_to(path).as_posix() for found in path.rglob("*")) if path.is_dir() else []
