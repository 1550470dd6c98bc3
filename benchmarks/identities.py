"""Requests that tell a shard's pictures in S3 and GCS from others: by listings, against a look at each.

    python -m benchmarks.identities [--pictures N] [--shards N,N]

The store is a server on 127.0.0.1 that speaks as much of S3 and GCS as this takes, and counts. All pictures are in one
folder; a shard has every n-th of them.
"""

import argparse
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit
from xml.sax.saxutils import escape

from benchmarks.bounds import Bounds
from benchmarks.reading import environment
from free2ds_common.listing import LIST_AFTER
from free2ds_common.results_store import pictures

_PAGE = 1000
_MD5 = "1B2M2Y8AsgTpgAmY7PhCfg=="
_ETAG = '"d41d8cd98f00b204e9800998ecf8427e"'


class Store:
    """A folder of equal pictures, and how often it was asked."""

    def __init__(self, count: int) -> None:
        """Name the pictures."""
        self.names = [f"images/{number:07d}.jpg" for number in range(count)]
        self.requests = 0
        self.lock = threading.Lock()


def handler(store: Store) -> type[BaseHTTPRequestHandler]:
    """What answers for a store."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            with store.lock:
                store.requests += 1
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            start = int(query.get("continuation-token") or query.get("pageToken") or 0)
            page = store.names[start : start + _PAGE]
            following = str(start + _PAGE) if start + _PAGE < len(store.names) else ""
            if not url.path.startswith("/storage/"):
                self.send(self.of_s3(page, following) if "list-type" in query else b"", "application/xml")
            elif "prefix" in query:
                items = [self.entry(name) for name in page]
                self.send(json.dumps({"items": items, "nextPageToken": following}).encode(), "application/json")
            else:
                self.send(json.dumps(self.entry(url.path.rpartition("/o/")[2])).encode(), "application/json")

        do_HEAD = do_GET

        def entry(self, name: str) -> dict[str, str]:
            return {"bucket": "data", "name": name, "size": "7", "generation": "1", "md5Hash": _MD5}

        def of_s3(self, page: list[str], following: str) -> bytes:
            files = "".join(
                f"<Contents><Key>{name}</Key><Size>7</Size><ETag>{escape(_ETAG)}</ETag></Contents>" for name in page
            )
            token = f"<NextContinuationToken>{following}</NextContinuationToken>" if following else ""
            return f"<ListBucketResult>{files}{token}</ListBucketResult>".encode()

        def send(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            head = {"Content-Type": kind, "Content-Length": str(len(body) or 7), "ETag": _ETAG}
            for name, value in (head | {"Last-Modified": "Fri, 02 Jan 2026 03:04:05 GMT"}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_request(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def served(store: Store) -> Iterator[str]:
    """Run the server; its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(store))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def measure(bounds: Bounds, count: int, shards: list[int]) -> None:
    """Count the requests of both ways."""
    store = Store(count)
    with served(store) as address, patch.dict(os.environ, environment(address)):
        for kind, root in {"S3": "s3://data", "GCS": "gs://data"}.items():
            for shard in shards:
                wanted = store.names[::shard]
                found, asked = {}, {}
                for way, after in (("ours", LIST_AFTER), ("looks", count)):
                    store.requests = 0
                    with patch.object(pictures, "LIST_AFTER", after):
                        found[way] = pictures.picture_identities(root, wanted)
                    asked[way] = store.requests
                if found["ours"] != found["looks"] or None in found["ours"].values():
                    raise SystemExit("a listing says something else than a look")
                print(f"{kind}: {len(wanted)} of {count}: {asked['looks']} looks, {asked['ours']} requests of ours")
                if len(wanted) > LIST_AFTER:
                    bounds.at_most(f"{kind}: requests / looks, 1 of {shard}", asked["ours"] / asked["looks"], 0.1)


def main() -> int:
    """Run it; 1 when a bound is short."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pictures", type=int, default=4000)
    parser.add_argument("--shards", default="4,64")
    options = parser.parse_args()
    bounds = Bounds()
    measure(bounds, options.pictures, [int(shards) for shards in options.shards.split(",")])
    return bounds.report()


if __name__ == "__main__":
    raise SystemExit(main())
