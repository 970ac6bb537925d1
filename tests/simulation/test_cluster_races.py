"""What several processes on one index do to each other, one case at a time: each of these was taken for
granted while there was one process (docs/decisions/0028-many-processes.md)."""

from collections.abc import Awaitable, Callable

import pytest

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, RequestId, shard_name
from holdfast.objects import keys
from holdfast.objects import model as m
from holdfast.objects.rows import decode_head
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rows import decode_row
from tests.kit.recovery_world import recover_from
from tests.simulation.cluster_loop import run_pausable
from tests.simulation.cluster_node import ClusterNode
from tests.simulation.cluster_proofs import check_shards, until_kept, until_tidy, until_whole
from tests.simulation.cluster_world import ClusterSettings, ClusterWorld
from tests.simulation.contents import SimulatedBody, etag_of, make_bytes
from tests.simulation.proofs import scan

pytestmark = pytest.mark.slow

BUCKET = "alpha"
PART = 70_000


def in_cluster(scenario: Callable[[ClusterWorld], Awaitable[None]]) -> None:
    """Run one case over three nodes."""

    async def run() -> None:
        world = ClusterWorld("races", ClusterSettings(compact_every_s=1000.0))
        await world.start()
        try:
            await world.clock.sleep(1.0)  # they meet
            await world.call(lambda node: node.objects.create_bucket(BUCKET, world.cluster.scheme))
            await scenario(world)
            assert not world.failures
        finally:
            world.trace.close()
            await world.stop()

    run_pausable(run())


async def put(world: ClusterWorld, at: int, key: str, size: int = 5000, pause_s: float = 0.0) -> str:
    data = make_bytes(f"{key} {world.tick()}", size)
    body = SimulatedBody(data, world.clock, pause_s=pause_s, piece=PART)
    request = m.PutObject(bucket=BUCKET, key=key, body=body, request=RequestId(""))
    await world.machines[at].call(lambda node: node.objects.put_object(request))
    return etag_of(data)


async def read(world: ClusterWorld, at: int, key: str) -> str:
    async def take(node: ClusterNode) -> bytes:
        view = await node.objects.read_object(m.ReadObject(bucket=BUCKET, key=key))
        if view.body is None:
            assert view.whole is not None
            return bytes(view.whole)
        return b"".join([bytes(piece) async for piece in view.body()])

    return etag_of(await world.machines[at].call(take))


async def put_in_parts(world: ClusterWorld, key: str, count: int) -> bytes:
    """Each part through another node."""
    create = m.CreateUpload(bucket=BUCKET, key=key)
    upload = await world.machines[0].call(lambda node: node.objects.create_upload(create))
    parts = [make_bytes(f"{key} part {number}", PART) for number in range(1, count + 1)]
    for number, data in enumerate(parts, 1):
        part = m.UploadPart(
            bucket=BUCKET,
            key=key,
            upload=upload.upload,
            number=number,
            body=SimulatedBody(data, world.clock),
        )
        await world.machines[number % 3].call(lambda node, part=part: node.objects.upload_part(part))
    named = tuple(m.CompletePart(number, etag_of(data)) for number, data in enumerate(parts, 1))
    complete = m.CompleteUpload(bucket=BUCKET, key=key, upload=upload.upload, parts=named)
    await world.machines[1].call(lambda node: node.objects.complete_upload(complete))
    return b"".join(parts)


def packs(world: ClusterWorld) -> list[PackId]:
    return [PackId(bytes.fromhex(row.key[5:].decode())) for row in scan(world, b"pack/")]


def holder(world: ClusterWorld, chore: str) -> int:
    """Which node does a chore; one that is stopped may still think so."""
    (at,) = [
        number
        for number, machine in enumerate(world.machines)
        if machine.is_up and machine.node is not None and machine.node.chores.is_here(chore)
    ]
    return at


async def until(world: ClusterWorld, seconds: float, what: Callable[[], bool]) -> None:
    deadline = world.clock.monotonic() + seconds
    while not what():
        assert world.clock.monotonic() < deadline, f"not within {seconds:g} s"
        await world.clock.sleep(0.5)


@pytest.mark.parametrize("crash", [False, True], ids=["its process lives", "its process died"])
def test_a_commit_that_lands_after_its_pack_died_brings_nothing_back(crash: bool) -> None:
    async def scenario(world: ClusterWorld) -> None:
        world.service.hold_packs.append(100.0)
        began = world.clock.monotonic()
        await put(world, 0, "a")
        (pack,) = packs(world)
        if crash:
            await world.machines[0].crash()
            await world.machines[0].start()
        etag = await put(world, 1, "a")
        await until(world, 120, lambda: pack not in packs(world) and not scan(world, b"buried/"))
        assert world.service.held == 1
        assert world.clock.monotonic() < began + 95, "the grave is gone before the commit lands"
        await until(world, 120, lambda: not world.service.held)
        await world.clock.sleep(1)
        assert pack not in packs(world)
        check_shards(world)
        assert await read(world, 2, "a") == etag

    in_cluster(scenario)


def test_a_grave_waits_while_a_process_that_is_stopped_may_still_send_its_commit() -> None:
    async def scenario(world: ClusterWorld) -> None:
        world.service.hold_packs.append(40.0)
        await put(world, 0, "a")
        world.machines[0].stop()
        etag = await put(world, 1, "a")
        await until(world, 60, lambda: not world.service.held)
        check_shards(world)
        # It is silent, and fenced at last.
        await until(world, 240, lambda: not any(b"/n0/" in row.key for row in scan(world, b"fence/")))
        world.machines[0].proceed()
        await world.clock.sleep(5)
        await until(world, 60, lambda: not scan(world, b"buried/"))
        assert await read(world, 0, "a") == etag
        assert await put(world, 0, "b")

    in_cluster(scenario)


def test_a_node_that_was_fenced_over_an_open_write_gives_it_up_and_goes_on() -> None:
    async def scenario(world: ClusterWorld) -> None:
        async def write() -> str:
            try:
                return await put(world, 2, "large", 3_000_000, pause_s=3.0)
            except HoldfastError as error:
                return type(error).__name__

        writing = world.loop.create_task(write())
        await world.clock.sleep(20)
        world.machines[2].stop()
        await put(world, 1, "a")
        etag = await put(world, 1, "a")
        await until(world, 240, lambda: not any(b"/n2/" in row.key for row in scan(world, b"fence/")))
        world.machines[2].proceed()
        ended = await writing
        await world.clock.sleep(5)
        if len(ended) == len(etag):
            assert await read(world, 1, "large") == ended
        assert await read(world, 2, "a") == etag
        assert await put(world, 2, "a") == await read(world, 0, "a")
        await until_whole(world)
        check_shards(world)

    in_cluster(scenario)


def test_a_read_goes_on_while_another_node_replaces_and_buries_what_it_reads() -> None:
    async def scenario(world: ClusterWorld) -> None:
        data = await put_in_parts(world, "slow", 6)
        before = set(packs(world))
        there = (holder(world, "sweep") + 1) % 3

        async def take(node: ClusterNode) -> bytes:
            view = await node.objects.read_object(m.ReadObject(bucket=BUCKET, key="slow"))
            assert view.body is not None
            found = b""
            async for piece in view.body():
                if not found:
                    await put(world, (there + 1) % 3, "slow")
                    await world.clock.sleep(60)
                    assert not before & set(packs(world)), "all of it was buried meanwhile"
                found += bytes(piece)
            return found

        assert await world.machines[there].call(take) == data
        await until(world, 180, lambda: not scan(world, b"buried/"))
        assert check_shards(world) == 0

    in_cluster(scenario)


def test_a_row_that_another_node_moved_on_is_looked_up_again() -> None:
    async def scenario(world: ClusterWorld) -> None:
        etag = await put(world, 0, "a", 100_000)
        (pack,) = packs(world)
        assert await read(world, 2, "a") == etag
        there, mover = world.machines[2].node, world.machines[1].node
        assert there is not None
        assert mover is not None
        places = decode_row(scan(world, b"pack/")[0].value).places
        moved = frozenset(place.store for place in places if place.shard in (0, 1))
        for _ in range(3):
            # As many homes as shards: they stay where they are, under new names.
            await world.machines[1].call(
                lambda node: node.rewriter.rewrite(pack, Reason.HEAL, Target(condemned=(0, 1)))
            )
        await until(world, 60, lambda: not scan(world, b"trash/"))
        assert moved
        await world.clock.sleep(10)
        assert await read(world, 2, "a") == etag
        assert await read(world, 2, "a") == etag
        known = there.packs.rows.cached(pack)
        assert known is not None
        assert known.revision == scan(world, b"pack/")[0].revision
        await world.clock.sleep(10)
        assert not scan(world, b"finding/")

    in_cluster(scenario)


def test_damage_that_is_found_at_a_node_without_repairs_is_mended() -> None:
    async def scenario(world: ClusterWorld) -> None:
        etag = await put(world, 0, "a", 100_000)
        (pack,) = packs(world)
        await world.clock.sleep(3)
        there = next(at for at in range(3) if at != holder(world, "repair"))
        for place in decode_row(scan(world, b"pack/")[0].value).places[:1]:
            name = shard_name(pack, place.shard, place.attempt)
            (slot,) = [slot for slot in world.slots if slot.memory.id == place.store]
            slot.memory.spoil(name, bytes(len(slot.memory.medium[name])))
        assert await read(world, there, "a") == etag
        await until(world, 30, lambda: any(node.mended for node in world.nodes))
        await until(world, 30, lambda: not scan(world, b"finding/"))
        await until_whole(world)
        check_shards(world)

    in_cluster(scenario)


def test_what_recovery_needs_is_whole_whoever_wrote_it() -> None:
    async def scenario(world: ClusterWorld) -> None:
        for number in range(6):
            await put(world, number % 3, f"k{number}")
            await world.clock.sleep(1.5)
        first = holder(world, "journal")
        world.machines[first].stop()
        for number in range(40):
            await put(world, (first + 1 + number % 2) % 3, f"k{number % 7}")
            await world.clock.sleep(1.5)
        assert holder(world, "journal") != first
        world.machines[first].proceed()
        for number in range(10):
            await put(world, number % 3, f"k{number % 7}")
            await world.clock.sleep(1.5)
        assert holder(world, "journal") != first
        await world.machines[holder(world, "journal")].crash()
        await world.clock.sleep(40)
        for machine in world.machines:
            if machine.process is None:
                await machine.start()
        await put(world, 0, "last")
        await until_tidy(world)
        await until_kept(world)

    in_cluster(scenario)


def test_recovery_finds_what_was_begun_before_the_writer_of_the_journal_had_started() -> None:
    async def scenario(world: ClusterWorld) -> None:
        await put(world, 1, "before")
        await world.clock.sleep(2.0)
        there = holder(world, "journal")
        writer = (there + 1) % 3
        # Its shards are there and its commit is on its way; its process is stopped meanwhile.
        world.service.hold_packs.append(55.0)
        writing = world.loop.create_task(put(world, writer, "late", 100_000))
        await until(world, 10, lambda: world.service.held == 1)
        world.machines[writer].stop()
        # Another process writes the journal now, one that has begun since; and much is committed.
        await world.machines[there].crash()
        await world.machines[there].start()
        for number in range(12):
            await put(world, there, f"k{number}")
            await world.clock.sleep(1.0)
        known = world.rows.revision
        await until(
            world, 36, lambda: any(node.keeping.journal.position.revision > known for node in world.nodes)
        )
        others = [machine for machine in world.machines if machine is not world.machines[writer]]
        for machine in others:
            machine.stop()  # the journal goes no further
        assert world.service.held == 1
        await until(world, 60, lambda: not world.service.held)
        world.machines[writer].proceed()
        etag = await writing
        disks = {slot.memory.id: slot.memory for slot in world.slots}
        found = await recover_from(disks, world.chance("recovery"))
        assert found.loaded.revision < world.rows.revision, "the journal does not know of it"
        head = found.rows.get(keys.head_row(BUCKET, b"late"))
        assert head is not None, f"{found.applied.older} packs were left for older"
        assert decode_head(head.value).current.etag == etag
        for machine in others:
            machine.proceed()

    in_cluster(scenario)
