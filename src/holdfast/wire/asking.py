"""One GET in a connection of its own: how the parts of an installation ask each other small things.

What must hold: it ends by its time; an answer is whole or there is none; and what is wrong with who was asked
is one kind of error, whoever it was.
"""

import asyncio
import http.client
import io
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from holdfast.base.errors import Unavailable

ANSWER_BYTES_MAX = 1 << 20


class Got(NamedTuple):
    """An answer."""

    status: int
    body: bytes


async def get(url: str, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> Got:
    """The answer to a GET of `http://host:port/path?query`, of at most `ANSWER_BYTES_MAX`. Raises
    Unavailable."""
    where = urlsplit(url)
    address = where.netloc
    target = (where.path or "/") + (f"?{where.query}" if where.query else "")
    lines = [f"GET {target} HTTP/1.1", f"Host: {address}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    try:
        async with asyncio.timeout(timeout_s):
            raw = await _exchanged(where.hostname or "", where.port or 80, "\r\n".join([*lines, "", ""]))
    except TimeoutError:
        raise Unavailable(f"{address} does not answer.") from None
    except OSError as error:
        raise Unavailable(f"{address} cannot be reached: {error.strerror or error}.") from None
    if raw is None:
        raise Unavailable(f"{address} answers without end.")
    try:
        answer = http.client.HTTPResponse(_Canned(raw))  # type: ignore[arg-type]
        answer.begin()
        return Got(answer.status, answer.read())
    except (http.client.HTTPException, ValueError) as error:
        raise Unavailable(f"{address} does not answer in HTTP: {error!r}.") from None


async def _exchanged(host: str, port: int, question: str) -> bytes | None:
    """All bytes that come; None when they are too many."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(question.encode())
        raw = bytearray()
        while piece := await reader.read(64 << 10):
            raw += piece
            if len(raw) > ANSWER_BYTES_MAX:
                return None
        return bytes(raw)
    finally:
        writer.transport.abort()


class _Canned:
    """Bytes that were read already, where a socket is expected."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._raw)
