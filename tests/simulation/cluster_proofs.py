"""What has to hold when all machines are well again, looked up behind the nodes' backs: in the rows, on the
disks."""

import gc
from collections.abc import Sequence
from typing import TYPE_CHECKING

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, StoreId, parse_shard_name, shard_name
from holdfast.packs.disposal import shards_buried
from holdfast.packs.rows import decode_row
from holdfast.packs.verifying import PackHealth
from tests.simulation.book import Book, Violation
from tests.simulation.cluster_world import ClusterWorld
from tests.simulation.proofs import _kept, check_accounts, scan

if TYPE_CHECKING:
    from tests.simulation.cluster_clients import ClusterClient

CHORE_ROWS = (b"debt/", b"buried/", b"trash/", b"cleanup/", b"finding/")
WITHIN_S = 400.0
SETTLED_WITHIN_S = 200.0
KEPT_WITHIN_S = 45.0
"""Before anybody is fenced for his silence."""


async def until_settled(world: ClusterWorld, book: Book) -> None:
    """Wait until no request is under way at any node, and nothing is on its way to the index: what is in
    doubt now has come to pass, or never will."""
    deadline = world.clock.monotonic() + SETTLED_WITHIN_S
    for machine in world.machines:
        if machine.process is None:
            await machine.start()
    quiet = 0
    while quiet < 2:
        await world.clock.sleep(1.0)
        quiet = quiet + 1 if not world.requests else 0
        if world.clock.monotonic() > deadline:
            raise Violation(
                f"{len(world.requests)} requests have not ended {SETTLED_WITHIN_S:g} s after all was well"
            )
    deadline = world.clock.monotonic() + SETTLED_WITHIN_S
    while world.service.held:
        if world.clock.monotonic() > deadline:
            raise Violation(f"{world.service.held} commits are held up, and nobody waits for them any more")
        await world.clock.sleep(1.0)
    await world.clock.sleep(3.0)
    gc.collect()  # what errors hold in cycles, tickets among it, would stay for ever
    book.crashed(world.tick())


async def until_whole(world: ClusterWorld) -> None:
    """Wait until every pack has been read from the media and found whole, with nothing owed."""
    deadline = world.clock.monotonic() + WITHIN_S
    faults: list[object] = []
    while world.clock.monotonic() < deadline:
        await world.clock.sleep(1.0)
        if not all(node.is_quiet for node in world.nodes) or scan(world, b"debt/"):
            continue
        faults = [
            report
            for report in await world.call(lambda node: _verify(node))
            if report.state is not PackHealth.WHOLE
        ]
        if not faults and not scan(world, b"debt/"):
            world.trace.note("whole")
            return
    quiet = {node.name: (node.is_quiet, node.repair.waiting) for node in world.nodes}
    debts = [row.key for row in scan(world, b"debt/")]
    raise Violation(f"not whole after {WITHIN_S:g} s of health: quiet {quiet}, debts {debts}, {faults}")


async def _verify(node) -> list:  # type: ignore[no-untyped-def,type-arg]
    return [report async for report in node.verifier.verify_all()]


async def until_tidy(world: ClusterWorld) -> None:
    """Wait until the chores have nothing left to do, and every grave is filled in."""
    deadline = world.clock.monotonic() + WITHIN_S
    left: dict[bytes, list[bytes]] = {}
    calm = 0
    while world.clock.monotonic() < deadline:
        await world.clock.sleep(2.0)
        left = {prefix: [row.key for row in scan(world, prefix)][:3] for prefix in CHORE_ROWS}
        busy = any(left.values()) or not all(node.is_quiet for node in world.nodes)
        calm = 0 if busy else calm + 1
        if calm > 20:
            return
    fences = [(row.key.decode(), row.revision) for row in scan(world, b"fence/")]
    graves = [(row.revision, len(shards_buried(row))) for row in scan(world, b"buried/")[:3]]
    raise Violation(f"chores have left {left}; graves {graves}, fences {fences}")


def check_shards(world: ClusterWorld) -> int:
    """Every shard that a row names lies where it says; how many lie about that no row names."""
    named: set[tuple[StoreId, str]] = set()
    for row in scan(world, b"pack/"):
        pack = PackId(bytes.fromhex(row.key[5:].decode()))
        for place in decode_row(row.value).places:
            named.add((place.store, shard_name(pack, place.shard, place.attempt)))
    there = {
        (slot.memory.id, name)
        for slot in world.slots
        for name in slot.memory.medium
        if parse_shard_name(name) is not None
    }
    if missing := named - there:
        raise Violation(f"rows name shards that are not there: {sorted(missing)[:3]}")
    return len(there - named)


async def until_kept(world: ClusterWorld) -> None:
    """Wait until what lies on the disks is enough to make all rows again, whoever wrote it. Nodes say nothing
    more from here on: each beat would be another row to be kept."""
    for node in world.nodes:
        node.stop_beating()
    found = "nothing was tried"
    deadline = world.clock.monotonic() + KEPT_WITHIN_S
    while world.clock.monotonic() < deadline:
        await world.clock.sleep(1.0)
        try:
            found = await world.call(lambda node: _kept(world, node))
        except HoldfastError as error:
            found = str(error)
        if not found:
            world.trace.note("kept")
            return
    raise Violation(f"not to be made again after {KEPT_WITHIN_S:g} s of health: {found}")


async def prove(
    world: ClusterWorld,
    book: Book,
    client: "ClusterClient",
    buckets: Sequence[str],
    keys: Sequence[str],
) -> None:
    """All of it."""
    await until_tidy(world)
    for bucket in buckets:
        names = set(keys)
        names |= {key.partition("/")[2] for key in book.histories if key.startswith(f"{bucket}/")}
        for name in sorted(names - {""}):
            await client.read_all(bucket, name)
    book.check()
    await until_whole(world)
    await until_tidy(world)
    await until_kept(world)
    check_shards(world)
    begin, end = -1.0, world.clock.monotonic()
    await check_accounts(world, [(begin, end)])
    if world.failures:
        raise Violation(f"a task of a node failed: {world.failures[0]!r}") from world.failures[0]
