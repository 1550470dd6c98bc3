"""A web server on 127.0.0.1 that answers by script."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote


@dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        status: HTTP status.
        body: The whole body.
        sent: How many bytes of it are sent before the connection is closed; None for all.
        reset: Whether the connection is reset instead of answered.
        delay_s: How long the server waits first.
        etag: Its ETag; "" for none.
        content_type: Its media type.
        chunked: Whether the length is not told.
        ranges: Whether a part can be asked for.
    """

    status: int = 200
    body: bytes = b""
    sent: int | None = None
    reset: bool = False
    delay_s: float = 0.0
    etag: str = ""
    content_type: str = "application/octet-stream"
    chunked: bool = False
    ranges: bool = True


@dataclass
class Store:
    """What the server answers.

    Attributes:
        url: Of the server, no slash at the end.
        answers: By path: what is answered, one after the other; the last one stays. 404 for all other paths.
        asked: Method and path of every request.
    """

    url: str = ""
    answers: dict[str, list[Answer]] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)

    def script(self, path: str, *answers: Answer) -> str:
        """Set what is answered at a path; returns its URL."""
        self.answers[path] = list(answers)
        return self.url + path

    def page(self, path: str, *links: str) -> str:
        """A page that lists files, as web servers make them."""
        body = "".join(f'<a href="{link}">{link}</a>' for link in links).encode()
        return self.script(path, Answer(body=body, content_type="text/html"))

    def next_answer(self, path: str) -> Answer:
        """The next answer at a path."""
        # A client may quote more or less.
        left = self.answers.get(path) or self.answers.get(quote(unquote(path)), [Answer(404)])
        return left.pop(0) if len(left) > 1 else left[0]


def reset(handler: BaseHTTPRequestHandler) -> None:
    """Reset a connection instead of answering."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()


def _handler(store: Store) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            store.asked.append((self.command, path))
            answer = store.next_answer(path)
            time.sleep(answer.delay_s)
            if answer.reset:
                reset(self)
                return
            body = answer.body
            status = answer.status
            if status == 200 and answer.ranges and (part := self.headers.get("Range")):
                first, last = part.removeprefix("bytes=").split("-")
                status, body = 206, body[int(first) : int(last) + 1]
            self.send_response(status)
            self.send_header("Content-Type", answer.content_type)
            if answer.etag:
                self.send_header("ETag", answer.etag)
            if answer.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if answer.chunked:
                body = body[: answer.sent]
                for start in range(0, len(body), 1000):
                    piece = body[start : start + 1000]
                    self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                if answer.sent is None:
                    self.wfile.write(b"0\r\n\r\n")
            else:
                self.wfile.write(body[: answer.sent])
            if answer.sent is not None:
                self.close_connection = True

        do_HEAD = do_GET

        def log_request(self, *_: object) -> None:
            """Say nothing."""

    return Handler


@contextmanager
def running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1; gives the URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def served() -> Iterator[Store]:
    """Run the server that answers by script."""
    store = Store()
    with running(_handler(store)) as store.url:
        yield store
