"""Several machines with disks, a node on each, one index and a network between them, on one virtual clock.

Disks, the index and what is on its way outlive a node; everything else is its process's, which may be stopped
and continued, or die at any instant. Each machine has a wall clock of its own, which may jump.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import Struct

from holdfast.base.errors import HoldfastError, Unavailable
from holdfast.base.ids import StoreId
from holdfast.chores.drain import Leaving
from holdfast.stores.identity import Expected
from holdfast.stores.port import Store
from tests.kit.virtual import VirtualClock
from tests.simulation.cluster_index import IndexService
from tests.simulation.cluster_loop import PausableLoop
from tests.simulation.cluster_network import CLIENTS, INDEX, Network, refused
from tests.simulation.cluster_node import CLUSTER, ClusterNode
from tests.simulation.node import SimulationSettings
from tests.simulation.parts import PutLog
from tests.simulation.world import Process, Slot, World

T = TypeVar("T")


class ClusterSettings(Struct, frozen=True, kw_only=True):
    """What a run is made of. `losses` is what every scheme in use can lose, no less than one machine's
    disks."""

    machines: int = 3
    disks: int = 2
    losses: int = 2
    scheme: str = "rs-4-2"
    other_scheme: str = "mirror-3"
    inline_bytes_max: int = 32 << 10
    part_bytes_min: int = 64 << 10
    compact_every_s: float = 3.0
    audit_every_s: float = 10.0
    scrub_pass_s: float = 600.0
    trips_s: tuple[tuple[float, ...], ...] = ()
    """Round trips between regions, over which the machines lie in turn; the index's leader is in the first.
    Without them all machines are in one."""

    @property
    def alone(self) -> SimulationSettings:
        """The same for what knows of one machine only."""
        return SimulationSettings(
            stores=self.machines * self.disks,
            losses=self.losses,
            scheme=self.scheme,
            other_scheme=self.other_scheme,
            inline_bytes_max=self.inline_bytes_max,
            part_bytes_min=self.part_bytes_min,
            compact_every_s=self.compact_every_s,
            audit_every_s=self.audit_every_s,
            scrub_pass_s=self.scrub_pass_s,
        )


class ClusterPutLog(PutLog):
    """As for one machine, where a request may come twice."""

    def __init__(self, clock: VirtualClock, rows: object) -> None:
        super().__init__(clock, rows)  # type: ignore[arg-type]
        self.by: dict[tuple[StoreId, str], str] = {}


class NoAnswer(Unavailable):
    """The client heard nothing: the node died, was stopped, or could not be reached."""


class Machine:
    """Disks and a process that comes and goes."""

    def __init__(self, world: "ClusterWorld", name: str, slots: list[Slot]) -> None:
        self.name = name
        self.slots = slots
        self.clock = VirtualClock()
        self.stopped = False
        self.process: Process | None = None
        self.node: ClusterNode | None = None
        self.lives = 0
        self._world = world

    @property
    def is_up(self) -> bool:
        """Whether its process runs."""
        return self.node is not None and not self.stopped

    async def start(self) -> None:
        """Start the node."""
        assert self.process is None
        self.lives += 1
        self.process = process = Process(self._world, self.lives)
        self._world.trace.note("start", self.name, self.lives)

        async def build() -> ClusterNode:
            node = ClusterNode(self._world, self, self.lives)
            await node.start()
            return node

        task = asyncio.get_running_loop().create_task(build(), context=process.context)
        try:
            self.node = await task
        except HoldfastError as error:
            self._world.trace.note("start failed", self.name, error)
            await process.kill()
            self.process = None

    async def crash(self) -> None:
        """The power goes."""
        process, node = self.process, self.node
        if process is None:
            return
        world = self._world
        world.trace.note("crash", self.name, self.lives)
        world.crashes.append(world.clock.monotonic())
        process.alive = False
        self.node = None
        if node is not None:
            node.unplug()
        chance = world.chance(f"power cut {self.name} {self.lives}")
        for slot in self.slots:
            slot.memory.crash(chance)
        self.proceed()
        await process.kill()
        self.process = None

    def stop(self) -> None:
        """SIGSTOP."""
        if self.process is not None and not self.stopped:
            self._world.trace.note("stop", self.name)
            self.stopped = True
            self._world.loop.stop_process(self.process)

    def proceed(self) -> None:
        """SIGCONT."""
        if self.process is not None and self.stopped:
            self._world.trace.note("continue", self.name)
            self.stopped = False
            self._world.loop.continue_process(self.process)

    def errand(self, task: "asyncio.Task[None]") -> None:
        """A request that is on its way to this machine."""
        self._world.errands.add(task)
        task.add_done_callback(self._world.errands.discard)

    async def serve(self, slot: str, store: StoreId, work: Callable[[Store], Awaitable[T]]) -> T:
        """Do for another machine what it asks of a disk here. Raises StoreFailed when nobody is there."""
        process, node = self.process, self.node
        if process is None or node is None or not process.alive:
            raise refused(store)

        async def do() -> T:
            there = node.exported(slot, store)
            if there is None:
                raise refused(store)
            return await work(there)

        return await self._within(process, do, lambda: refused(store))

    async def call(self, request: Callable[[ClusterNode], Awaitable[T]]) -> T:
        """A client's request. Raises NoAnswer when the node dies over it."""
        process, node = self.process, self.node
        if process is None or node is None or not process.alive:
            raise NoAnswer("Nobody listens there.")
        return await self._within(process, lambda: request(node), lambda: NoAnswer("The node died."))

    async def _within(
        self, process: Process, work: Callable[[], Awaitable[T]], died: Callable[[], HoldfastError]
    ) -> T:
        async def do() -> T:
            return await work()

        task = asyncio.get_running_loop().create_task(do(), context=process.context)
        await asyncio.wait([task])
        if task.cancelled() or (not process.alive and task.exception() is not None):
            raise died()
        return task.result()


class ClusterWorld(World):
    """All machines. Make it on a running pausable loop."""

    def __init__(self, seed: int | str, settings: ClusterSettings) -> None:
        super().__init__(seed, settings.alone)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, PausableLoop)
        self.loop = loop
        self.cluster = settings
        self.far = True
        """Whether regions are far from each other: proofs look at what there is, not how long that takes."""
        self.network = Network(self.clock, self.chance("network"), self.trip_s)
        self.service = IndexService(self.rows, self.clock, self.chance("index"), self.trace)
        self.errands: set[asyncio.Task[None]] = set()
        self.put_log = ClusterPutLog(self.clock, self.rows)
        self.requests: set[asyncio.Task[object]] = set()
        self.expects = {slot.name: Expected(CLUSTER, slot.name) for slot in self.slots}
        """What the nodes' own files say of each place."""
        self.leaving: dict[StoreId, StoreId | None] = {}
        """Stores that are to be emptied, and what takes their place, as the rows of nodes say."""
        each = settings.disks
        self.machines = [
            Machine(self, f"n{number}", self.slots[number * each : (number + 1) * each])
            for number in range(settings.machines)
        ]

    def region(self, name: str) -> int:
        """Where a machine is, or the index."""
        regions = len(self.cluster.trips_s)
        return int(name[1:]) % regions if regions and name != INDEX else 0

    def trip_s(self, one: str, other: str) -> float:
        """The round trip between two of those; clients are where they ask."""
        if not self.far or not self.cluster.trips_s or CLIENTS in (one, other):
            return 0.0
        return self.cluster.trips_s[self.region(one)][self.region(other)]

    def leaving_now(self, known: frozenset[StoreId]) -> list[Leaving]:
        """What a node has heard of stores that are to be emptied."""
        return [Leaving(store, into) for store, into in self.leaving.items() if store in known]

    def add_disk(self, machine: Machine) -> Slot:
        """One more place in a machine, with an empty disk."""
        slot = self.add_slot()
        self.expects[slot.name] = Expected(CLUSTER, slot.name)
        machine.slots.append(slot)
        return slot

    def take_disk(self, slot: Slot) -> None:
        """The place of a store is no longer part of the house."""
        self.leaving.pop(slot.memory.id, None)
        self.machine_of(slot).slots.remove(slot)

    def machine_of(self, slot: Slot) -> Machine:
        """Whose disk it is."""
        return next(machine for machine in self.machines if slot in machine.slots)

    @property
    def running(self) -> list[Machine]:
        """Those whose process runs."""
        return [machine for machine in self.machines if machine.is_up]

    @property
    def node(self) -> ClusterNode:  # type: ignore[override]
        """One that runs, for whoever looks at everything."""
        node = self.running[0].node
        assert node is not None
        return node

    @property
    def nodes(self) -> list[ClusterNode]:
        """All that run."""
        return [machine.node for machine in self.machines if machine.node is not None and machine.is_up]

    async def start(self) -> None:
        """Switch all on."""
        for machine in self.machines:
            await machine.start()

    async def stop(self) -> None:
        """The end of the run: no crash, only silence."""
        for machine in self.machines:
            machine.proceed()
            if machine.node is not None:
                machine.node.unplug()
            if machine.process is not None:
                await machine.process.kill()
            machine.process = machine.node = None
        for task in list(self.errands):
            task.cancel()
        await asyncio.gather(*list(self.errands), return_exceptions=True)

    async def call(self, request: Callable[[ClusterNode], Awaitable[T]]) -> T:  # type: ignore[override]
        """Ask any node that runs; for proofs."""
        return await self.running[0].call(request)

    async def ask(
        self, machine: Machine, request: Callable[[ClusterNode], Awaitable[T]], patience_s: float
    ) -> T:
        """A client's request to a certain node over the network. Raises NoAnswer, and what the node
        answers."""
        loop = asyncio.get_running_loop()

        async def go() -> T:
            if not await self.network.carry(CLIENTS, machine.name):
                await self.clock.sleep(patience_s)
                raise NoAnswer("The node cannot be reached.")
            try:
                result = await machine.call(request)
            finally:
                arrives = await self.network.carry(machine.name, CLIENTS)
            if not arrives:
                raise NoAnswer("The answer was lost.")
            return result

        task = loop.create_task(go(), context=self.network.context)
        self.requests.add(task)
        task.add_done_callback(self._request_ended)
        done, _ = await asyncio.wait([task], timeout=patience_s)
        if not done:
            raise NoAnswer("The client gave up.")
        return task.result()

    def _request_ended(self, task: "asyncio.Task[object]") -> None:
        self.requests.discard(task)
        if not task.cancelled():
            task.exception()
