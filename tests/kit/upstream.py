"""Tiny HTTP servers that stand in for nodes: they behave as they are told, and remember what was asked.

For what a balancer does when nodes fail. They speak HTTP/1.1 over real sockets; the whole raw head is kept,
so that a test can say that nothing of it was changed on the way.
"""

import socket
import socketserver
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple


class Asked(NamedTuple):
    """One request as it came. Names in `headers` are in lower case; `lines` are the raw lines of the head."""

    method: str
    target: str
    headers: dict[str, str]
    lines: list[str]
    body: bytes


class Told(NamedTuple):
    """An answer. With `cut` the connection is broken off instead, once the request is there."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    cut: bool = False


Behaviour = Callable[[Asked], Told]


class Upstream:
    """One server. `ready` is what it says of itself; `behave` decides all else. A context manager."""

    def __init__(self, behave: Behaviour = lambda _: Told()) -> None:
        self.ready = True
        self.behave = behave
        self.asked: list[Asked] = []
        self._connections: set[socket.socket] = set()
        upstream = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                upstream._connections.add(self.connection)
                while upstream._serve(self):
                    pass

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                """A connection that the other side broke off."""

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Upstream":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.vanish()

    def vanish(self) -> None:
        """As if it had been killed: nobody listens, and every connection ends."""
        self._server.shutdown()
        self._server.server_close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @property
    def requests(self) -> list[Asked]:
        """What it was asked, its readiness apart."""
        return [asked for asked in self.asked if asked.target != "/-/ready"]

    def _serve(self, handler: socketserver.StreamRequestHandler) -> bool:
        lines: list[str] = []
        while (line := handler.rfile.readline()) not in (b"\r\n", b""):
            lines.append(line.decode("latin-1").rstrip("\r\n"))
        if not lines:
            return False
        method, target, _ = lines[0].split(" ", 2)
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        body = self._body(handler, headers)
        asked = Asked(method, target, headers, lines, body)
        self.asked.append(asked)
        told = Told(200 if self.ready else 503) if target == "/-/ready" else self.behave(asked)
        if told.cut:
            return False
        answer = [f"HTTP/1.1 {told.status} Told", f"Content-Length: {len(told.body)}"]
        answer += [f"{name}: {value}" for name, value in told.headers]
        handler.wfile.write("\r\n".join([*answer, "", ""]).encode("latin-1"))
        if method != "HEAD":
            handler.wfile.write(told.body)
        return True

    @staticmethod
    def _body(handler: socketserver.StreamRequestHandler, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return handler.rfile.read(int(headers.get("content-length", "0")))
        pieces = []
        while size := int(handler.rfile.readline().split(b";")[0], 16):
            pieces.append(handler.rfile.read(size))
            handler.rfile.readline()
        handler.rfile.readline()
        return b"".join(pieces)
