"""A bucket that misbehaves by script: just enough of S3 for one blob at a time, over real HTTP.

For what no honest emulator does on demand: to refuse so many requests with a status, to do what it was asked
and lose the answer, to write over what it was told not to, to hang.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs


class Refusal(NamedTuple):
    """One answer instead of the right one. `done`: the request was carried out all the same."""

    status: int
    code: str
    done: bool = False


class FakeCloud:
    """`refusals` are used up in order, one a request; `always` is for every request after them."""

    def __init__(self) -> None:
        self.port = 0
        self.blobs: dict[str, bytes] = {}
        self.refusals: list[Refusal] = []
        self.always: Refusal | None = None
        self.overwrites = False
        self.hangs = False
        self.keeps = False
        self.requests = 0
        self.released = threading.Event()
        self.lock = threading.Lock()

    def delete(self, path: str, body: bytes) -> bytes:
        """The answer to a list of names to delete; each may be refused inside an answer that is well."""
        told = []
        for key in re.findall(r"<Key>(.*?)</Key>", body.decode()):
            if self.keeps:
                told.append(f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>no</Message></Error>")
                continue
            self.blobs.pop(f"{path.partition('?')[0].rstrip('/')}/{key}", None)
            told.append(f"<Deleted><Key>{key}</Key></Deleted>")
        return f"<DeleteResult>{''.join(told)}</DeleteResult>".encode()

    def list(self, path: str) -> bytes:
        """A page of names, in order."""
        where, _, text = path.partition("?")
        asked = {key: values[0] for key, values in parse_qs(text).items()}
        root = f"{where.rstrip('/')}/"
        after = asked.get("continuation-token") or asked.get("start-after", "")
        names = sorted(name.removeprefix(root) for name in self.blobs if name.startswith(root))
        names = [name for name in names if name.startswith(asked.get("prefix", "")) and name > after]
        page = names[: int(asked.get("max-keys", "1000"))]
        more = len(page) < len(names)
        told = "".join(
            f"<Contents><Key>{name}</Key><LastModified>2026-11-25T08:00:00.000Z</LastModified>"
            f'<ETag>"1"</ETag><Size>{len(self.blobs[root + name])}</Size></Contents>'
            for name in page
        )
        token = f"<NextContinuationToken>{page[-1]}</NextContinuationToken>" if more else ""
        return (
            f"<ListBucketResult><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"<KeyCount>{len(page)}</KeyCount>{token}{told}</ListBucketResult>"
        ).encode()

    def refusal(self) -> Refusal | None:
        """What the next request gets instead of an answer."""
        return self.refusals.pop(0) if self.refusals else self.always

    def answer(self, method: str, path: str, headers: Any, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """What a bucket does."""
        blob = self.blobs.get(path)
        if method == "PUT":
            if blob is not None and headers.get("If-None-Match") == "*" and not self.overwrites:
                return 412, {}, _error("PreconditionFailed")
            self.blobs[path] = body
            return 200, {"ETag": '"1"'}, b""
        if method == "POST":
            return 200, {}, self.delete(path, body)
        if "list-type=2" in path:
            return 200, {}, self.list(path)
        if blob is None:
            return 404, {}, _error("NoSuchKey")
        about = {"ETag": '"1"', "Last-Modified": "Wed, 25 Nov 2026 08:00:00 GMT"}
        if not (asked := headers.get("Range")):
            return 200, about, blob
        first, last = (int(each) for each in asked.removeprefix("bytes=").split("-"))
        if first >= len(blob):
            return 416, {}, _error("InvalidRange")
        piece = blob[first : last + 1]
        about["Content-Range"] = f"bytes {first}-{first + len(piece) - 1}/{len(blob)}"
        return 206, about, piece


def _error(code: str) -> bytes:
    return (
        f"<Error><Code>{code}</Code><Message>HOLDFASTTESTKEY signed a/secret+for/tests=only</Message></Error>"
    ).encode()


@contextmanager
def fake_cloud() -> Iterator[FakeCloud]:
    """The bucket behind a free port of 127.0.0.1, gone with the block."""
    cloud = FakeCloud()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if cloud.hangs:
                cloud.released.wait()
                self.close_connection = True
                return
            with cloud.lock:
                cloud.requests += 1
                refusal = cloud.refusal()
                status, about, content = 0, {}, b""
                if refusal is None or refusal.done:
                    status, about, content = cloud.answer(self.command, self.path, self.headers, body)
                if refusal is not None:
                    status, about, content = refusal.status, {}, _error(refusal.code)
            self.send_response(status)
            for name, value in about.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *args: Any) -> None:
            pass

    for method in ("GET", "HEAD", "PUT", "POST"):
        setattr(Handler, f"do_{method}", Handler.handle_any)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    cloud.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        cloud.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
