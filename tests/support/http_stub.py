"""A web server on 127.0.0.1 whose answers are functions."""

import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import yaml


@dataclass(frozen=True)
class Call:
    """A request.

    Attributes:
        method: GET, POST, ...
        path: Without the query.
        query: By name.
        headers: By name in lower case.
        body: Whole.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Reply:
    """What is answered.

    Attributes:
        status: Of HTTP.
        body: Whole.
        content_type: Of the body.
    """

    status: int = 200
    body: bytes = b"{}"
    content_type: str = "application/json"


Work = Callable[..., Reply]


class HttpStub:
    """The server; use as a context manager.

    Attributes:
        url: Of the server, no slash at the end.
        calls: Every request so far.
    """

    def __init__(self) -> None:
        self.url = ""
        self.calls: list[Call] = []
        self._routes: list[tuple[re.Pattern[str], Work]] = []
        self._failures: list[tuple[re.Pattern[str], Reply]] = []

    def route(self, pattern: str, work: Work) -> None:
        """Let a function answer the requests whose method and path fit; the pattern's groups are its arguments."""
        self._routes.append((re.compile(pattern), work))

    def route_first(self, pattern: str, work: Work) -> None:
        """The same, before all functions so far."""
        self._routes.insert(0, (re.compile(pattern), work))

    def fail(self, pattern: str, status: int, body: bytes = b"", content_type: str = "application/json") -> None:
        """Answer all requests that fit with a failure from now on."""
        self._failures.append((re.compile(pattern), Reply(status, body, content_type)))

    def asked(self, pattern: str) -> list[Call]:
        """The requests so far that fit."""
        return [call for call in self.calls if re.fullmatch(pattern, str(call))]

    def answer(self, call: Call) -> Reply:
        """What is answered."""
        self.calls.append(call)
        for pattern, reply in self._failures:
            if pattern.fullmatch(str(call)):
                return reply
        for pattern, work in self._routes:
            if found := pattern.fullmatch(str(call)):
                return work(call, *found.groups())
        return Reply(404, f"no route for {call}".encode(), "text/plain")

    def __enter__(self):
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        # The default looks twice a second whether to end, which every test would wait for.
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(stub: HttpStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body in one packet: the second of two would wait 40 ms for the first one's receipt.
        wbufsize = -1

        def _do(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            call = Call(
                self.command,
                parts.path,
                dict(parse_qsl(parts.query)),
                {name.lower(): text for name, text in self.headers.items()},
                body,
            )
            reply = stub.answer(call)
            self.send_response(reply.status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        do_GET = do_POST = do_DELETE = do_PATCH = _do

        def log_message(self, *arguments: object) -> None:
            """Nothing on stderr."""

    return Handler


class KubernetesStub(HttpStub):
    """An API of Kubernetes, which clients find by a kubeconfig."""

    def kubeconfig(self, path: Path) -> str:
        """Write a kubeconfig that leads here."""
        content = {
            "current-context": "stub",
            "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
            "clusters": [{"name": "stub", "cluster": {"server": self.url}}],
            "users": [{"name": "stub", "user": {}}],
        }
        path.write_text(yaml.safe_dump(content))
        return str(path)
