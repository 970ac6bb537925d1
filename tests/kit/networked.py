"""A whole cluster on a network that can be broken: three members of etcd, three nodes, two balancers, and the
client, each a machine of its own (`tests/kit/network.py`); and drills on it.

Call all of it in the client's namespace, as `drilling` does. Load, books and table are those of
`tests/kit/drill.py`.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from unittest.mock import patch

import msgspec
from botocore import auth

from holdfast.base.clock import SystemClock
from holdfast.index.etcd.members import EtcdMember, address_of
from holdfast.node.status import Status
from holdfast.node.verification import Broken, Started, Summary, decode_line
from tests.kit.balancer import SECRET as BALANCER_SECRET
from tests.kit.balancer import BalancerProcess
from tests.kit.drill import LOOK_EVERY_S, Ask, Load, is_redundant
from tests.kit.etcd import EtcdCluster, EtcdProcess
from tests.kit.keeper import leave
from tests.kit.network import Network, Part, inside
from tests.kit.outcome import Outcome, show
from tests.kit.process import NodeProcess
from tests.kit.s3 import ACCESS_KEY, SECRET_KEY, Answer, let_go, read_answer, render, sign

NODES = 3
STORES = 2
CLIENT_PORT = 9000
PEER_PORT = 9100
CLOCK_NAME = "clock"
SHARED = Path("/dev/shm")
SIZES = (0, 1, 900, 4096, 20_000, 70_000, 300_000)
"""All small enough for a balancer to keep, so that none is a stream that dies with its node."""
WITHIN_S = 300.0
ANSWER_S = 60.0


async def ask_at(
    host: str, port: int, method: str, target: str, body: bytes = b"", *, ahead_s: float = 0.0
) -> Answer:
    """A signed request on a connection of its own; signed for a server whose clock is so much ahead."""
    with patch.object(auth, "get_current_datetime", lambda: datetime.now(UTC) + timedelta(seconds=ahead_s)):
        signed = sign(method, target, port, body=body, host=f"{host}:{port}")
    if body or method in {"PUT", "POST"}:
        signed.setdefault("Content-Length", str(len(body)))
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(render(method, target, signed, body))
            return await read_answer(reader, method)
        finally:
            await let_go(writer)


def set_clock(file: Path, seconds: float) -> None:
    """What the process that looks at this file for its wall clock sees from now on."""
    new = file.with_name(f".{file.name}.new")
    new.write_text(f"{seconds:+g}\n")
    new.replace(file)


def clock_of(file: Path) -> dict[str, str]:
    """The environment of a process whose wall clock, and nothing else, can be set."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    assert found, "drills of clocks need libfaketime: `.ci/tools` installs it"
    set_clock(file, 0)
    return {
        "LD_PRELOAD": str(found[0]),
        "FAKETIME_TIMESTAMP_FILE": str(file),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }


class NetworkedNode(NodeProcess):
    """A node on its machine. With `clocks` its wall clock can be set."""

    def __init__(self, home: Path, part: Part, index: str, *, clocks: bool) -> None:
        home.mkdir()
        (home / "secret").write_bytes(b"the secret of a cluster that lives for one drill")
        (home / "secret").chmod(0o600)
        text = (
            f'name = "{part.name}"\nhost = "{part.address}"\nport = {CLIENT_PORT}\nindex = "{index}"\n'
            f'[cluster]\nsecret_file = "secret"\npeer = "{part.address}:{PEER_PORT}"\n'
            f'[balancer]\nsecret = "{BALANCER_SECRET}"\n'
        )
        for number in range(1, STORES + 1):
            (home / f"d{number}").mkdir()
            text += f'[[store]]\npath = "d{number}"\n'
        (home / "holdfast.toml").write_text(text)
        given = {"HOLDFAST_ACCESS_KEY_ID": ACCESS_KEY, "HOLDFAST_SECRET_ACCESS_KEY": SECRET_KEY}
        given |= clock_of(home / CLOCK_NAME) if clocks else {}
        self._clocks = clocks
        super().__init__(home, environment=given, port=CLIENT_PORT, prefix=part.prefix)
        self.part = part
        self.name = part.name
        self.ahead_s = 0.0

    def start(self) -> None:
        super().start()
        for path in self._shared():
            leave(path)

    def wait(self, timeout_s: float = 120) -> int:
        shared = self._shared()
        code = super().wait(timeout_s)
        for path in shared:
            path.unlink(missing_ok=True)
        return code

    def _shared(self) -> list[Path]:
        """What the other clock keeps in memory for processes to share, and leaves there when it is killed."""
        names = ("faketime_shm_", "sem.faketime_sem_")
        return [SHARED / f"{name}{self.pid}" for name in names] if self._clocks else []

    async def ask(self, method: str, target: str, body: bytes = b"", /) -> Answer:
        """A request to this node and no other; again, as S3 clients do, when its clock is another one."""
        for _ in range(3):
            ahead_s = self.ahead_s
            answer = await ask_at(self.part.address, CLIENT_PORT, method, target, body, ahead_s=ahead_s)
            if answer.status != 403 or b"RequestTimeTooSkewed" not in answer.body:
                return answer
            its = parsedate_to_datetime(answer.headers["date"])
            self.ahead_s = (its - datetime.now(UTC)).total_seconds()
        return answer

    def jump(self, seconds: float) -> None:
        """Its wall clock is so far from the right time from now on."""
        set_clock(self.home / CLOCK_NAME, seconds)

    async def look(self) -> Status:
        """Its status."""
        answer = await self.ask("GET", "/-/status")
        assert answer.status == 200, answer.body
        return msgspec.json.decode(answer.body, type=Status)

    async def is_ready(self) -> bool:
        """Whether it says that it is."""
        return (await self.ask("GET", "/-/ready")).status == 200


def in_turn(asked: Sequence[Ask]) -> Ask:
    """One after the other, each request at one of them."""
    turns = itertools.cycle(asked)

    def ask(method: str, target: str, body: bytes = b"", /) -> Awaitable[Answer]:
        return next(turns)(method, target, body)

    return ask


class NetworkedCluster:
    """All machines, all processes. A context manager; to be entered in the namespace of `client`."""

    def __init__(
        self,
        folder: Path,
        network: Network,
        client: Part,
        *,
        relayed: bool = False,
        clocks: bool = False,
    ) -> None:
        self._stack = ExitStack()
        self.network = network
        self.client = client
        machines = [network.part(f"e{number}") for number in (1, 2, 3)]
        members = tuple(
            EtcdMember(part.name, folder / part.name, 2379, 2380, part.address) for part in machines
        )
        self.etcd = EtcdCluster(folder, 0)
        self.etcd.members = members
        self.etcd.processes = [
            EtcdProcess(member, members, folder, part.prefix)
            for member, part in zip(members, machines, strict=True)
        ]
        self.machines = {part.name: part for part in machines}
        self.nodes = [
            NetworkedNode(
                folder / f"n{number}",
                network.part(f"n{number}", relayed=relayed),
                address_of(members) + "/drill",
                clocks=clocks,
            )
            for number in range(1, NODES + 1)
        ]
        nodes = [f"{node.part.address}:{CLIENT_PORT}" for node in self.nodes]
        doors = [network.part(f"b{number}") for number in (1, 2)]
        self.machines |= {part.name: part for part in doors}
        self.balancers = [
            BalancerProcess(folder / part.name, nodes, (), CLIENT_PORT, part.address, part.prefix)
            for part in doors
        ]
        self.front = in_turn([partial(ask_at, part.address, CLIENT_PORT) for part in doors])

    def __enter__(self) -> "NetworkedCluster":
        try:
            self._stack.callback(self.etcd.kill)
            self.etcd.start()
            # The threads stay until the end: the kernel kills a process with the thread that began it.
            together = self._stack.enter_context(ThreadPoolExecutor())
            for part in together.map(lambda part: part.__enter__(), [*self.nodes, *self.balancers]):
                self._stack.push(part)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def all_but(self, *out: Part) -> list[Part]:
        """Every machine but these."""
        found = [self.client, *self.machines.values(), *(node.part for node in self.nodes)]
        return [part for part in found if part not in out]


def drilling(
    folder: Path,
    drills: Callable[["NetworkDrill"], Awaitable[None]],
    *,
    rate: float,
    seconds: float,
    relayed: bool = False,
    clocks: bool = False,
) -> None:
    """A cluster under these drills. At the end every shard on every store is read, and the table is shown."""
    with Network() as network:
        client = network.part("client")

        async def run(cluster: NetworkedCluster) -> None:
            # Balancers do not know what a node's clock says; clients that it told do.
            ask = in_turn([node.ask for node in cluster.nodes]) if clocks else cluster.front
            drill = NetworkDrill(cluster, rate=rate, seconds=seconds, seed=folder.name, ask=ask)
            await drill.begin()
            try:
                await drills(drill)
                summary = await drill.verify()
                assert summary.packs > 0
                assert (summary.lost, summary.degraded) == (0, 0), summary
            finally:
                show(drill.outcomes)

        def entered() -> None:
            with NetworkedCluster(folder, network, client, relayed=relayed, clocks=clocks) as cluster:
                asyncio.run(run(cluster))

        inside(client, entered)


def knows_all(status: Status) -> bool:
    """Whether a node sees all nodes and their stores. These may sit out for a while when all is slow."""
    ready = sum(node.state == "ready" for node in status.nodes)
    return ready == NODES and len(status.stores) == NODES * STORES


class NetworkDrill:
    """One cluster under load, one fault after the other."""

    def __init__(
        self, cluster: NetworkedCluster, *, rate: float, seconds: float, seed: str, ask: Ask
    ) -> None:
        self.cluster = cluster
        self.load = Load(ask, rate=rate, seed=seed, sizes=SIZES)
        self.seconds = seconds
        self.clock = SystemClock()
        self.outcomes: list[Outcome] = []

    async def begin(self) -> None:
        """Until all know each other, and there are objects."""
        await self._until_all("all to know each other", knows_all)
        await self.load.begin()

    async def run(
        self,
        name: str,
        fault: Callable[[], object],
        undo: Callable[[], object],
        *,
        noticed_by: int | None = None,
        noticed: Callable[[Status], bool] | None = None,
        lasts_s: float | None = None,
        until: Awaitable[object] | None = None,
    ) -> Outcome:
        """Do `fault` under load, `undo` it after a while, or once a node has noticed; go on with the load;
        wait until all is whole again; and read everything back through each node."""
        outcome = Outcome(name)
        self.outcomes.append(outcome)
        async with self.load:
            await self.clock.sleep(0.3)
            began = self.clock.monotonic()
            await asyncio.to_thread(fault)
            if noticed is not None and noticed_by is not None:
                node = self.cluster.nodes[noticed_by]
                outcome.detected_s = await self.until(node, noticed, f"{name} to be noticed")
            if until is not None:
                await until
            lasts = self.seconds if lasts_s is None else lasts_s
            await self.clock.sleep(max(0.0, began + lasts - self.clock.monotonic()))
            mending = self.clock.monotonic()
            await asyncio.to_thread(undo)
            await self.clock.sleep(self.seconds)
        await self.whole(name)
        outcome.redundant_s = self.clock.monotonic() - mending
        self.load.add_up(outcome)
        outcome.lost = await self.read_back()
        return outcome

    async def until(self, node: NetworkedNode, holds: Callable[[Status], bool], what: str) -> float:
        """Ask a node until it holds; how long it took."""
        began = self.clock.monotonic()
        while True:
            status: Status | None = None
            try:
                status = await node.look()
            except (OSError, EOFError, AssertionError) as error:
                told: object = error
            else:
                told = status
            waited = self.clock.monotonic() - began
            if status is not None and holds(status):
                return waited
            assert waited < WITHIN_S, f"waited {waited:.0f} s for {what} at {node.name}: {told}"
            await self.clock.sleep(LOOK_EVERY_S)

    async def _until_all(self, what: str, holds: Callable[[Status], bool]) -> None:
        for node in self.cluster.nodes:
            await self.until(node, holds, what)

    async def until_not_ready(self, node: NetworkedNode) -> float:
        """Until a node says so; how long it took."""
        began = self.clock.monotonic()
        while await node.is_ready():
            assert self.clock.monotonic() - began < WITHIN_S, f"{node.name} is still ready"
            await self.clock.sleep(LOOK_EVERY_S)
        return self.clock.monotonic() - began

    async def until_cut_off(self, node: NetworkedNode) -> None:
        """Until a node leaves repairs to others, because it does not reach them."""
        began = self.clock.monotonic()
        while b"it is for a node that reaches the others" not in (await node.ask("GET", "/-/chores")).body:
            assert self.clock.monotonic() - began < WITHIN_S, f"{node.name} does not find itself cut off"
            await self.clock.sleep(LOOK_EVERY_S)

    async def whole(self, name: str) -> None:
        """Until each node sees all others, and all is as it was promised."""
        await self._until_all(
            f"all to be whole after {name}", lambda status: knows_all(status) and is_redundant(status)
        )

    async def read_back(self) -> list[str]:
        """What was acknowledged and is not there, whichever node is asked."""
        lost: list[str] = []
        for node in self.cluster.nodes:
            lost += [f"through {node.name}: {key}" for key in await self.load.read_back(node.ask)]
        return lost

    async def verify(self) -> Summary:
        """Have a node read every shard on every store."""
        node = self.cluster.nodes[0]
        answer = await node.ask("POST", "/-/verify")
        started = decode_line(answer.body.splitlines()[0])
        assert isinstance(started, Started), answer.body
        while True:
            answer = await node.ask("GET", f"/-/verify?job={started.job}")
            for line in map(decode_line, answer.body.splitlines()):
                assert not isinstance(line, Broken), line
                if isinstance(line, Summary):
                    return line
            await self.clock.sleep(LOOK_EVERY_S)


def silent(name: str) -> Callable[[Status], bool]:
    """Whether a node finds another silent."""

    def holds(status: Status) -> bool:
        return any(node.name == name and node.state == "silent" for node in status.nodes)

    return holds
