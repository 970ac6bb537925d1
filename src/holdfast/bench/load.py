"""A light load generator: keep-alive connections that send requests made beforehand and time the answers.

Closed loop, `width` requests in flight. An answer counts when its last byte is here and its status is
the expected one; anything else ends the run with the answer's text, because a benchmark of errors is
none. Bodies are counted, not kept.
"""

import asyncio
from collections.abc import Iterable, Iterator
from typing import cast

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Bug

_CHUNK = 1 << 20
GIVE_UP_S = 20.0


class Request(Struct, frozen=True):
    """One request, ready to send: its head, then `body` so many `times`. `answer_bytes` are what its
    answer must carry (None: not checked)."""

    head: bytes
    body: bytes = b""
    times: int = 1
    answer_bytes: int | None = None


class Sample(Struct, frozen=True):
    """What a run came to. Latencies in seconds, ascending."""

    seconds: float
    latencies: tuple[float, ...]
    bytes_moved: int

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    @property
    def bytes_per_s(self) -> float:
        """Object bytes a second."""
        return self.bytes_moved / self.seconds

    def quantile(self, fraction: float) -> float:
        """The latency that `fraction` of the requests did not exceed."""
        return self.latencies[min(len(self.latencies) - 1, int(fraction * len(self.latencies)))]


class Outcome(Struct):
    """What clients saw who went on whatever came. Latencies in seconds, of what failed, too."""

    latencies: list[float] = []
    failures: list[str] = []


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._answer: asyncio.Future[tuple[int, int, bytes]] | None = None
        self._head = b""
        self._kept = b""
        self._status = 0
        self._left = -1
        self._received = 0
        self._transport: asyncio.Transport | None = None
        self._writable = asyncio.Event()
        self._writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionError("the node closed the connection"))

    @property
    def is_open(self) -> bool:
        """Whether another request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def send(self, request: Request) -> tuple[int, int, bytes]:
        """Status, body length and the first bytes of the body."""
        transport = self._transport
        assert transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._head, self._kept, self._left, self._received = b"", b"", -1, 0
        if len(request.body) <= _CHUNK and request.times == 1:
            transport.write(request.head + request.body)
        else:
            transport.write(request.head)
            view = memoryview(request.body)
            for _ in range(request.times):
                for start in range(0, len(view), _CHUNK):
                    await self._writable.wait()
                    transport.write(view[start : start + _CHUNK])
        return await self._answer

    def data_received(self, data: bytes) -> None:
        if self._left < 0:
            self._head += data
            end = self._head.find(b"\r\n\r\n")
            if end < 0:
                return
            head, data = self._head[:end].lower(), self._head[end + 4 :]
            self._status = int(head[9:12])
            at = head.find(b"content-length:")
            assert at >= 0, "the load generator needs answers with a length"
            self._left = int(head[at + 15 :].split(b"\r", 1)[0])
        self._left -= len(data)
        self._received += len(data)
        if len(self._kept) < 2000:
            self._kept += data[:2000]
        if self._left <= 0 and self._answer is not None and not self._answer.done():
            self._answer.set_result((self._status, self._received, self._kept))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


async def run_load(host: str, port: int, requests: Iterable[Request], width: int, clock: Clock) -> Sample:
    """Send all requests, `width` at a time; raises Bug on any answer that is not a success."""
    loop = asyncio.get_running_loop()
    waiting: Iterator[Request] = iter(requests)
    latencies: list[float] = []
    moved = 0

    async def drive() -> None:
        nonlocal moved
        _, connection = await loop.create_connection(_Connection, host, port)
        try:
            for request in waiting:
                began = clock.monotonic()
                status, received, text = await connection.send(request)
                latencies.append(clock.monotonic() - began)
                if status not in (200, 204) or request.answer_bytes not in (None, received):
                    raise Bug(f"{request.head[:80]!r} answered {status}, {received} bytes: {text!r}")
                moved += received if request.answer_bytes is not None else len(request.body) * request.times
        finally:
            connection.close()

    began = clock.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(drive())
    seconds = clock.monotonic() - began
    return Sample(seconds, tuple(sorted(latencies)), moved)


async def run_through(
    host: str, port: int, requests: Iterable[Request], outcome: Outcome, clock: Clock
) -> None:
    """One client, one request after the other, each sent once; it goes on after whatever fails, and connects
    again where it was cut off. A request that has no answer after `GIVE_UP_S` has failed."""
    loop = asyncio.get_running_loop()
    connection: _Connection | None = None
    for request in requests:
        failure = ""
        began = clock.monotonic()
        try:
            async with asyncio.timeout(GIVE_UP_S):
                if connection is None or not connection.is_open:
                    _, connection = await loop.create_connection(_Connection, host, port)
                status, received, text = await connection.send(request)
            if status not in (200, 204) or request.answer_bytes not in (None, received):
                failure = f"status {status}, {received} bytes: {text!r}"
        except (OSError, TimeoutError) as error:
            failure = repr(error)
            if connection is not None:
                connection.close()
                connection = None
        outcome.latencies.append(clock.monotonic() - began)
        if failure:
            outcome.failures.append(f"{request.head.split(b' HTTP', 1)[0].decode()}: {failure}")
    if connection is not None:
        connection.close()
