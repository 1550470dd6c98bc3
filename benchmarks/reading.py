"""Pictures read ahead against one by one, from stores that answer after 20 ms.

    python -m benchmarks.reading [--pictures N] [--latency SECONDS]

The store is a server of its own process on 127.0.0.1 that speaks as much of HTTP, S3 and GCS as reading takes.
"""

import argparse
import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

import torch
from PIL import Image

from benchmarks.bounds import Bounds, in_turns
from free2ds_common.inference.generation import Question
from free2ds_common.inference.prefetch import PictureQuestions, prefetch
from free2ds_common.inference.prompts import Prompt
from free2ds_common.pictures import PictureProblem, load_picture

_ROUNDS = 3
_SIZE = 336
_OF_MODEL = 16
_LAST_MODIFIED = "Fri, 02 Jan 2026 03:04:05 GMT"


def picture() -> bytes:
    """A JPEG of about 20 kB."""
    buffer = io.BytesIO()
    Image.effect_noise((_SIZE, _SIZE), 20).convert("RGB").save(buffer, "JPEG", quality=60)
    return buffer.getvalue()


def answer(method: str, target: str, headers: dict[str, str], body: bytes) -> bytes:
    """What the store says to a request: every name is the same picture."""
    url = urlsplit(target)
    status, kind, extra = "200 OK", "image/jpeg", ""
    if url.path.startswith("/storage/v1/b/") and "alt=media" not in url.query:
        name = unquote(url.path.rpartition("/o/")[2])
        entry = {"bucket": "data", "name": name, "size": str(len(body)), "generation": "1", "contentType": kind}
        body, kind = json.dumps(entry).encode(), "application/json"
    elif part := headers.get("range", "").removeprefix("bytes="):
        whole = len(body)
        first, _, last = part.partition("-")
        body = body[int(first) : int(last) + 1 if last else None]
        status = "206 Partial Content"
        extra = f"Content-Range: bytes {first}-{int(first) + len(body) - 1}/{whole}\r\n"
    head = (
        f'HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\nETag: "1"\r\n'
        f"Last-Modified: {_LAST_MODIFIED}\r\nAccept-Ranges: bytes\r\n{extra}\r\n"
    )
    return head.encode() + (b"" if method == "HEAD" else body)


async def serve(latency: float) -> None:
    """Serve on a free port, which is printed, until the process is ended."""
    body = picture()

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                method, target, _ = request.split(" ")
                await asyncio.sleep(latency)
                writer.write(answer(method, target, headers, body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def store(latency: float) -> Iterator[str]:
    """Run the server; its address."""
    command = [sys.executable, "-m", "benchmarks.reading", "--serve", "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not (port := process.stdout.readline().strip()):
                raise SystemExit("the store did not start")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def preprocess(image: Image.Image) -> dict[str, torch.Tensor]:
    """Next to nothing: what is measured is reading and decoding."""
    return {"width": torch.tensor(image.width)}


def fail(group: PictureQuestions, problem: PictureProblem) -> None:
    """No picture may be missing."""
    raise SystemExit(str(problem))


def one_by_one(root: str, names: list[str]) -> None:
    """Read and decode each picture after the one before."""
    for name in names:
        preprocess(load_picture(root, name))


def ahead(root: str, names: list[str]) -> None:
    """As the attention stages do it."""
    groups = [PictureQuestions(name, (Question(0, Prompt((1,), (2,))),)) for name in names]
    if sum(1 for _ in prefetch(groups, root, preprocess, _OF_MODEL, fail)) != len(names):
        raise SystemExit("pictures are missing")


def environment(address: str) -> dict[str, str]:
    """Where the stores' libraries look."""
    return {
        "STORAGE_EMULATOR_HOST": address,
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


def measure(bounds: Bounds, pictures: int, latency: float) -> None:
    """Time both ways with every kind of store."""
    names = [f"{number}.jpg" for number in range(pictures)]
    few = names[: max(1, pictures // 10)]
    with store(latency) as address, patch.dict(os.environ, environment(address)):
        for kind, root in {"http": f"{address}/data", "S3": "s3://data", "GCS": "gs://data"}.items():
            rounds = in_turns(_ROUNDS, single=partial(one_by_one, root, few), ahead=partial(ahead, root, names))
            single, many = rounds.median("single") / len(few), rounds.median("ahead") / pictures
            print(f"{kind}: one by one {1000 * single:.1f} ms, ahead {1000 * many:.2f} ms a picture")
            ratio = pictures / len(few) / rounds.ratio("ahead", "single")
            bounds.at_least(f"{kind}: pictures ahead over one by one", ratio, 10)


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(options.latency))
    bounds = Bounds()
    measure(bounds, options.pictures, options.latency)
    return bounds.report()


if __name__ == "__main__":
    sys.exit(main())
