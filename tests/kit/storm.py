"""More requests than a cluster can take: clients that keep their connections, send when it is time, however
long the others take, and send again at once what failed.

Requests are signed before the storm, so that little of the processor, which clients and cluster share, goes
into asking. Every key is written once, so that what it may hold is known: nothing or its content, and the
content only once a write of it was acknowledged. What was there before the storm is only read. Bounded: so
many connections, so many requests, each sent at most `TRIES` times.
"""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from xml.etree import ElementTree

from botocore.credentials import Credentials

from holdfast.base.clock import SystemClock
from tests.kit.drill import BUCKET, Content
from tests.kit.s3 import Answer, render, sign

TRIES = 4
CONNECTIONS_MAX = 3000
SIZE = 4096
WRITES = 0.25
PATIENCE_S = 60.0
HOST = "storm.invalid"
POLITE = ("503 SlowDown", "503 ServiceUnavailable")
"""How a request may be refused: by a node that has enough to do, or by whoever finds no node to ask."""


@dataclass(frozen=True)
class Prepared:
    """A request as bytes, and what it reads or writes."""

    method: str
    key: str
    data: bytes
    content: bytes


@dataclass
class Seen:
    """What clients saw. A request is good or bad in the end; each try that was refused is counted, too."""

    requests: int = 0
    good: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refused_s: list[float] = field(default_factory=list)
    impolite: list[str] = field(default_factory=list)
    """Refusals that are not as they should be."""
    wrong: list[str] = field(default_factory=list)
    good_at: list[float] = field(default_factory=list)
    good_s: list[float] = field(default_factory=list)
    unsent: int = 0

    def rate(self, began: float, ended: float) -> float:
        """Good requests a second."""
        return sum(began <= at < ended for at in self.good_at) / (ended - began)

    def row(self) -> str:
        """For whoever looks."""
        return (
            f"{self.requests} requests, {self.good} good (p50 {part(self.good_s, 0.5):.2f} s, p99 "
            f"{part(self.good_s, 0.99):.2f} s), bad {dict(self.bad)}, refused {dict(self.refused)} (p50 "
            f"{part(self.refused_s, 0.5):.3f} s, p99 {part(self.refused_s, 0.99):.3f} s), "
            f"unsent {self.unsent}"
        )


def part(values: Sequence[float], share: float) -> float:
    """The value that so many are at most."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))] if values else 0.0


class Storm:
    """Clients of some ports of one machine."""

    def __init__(self, ports: Sequence[int], credentials: Credentials, seed: str) -> None:
        self._ports = itertools.cycle(ports)
        self._credentials = credentials
        self._chance = random.Random(seed)
        self._clock = SystemClock()
        self._idle: list[_Connection] = []
        self._open = 0
        self._numbers = itertools.count()
        self.reads: list[Prepared] = []
        self.possible: dict[str, list[Content]] = {}

    def writes(self, count: int) -> list[Prepared]:
        """So many writes of new keys."""
        return [
            self._prepare("PUT", f"s{next(self._numbers):05}", self._chance.randbytes(SIZE))
            for _ in range(count)
        ]

    def mixed(self, count: int) -> list[Prepared]:
        """So many requests; a part of them writes."""
        writes = self.writes(int(count * WRITES))
        found = writes + self._chance.choices(self.reads, k=count - len(writes))
        self._chance.shuffle(found)
        return found

    def _prepare(self, method: str, key: str, content: bytes) -> Prepared:
        body = content if method == "PUT" else b""
        target = f"/{BUCKET}/{key}"
        headers = sign(method, target, 0, body=body, host=HOST, credentials=self._credentials)
        if method == "PUT":
            headers["Content-Length"] = str(len(body))
        return Prepared(method, key, render(method, target, headers, body), content)

    async def begin(self, objects: int) -> None:
        """Objects to read."""
        seen = await self.closed(self.writes(objects), 8)
        assert seen.good == objects, seen.row()
        self.reads = [self._prepare("GET", key, may_be[0] or b"") for key, may_be in self.possible.items()]

    async def closed(self, requests: Iterable[Prepared], clients: int, *, seconds: float = 60.0) -> Seen:
        """So many clients, each sending the next request when it has the answer to its last."""
        seen = Seen()
        until = self._clock.monotonic() + seconds
        left = iter(requests)

        async def work(own: Iterator[Prepared]) -> None:
            for one in own:
                await self._one(one, seen)
                if self._clock.monotonic() >= until:
                    break

        await asyncio.gather(*(work(left) for _ in range(clients)))
        return seen

    async def open(self, requests: Sequence[Prepared], rate: float) -> tuple[Seen, float, float]:
        """Requests at a fixed rate, however long each takes. When all were answered: what came of them, and
        from when to when they were sent."""
        seen = Seen()
        began = due = self._clock.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for one in requests:
                due += 1 / rate
                if (early := due - self._clock.monotonic()) > 0.002:
                    await self._clock.sleep(early)
                if self._open - len(self._idle) >= CONNECTIONS_MAX:
                    seen.unsent += 1
                    continue
                tasks.create_task(self._one(one, seen))
            ended = self._clock.monotonic()
        return seen, began, ended

    async def read_back(self, port: int) -> list[str]:
        """Read every key at one port; what was acknowledged and is not there. Knows from now on what each
        holds."""
        there = Storm([port], self._credentials, "")
        lost: list[str] = []

        async def read(keys: Iterator[tuple[str, list[Content]]]) -> None:
            for key, may_be in keys:
                answer = await there._ask(self._prepare("GET", key, b""))
                found = None if answer.status == 404 else answer.body
                if answer.status not in (200, 404) or found not in may_be:
                    lost.append(f"{key}: {answer.status}, {len(answer.body)} bytes, may be {len(may_be)}")
                self.possible[key] = [found]

        keys = iter(list(self.possible.items()))
        await asyncio.gather(*(read(keys) for _ in range(8)))
        there.close()
        return lost

    def close(self) -> None:
        """Let go of the connections."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _one(self, one: Prepared, seen: Seen) -> None:
        seen.requests += 1
        if one.method == "PUT":
            self.possible.setdefault(one.key, [None, one.content])
        began = self._clock.monotonic()
        why = ""
        for _ in range(TRIES):
            sent = self._clock.monotonic()
            try:
                answer = await self._ask(one)
            except (OSError, EOFError, TimeoutError) as error:
                why = type(error).__name__
                seen.refused[why] += 1
                continue
            now = self._clock.monotonic()
            if answer.status == 200:
                self._good(one, answer, seen)
                seen.good_at.append(now)
                seen.good_s.append(now - began)
                return
            why = f"{answer.status} {_code_of(answer)}"
            seen.refused[why] += 1
            seen.refused_s.append(now - sent)
            if why not in POLITE or "retry-after" not in answer.headers:
                seen.impolite.append(f"{one.method} {one.key}: {answer}")
        seen.bad[why] += 1

    def _good(self, one: Prepared, answer: Answer, seen: Seen) -> None:
        seen.good += 1
        if one.method == "PUT":
            self.possible[one.key] = [one.content]
        elif answer.body != one.content:
            seen.wrong.append(f"{one.key} holds {len(answer.body)} bytes that are not its own")

    async def _ask(self, one: Prepared) -> Answer:
        connection = self._idle.pop() if self._idle else None
        if connection is None or connection.lost:
            connection = await self._connect()
        async with asyncio.timeout(PATIENCE_S):
            try:
                answer = await connection.ask(one.data)
            except BaseException:
                connection.close()
                raise
        if answer.closed:
            connection.close()
        else:
            self._idle.append(connection)
        return answer

    async def _connect(self) -> "_Connection":
        self._open += 1
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self._gone), "127.0.0.1", next(self._ports)
            )
        except BaseException:
            self._open -= 1
            raise
        return connection

    def _gone(self) -> None:
        self._open -= 1


class _Connection(asyncio.Protocol):
    """One request at a time, with as little work as can be."""

    def __init__(self, gone: Callable[[], None]) -> None:
        self._gone = gone
        self._transport: asyncio.Transport | None = None
        self._came = bytearray()
        self._waiting: asyncio.Future[Answer] | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._gone()
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(exc or EOFError("closed"))

    def data_received(self, data: bytes) -> None:
        self._came += data
        head, found, body = self._came.partition(b"\r\n\r\n")
        if not found or self._waiting is None or self._waiting.done():
            return
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if len(body) >= int(headers.get("content-length", "0")):
            self._came.clear()
            status = int(first.split(" ")[1])
            closed = headers.get("connection", "").lower() == "close"
            self._waiting.set_result(Answer(status, headers, bytes(body), closed))

    def ask(self, data: bytes) -> "asyncio.Future[Answer]":
        assert self._transport is not None
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        return self._waiting

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def _code_of(answer: Answer) -> str:
    try:
        return answer.code
    except (ElementTree.ParseError, AssertionError):
        return repr(answer.body[:60])
