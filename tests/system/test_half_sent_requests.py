"""Drill 24 through a whole cluster: requests that are sent by halves, byte by byte, and broken off; answers
that nobody takes. Through balancers and at a node, while others go on working.

What must hold: nobody else fails; of what did not come whole nothing is there, and what it would have
overwritten still is; and nothing is left of it: no connection, no file that is being written, no memory, no
upload, no part.
"""

import asyncio
import os
import random
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from urllib.parse import quote
from xml.etree import ElementTree

import pytest

from holdfast.balance.admin import Admin
from holdfast.balance.bootstrap import Files
from holdfast.balance.listener import LISTENER
from holdfast.balance.nodes_cluster import CLUSTER
from holdfast.balance.settings import DIRECTORY_DEFAULT
from tests.kit.cluster_drill import ClusterDrill
from tests.kit.outcome import Outcome, show
from tests.kit.process import wait_until
from tests.kit.s3 import let_go
from tests.kit.up import UpProcess

pytestmark = pytest.mark.slow

RATE = float(os.environ.get("HOLDFAST_DRILL_RATE", "20"))
DOORS = ("b1", "b2", "n1", "n1")
NODES = ("n1", "n2", "n3")
SMALL, LARGE, PART = 100_000, 12 << 20, 5 << 20
DRIPS = 30
SLACK = 10
"""Connections by which balancers check nodes and ask them who is there; of bad ones there are more."""
_HELD = ("01", "08")
"""ESTABLISHED and CLOSE_WAIT, as proc(5) writes them."""

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def descriptors(pid: int) -> Iterator[Path]:
    """What a process has open."""
    with suppress(FileNotFoundError):
        yield from Path(f"/proc/{pid}/fd").iterdir()


def connections(pid: int, port: int) -> int:
    """How many a process that listens at a port has there, those included that the other side has closed."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[1].partition(":")[2], 16) == port and row[3] in _HELD for row in rows)


def unnamed(pid: int) -> int:
    """How many files it has open that have no name: those that are being written, and those deleted."""
    found = 0
    for descriptor in descriptors(pid):
        with suppress(FileNotFoundError):
            where = str(descriptor.readlink())
            found += "/disk" in where and descriptor.stat().st_nlink == 0
    return found


class Bad:
    """Clients that do not do as they should. All of them are open at once."""

    def __init__(self, drill: ClusterDrill, upload: str) -> None:
        self._drill = drill
        self._part = f"/drill/parts?partNumber=2&uploadId={quote(upload, safe='')}"
        self._chance = random.Random(24)
        self._numbers = count()
        self.connections: list[Connection] = []
        self.keys: list[str] = []

    async def begin(self, door: str) -> None:
        """Each kind of them at one door."""
        chance = self._chance
        small, large = chance.randbytes(SMALL), chance.randbytes(LARGE)
        for body, send in (
            (small, 0),
            (small, 1),
            (small, SMALL // 2),
            (small, SMALL - 1),
            (large, 0),
            (large, LARGE // 2),
        ):
            key = f"half-{next(self._numbers)}"
            self.keys.append(key)
            await self._send(door, "PUT", f"/drill/{key}", body, send)
        await self._send(door, "PUT", "/drill/kept", small, SMALL // 2)
        await self._send(door, "PUT", self._part, chance.randbytes(PART), PART // 2)
        # Its answer is more than lies in buffers on the way, and nobody takes it.
        await self._send(door, "GET", "/drill/large", b"", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._drill.through(door).port)
        writer.write(b"PUT /drill/head HTTP/1.1\r\nHost: 127.0.0")
        self.connections.append((reader, writer))

    async def _send(self, door: str, method: str, target: str, body: bytes, send: int) -> None:
        found = await self._drill.through(door).begin(method, target, body, send=send)
        self.connections.append(found)

    async def drip(self, times: int) -> None:
        """A byte on each that still wants some, now and then."""
        for _ in range(times):
            for _, writer in self.connections:
                with suppress(OSError):
                    writer.write(b"x")
            await asyncio.sleep(0.02)

    async def break_off(self) -> None:
        """Some say goodbye, others are just gone."""
        for number, (_, writer) in enumerate(self.connections):
            if number % 2:
                writer.transport.abort()
            await let_go(writer)


async def test_what_is_sent_by_halves_hurts_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    chance = random.Random(1)
    kept, large, part = chance.randbytes(5000), chance.randbytes(LARGE), chance.randbytes(PART)
    with UpProcess(tmp_path) as cluster:
        drill = ClusterDrill(cluster, rate=RATE, seconds=0, seed="halves")
        await drill.load.begin()
        front = drill.through("b1")
        assert (await front("PUT", "/drill/kept", kept)).status == 200
        assert (await front("PUT", "/drill/large", large)).status == 200
        begun = await front("POST", "/drill/parts?uploads")
        upload = ElementTree.fromstring(begun.body).findtext("{*}UploadId") or ""
        target = f"/drill/parts?uploadId={quote(upload, safe='')}"
        assert (await front("PUT", f"{target}&partNumber=1", part)).status == 200

        pids = {name: cluster.parts()[name].pid for name in NODES}
        envoys = [
            Admin(Files(cluster.directory / "balancers" / name / DIRECTORY_DEFAULT).admin)
            for name in ("b1", "b2")
        ]

        def held() -> int:
            """Clients' connections of all nodes but those that balancers keep for the next request."""
            kept_by = sum(envoy.number(f"cluster.{CLUSTER}.upstream_cx_active") for envoy in envoys)
            return sum(connections(pid, drill.through(name).port) for name, pid in pids.items()) - kept_by

        bad = Bad(drill, upload)
        async with drill.load:
            for door in DOORS:
                await bad.begin(door)
            await bad.drip(DRIPS)
            assert held() > SLACK, "those that came to a node itself"
            # While all of them are open, others write as much.
            again = await front("PUT", "/drill/large", large)
            assert again.status == 200, again.body
            await bad.break_off()
        outcome = Outcome("24 requests by halves, drips, answers not taken")
        drill.load.add_up(outcome)
        for name in NODES:
            outcome.lost += await drill.load.read_back(drill.through(name))
        show([outcome])
        outcome.check()

        # Nothing is there of what did not come whole.
        for name in NODES:
            door = drill.through(name)
            assert (await door("GET", "/drill/kept")).body == kept
            assert (await door("GET", "/drill/large")).body == large
            for key in (*bad.keys, "head"):
                assert (await door("GET", f"/drill/{key}")).status == 404, (name, key)
            listed = await door("GET", "/drill?list-type=2&prefix=half-")
            assert b"<Key>" not in listed.body
            shown = ElementTree.fromstring((await door("GET", target)).body)
            assert [one.text for one in shown.iterfind("{*}Part/{*}PartNumber")] == ["1"]
        assert (await front("DELETE", target)).status == 204
        uploads = ElementTree.fromstring((await front("GET", "/drill?uploads")).body)
        assert not uploads.findall("{*}Upload")

        # Nor is anything left of it.
        for name, pid in pids.items():
            assert cluster.parts()[name].pid == pid, f"{name} is another process"
        for figure in (f"http.{LISTENER}.downstream_cx_active", f"cluster.{CLUSTER}.upstream_rq_active"):
            wait_until(
                f"{figure} to be 0",
                lambda figure=figure: not any(envoy.number(figure) for envoy in envoys),
            )
        wait_until("nodes to have let go of connections", lambda: held() <= SLACK)
        for name, pid in pids.items():
            wait_until(f"{name} to have let go of files", lambda pid=pid: unnamed(pid) == 0)
        assert cluster.stop() == 0
