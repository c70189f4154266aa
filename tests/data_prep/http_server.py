"""A server on this machine that gives out byte strings, and misbehaves as told."""

import re
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, TypeVar

PIECE = 16 * 1024
Server = TypeVar("Server", bound=ThreadingHTTPServer)


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one answer: another status, or after ``after`` bytes of its body, the connection.

    ``close`` ends it in good order, ``reset`` breaks it off, ``stall`` sends nothing until the server's ``released`` is set,
    and then the rest.
    """

    status: int | None = None
    after: int = 0
    then: Literal["close", "reset", "stall"] | None = None


@dataclass
class Served:
    """A file: its bytes, what the server says of it, and the faults of the next answers, first to last (None: no fault)."""

    body: bytes
    etag: str | None = None
    last_modified: str | None = None
    encoding: str | None = None
    kind: str | None = None  # Content-Type
    ranges: bool = True
    if_range: bool = True  # whether If-Range is heeded
    says_where: bool = True  # whether a part of the body comes with a Content-Range
    length: bool = True  # without it, the end of the connection is the end of the body
    faults: list[Fault | None] = field(default_factory=list)


@dataclass
class Exchange:
    """A request and how it is answered; ``sent`` counts the bytes of the body."""

    path: str
    range: str | None
    if_range: str | None
    status: int
    sent: int = 0


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Let it answer, in threads, until the end of the block."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class FileServer(ThreadingHTTPServer):
    """``files`` by name; ``log`` has the exchanges; ``stalled`` is set once a stall has begun."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _handler(self))
        self.files: dict[str, Served] = {}
        self.log: list[Exchange] = []
        self.released = threading.Event()
        self.stalled = threading.Event()

    def serve(self, name: str, body: bytes, **how: Any) -> str:
        """Put a file there; returns its URL. ``how`` are the fields of :class:`Served`."""
        self.files[name] = Served(body, **how)
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def sent(self) -> list[int]:
        """How many bytes of each answer's body were sent."""
        return [exchange.sent for exchange in self.log]

    def shutdown(self) -> None:
        self.released.set()
        super().shutdown()


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served = server.files.get(self.path.lstrip("/"))
            fault = (served.faults.pop(0) if served and served.faults else None) or Fault()
            status, start, body = _answer(served, fault, self.headers.get("Range"), self.headers.get("If-Range"))
            exchange = Exchange(self.path, self.headers.get("Range"), self.headers.get("If-Range"), status)
            server.log.append(exchange)
            self.send_response(status)
            for key, value in _headers(served, status, start, body).items():
                self.send_header(key, value)
            self.end_headers()
            self._send(body[start:], fault, exchange)

        def _send(self, body: bytes, fault: Fault, exchange: Exchange) -> None:
            end = fault.after if fault.then else len(body)
            with suppress(OSError):  # the client went away
                self._pieces(body[:end], exchange)
                if fault.then == "stall":
                    server.stalled.set()
                    server.released.wait(60)
                    self._pieces(body[end:], exchange)
            if fault.then == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

        def _pieces(self, body: bytes, exchange: Exchange) -> None:
            for begin in range(0, len(body), PIECE):
                piece = body[begin : begin + PIECE]
                exchange.sent += len(piece)  # before it is written: the client may look as soon as it has everything
                self.wfile.write(piece)

        def log_message(self, format: str, *args: object) -> None:
            """Be silent."""

    return Handler


def _answer(served: Served | None, fault: Fault, asked: str | None, if_range: str | None) -> tuple[int, int, bytes]:
    """Status, offset and the whole body that the answer is part of."""
    if served is None or fault.status is not None:
        return (fault.status if served else None) or 404, 0, b"<html>not what was asked for</html>"
    body = served.body
    is_other = served.if_range and if_range is not None and if_range not in {served.etag, served.last_modified}
    if asked is None or not served.ranges or is_other:
        return 200, 0, body
    found = re.fullmatch(r"bytes=(\d+)-", asked)
    assert found
    start = int(found[1])
    return (416, len(body), body) if start >= len(body) else (206, start, body)


def _headers(served: Served | None, status: int, start: int, body: bytes) -> dict[str, str]:
    is_placed = status == 206 and served is not None and served.says_where
    headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if is_placed else {}
    headers |= {"Content-Range": f"bytes */{len(body)}"} if status == 416 and start else {}
    if served is None or served.length:
        headers["Content-Length"] = str(len(body) - start)
    if served is not None and status in {200, 206}:
        named = {"ETag": served.etag, "Last-Modified": served.last_modified, "Content-Encoding": served.encoding}
        named["Content-Type"] = served.kind
        headers |= {key: value for key, value in named.items() if value is not None}
    return headers
