"""A machine with disks, and on it one node that crashes and starts again, all on a virtual clock.

The disks (`Slot`), the rows of the index and the record of the cluster outlive the node; everything else
is the node's own, and is thrown away with it in mid-flight. What a node does is told from what the world does
by a context variable: every task that a node starts, however deep, dies with it.
"""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

from holdfast.base.errors import Bug, HoldfastError
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.index.memory import Fault, MemoryIndex, MemoryRows, Mishap
from holdfast.node.cluster import Cluster
from holdfast.stores.faulty import FaultScript
from holdfast.stores.identity import Found, Identity
from holdfast.stores.memory import MemoryStore
from tests.kit.kept import INCARNATION
from tests.kit.virtual import VirtualClock
from tests.simulation.contents import ClientGone
from tests.simulation.node import SimulatedNode, SimulationSettings
from tests.simulation.parts import DoubtfulIndex, Nth, PutLog
from tests.simulation.trace import Trace

T = TypeVar("T")

_process: contextvars.ContextVar["Process | None"] = contextvars.ContextVar("process", default=None)


PROVEN_WITHIN_S = 60.0
"""Within such a time, whatever proves that a pack is whole, or that a shard is right, acts on it."""


class Crashed(Exception):
    """The node died before it answered."""


class Slot:
    """A place for a disk: which one is in it, what is wrong with it."""

    def __init__(self, number: int, world: "World") -> None:
        self.name = f"store-{number}"
        self.path = Path("/disks", self.name)
        self.world = world
        self.script = FaultScript()
        self.shows_mount_point = False
        self.memory_in_use: MemoryStore | None = None
        self._replaced = 0
        self.memory = self._disk(StoreId(self.name))
        self.identity: Identity | None = None
        self.lied = False
        self.image: tuple[StoreId, dict[str, bytes], Identity | None] | None = None
        self._right: tuple[MemoryStore, Identity | None] | None = None
        self._swapped_with: Slot | None = None
        self._touched_at = -1.0

    def touched(self) -> None:
        """What lies here may not be what was put."""
        self._touched_at = self.world.clock.monotonic()

    def was_touched(self, within_s: float) -> bool:
        """Whether that was so in the last seconds."""
        return self._touched_at >= self.world.clock.monotonic() - within_s

    def _disk(self, id: StoreId) -> MemoryStore:
        world = self.world
        return MemoryStore(
            id, clock=world.clock, randomness=world.chance("disk " + id), latency_s=world.latency_s
        )

    @property
    def found(self) -> Found:
        """What is seen at this place: where a disk is gone, perhaps the directory it was mounted on."""
        if self.script.vanished:
            return Found(exists=self.shows_mount_point, device="root")
        return Found(exists=True, identity=self.identity, device=self.name, mounted=True)

    def replace(self) -> None:
        """An empty disk comes in; the node gives it an identity of its own."""
        self._replaced += 1
        self._pull()
        self.memory, self.identity = self._disk(StoreId(f"{self.name}-{self._replaced}")), None
        self._right = None

    def take_image(self) -> None:
        """Keep all that is on the disk now."""
        self.image = self.memory.id, self.memory.medium, self.identity

    def put_back_image(self) -> None:
        """The disk as it was when the image was taken comes in the place of what it is now."""
        if self.image is None:
            return
        id, blobs, identity = self.image
        was_taken = self.memory is self.memory_in_use
        old = self._pull(), self.identity
        if self._right is None or was_taken:  # an image that was taken into use is right from then on
            self._right = old
        self.memory, self.identity = self._disk(id), identity
        for name, content in blobs.items():
            self.memory.spoil(name, content)
            self.world.put_log.returned.add((id, name))

    def swap(self, other: "Slot") -> None:
        """The disks of two places change places."""
        one, two = (self._pull(), self.identity), (other._pull(), other.identity)
        (self.memory, self.identity), (other.memory, other.identity) = two, one
        self._swapped_with, other._swapped_with = (
            (other, self) if self._swapped_with is None else (None, None)
        )

    def put_right(self) -> None:
        """What was refused goes, what belongs here is back."""
        if (other := self._swapped_with) is not None:
            self.swap(other)
        elif self._right is not None and self.memory is not self.memory_in_use:
            self._pull()
            self.memory, self.identity = self._right
        self._right = None

    def _pull(self) -> MemoryStore:
        """The disk with what lies on it now; whoever has it in use finds it dead."""
        old = self.memory
        self.touched()
        old.crash(self.world.chance(f"pulled {old.id} {self.world.tick()}"))
        moved = self._disk(old.id)
        for name, content in old.medium.items():
            moved.spoil(name, content)
        old.wipe()
        old.unplug()
        return moved


class Process:
    """One life of the node."""

    def __init__(self, world: "World", number: int) -> None:
        self.number = number
        self.alive = True
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.context = contextvars.copy_context()
        self.context.run(_process.set, self)
        self._world = world

    def watch(self, task: asyncio.Task[Any]) -> None:
        """Know a task of this life."""
        self.tasks[task] = None
        task.add_done_callback(self._ended)
        if not self.alive:
            task.cancel()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)
        if task.cancelled() or not self.alive:
            return
        error = task.exception()
        if isinstance(error, Bug) or not isinstance(error, HoldfastError | ClientGone | None):
            self._world.failures.append(error)

    async def kill(self) -> None:
        """Nothing of this life runs when this returns."""
        self.alive = False
        while self.tasks:
            for task in list(self.tasks):
                task.cancel()
            await asyncio.gather(*list(self.tasks), return_exceptions=True)


def _task_factory(
    loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T], **how: Any
) -> asyncio.Task[T]:
    task = asyncio.Task(coroutine, loop=loop, **how)
    context: contextvars.Context | None = how.get("context")
    # An empty context is false, and one all the same.
    process = _process.get() if context is None else context.get(_process)
    if process is not None:
        process.watch(task)
    return task


class World:
    """The machine. Make it on a running virtual loop."""

    def __init__(self, seed: int | str, settings: SimulationSettings) -> None:
        self.seed = seed
        self.settings = settings
        self.clock = VirtualClock()
        self.latency_s = settings.latency_s
        self.trace = Trace(self.clock)
        self.rows = MemoryRows(INCARNATION)
        self.nth = Nth()
        self.index_nth = Nth()
        self.index_fault = Fault(Mishap.UNAVAILABLE)
        self.failures: list[BaseException] = []
        self.crashes: list[float] = []
        self.on_crash: list[Callable[[int], None]] = []
        self.put_log = PutLog(self.clock, self.rows)
        self.put_log.outruns_journal = lambda: self._node is None or self._node.outruns_journal
        self.put_log.wrong_shards = self.wrong_shards
        self.recorded: dict[StoreId, int] = {}
        """The highest revision that each store was ever on record to have seen."""
        self.ticks = 0
        self.cluster: Cluster | None = None
        self.slots: list[Slot] = []
        self.places: dict[Path, Slot] = {}
        for _ in range(settings.stores + settings.spares):
            self.add_slot()
        self._lives = 0
        self._process: Process | None = None
        self._node: SimulatedNode | None = None
        self._up = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.set_task_factory(_task_factory)
        loop.set_exception_handler(self._unhandled)

    def add_slot(self) -> Slot:
        """One more place, with an empty disk."""
        slot = Slot(len(self.slots), self)
        self.slots.append(slot)
        self.places[slot.path] = slot
        return slot

    def slots_in_use(self) -> list[Slot]:
        """The places of all stores that are part of the house."""
        assert self.cluster is not None
        paths = {slot.path for slot in self.cluster.slots.values()}
        return [slot for slot in self.slots if str(slot.path) in paths]

    def wrong_shards(self, shards: Iterable[tuple[StoreId, str]]) -> list[str]:
        """Which of these shards are not what was put, or not there, where nothing was done to their disks of
        late: it may have come after they were read. Disks that are elsewhere are passed over."""
        slots = {slot.memory.id: slot for slot in self.slots}
        return [
            f"{name} on {store}"
            for store, name in shards
            if (slot := slots.get(store)) is not None
            and not slot.was_touched(PROVEN_WITHIN_S)
            and not self.put_log.is_right(store, name, slot.memory.medium.get(name))
        ]

    def chance(self, name: str) -> SeededRandomness:
        """A source of its own for each purpose, so that one does not disturb the other."""
        return SeededRandomness(f"{self.seed}/{name}")

    def tick(self) -> int:
        """The next moment of the history."""
        self.ticks += 1
        return self.ticks

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if not isinstance(error, HoldfastError) or isinstance(error, Bug):
            self.failures.append(error or AssertionError(context["message"]))

    @property
    def is_up(self) -> bool:
        """Whether the node runs."""
        return self._node is not None

    @property
    def node(self) -> SimulatedNode:
        """The node that runs."""
        assert self._node is not None
        return self._node

    @property
    def index(self) -> DoubtfulIndex:
        """Its index, for faults."""
        return self.node.index

    async def start(self) -> None:
        """Switch the node on."""
        assert self._process is None
        self._lives += 1
        self._process = process = Process(self, self._lives)
        self.trace.note("start", self._lives)

        async def build() -> SimulatedNode:
            node = SimulatedNode(self, self._lives)
            await node.start()
            return node

        task = asyncio.get_running_loop().create_task(build(), context=process.context)
        self._node = await task
        self._up.set()

    async def crash(self) -> None:
        """The power goes, in the middle of everything."""
        process, node = self._process, self._node
        assert process is not None
        assert node is not None
        self.trace.note("crash", process.number)
        self.crashes.append(self.clock.monotonic())
        self._up.clear()
        process.alive = False
        for tell in self.on_crash:
            tell(self.tick())
        node.unplug()
        # Fences whatever the dying node still wants to commit.
        MemoryIndex(self.clock, self.rows)
        chance = self.chance(f"power cut {process.number}")
        for slot in self.slots:
            if slot.memory.sync_lies:
                slot.touched()
            slot.memory.crash(chance)
        await process.kill()
        self._process = self._node = None
        self.trace.note("dead")

    async def stop(self) -> None:
        """The end of the run: no crash, only silence."""
        if self._process is not None:
            if self._node is not None:  # else it failed in its start
                self._node.unplug()
            await self._process.kill()
            self._process = self._node = None

    async def call(self, request: Callable[[SimulatedNode], Awaitable[T]]) -> T:
        """A client's request to the node, which may not be there yet. Raises Crashed."""
        while self._node is None or not self._up.is_set():
            await self._up.wait()
        process, node = self._process, self._node
        assert process is not None

        async def serve() -> T:
            node.under_way += 1
            try:
                return await request(node)
            finally:
                node.under_way -= 1

        task = asyncio.get_running_loop().create_task(serve(), context=process.context)
        try:
            return await task
        except asyncio.CancelledError:
            if not process.alive:
                raise Crashed from None
            raise
        except Exception as error:
            if not process.alive:
                raise Crashed from error
            raise
