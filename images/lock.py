"""Compiles the locks: constraints.txt, cuda.txt and every stage's requirements.txt. Run by make locks.

The first line of a lock says what it was compiled from, so that a test can tell one that is older than its input.
"""

import hashlib
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = REPOSITORY / "images"
# What torch's and faiss's GPU builds bring; everything else they need is in constraints.txt.
GPU_PACKAGES = ("cuda-", "nvidia-", "triton")
# A local build of torch calls itself 2.13.0+cpu; the lock names the release, and VARIANT chooses the build.
LOCAL_BUILD = re.compile(r"^(torch==[^+\s]+)\+\w+", re.MULTILINE)
# Behind every line of a stage's lock, and always the same.
REPEATED = re.compile(r"-c images/\w+/\.\./constraints\.txt(, )?")


def inputs_of(lock: Path) -> list[str]:
    """The texts that a lock is compiled from."""
    if lock.name == "constraints.txt":
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return project["dependencies"]
    constraints = (IMAGES / "constraints.txt").read_text(encoding="utf-8")
    if lock.name == "cuda.txt":
        return [constraints]
    return [lock.with_suffix(".in").read_text(encoding="utf-8"), constraints]


def first_line(lock: Path) -> str:
    """What the first line of an up-to-date lock says."""
    digest = hashlib.sha256("\0".join(inputs_of(lock)).encode()).hexdigest()
    return f"# compiled by `make locks` from inputs with sha256 {digest}"


def write_lock(lock: Path, body: str) -> None:
    """Write a lock with its first line."""
    lock.write_text(f"{first_line(lock)}\n{body}", encoding="utf-8")


def compile_lock(source: Path, lock: Path) -> None:
    """Run pip-compile, keeping pins that are there already where they still fit.

    Args:
        source: pyproject.toml or a requirements.in.
        lock: What to write.
    """
    print(lock.relative_to(REPOSITORY), flush=True)
    subprocess.run(
        [
            sys.executable, "-m", "piptools", "compile", "--quiet", "--strip-extras", "--allow-unsafe", "--no-header",
            "--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host", "--no-emit-options",
            "--annotation-style=line", "--output-file", str(lock.relative_to(REPOSITORY)),
            str(source.relative_to(REPOSITORY)),
        ],
        cwd=REPOSITORY, check=True,
    )  # fmt: skip
    lines = LOCAL_BUILD.sub(r"\1", lock.read_text(encoding="utf-8")).splitlines()
    pins = [REPEATED.sub("", line).removesuffix("# via ").rstrip() for line in lines if not line.startswith("#")]
    write_lock(lock, "".join(f"{line}\n" for line in pins if line))


def compile_cuda() -> None:
    """The CUDA libraries, with uv: pip-compile would download gigabytes to read their names.

    Read from the package index alone, since a wheel of torch's CPU build on this machine needs none of them.
    """
    lock = IMAGES / "cuda.txt"
    print(lock.relative_to(REPOSITORY), flush=True)
    constraints = (IMAGES / "constraints.txt").read_text(encoding="utf-8")
    found = re.search(r"^faiss-cpu(==\S+)", constraints, re.MULTILINE)
    assert found
    result = subprocess.run(
        [
            sys.executable, "-m", "uv", "pip", "compile", "-", "--constraints", "images/constraints.txt", "--no-header",
            "--no-annotate", "--python-platform", "x86_64-manylinux_2_28", "--python-version", "3.11",
        ],
        cwd=REPOSITORY, check=True, input=f"torch\nfaiss-gpu{found[1]}\n", stdout=subprocess.PIPE, text=True,
        env={name: value for name, value in os.environ.items() if name != "UV_FIND_LINKS"},
    )  # fmt: skip
    pins = [line for line in result.stdout.splitlines() if line.startswith(GPU_PACKAGES)]
    write_lock(lock, "\n".join(pins) + "\n")


def locks() -> list[Path]:
    """Every lock, in the order in which they depend on each other."""
    stages = sorted(path.with_suffix(".txt") for path in IMAGES.glob("*/requirements.in"))
    return [IMAGES / "constraints.txt", IMAGES / "cuda.txt", *stages]


def main() -> None:
    """Compile all locks."""
    for lock in locks():
        if lock.name == "constraints.txt":
            compile_lock(REPOSITORY / "pyproject.toml", lock)
        elif lock.name == "cuda.txt":
            compile_cuda()
        else:
            compile_lock(lock.with_suffix(".in"), lock)


if __name__ == "__main__":
    main()
