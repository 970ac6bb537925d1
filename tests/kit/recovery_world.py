"""A node in one process whose index can be lost: objects over real packs on memory stores, the journal and
snapshots beside them, and what recovery makes of it all.
"""

import asyncio
from bisect import insort
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.chores.collect import Collect, Sweep
from holdfast.chores.compact import Compact
from holdfast.chores.rescheme import Waiting
from holdfast.index.memory import MemoryIndex, MemoryRows
from holdfast.index.port import Row
from holdfast.objects.errors import NoSuchKey
from holdfast.objects.model import ReadObject
from holdfast.objects.service import Objects
from holdfast.objects.settings import ObjectsLimits, ObjectsSettings
from holdfast.packs.disposal import Disposal
from holdfast.packs.named import NamedPacks, find_names
from holdfast.packs.storage import Packs
from holdfast.packs.watched import WatchedIndex
from holdfast.recovery.applying import Applied, Applier, candidates, read_young
from holdfast.recovery.keeping import Keeping
from holdfast.recovery.loading import Loaded, load, newest_lineage
from holdfast.recovery.names import PREFIX
from holdfast.recovery.relocating import Relocator
from holdfast.recovery.scratch import Scratch
from holdfast.recovery.surveying import Survey, survey
from holdfast.scheme import Scheme
from holdfast.stores.port import Store
from tests.kit.kept import INCARNATION
from tests.kit.objects import BUCKET, content
from tests.kit.rig import Rig, build_rig

SETTINGS = ObjectsSettings(
    default_scheme="rs-4-2",
    stores=lambda: 6,
    limits=ObjectsLimits(hashing_threads=0, part_bytes_min=1, inline_bytes_max=64),
)


@dataclass
class World:
    rig: Rig
    rows: MemoryRows
    objects: Objects
    packs: Packs
    keeping: Keeping
    chores: list[tuple[Callable[[], Awaitable[bool]], float]]
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        """Run the chores."""
        clock = self.rig.clock
        self.tasks = [asyncio.ensure_future(_again(clock, step, pause_s)) for step, pause_s in self.chores]

    async def stop(self) -> None:
        """Everything ends where it is."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def make_world(seed: int) -> World:
    rig = build_rig(seed=seed)
    rows = rig.index.rows
    rows.incarnation = INCARNATION
    rig.index.commit_delay_s = 0.002
    index = WatchedIndex(rig.index)
    clock, chance = rig.clock, rig.randomness
    topology = rig.packs.writer._topology
    packs = Packs(rig.attached, topology, index, rig.health, clock, chance, lambda *_: None)
    objects = Objects(index, packs, clock, chance, SETTINGS)
    named = NamedPacks(rig.attached, topology, rig.health, clock, chance, lambda: Scheme(4, 2))
    keeping = Keeping(index, named, lambda: frozenset(rig.attached), clock, chance, lambda _: None)
    keeping.snapshots._journal_bytes_min = 20_000
    keeping.snapshots._page_bytes = 4_000
    disposal = Disposal(rig.attached, index, is_covered=keeping.journal.covers)
    compact = Compact(index, objects.moving(clock).move, walk_every_s=2.0)
    collect = Collect(index, packs.rows, packs.reader.in_use, compact.partly_dead, index.let_go)
    await objects.create_bucket(BUCKET, None)
    chores: list[tuple[Callable[[], Awaitable[bool]], float]] = [
        (keeping.journal.step, 1.0),
        (keeping.snapshots.step, 0.5),
        (keeping.upkeep.step, 5.0),
        (collect.step, 0.3),
        (Waiting(compact, lambda: not keeping.journal.is_sound).step, 0.3),
        (Sweep(disposal).step, 0.3),
    ]
    return World(rig, rows, objects, packs, keeping, chores)


async def _again(clock: Clock, step: Callable[[], Awaitable[bool]], pause_s: float) -> None:
    while True:
        if not await step():
            await clock.sleep(pause_s)


@dataclass
class Again:
    """What recovery made."""

    loaded: Loaded
    surveyed: Survey
    applied: Applied
    rows: MemoryRows


async def recover(rig: Rig) -> Again:
    """What the stores of a node tell."""
    return await recover_from(rig.attached, rig.randomness)


async def recover_from(attached: Mapping[StoreId, Store], randomness: Randomness) -> Again:
    """What these stores tell."""
    scratch = Scratch(None)
    names = await find_names(attached, PREFIX)
    loaded = await load(attached, names, newest_lineage(names, ""), scratch, lambda _: None)
    revision = loaded.revision

    def following() -> int:
        nonlocal revision
        revision += 1
        return revision

    surveyed = await survey(attached, scratch, loaded.window, following)
    applied = Applied([], [], [], [])
    young = await read_young(attached, loaded, surveyed.nameless, surveyed.recent, applied)
    relocator = Relocator(attached, scratch, young, surveyed.lost, following)
    await relocator.run(applied)
    applier = Applier(scratch, loaded, young, following, "us-east-1", randomness, relocator.changed)
    applier.run(candidates(young, applied), applied)
    rows = MemoryRows("cd" * 16)
    for row in scratch.scan(b""):
        insort(rows._keys, row.key)
        rows._rows[row.key] = Row(*row)
    rows.revision = revision
    scratch.close()
    return Again(loaded, surveyed, applied, rows)


def serve_again(rig: Rig, rows: MemoryRows) -> tuple[Objects, Packs, MemoryIndex]:
    """The next life, on what recovery made."""
    index = MemoryIndex(rig.clock, rows)
    topology = rig.packs.writer._topology
    for store in rig.stores:
        if store not in rig.attached:
            rig.health.vanished(store, rig.clock.monotonic(), "lost")
    packs = Packs(rig.attached, topology, index, rig.health, rig.clock, rig.randomness, lambda *_: None)
    return Objects(index, packs, rig.clock, rig.randomness, SETTINGS), packs, index


async def held(objects: Objects, key: str, bucket: str = BUCKET) -> bytes | None:
    """What a key holds; None for nothing."""
    try:
        return await content(await objects.read_object(ReadObject(bucket=bucket, key=key)))
    except NoSuchKey:
        return None
