"""What goes wrong in a run: disks within the promise, the index, the node.

Whatever is begun here is within the fault model: at most `losses` disks from one proof of wholeness to the
next, because a disk counts as faulty for a pack until its shard has landed there again.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from enum import Enum

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId
from holdfast.base.randomness import SeededRandomness
from holdfast.index.memory import Fault, Mishap
from holdfast.index.port import Row
from holdfast.stores.faulty import FaultScript
from tests.kit.harm import Harm, harmed
from tests.simulation.world import Crashed, Slot, World

UNKNOWN_LATER_S = 2.0
INDEX_AFTERMATH_S = 12.0
"""How long after its last trouble the index may be the reason of a failed request: the patience for an
unknown outcome, and a little."""


class DiskFault(Enum):
    """What a disk does."""

    HANG = "hang"
    VANISH = "vanish"
    SLOW = "slow"
    CRAWL = "crawl"
    LATE = "late"
    READ_ERRORS = "read errors"
    WRITE_ERRORS = "write errors"
    SYNC_ERRORS = "sync errors"
    FLIPS = "flips"
    SPOILS = "spoils what it writes"
    FULL = "full"
    READ_ONLY = "read-only"
    UNREADABLE = "unreadable shards"
    ROT = "rot"
    REPLACED = "replaced"
    OLD_IMAGE = "old image"
    LIES = "lies"


AUDITS = 4
PACKS_AUDITED = 6
"""How often, and of how many packs at once, the audit looks while the index is in doubt."""

PAIRWISE = "two disks swapped"
"""What it is called when two disks are in each other's places: two faults at once."""


def begin(slot: Slot, fault: DiskFault, chance: SeededRandomness) -> None:
    """From now on."""
    script = slot.script
    some = (0.3, 1.0)[chance.below(2)]
    match fault:
        case DiskFault.HANG:
            script.hang = True
        case DiskFault.VANISH:
            slot.shows_mount_point = chance.below(2) == 0
            script.vanished = True
        case DiskFault.SLOW:
            script.delay_s = (0.010, 0.040)
        case DiskFault.CRAWL:
            script.delay_s = (0.05, 3.0)
        case DiskFault.LATE:
            script.late, script.late_s = 0.5, (0.0, 20.0)
        case DiskFault.READ_ERRORS:
            script.read_errors = some
        case DiskFault.WRITE_ERRORS:
            script.write_errors = some
        case DiskFault.SYNC_ERRORS:
            script.sync_errors = some
        case DiskFault.FLIPS:
            script.flips = some
        case DiskFault.SPOILS:
            script.spoils = some
        case DiskFault.FULL:
            script.full = True
        case DiskFault.READ_ONLY:
            script.read_only = True
        case DiskFault.UNREADABLE:
            names = sorted(slot.memory.medium)
            script.unreadable = {name for name in names if chance.below(3) == 0}
        case DiskFault.ROT:
            rot(slot, chance)
        case DiskFault.REPLACED:
            slot.replace()
        case DiskFault.OLD_IMAGE:
            slot.put_back_image()
        case DiskFault.LIES:
            slot.memory.sync_lies = slot.lied = True


def rot(slot: Slot, chance: SeededRandomness) -> None:
    """What lies on the medium changes: bits, stretches of zeros, ends that are cut off or grown, a shard in
    the place of another, a shard that is gone."""
    blobs = slot.memory.medium
    slot.touched()
    names = sorted(blobs)
    most = (8, 8, 100)[chance.below(3)]
    for _ in range(min(len(names), 1 + chance.below(most))):
        name = names[chance.below(len(names))]
        harm = tuple(Harm)[chance.below(len(Harm))]
        other = blobs.get(names[chance.below(len(names))])
        old = blobs.get(name)
        if old is not None:
            at = chance.below(len(old))
            slot.memory.spoil(name, harmed(old, harm, at, min(len(old), at + 1 + chance.below(9000)), other))


def end(slot: Slot) -> None:
    """All is well with the disk again, but for what it lost."""
    slot.script.__dict__.update(FaultScript().__dict__)
    slot.put_right()
    slot.memory.sync_lies = False
    slot.memory.settle()


class Troubles:
    """Carries faults out, and remembers when a request had an excuse to fail."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.excuses: list[tuple[float, float]] = []
        self.counts: dict[str, int] = {}

    def excused(self, began: float, ended: float) -> bool:
        """Whether the node or the index was in trouble between these moments."""
        return any(began <= until and ended >= since for since, until in self.excuses)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        self._world.trace.note("trouble:", what)

    def disk(self, slot: Slot, fault: DiskFault, chance: SeededRandomness) -> None:
        """A disk falls ill."""
        self._count(f"disk {fault.value}")
        self._world.trace.note(slot.name, fault.value)
        begin(slot, fault, chance)

    def another(self, slot: Slot, fault: DiskFault, chance: SeededRandomness, *, repairing: bool) -> None:
        """A disk falls ill after others, before all is whole again; `repairing` says that the repair of what
        they lost was seen to be under way."""
        if repairing:
            self._count("another during repair")
        self.disk(slot, fault, chance)

    def too_many(self) -> None:
        """More disks are away than may be lost."""
        self._count("too many disks away")

    def swap(self, one: Slot, other: Slot) -> None:
        """Two disks change places."""
        self._count(PAIRWISE)
        one.swap(other)

    async def index(self, chance: SeededRandomness, seconds: float) -> None:
        """The index misbehaves for a while, if somebody uses it."""
        world = self._world
        if not world.is_up:
            return
        now = world.clock.monotonic()
        self.excuses.append((now, now + seconds + UNKNOWN_LATER_S + INDEX_AFTERMATH_S))
        if chance.below(4) == 0:
            await self._audited(chance, seconds)
            return
        if chance.below(3) == 0:
            self._count("index away")
            index = world.index
            index.away = True
            await world.clock.sleep(seconds)
            index.away = False
            return
        if chance.below(2):
            self._count("index unknown")
            self.unknown(chance, 1 + chance.below(6))
        else:
            # Everything is applied, twice if it could be: once when it was asked again, once late.
            self._count("index late")
            for _ in range(20):
                world.index.faults.append(Fault(Mishap.APPLIED_LATER, UNKNOWN_LATER_S * chance.fraction()))

    async def _audited(self, chance: SeededRandomness, seconds: float) -> None:
        """Packs are made, and nobody hears what became of their objects; and the audit comes at once, without
        waiting until their writers have given up. It may always come, and turn them away."""
        self._count("index in doubt, and audited")
        world, index = self._world, self._world.index
        since, index.doubt = world.rows.revision, chance
        for _ in range(AUDITS):
            await world.clock.sleep(seconds / AUDITS)
            new = [row for row in _packs(world) if row.revision > since]
            for row in new[-PACKS_AUDITED:]:
                pack = PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode()))
                with suppress(HoldfastError, Crashed):
                    await world.call(lambda node, pack=pack: node.objects.auditing(world.clock).audit(pack))  # type: ignore[misc]
        index.doubt = None

    def unknown(self, chance: SeededRandomness, commits: int) -> None:
        """The next commits don't say how they ended."""
        mishaps = (Mishap.APPLIED, Mishap.NOT_APPLIED, Mishap.APPLIED_LATER, Mishap.UNAVAILABLE)
        for _ in range(commits):
            mishap = mishaps[chance.below(4)]
            most = UNKNOWN_LATER_S if mishap is Mishap.APPLIED_LATER else 0.02
            self._world.index.faults.append(Fault(mishap, most * chance.fraction()))

    async def crash(self, chance: SeededRandomness) -> None:
        """The node dies and comes back; sometimes right after commits that it never hears of."""
        world = self._world
        began = world.clock.monotonic()
        if chance.below(2):
            for _ in range(4):
                world.index.faults.append(Fault(Mishap.APPLIED, 0.001 * chance.fraction()))
            await world.clock.sleep(0.004 * chance.fraction())
        self._count("crash")
        await world.crash()
        if chance.below(2):
            await world.clock.sleep(2.0 * chance.fraction())
        await world.start()
        self.excuses.append((began, world.clock.monotonic()))


def _packs(world: World) -> list[Row]:
    found = world.rows.scan(b"pack/", b"pack0", 1 << 30, b"", 0)
    return [row for row in found if isinstance(row, Row)]


async def after(world: World, seconds: float, what: Callable[[], object]) -> None:
    """Do something later."""
    await world.clock.sleep(seconds)
    result = what()
    if asyncio.iscoroutine(result):
        await result
