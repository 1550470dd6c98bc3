"""Model folders of GCS: as the stages copy them (gcsfs), against google-cloud-storage's transfer manager.

    python -m benchmarks.folders [--files N,N] [--megabytes N] [--latency SECONDS] [--rate BYTES]

The store is a server of its own process on 127.0.0.1 that answers after a time and gives every connection only so many
bytes a second, as stores do. Both sides check GCS's checksums.
"""

import argparse
import asyncio
import base64
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest.mock import patch
from urllib.parse import unquote, urlsplit

import google_crc32c
from google.cloud.storage import Client, transfer_manager

from benchmarks.bounds import Bounds
from free2ds_common.downloads import local_folder

_ROUNDS = 3
_PIECE = 256 << 10
_WORKERS = 8


class Store:
    """As much of GCS as copying a folder of equal files takes."""

    def __init__(self, files: int, size: int) -> None:
        """Make the files' content."""
        self.body = os.urandom(1 << 20) * (size >> 20)
        self.names = [f"model/{number}.bin" for number in range(files)]
        self.crc32c = base64.b64encode(google_crc32c.Checksum(self.body).digest()).decode()

    def answer(self, target: str, headers: dict[str, str]) -> tuple[str, memoryview]:
        """Head and body of an answer."""
        url = urlsplit(target)
        if url.path.startswith("/storage/v1/b/") and "alt=media" not in url.query:
            listed = {"items": [self._entry(name) for name in self.names]}
            found = listed if url.path.endswith("/o") else self._entry(unquote(url.path.rpartition("/o/")[2]))
            return "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n", memoryview(json.dumps(found).encode())
        body, whole = memoryview(self.body), len(self.body)
        status, extra = "200 OK", f"X-Goog-Hash: crc32c={self.crc32c}\r\nX-Goog-Generation: 1\r\n"
        if part := headers.get("range", "").removeprefix("bytes="):
            first, _, last = part.partition("-")
            body = body[int(first) : int(last) + 1 if last else None]
            status = "206 Partial Content"
            extra += f"Content-Range: bytes {first}-{int(first) + len(body) - 1}/{whole}\r\n"
        return f"HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\n{extra}", body

    def _entry(self, name: str) -> dict[str, str]:
        size = str(len(self.body))
        return {"bucket": "data", "name": name, "size": size, "generation": "1", "crc32c": self.crc32c}


async def serve(store: Store, latency: float, rate: float) -> None:
    """Serve on a free port, which is printed, until the process is ended."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
                await asyncio.sleep(latency)
                head, body = store.answer(request.split(" ")[1], headers)
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
                began = time.monotonic()
                for start in range(0, len(body), _PIECE):
                    writer.write(body[start : start + _PIECE])
                    await writer.drain()
                    await asyncio.sleep(max(0, began + start / rate - time.monotonic()))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def running(files: int, options: argparse.Namespace) -> Iterator[str]:
    """Run the server; its address."""
    given = [f"--{name}={getattr(options, name)}" for name in ("megabytes", "latency", "rate")]
    command = [sys.executable, "-m", "benchmarks.folders", "--serve", f"--files={files}", *given]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or not (port := process.stdout.readline().strip()):
                raise SystemExit("the store did not start")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def ours(folder: str) -> None:
    """As the stages do it."""
    local_folder("gs://data/model", folder)


def transferred(kind: str, files: int, folder: str) -> None:
    """By the transfer manager, in threads or processes, one file after the other."""
    bucket = Client.create_anonymous_client().bucket("data")
    for number in range(files):
        transfer_manager.download_chunks_concurrently(
            bucket.blob(f"model/{number}.bin"), f"{folder}/{number}.bin", worker_type=kind, max_workers=_WORKERS
        )


def timed(work: Callable[[str], None]) -> tuple[float, float]:
    """Seconds by the clock and of the processors, children included."""
    with tempfile.TemporaryDirectory() as folder:
        start, before = time.perf_counter(), os.times()
        work(folder)
        end, after = time.perf_counter(), os.times()
        if not any(path.is_file() for path in Path(folder).rglob("*.bin")):
            raise SystemExit("nothing came")
    return end - start, sum(after[:4]) - sum(before[:4])


def measure(bounds: Bounds, files: int, options: argparse.Namespace) -> None:
    """Copy a folder in every way, in turns."""
    ways: dict[str, Callable[[str], None]] = {
        "ours": ours,
        "threads": partial(transferred, transfer_manager.THREAD, files),
        "processes": partial(transferred, transfer_manager.PROCESS, files),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    with running(files, options) as address, patch.dict(os.environ, {"STORAGE_EMULATOR_HOST": address}):
        for _ in range(_ROUNDS):
            for name, way in ways.items():
                found, processor = timed(way)
                seconds[name].append(found)
                print(f"{files} files, {name}: {found:.2f} s, {processor:.2f} s of processor time", flush=True)
    bounds.at_most(
        f"folder_of_{files}_over_transfer_manager", min(seconds["ours"]) / min(map(min, seconds.values())), 1.2
    )


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", default="1,3")
    parser.add_argument("--megabytes", type=int, default=256)
    parser.add_argument("--latency", type=float, default=0.02)
    parser.add_argument("--rate", type=float, default=40e6)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve(Store(int(options.files), options.megabytes << 20), options.latency, options.rate))
    bounds = Bounds()
    for files in map(int, options.files.split(",")):
        measure(bounds, files, options)
    return bounds.report()


if __name__ == "__main__":
    sys.exit(main())
