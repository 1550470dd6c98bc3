"""A disk that is full at any moment of a stage: one sentence, nothing half published, and the next run is right."""

import json
import os
import subprocess

import pytest

from free2ds_common.datasets import MANIFEST
from free2ds_common.failure import Failure
from tests.support.commands import FULL, STAGES

DISK_BYTES = 8 << 20
PAGE_BYTES = 4096
# Room in pages of memory; what a stage writes here fits into 200.
ROOMS = range(0, 130, 2) if FULL else (0, 1, 3, 8, 16, 32)
ROOM_FOR_ALL = 1024


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk of 8 MiB of its own."""
    place = tmp_path_factory.mktemp("disk")
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.fixture
def leave(disk):
    """Fills the disk but for some pages."""

    def fill(pages):
        found = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(found.f_bavail * found.f_frsize - pages * PAGE_BYTES))

    yield fill
    subprocess.run(["find", disk, "-mindepth", "1", "-delete"], check=True)


def published(folder):
    """What later stages or people would take for finished, and what is left besides, parts and folders left out."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {name for name in files if not name.rpartition("/")[2].startswith("part-")}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("pages", ROOMS)
def test_a_stage_ends_in_one_sentence_or_right(disk, leave, chain, capfd, stage, pages):
    leave(pages)
    code = chain.run(stage, disk / "out")
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    if code == 0:
        assert published(disk / "out") == published(chain.work / stage)
        return
    assert (code, len(said)) == (2, 1)
    assert f"error: {disk}/out" in said[0]
    assert ": has no room left on its disk ([Errno 28]" in said[0]
    whole = published(disk / "out")
    assert whole < published(chain.work / stage)
    for name in whole:
        # Each file that is there is all there.
        if name.endswith(MANIFEST) or name in ("selected", "random", "summary"):
            json.loads((disk / "out" / name).read_bytes())


@pytest.mark.parametrize("stage", STAGES)
def test_with_room_again_the_same_folder_comes_right(disk, leave, chain, capfd, stage):
    leave(1)
    assert chain.run(stage, disk / "out") == 2
    os.truncate(disk / "ballast", DISK_BYTES - ROOM_FOR_ALL * PAGE_BYTES)
    assert chain.run(stage, disk / "out") == 0
    assert published(disk / "out") == published(chain.work / stage)


def test_a_task_that_cannot_leave_its_error_leaves_no_half_of_one(disk, leave):
    leave(0)
    Failure("ingest", "sentence", 2).write(disk / "error.json")
    assert not (disk / "error.json").exists()
