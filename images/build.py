"""Builds the images of all stages with docker: python images/build.py --tag 1.2.3 --variant cpu.

Needs Python and Docker only. What is built, and the build arguments, is the same as in docker-bake.hcl.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
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


def labels() -> dict[str, str]:
    """The build arguments that become OCI labels."""
    source = (REPOSITORY / "free2ds_common/__init__.py").read_text(encoding="utf-8")
    version = re.search(r'__version__ = "([^"]+)"', source)
    assert version
    revision = git("rev-parse", "HEAD") or "unknown"
    if git("status", "--porcelain"):
        revision += "-dirty"
    return {
        "SOURCE": public_source(git("config", "--get", "remote.origin.url")),
        "REVISION": revision,
        "VERSION": version[1],
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
    """Push an image and return its digest, sha256:..."""
    name = image_name(stage, options.registry, options.tag)
    subprocess.run(["docker", "push", "--quiet", name], check=True, stdout=subprocess.DEVNULL)
    shown = subprocess.run(
        ["docker", "image", "inspect", "--format", "{{json .RepoDigests}}", name],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return digest_of(json.loads(shown.stdout), name)


def digest_of(repository_digests: list[str], name: str) -> str:
    """The digest under which an image was pushed, sha256:...

    Args:
        repository_digests: What docker knows of the image, repository@sha256:..., the latest push last.
        name: The name that was pushed, with its tag. Docker leaves "docker.io/" out.
    """
    repository = name.rpartition(":")[0].removeprefix("docker.io/")
    return [found for found in repository_digests if found.startswith(f"{repository}@")][-1].rpartition("@")[2]


def main() -> int:
    """Build, and with --push push and write the digests; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python images/build.py", description=__doc__)
    add = parser.add_argument
    add("--registry", default="", help="where the images will be pushed, part of their names; empty for local names")
    add("--tag", default="dev", help="their tag")
    add("--variant", choices=["cpu", "cuda"], default="cuda", help="torch's build in the stages with models")
    add("--faiss", choices=["faiss-cpu", "faiss-gpu"], default="faiss-cpu", help="of cluster_scoring")
    add("--base-image", default="", help="instead of the base image that the Dockerfiles name")
    add("--extra-index", default="", help="a second package index, for instance one with torch's CPU build")
    add("--network", default="", help="network of the build, as docker build takes it")
    add("--push", action="store_true", help="push them and write --digests")
    add("--digests", type=Path, default=Path("digests.json"), help="written by --push, for pipeline.py --digests")
    options = parser.parse_args()
    if options.push and not options.registry:
        parser.error("--push: no --registry given")
    arguments = {
        "BASE_IMAGE": options.base_image, "VARIANT": options.variant, "FAISS": options.faiss,
        "EXTRA_INDEX": options.extra_index, **labels(),
    }  # fmt: skip
    if shutil.which("docker") is None:
        print("error: docker is not installed.", file=sys.stderr)
        return 2
    digests = {}
    for number, stage in enumerate(stages(), start=1):
        name = image_name(stage, options.registry, options.tag)
        print(f"[{number}/{len(stages())}] {name}", flush=True)
        command = build_command(stage, options, declared(stage, arguments))
        if subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL).returncode:
            print(f"error: {name} was not built; the lines above say why.", file=sys.stderr)
            return 1
        if options.push:
            digests[f"{PREFIX}{stage.replace('_', '-')}"] = push(stage, options)
    if options.push:
        options.digests.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")
        print(
            f"{options.digests}: python pipeline.py compile --registry {options.registry} --digests {options.digests}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
