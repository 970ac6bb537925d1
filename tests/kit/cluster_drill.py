"""The drill kit for clusters: `holdfast up` under load through its balancers, and what clients see of it.

Load, books and table are those of `tests/kit/drill.py`. A client knows both balancers, and goes to the other
when nobody listens at the one that it chose, or when that ends amid the request, as clients of S3 do.
Everything else that goes wrong counts. Afterwards every acknowledged object is read back through every node.
"""

import asyncio
import itertools
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec
from botocore.credentials import Credentials

from holdfast.base.clock import SystemClock
from holdfast.node.credentials import from_secret
from holdfast.node.status import Status
from tests.kit.drill import LOOK_EVERY_S, WHOLE_WITHIN_S, Load, is_redundant
from tests.kit.outcome import Outcome
from tests.kit.s3 import Answer, call, render, sign
from tests.kit.up import UpProcess

SIZES = (0, 1, 900, 4096, 20_000, 70_000, 300_000, 1_000_000)
"""What balancers keep, to send it again. A longer body on its way to a node that hangs waits there."""


class ClusterDrill:
    """One cluster, one load, one fault after the other."""

    def __init__(self, cluster: UpProcess, *, rate: float, seconds: float, seed: str) -> None:
        self.cluster = cluster
        found = from_secret((cluster.directory / "secret").read_bytes().strip())
        self.credentials = Credentials(found.access_key_id, found.secret_access_key)
        self._seconds = seconds
        self._clock = SystemClock()
        self._turns = itertools.count()
        self.cut = 0
        """Requests that were cut. Only a balancer that dies may do that."""
        self.load = Load(self.through_balancers, rate=rate, seed=seed, sizes=SIZES)
        self.outcomes: list[Outcome] = []

    async def through_balancers(self, method: str, target: str, body: bytes = b"", /) -> Answer:
        """Ask one balancer; or the other, where nobody listens, or it ended amid the request."""
        first = next(self._turns) % 2
        doors = [self.through(name) for name in ("b1", "b2")]
        try:
            return await doors[first](method, target, body)
        except ConnectionRefusedError:
            pass
        except (ConnectionResetError, asyncio.IncompleteReadError):
            self.cut += 1
        return await doors[1 - first](method, target, body)

    def through(self, part: str) -> "Door":
        """One node or balancer, to be asked."""
        return Door(self.cluster, part, self.credentials)

    async def run(
        self,
        name: str,
        fault: Callable[[], object],
        undo: Callable[[], object] = lambda: None,
        *,
        seconds: float | None = None,
        watching: Iterable[str] = ("n1", "n2", "n3"),
    ) -> Outcome:
        """Do `fault` under load, `undo` it after a while, go on for as long, and wait until all nodes say
        that all is whole again. What was acknowledged is read back through each of those `watching`."""
        outcome = Outcome(name)
        self.outcomes.append(outcome)
        lasting = self._seconds if seconds is None else seconds
        async with self.load:
            await self._clock.sleep(0.5)
            await asyncio.to_thread(fault)
            await self._clock.sleep(lasting)
            mending = self._clock.monotonic()
            await asyncio.to_thread(undo)
            await self._clock.sleep(self._seconds)
        self.load.add_up(outcome)
        nodes = list(watching)
        for node in nodes:
            await self.until_whole(node, mending)
        outcome.redundant_s = self._clock.monotonic() - mending
        for node in nodes:
            outcome.lost += await self.load.read_back(self.through(node))
        return outcome

    def leader(self) -> str:
        """The member of etcd that leads."""
        for _ in range(600):
            for name, part in self.cluster.parts("e").items():
                with (
                    suppress(OSError),
                    urllib.request.urlopen(f"{part.endpoint}/metrics", timeout=5) as answer,
                ):
                    if b"\netcd_server_is_leader 1" in answer.read():
                        return name
            time.sleep(0.1)
        raise AssertionError("nobody leads")

    async def status(self, node: str) -> Status | None:
        """What a node says of all, None while it says nothing."""
        try:
            answer = await self.through(node)("GET", "/-/status")
        except (OSError, EOFError):
            return None
        return msgspec.json.decode(answer.body, type=Status) if answer.status == 200 else None

    async def until_whole(self, node: str, began: float) -> None:
        """Wait until a node says that all is whole, and all nodes are there. Since when it is waited for."""
        while True:
            status = await self.status(node)
            # Stores that sit out for a while, because all was slow, are not missed by any pack.
            if status is not None and is_redundant(status) and all(one.well for one in status.nodes):
                return
            waited = self._clock.monotonic() - began
            assert waited < WHOLE_WITHIN_S, f"waited {waited:.0f} s for redundancy at {node}: {status}"
            await self._clock.sleep(LOOK_EVERY_S)

    def signal(self, number: int, *names: str) -> Callable[[], None]:
        """Sends a signal to the processes that these parts have at the time."""

        def send() -> None:
            for name in names:
                os.kill(self.cluster.parts()[name].pid, number)

        return send

    def stop(self, *names: str) -> Callable[[], None]:
        """They hang."""
        return self.signal(signal.SIGSTOP, *names)

    def go_on(self, *names: str) -> Callable[[], None]:
        """They go on where they were."""
        return self.signal(signal.SIGCONT, *names)

    def kill(self, *names: str) -> Callable[[], None]:
        """They are gone at once."""
        return self.signal(signal.SIGKILL, *names)


class Door:
    """A node or a balancer, wherever it listens now. Called, it is an `Ask`."""

    def __init__(self, cluster: UpProcess, part: str, credentials: Credentials) -> None:
        self._cluster = cluster
        self._part = part
        self._credentials = credentials

    async def __call__(
        self, method: str, target: str, body: bytes = b"", /, *, headers: Mapping[str, str] | None = None
    ) -> Answer:
        return await call(
            self.port, method, target, headers=headers, body=body, credentials=self._credentials
        )

    async def begin(
        self, method: str, target: str, body: bytes = b"", *, send: int = 0
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Send a request and so many bytes of its body, and leave it at that."""
        headers = sign(method, target, self.port, body=body, credentials=self._credentials)
        headers["Content-Length"] = str(len(body))
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(render(method, target, headers, body[:send]))
        await writer.drain()
        return reader, writer

    @property
    def port(self) -> int:
        """Where it listens now."""
        port = urlsplit(self._cluster.parts()[self._part].endpoint).port
        assert port is not None
        return port


async def what_is_left(reader: asyncio.StreamReader) -> bytes:
    """What still comes, until the other side is gone."""
    left = bytearray()
    with suppress(ConnectionResetError):
        while piece := await reader.read(1 << 16):
            left += piece
    return bytes(left)
