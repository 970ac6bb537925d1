"""One call of a move fails, the first, the second, the third, until one gets by: objects stay what they are.

As `test_nth_failure`, for moving bytes between packs: of plain objects, of parts of an open upload, of an
object with a table, of copies with and without their owner. After each: clients see what they saw before;
asked again, the move ends well; all old packs die; every pack is whole, and every byte has its owner.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId
from holdfast.index.memory import Fault, Mishap
from holdfast.objects import model as m
from holdfast.packs.model import debt_row
from holdfast.packs.rows import decode_row
from tests.kit.virtual import run_virtual
from tests.simulation.proofs import (
    check_accounts,
    check_strays,
    scan,
    until_collected,
    until_tidy,
    until_whole,
)
from tests.simulation.test_nth_failure import SMALL, WAYS, Bench, prepare, snapshot

CALLS_MAX = 150


async def _plain(bench: Bench) -> None:
    await bench.abort()
    await bench.objects.finish_cleanups(10)


async def _parts(bench: Bench) -> None:
    await bench.part(1, "part 1", SMALL)
    await bench.delete("small", "large")


async def _table(bench: Bench) -> None:
    await bench.complete()
    await bench.objects.finish_cleanups(10)
    await bench.delete("small", "large")


async def _copies(bench: Bench) -> None:
    await _plain(bench)
    await bench.put("full", "gone", "gone", SMALL)
    for source in ("small", "gone"):
        for number in (1, 2):
            copy = m.CopyObject(
                source_bucket="full", source_key=source, bucket="full", key=f"{source} {number}"
            )
            await bench.objects.copy_object(copy)
    await bench.delete("gone", "large")


SCENES: dict[str, Callable[[Bench], Awaitable[None]]] = {
    "plain": _plain,
    "parts": _parts,
    "table": _table,
    "copies": _copies,
}


async def _move(bench: Bench) -> None:
    """All packs, those of each scheme together, as the chore does it."""
    world = bench.world
    for row in scan(world, b"pack/"):
        pack = PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode()))
        assert world.rows.get(debt_row(pack)) is None
    found = {
        PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode())): 1 << 30
        for row in scan(world, b"pack/")
    }
    (scheme,) = {decode_row(row.value).scheme for row in scan(world, b"pack/")}
    await bench.objects.moving(world.clock).move(found, scheme, found)


async def _run(scene: str, way: str, n: int) -> bool:
    """Whether a call failed."""
    bench = await prepare(f"{scene} {way} {n}", 50 if scene == "table" else 32 << 10)
    world = bench.world
    await SCENES[scene](bench)
    before = await snapshot(bench)
    old = {row.key for row in scan(world, b"pack/")}
    nth = world.nth if way.startswith("store") else world.index_nth
    nth.after = way == "store after"
    if way.startswith("index"):
        world.index_fault = Fault(Mishap[way.removeprefix("index ").upper()], 0.3)
    nth.left = n
    with suppress(HoldfastError):  # a step that failed is tried again
        await world.call(lambda _: _move(bench))
    nth.left = None
    world.index.faults.clear()
    assert await snapshot(bench) == before, f"{scene}: something else is seen after {n}"
    world.node.chores.start()
    await until_tidy(world)
    await world.call(lambda _: _move(bench))
    await until_tidy(world)
    await until_whole(world)
    assert await snapshot(bench) == before
    await until_collected(world)
    await world.node.chores.close()
    await check_accounts(world, [])
    check_strays(world, [])
    assert not old & {row.key for row in scan(world, b"pack/")}, "an old pack lives on"
    assert not world.failures, world.failures
    await world.stop()
    return nth.fires > 0


CASES = [(scene, way) for scene in SCENES for way in WAYS if way.startswith("index") or scene == "table"]
"""What a store does wrong is met before any row changes: one scene that has all kinds of reads and writes
shows it."""


@pytest.mark.slow
@pytest.mark.parametrize(("scene", "way"), CASES)
def test_a_move_is_done_or_not_done_for_each_object_whichever_call_fails(scene: str, way: str) -> None:
    for n in range(1, CALLS_MAX):
        if not run_virtual(_run(scene, way, n)):
            assert n > 1, "nothing was ever called"
            return
    raise AssertionError(f"a move makes more than {CALLS_MAX} calls")
