"""Checkpoints of a run, in a folder that a run with the same inputs and settings finds again."""

import json
import logging
import re
import shutil
from collections.abc import Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from components.finetune.transfer import put_folder
from free2ds_common.downloads import local_folder
from free2ds_common.redact import redacted
from free2ds_common.retry import retried
from free2ds_common.storage import atomic_writer, filesystem, is_local

logger = logging.getLogger(__name__)

# In front of the other folder names of a results store.
KIND = "finetune"
# Written last: a checkpoint without it is not whole.
COMPLETE = "complete.json"
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d+)")


class Checkpoints:
    """Checkpoints of one run: written by transformers into a local folder, copied to a store if there is one.

    Attributes:
        folder: The local one.
        uri: Where they are kept, without credentials; "" where nobody would find them again.
    """

    def __init__(self, cache_uri: str, deciding: Mapping[str, Any], scratch: Path) -> None:
        """Name the folder.

        Args:
            cache_uri: Folder or URI; "" for none.
            deciding: All that decides the losses; JSON values.
            scratch: A local folder.

        Raises:
            StageError: No location of any store.
        """
        key = sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:32]
        self._uri = f"{cache_uri.rstrip('/')}/{KIND}/{key}" if cache_uri else ""
        self.uri = redacted(self._uri)
        self._stored = bool(cache_uri) and not is_local(cache_uri)
        self.folder = Path(filesystem(self._uri)[1]) if cache_uri and not self._stored else scratch / "checkpoints"

    def latest(self) -> Path | None:
        """The last whole checkpoint, copied here if need be; what is not whole here is removed.

        Raises:
            StageError: The store refuses to list or give it.
            StoreError: The store does not answer.
        """
        if self._stored:
            steps = self._steps_in_store()
            if not steps:
                return None
            name = f"checkpoint-{max(steps)}"
            copied = local_folder(f"{self._uri}/{name}", str(self.folder.parent / "downloads"))
            # transformers reads the step from the name of its folder's files alone; the name is for people.
            target = self.folder / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(copied, target)
            return target
        found: dict[int, Path] = {}
        for path in self.folder.glob("checkpoint-*"):
            if (name_found := _NAME.fullmatch(path.name)) and (path / COMPLETE).is_file():
                found[int(name_found[1])] = path
            else:
                shutil.rmtree(path, ignore_errors=True)
        return found[max(found)] if found else None

    def _steps_in_store(self) -> list[int]:
        """Steps of the whole checkpoints in the store."""
        fs, root = filesystem(self._uri)

        def find() -> list[str]:
            fs.invalidate_cache()
            paths: list[str] = fs.find(root)
            return paths

        try:
            paths = retried(self._uri, find)
        except FileNotFoundError:
            return []
        pattern = re.compile(rf".*/{_NAME.pattern}/{re.escape(COMPLETE)}")
        return [int(found[1]) for path in paths if (found := pattern.fullmatch(path))]

    def publish(self, step: int) -> None:
        """Declare a checkpoint whole, and copy it to the store.

        Args:
            step: Whose checkpoint transformers has just written.

        Raises:
            StageError: The store refuses it.
            StoreError: The store does not answer.
        """
        name = f"checkpoint-{step}"
        with atomic_writer(self.folder / name / COMPLETE, "w") as handle:
            json.dump({"step": step}, handle)
        if not self._stored:
            return
        put_folder(self.folder / name, f"{self._uri}/{name}", last=COMPLETE)
        fs, root = filesystem(self._uri)
        for old in sorted(self._steps_in_store())[:-KEPT]:
            retried(self._uri, partial(fs.rm, f"{root.rstrip('/')}/checkpoint-{old}", recursive=True))
        logger.info("checkpoint of step %d is in %s", step, self.uri)

    def contribute(self, step: int) -> None:
        """Copy what another machine than the first has of a checkpoint: the states of its random numbers.

        Args:
            step: Whose checkpoint it is; the first machine publishes it later.

        Raises:
            StageError: The store refuses it.
            StoreError: The store does not answer.
        """
        if self._stored:
            put_folder(self.folder / f"checkpoint-{step}", f"{self._uri}/checkpoint-{step}")
