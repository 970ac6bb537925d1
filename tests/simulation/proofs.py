"""What has to hold when all is well again, looked up behind the node's back: in the rows, on the disks."""

from collections import Counter
from collections.abc import AsyncIterator

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId, parse_shard_name, shard_name
from holdfast.chores.strays import STRAY_AGE_S, FindStrays
from holdfast.index.port import Row, prefix_end
from holdfast.objects import rows
from holdfast.objects.heads import packs_of
from holdfast.objects.keys import BUCKETS, RESCHEMES, uploads
from holdfast.objects.model import VersionRecord
from holdfast.objects.table import Table
from holdfast.packs.disposal import shards_buried
from holdfast.packs.named import find_names
from holdfast.packs.rows import decode_row
from holdfast.packs.verifying import PackHealth, PackReport
from holdfast.recovery.loading import load, newest_lineage
from holdfast.recovery.names import PREFIX
from holdfast.recovery.scratch import Scratch
from tests.kit.virtual import VirtualClock
from tests.simulation.book import Violation
from tests.simulation.node import SimulatedNode
from tests.simulation.world import Slot, World

WHOLE_WITHIN_S = 900.0
COLLECTED_WITHIN_S = 30.0
JUST_DIED_S = 5.0
"""Each chore looks at least twice within it."""

SETTLED_WITHIN_S = 60.0
"""The audit lets go what nobody owns: it looks every ten seconds, and at what was there two walks ago."""

CHORE_ROWS = (b"debt/", b"buried/", b"trash/", b"cleanup/", RESCHEMES)


def scan(world: World, prefix: bytes) -> list[Row]:
    """All rows with this prefix, from the rows themselves."""
    found = world.rows.scan(prefix, prefix_end(prefix), 1 << 30, b"", 0)
    return [row for row in found if isinstance(row, Row)]


async def until_whole(world: World) -> None:
    """Wait until every pack has been read from the media and found whole, with nothing owed."""
    deadline = world.clock.monotonic() + WHOLE_WITHIN_S
    faults: list[PackReport] = []
    while world.clock.monotonic() < deadline:
        await world.clock.sleep(0.5)
        node = world.node
        if not node.is_quiet or scan(world, b"debt/"):
            continue
        faults = [
            report
            for report in await world.call(lambda node: _verify(node.verifier.verify_all()))
            if report.state is not PackHealth.WHOLE
        ]
        if not faults and node.is_quiet and not scan(world, b"debt/"):
            world.trace.note("whole")
            return
    debts = [row.key for row in scan(world, b"debt/")]
    raise Violation(
        f"not whole after {WHOLE_WITHIN_S:g} s of health: quiet {world.node.is_quiet}, "
        f"debts {debts}, {faults}"
    )


async def until_kept(world: World) -> None:
    """Wait until what lies on the disks is enough to make all rows again, and every shard of it is whole."""
    deadline = world.clock.monotonic() + WHOLE_WITHIN_S
    found = "nothing was tried"
    asked: object = None
    while world.clock.monotonic() < deadline:
        await world.clock.sleep(0.25)
        node = world.node
        if asked is not node.keeping:
            asked = node.keeping
            node.keeping.upkeep.tend_now()
            node.chores.wake("upkeep")
        if node.keeping.upkeep.is_tending or node.keeping.status().behind_commits:
            continue
        try:
            found = await world.call(lambda node: _kept(world, node))
        except HoldfastError as error:
            found = str(error)
        if not found:
            world.trace.note("kept")
            return
    raise Violation(f"not to be made again after {WHOLE_WITHIN_S:g} s of health: {found}")


async def _kept(world: World, node: SimulatedNode) -> str:
    """What is wrong with what is kept; empty when it is all rows."""
    scratch = Scratch(None)
    try:
        revision = world.rows.revision
        names = await find_names(node.attached, PREFIX)
        loaded = await load(node.attached, names, newest_lineage(names, ""), scratch, lambda _: None)
        if world.rows.revision != revision or loaded.revision != revision:
            return f"revision {loaded.revision} of {world.rows.revision}"
        rows_ = [row for row in world.rows.scan(b"", b"\xff" * 2048, 1 << 30, b"", 0) if isinstance(row, Row)]
        return "" if list(scratch.scan(b"")) == rows_ else f"other rows at revision {revision}"
    finally:
        scratch.close()


async def _verify(reports: AsyncIterator[PackReport]) -> list[PackReport]:
    return [report async for report in reports]


async def until_tidy(world: World) -> None:
    """Wait until the chores have nothing left to do."""
    deadline = world.clock.monotonic() + WHOLE_WITHIN_S
    left: dict[bytes, list[bytes]] = {}
    while world.clock.monotonic() < deadline:
        await world.clock.sleep(0.5)
        if not world.node.is_still:
            continue
        left = {prefix: _left(world, prefix)[:3] for prefix in CHORE_ROWS}
        if not any(left.values()) and world.node.is_quiet and world.node.compact.idle:
            # For packs that have only just died.
            await world.clock.sleep(JUST_DIED_S)
            if not any(_left(world, prefix) for prefix in CHORE_ROWS) and world.node.compact.idle:
                return
    raise Violation(f"chores have left {left}")


def _left(world: World, prefix: bytes) -> list[bytes]:
    """Work that is left. The grave of a pack whose commit may still land stays, empty."""
    return [
        row.key
        for row in scan(world, prefix)
        if not (
            prefix == b"buried/"
            and not shards_buried(row)
            and world.node.watched_index.in_doubt(PackId(bytes.fromhex(row.key[len(prefix) :].decode())))
        )
    ]


class Strays(Counter[str]):
    """Shards that no row names, by their excuse."""


async def until_settled(world: World, failed: list[tuple[float, float]]) -> tuple[Strays, int]:
    """Wait until every blob and every byte has its explanation; `failed` says when requests did."""
    deadline = world.clock.monotonic() + SETTLED_WITHIN_S
    while True:
        try:
            return check_strays(world, failed), await check_accounts(world, failed)
        except Violation:
            if world.clock.monotonic() >= deadline:
                raise
        await world.clock.sleep(2.0)


def check_strays(world: World, failed: list[tuple[float, float]]) -> Strays:
    """Every blob is named by a pack's row; or it was under way when the node crashed, or when a request
    failed (`failed` says when); or the index failed whoever had put it and would have thrown it away; or its
    put was overdue and it landed when it had been given up.

    Such strays can do no harm, because their names are never used again; `until_swept` has them removed.
    """
    crashed = max(world.crashes, default=-1.0)
    strays = Strays()
    for slot, pack, name in _unnamed(world):
        store = slot.memory.id
        began = world.put_log.puts[store, name]
        if began <= crashed:
            strays["crash"] += 1
        elif (store, name) in world.put_log.overdue:
            strays["landed late"] += 1
        elif (store, name) in world.put_log.returned:
            strays["old image"] += 1
        elif (store, name) in world.put_log.deleted and slot.lied:
            strays["deleted by a lie"] += 1
        elif world.put_log.turned_away.get(pack, -1.0) >= began:
            strays["turned away"] += 1
        elif any(since <= began <= until for since, until in failed):
            strays["failed request"] += 1
        else:
            raise Violation(f"{name} lies on {store} since {began:.3f}, and nothing explains it")
    return strays


def _unnamed(world: World) -> list[tuple[Slot, PackId, str]]:
    """All shards that no pack's row names."""
    named: set[tuple[StoreId, str]] = set()
    for row in scan(world, b"pack/"):
        pack = PackId(bytes.fromhex(row.key[5:].decode()))
        named |= {
            (place.store, shard_name(pack, place.shard, place.attempt))
            for place in decode_row(row.value).places
        }
    return [
        (slot, parsed[0], name)
        for slot in world.slots_in_use()
        for name in sorted(slot.memory.medium)
        if (slot.memory.id, name) not in named and (parsed := parse_shard_name(name)) is not None
    ]


class _Later(VirtualClock):
    """The clock, with days gone by that nobody else has noticed."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return super().monotonic() + self.ahead_s


async def until_swept(world: World) -> None:
    """Have strays looked for, as old as they must be: every one is found, and goes, whatever left it."""
    clock = _Later()
    finder = FindStrays(world.node.attached, world.node.watched_index, clock)

    async def walk() -> None:
        while await world.call(lambda _: finder.step()):
            pass
        clock.ahead_s += STRAY_AGE_S

    await walk()
    began = again = world.clock.monotonic()
    while left := _unnamed(world):
        now = world.clock.monotonic()
        if now >= began + COLLECTED_WITHIN_S:
            names = [f"{name} on {slot.memory.id}" for slot, _, name in left[:3]]
            raise Violation(f"{len(left)} strays were left, {finder.found} found: {names}")
        if now >= again:
            # As a node does: of what was declared dead, the index may not say that it has it. Not all the
            # time: what is declared dead anew is not removed before the journal has that, too.
            await walk()
            again = now + COLLECTED_WITHIN_S / 3
        await world.clock.sleep(1.0)


async def check_accounts(world: World, failed: list[tuple[float, float]]) -> int:
    """Every byte of every pack belongs to a version or a part, or was let go, and none twice; what requests
    that ended without an answer left, the audit has let go. Answers how many packs it could not settle,
    because the key of a part still has open uploads."""
    live: Counter[PackId] = Counter()
    shares: set[bytes] = set()
    for row in scan(world, b"head/"):
        record = rows.decode_head(row.value).current
        sizes = await _all_packs(world, record)
        if record.shared:
            shares |= {b"share/%b/%b" % (pack.hex().encode(), record.version.encode()) for pack in sizes}
        else:
            live.update(sizes)
        for pack in sizes if record.size else ():
            if world.rows.get(b"pack/" + pack.hex().encode()) is None:
                raise Violation(f"{row.key!r} needs pack {pack.hex()}, which is gone")
    for row in scan(world, b"part/"):
        for extent in rows.decode_part(row.value).extents:
            live[extent.pack] += extent.length
    there = {row.key for row in scan(world, b"share/")}
    if there != shares:
        raise Violation(f"shares {sorted(there ^ shares)} are there without need, or needed and not there")
    shared = {key.split(b"/")[1] for key in shares}
    dead: Counter[PackId] = Counter()
    for row in scan(world, b"dead/"):
        dead[PackId(bytes.fromhex(row.key.split(b"/")[1].decode()))] += rows.decode_dead(row.value).size
    unowned = 0
    crashed = max(world.crashes, default=-1.0)
    for row in scan(world, b"pack/"):
        pack = PackId(bytes.fromhex(row.key[5:].decode()))
        known = decode_row(row.value)
        size = live[pack] + dead[pack]
        if size > known.object_bytes:
            raise Violation(
                f"pack {pack.hex()} has {known.object_bytes} bytes, {live[pack]} live and {dead[pack]} dead"
            )
        if pack in dead and dead[pack] == known.object_bytes and pack.hex().encode() not in shared:
            raise Violation(f"pack {pack.hex()} is all dead and was not collected")
        if size < known.object_bytes:
            unowned += 1
            began = min(
                moment for (_, name), moment in world.put_log.puts.items() if name.startswith(pack.hex())
            )
            explained = began <= crashed or any(since <= began <= until for since, until in failed)
            if not explained or not await _waits_for_uploads(world, pack):
                raise Violation(
                    f"nobody owns {known.object_bytes - size} bytes of pack {pack.hex()} of {began:.3f}"
                )
    return unowned


def check_schemes(world: World) -> None:
    """Every version lies in packs that bear as many losses as its bucket wants."""
    wanted = {
        row.key.removeprefix(BUCKETS): rows.decode_bucket(row.value).scheme for row in scan(world, BUCKETS)
    }
    for row in scan(world, b"head/"):
        bucket = wanted[row.key.removeprefix(b"head/").partition(b"/")[0]]
        for pack in packs_of(rows.decode_head(row.value).current):
            found = world.rows.get(b"pack/" + pack.hex().encode())
            if found is not None and decode_row(found.value).scheme.m < bucket.m:
                scheme = decode_row(found.value).scheme.name
                raise Violation(f"{row.key!r} lies in pack {pack.hex()} of {scheme}, and wants {bucket.name}")


async def _waits_for_uploads(world: World, pack: PackId) -> bool:
    """Whether a part in the pack is of a key that has open uploads."""
    return any(
        entry.part and scan(world, uploads(entry.bucket) + entry.key.encode() + b"\0")
        for entry in await world.call(lambda node: node.packs.manifest(pack))
    )


async def until_collected(world: World) -> None:
    """Give the collector time for packs that were emptied, or let go, only a moment ago."""
    deadline = world.clock.monotonic() + COLLECTED_WITHIN_S
    while world.clock.monotonic() < deadline:
        dead: Counter[bytes] = Counter()
        for row in scan(world, b"dead/"):
            dead[row.key.split(b"/")[1]] += rows.decode_dead(row.value).size
        packs = {row.key[5:]: decode_row(row.value).object_bytes for row in scan(world, b"pack/")}
        swept = not any(shards_buried(row) for row in scan(world, b"buried/"))
        if swept and not any(dead[name] == size for name, size in packs.items() if name in dead):
            return
        await world.clock.sleep(1.0)


async def _all_packs(world: World, record: VersionRecord) -> Counter[PackId]:
    sizes = Counter(packs_of(record))
    if (at := record.extents_at) is not None:

        async def read() -> Counter[PackId]:
            table = Table(world.node.packs, at)
            found: Counter[PackId] = Counter()
            for extent in await table.extents(0, await table.count()):
                found[extent.pack] += extent.length
            return found

        sizes.update(await world.call(lambda _: read()))
    return sizes
