"""Builds the images of all stages with docker: python images/build.py --tag 1.2.3 --variant cpu.

Needs Python and Docker only.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
# What tests/images and the README call them too.
PREFIX = "free2ds-"


def stages() -> list[str]:
    """Every stage that has an image folder."""
    return sorted(path.parent.name for path in (REPOSITORY / "images").glob("*/Dockerfile"))


def image_name(stage: str, registry: str, tag: str) -> str:
    """The image of a stage, as pipeline.py names it."""
    name = f"{PREFIX}{stage.replace('_', '-')}:{tag}"
    return f"{registry.rstrip('/')}/{name}" if registry else name


def git(*arguments: str) -> str:
    """What git prints, or nothing outside a checkout and without git."""
    try:
        result = subprocess.run(["git", "-C", str(REPOSITORY), *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""


def public_source(remote: str) -> str:
    """A remote's address without user name and password; "unknown" for a path on this machine."""
    scheme, found, rest = remote.partition("://")
    if not found or scheme == "file":
        return "unknown"
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def version() -> str:
    """The version, where it is written; importing the package would need more than Python."""
    source = (REPOSITORY / "free2ds_common/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE)
    if found is None:
        raise ValueError('free2ds_common/__init__.py: no line __version__ = "..."')
    return found[1]


def labels() -> dict[str, str]:
    """The build arguments that become OCI labels."""
    revision = git("rev-parse", "HEAD") or "unknown"
    if git("status", "--porcelain"):
        revision += "-dirty"
    return {
        "SOURCE": public_source(git("config", "--get", "remote.origin.url")),
        "REVISION": revision,
        "VERSION": version(),
    }


def build_command(stage: str, options: argparse.Namespace, arguments: dict[str, str]) -> list[str]:
    """The docker build of one stage."""
    command = ["docker", "build", "--quiet", "--file", f"images/{stage}/Dockerfile"]
    if options.network:
        command += ["--network", options.network]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    return [*command, "--tag", image_name(stage, options.registry, options.tag), "."]


def declared(stage: str, arguments: dict[str, str]) -> dict[str, str]:
    """Those of the build arguments that a stage's Dockerfile knows: docker warns about others."""
    text = (REPOSITORY / "images" / stage / "Dockerfile").read_text(encoding="utf-8")
    known = set(re.findall(r"^ARG (\w+)", text, re.MULTILINE))
    return {name: value for name, value in arguments.items() if value and name in known}


def push(stage: str, options: argparse.Namespace) -> str:
    """Push an image and return its digest, sha256:...

    Raises:
        subprocess.CalledProcessError: Docker could not push it; it has said why on stderr.
    """
    name = image_name(stage, options.registry, options.tag)
    subprocess.run(["docker", "push", "--quiet", name], check=True, stdout=subprocess.DEVNULL)
    inspect = ["docker", "image", "inspect", "--format", "{{json .RepoDigests}}", name]
    shown = subprocess.run(inspect, check=True, stdout=subprocess.PIPE, text=True)
    return digest_of(json.loads(shown.stdout), name)


def digest_of(repository_digests: list[str], name: str) -> str:
    """The digest under which an image was pushed, sha256:...

    Args:
        repository_digests: What docker knows of the image, repository@sha256:..., the latest push last.
        name: The name that was pushed, with its tag. Docker leaves "docker.io/" out.
    """
    repository = name.rpartition(":")[0].removeprefix("docker.io/")
    return [found for found in repository_digests if found.startswith(f"{repository}@")][-1].rpartition("@")[2]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python images/build.py", description=__doc__)
    add = parser.add_argument
    add("--registry", default="", help="where the images will be pushed, part of their names; empty for local names")
    add("--tag", default="dev", help="their tag")
    add("--variant", choices=["cpu", "cuda"], default="cuda", help="torch's build in the stages with models")
    add("--faiss", choices=["faiss-cpu", "faiss-gpu"], default="faiss-cpu", help="of cluster_scoring")
    add(
        "--harness",
        choices=["own", "lmms-eval"],
        default="own",
        help="of evaluate; lmms-eval for the option of its name",
    )
    add("--base-image", default="", help="instead of the base image that the Dockerfiles name")
    add("--extra-index", default="", help="a second package index, for instance one with torch's CPU build")
    add("--network", default="", help="network of the build, as docker build takes it")
    add("--push", action="store_true", help="push them and write --digests")
    add("--digests", type=Path, default=Path("digests.json"), help="written by --push, for pipeline.py --digests")
    options = parser.parse_args(argv)
    if options.push and not options.registry:
        parser.error("--push: no --registry given")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Build, and with --push push and write the digests; returns the exit code."""
    options = parse(argv)
    if shutil.which("docker") is None:
        print("error: docker is not installed.", file=sys.stderr)
        return 2
    arguments = {
        "BASE_IMAGE": options.base_image,
        "VARIANT": options.variant,
        "FAISS": options.faiss,
        "HARNESS": options.harness,
        "EXTRA_INDEX": options.extra_index,
        **labels(),
    }
    digests = {}
    for number, stage in enumerate(stages(), start=1):
        name = image_name(stage, options.registry, options.tag)
        print(f"[{number}/{len(stages())}] {name}", flush=True)
        command = build_command(stage, options, declared(stage, arguments))
        if subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL).returncode:
            print(f"error: {name} was not built; the lines above say why.", file=sys.stderr)
            return 1
        if options.push:
            try:
                digests[f"{PREFIX}{stage.replace('_', '-')}"] = push(stage, options)
            except subprocess.CalledProcessError:
                print(f"error: {name} was not pushed; the lines above say why.", file=sys.stderr)
                return 1
    if options.push:
        options.digests.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
        print(
            f"{options.digests}: python pipeline.py compile --registry {options.registry} --digests {options.digests}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
