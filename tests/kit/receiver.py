"""Receives what a webhook posts: a real HTTP server in a thread of its own."""

import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

import msgspec

from holdfast.health.webhook import Batch

UNTRUSTED = Path(__file__).with_name("untrusted.pem")
"""A key and a certificate for localhost that nobody has signed; for tests alone."""


class Receiver:
    """Use as a context manager. `answers` is the status to answer with, None to accept and say nothing;
    `posts` are headers and bodies."""

    def __init__(self, *, tls: bool = False) -> None:
        receiver = self
        self.answers: int | None = 200
        self.posts: list[tuple[dict[str, str], bytes]] = []
        self._go_on = threading.Event()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.posts.append(({name.lower(): value for name, value in self.headers.items()}, body))
                if receiver.answers is None:
                    receiver._go_on.wait(120)
                    return
                self.send_response(receiver.answers)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(UNTRUSTED)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    @property
    def batches(self) -> list[Batch]:
        """What was posted, understood."""
        return [msgspec.json.decode(body, type=Batch) for _, body in self.posts]

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._go_on.set()
        self._server.shutdown()
        self._server.server_close()
