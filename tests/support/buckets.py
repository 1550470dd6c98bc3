"""Real object stores on 127.0.0.1, moto's S3 and a GCS emulator, each behind a relay that may fail."""

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import ClassVar
from urllib.parse import quote, urlsplit

from tests.support.stores import Answer, reset, running

BUCKET = "data"
_BOUNDARY = "between-parts"
# Each says its port and serves until its standard input ends. In processes of their own: moto changes botocore.
_S3 = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel("ERROR")
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
# Its own server answers one request at a time.
_GCS = """
import sys, threading
from functools import partial
from http.server import ThreadingHTTPServer
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage
server = ThreadingHTTPServer(("127.0.0.1", 0), partial(RequestHandler, Storage(use_memory_fs=True)))
threading.Thread(target=server.serve_forever, daemon=True).start()
print(server.server_port, flush=True)
sys.stdin.read()
"""
# What belongs to a connection, not to the answer.
_OF_CONNECTION = {"connection", "content-length", "date", "keep-alive", "server", "transfer-encoding"}


@dataclass
class Bucket:
    """A bucket behind a relay, which hands over the store's answers unless told to fail.

    Attributes:
        scheme: What its URIs begin with.
        credentials: Headers of those who store objects.
        store: URL of the store itself.
        url: Of the relay.
        faults: What the next requests get instead: a status, a reset or, with `sent`, the store's own body broken off,
            or, with `chunked` too, shortened; None is the store's answer.
        asked: Method and path of every request.
    """

    scheme: ClassVar[str] = ""
    credentials: ClassVar[dict[str, str]] = {}
    store: str
    url: str = ""
    faults: list[Answer | None] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def forget(self) -> None:
        """Let nothing fail, and nobody have asked."""
        self.faults.clear()
        self.asked.clear()

    def next_fault(self, method: str) -> Answer | None:
        """What the next request gets instead of the store's answer; a body is broken off where there is one."""
        if not self.faults or (method == "HEAD" and self.faults[0] and self.faults[0].sent is not None):
            return None
        return self.faults.pop(0)

    def send(self, method: str, path: str, body: bytes = b"", kind: str = "application/octet-stream") -> None:
        """Ask the store itself."""
        request = urllib.request.Request(
            self.store + path, body, {"Content-Type": kind, **self.credentials}, method=method
        )
        urllib.request.urlopen(request, timeout=30).close()


class S3(Bucket):
    """Of moto."""

    scheme = "s3://"
    # moto lets a stranger make an object, but not replace one.
    credentials: ClassVar[dict[str, str]] = {"Authorization": "AWS test:test"}
    code = _S3

    def create(self) -> None:
        """Make the bucket."""
        self.send("PUT", f"/{BUCKET}")

    def put(self, name: str, content: bytes) -> None:
        """Store an object."""
        self.send("PUT", f"/{BUCKET}/{quote(name)}", content)


class GCS(Bucket):
    """Of the emulator."""

    scheme = "gs://"
    code = _GCS

    def create(self) -> None:
        """Make the bucket."""
        self.send("POST", "/storage/v1/b?project=test", f'{{"name": "{BUCKET}"}}'.encode(), "application/json")

    def put(self, name: str, content: bytes) -> None:
        """Store an object."""
        # The emulator takes an empty object only in this form.
        parts = [b"", b"\r\nContent-Type: application/json\r\n\r\n" + json.dumps({"name": name}).encode()]
        parts += [b"\r\nContent-Type: application/octet-stream\r\n\r\n" + content, b"--\r\n"]
        kind = f"multipart/related; boundary={_BOUNDARY}"
        body = f"\r\n--{_BOUNDARY}".encode().join(parts).removeprefix(b"\r\n")
        self.send("POST", f"/upload/storage/v1/b/{BUCKET}/o?uploadType=multipart", body, kind)


def _relay(bucket: Bucket) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            bucket.asked.append((self.command, self.path))
            fault = bucket.next_fault(self.command)
            time.sleep(fault.delay_s if fault else 0)
            if fault and fault.reset:
                reset(self)
                return
            if fault and fault.sent is None:
                self.answer(fault.status, {}, b"", 0)
                return
            connection = http.client.HTTPConnection(urlsplit(bucket.store).netloc, timeout=30)
            try:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                connection.request(self.command, self.path, sent or None, dict(self.headers))
                found = connection.getresponse()
                body = found.read()
            finally:
                connection.close()
            headers = {name: value for name, value in found.getheaders() if name.lower() not in _OF_CONNECTION}
            length = int(found.getheader("Content-Length") or len(body))
            if "json" in found.getheader("Content-Type", ""):
                # GCS says where an object's bytes are.
                body = body.replace(bucket.store.encode(), bucket.url.encode())
                length = len(body)
            body = body[: fault.sent if fault else None]
            self.answer(found.status, headers, body, len(body) if fault and fault.chunked else length)
            self.close_connection = bool(fault)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def answer(self, status: int, headers: dict[str, str], body: bytes, length: int) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(body)

        def log_request(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def relayed(bucket: Bucket) -> Iterator[Bucket]:
    """Run the relay before a store."""
    with running(_relay(bucket)) as bucket.url:
        yield bucket


@contextmanager
def served_bucket(kind: type[S3] | type[GCS]) -> Iterator[S3 | GCS]:
    """Run a store with one bucket, and the relay before it."""
    environment = {**os.environ, "S3_IGNORE_SUBDOMAIN_BUCKETNAME": "true"}
    with subprocess.Popen(
        [sys.executable, "-c", kind.code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as process:
        try:
            port = process.stdout.readline().decode().strip()
            if not port:
                raise RuntimeError("the store did not start: pip install -e '.[dev]'")
            bucket = kind(f"http://127.0.0.1:{port}")
            bucket.create()
            with relayed(bucket):
                yield bucket
        finally:
            process.stdin.close()
