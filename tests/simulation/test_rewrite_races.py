"""Rewriting a pack, for every reason: whatever call fails, whenever the power goes, and whoever else is at
the same pack, nothing is lost and nothing is left over.

First the N-th call that a rewrite makes, to a store or to the index, fails or is where the power goes, N =
1, 2, 3 and so on until a run is untouched. Then seeds: two rewrites of one pack for any two reasons race
with readers, deletes, the collector, puts that land late, faults and crashes. After each run: every
acknowledged byte reads back; every pack is whole when all of it is read; no store has two shards of a
pack; every byte has its owner; and a shard that no row names has an excuse, for which the search for
strays is there.
"""

import asyncio
import contextlib
import os
import random
from collections.abc import Callable

import pytest

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, RequestId
from holdfast.index.memory import Fault, MemoryIndex, Mishap
from holdfast.objects import errors as e
from holdfast.objects import model as m
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewritten
from holdfast.packs.rows import KnownPack, decode_row
from holdfast.scheme import Scheme
from tests.kit.virtual import run_virtual
from tests.simulation.contents import SimulatedBody, make_bytes
from tests.simulation.node import SimulationSettings
from tests.simulation.parts import Nth
from tests.simulation.proofs import check_accounts, check_strays, scan, until_tidy, until_whole
from tests.simulation.world import Crashed, World

SIZE = 300_000
CALLS_MAX = 150
SEEDS = int(os.environ.get("HOLDFAST_SIM_SEEDS", "100"))
STRIDE = 1 if SEEDS >= 1000 else 6
"""All calls fail once where there is time for it; else every sixth, another one each way."""

RACES = max(16, SEEDS // 5)

LARGE, KEPT, DELETED = "large", "small kept", "small deleted"


def heal_bad(known: KnownPack, spare: list[str]) -> Target:
    return Target(bad=(1,))


def heal_gone(known: KnownPack, spare: list[str]) -> Target:
    return Target(gone=frozenset({known.places[max(known.places)].store}), shrink=True)


def nothing(known: KnownPack, spare: list[str]) -> Target:
    return Target()


def mirrors(known: KnownPack, spare: list[str]) -> Target:
    return Target(promised=Scheme(1, 2))


def drain(known: KnownPack, spare: list[str]) -> Target:
    return Target(leave=frozenset({known.places[min(known.places)].store}))


def rebalance(known: KnownPack, spare: list[str]) -> Target:
    moves = ((max(known.places), store) for store in spare[:1])
    return Target(moves=tuple(moves))  # type: ignore[arg-type]


Aim = Callable[[KnownPack, list[str]], Target]

REASONS: dict[str, tuple[Reason, Aim]] = {
    "heal": (Reason.HEAL, heal_bad),
    "heal gone": (Reason.HEAL, heal_gone),
    "debt": (Reason.DEBT, nothing),
    "scheme": (Reason.SCHEME, mirrors),
    "drain": (Reason.DRAIN, drain),
    "rebalance": (Reason.REBALANCE, rebalance),
}

WAYS = ("fails before", "fails after", "lands later", "power goes before", "power goes after")


class PowerGoes(Nth):
    """The N-th call is where the power goes: nothing that this life does from then on reaches anything."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world
        self.gone = False

    def strikes(self) -> bool:
        strikes = super().strikes()
        if strikes:
            self.gone = True
            self._world.node.unplug()
            MemoryIndex(self._world.clock, self._world.rows)  # fences the dying one
        return strikes


async def put(world: World, key: str, size: int = SIZE) -> None:
    body = SimulatedBody(make_bytes(key, size), world.clock)
    await world.node.objects.put_object(m.PutObject(bucket="bucket", key=key, body=body))


async def read(world: World, key: str) -> bytes:
    async def request() -> bytes:
        view = await world.node.objects.read_object(m.ReadObject(bucket="bucket", key=key))
        if view.body is None:
            assert view.whole is not None
            return bytes(view.whole)
        return b"".join([bytes(piece) async for piece in view.body()])

    return await world.call(lambda _: request())


async def prepare(world: World, reason: str) -> PackId:
    """A pack that there is a reason to rewrite, and others beside it."""
    await world.start()
    await world.node.chores.close()
    await world.node.objects.create_bucket("bucket", None)
    before = {row.key for row in scan(world, b"pack/")}
    if reason == "debt":
        attached = world.node.attached
        away = [(store, attached.pop(store)) for store in list(attached)[:2]]
        await put(world, LARGE)
        attached.update(away)
        assert scan(world, b"debt/")
    else:
        await put(world, LARGE)
    (row,) = [row for row in scan(world, b"pack/") if row.key not in before]
    await asyncio.gather(put(world, KEPT, 5000), put(world, DELETED, 5000))
    pack = PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode()))
    if reason == "heal":
        place = next(place for place in decode_row(row.value).places if place.shard == 1)
        (slot,) = [slot for slot in world.slots if slot.memory.id == place.store]
        slot.memory.spoil(f"{pack.hex()}.1.{place.attempt}", None)
    return pack


async def rewrite(world: World, pack: PackId, reason: str) -> Rewritten:
    why, aim = REASONS[reason]

    async def request() -> Rewritten:
        node = world.node
        known = await node.packs.rows.fresh(pack)
        spare = [store for store in node.attached if store not in known.stores]
        return await node.rewriter.rewrite(pack, why, aim(known, list(map(str, spare))))

    return await world.call(lambda _: request())


def named(world: World) -> set[tuple[str, str]]:
    """Store and name of every shard that a row names."""
    return {
        (place.store, f"{row.key[5:].decode()}.{place.shard}.{place.attempt}")
        for row in scan(world, b"pack/")
        for place in decode_row(row.value).places
    }


async def settle(
    world: World, kept: list[str], began: float, before: set[tuple[str, str]], tell: str
) -> None:
    """What has to hold in the end. `before` are the shards that rows named before it all."""
    for key in kept:
        assert await read(world, key) == make_bytes(key, SIZE if key == LARGE else 5000), f"{tell}: {key}"
    for pack in [PackId(bytes.fromhex(row.key[5:].decode())) for row in scan(world, b"pack/")]:
        world.node.repair.report(pack, -1, "looked at in the end")
    world.node.chores.start()
    await until_tidy(world)
    await until_whole(world)
    for row in scan(world, b"pack/"):
        stores = [place.store for place in decode_row(row.value).places]
        assert len(set(stores)) == len(stores), f"{tell}: two shards on one store"
    for key in kept:
        assert await read(world, key) == make_bytes(key, SIZE if key == LARGE else 5000), f"{tell}: {key}"
    # What a row once named has no excuse: it was declared dead together with whatever took its place.
    left = {(str(slot.memory.id), name) for slot in world.slots for name in slot.memory.medium}
    assert (before - named(world)) & left == set(), tell
    window = [(began, world.clock.monotonic())]
    await check_accounts(world, window)
    check_strays(world, window)
    assert not world.failures, (tell, world.failures)
    await world.stop()


async def one_failure(reason: str, way: str, n: int) -> bool:
    """Whether a call failed, or the power went."""
    tell = f"{reason}, {way}, {n}"
    world = World(tell, SimulationSettings(stores=7))
    pack = await prepare(world, reason)
    nth = PowerGoes(world) if way.startswith("power") else Nth()
    nth.after = way.endswith("after")
    if way == "lands later":
        world.index_fault = Fault(Mishap.APPLIED_LATER, 0.3)
    else:
        world.index_fault = Fault(Mishap.APPLIED if nth.after else Mishap.UNAVAILABLE)
    for part in (world.nth, world.index_nth):
        part.strikes = nth.strikes  # type: ignore[method-assign]
        part.after = nth.after
    nth.left = n
    before, began = named(world), world.clock.monotonic()
    try:
        outcome = await rewrite(world, pack, reason)
        assert nth.fires or outcome is Rewritten.DONE, f"{tell}: {outcome}"
    except (HoldfastError, Crashed):
        assert nth.fires, tell
    nth.left = None
    if isinstance(nth, PowerGoes) and nth.gone:
        await world.crash()
        await world.start()
        await world.node.chores.close()
    world.index.faults.clear()
    await settle(world, [LARGE, KEPT, DELETED], began, before, tell)
    return nth.fires > 0


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("reason", REASONS)
def test_a_rewrite_is_done_or_not_done_whichever_call_fails(reason: str, way: str) -> None:
    first = 1 + (list(REASONS).index(reason) + list(WAYS).index(way)) % STRIDE
    for n in range(first, CALLS_MAX, STRIDE):
        if not run_virtual(one_failure(reason, way, n)):
            assert n > first, "nothing was ever called"
            return
    raise AssertionError(f"a rewrite for {reason} makes more than {CALLS_MAX} calls")


async def one_race(seed: int) -> None:
    chance = random.Random(seed)
    reasons = chance.choice(list(REASONS)), chance.choice(list(REASONS))
    tell = f"race {seed}: {reasons}"
    world = World(tell, SimulationSettings(stores=chance.choice((6, 7))))
    pack = await prepare(world, reasons[0])
    clock = world.clock
    before, began = named(world), clock.monotonic()
    kept = [KEPT]
    crash_at = chance.uniform(0.0, 0.06) if chance.random() < 0.3 else None
    if chance.random() < 0.4:
        # One disk is so slow that puts to it are not waited for, and land in the middle of it all.
        chance.choice(world.slots).script.put_delay_s = (0.15, 0.4)
        await put(world, "late")
        (late,) = [row for row in scan(world, b"pack/") if row.key[5:].decode() != pack.hex()][-1:]
        if chance.random() < 0.7:
            pack = PackId(bytes.fromhex(late.key[5:].decode()))
    if chance.random() < 0.3:
        world.nth.after = chance.random() < 0.5
        world.nth.left = chance.randrange(1, 60)
    if chance.random() < 0.3:
        world.index_fault = Fault(chance.choice(list(Mishap)), 0.05)
        world.index_nth.left = chance.randrange(1, 25)

    async def rewriting(reason: str) -> None:
        await clock.sleep(chance.uniform(0, 0.02))
        with contextlib.suppress(HoldfastError, Crashed):  # it may fail; what is checked is what it leaves
            await rewrite(world, pack, reason)

    async def reading(key: str) -> None:
        for _ in range(4):
            await clock.sleep(chance.uniform(0, 0.02))
            try:
                assert await read(world, key) == make_bytes(key, SIZE if key == LARGE else 5000)
            except (e.NoSuchKey, Crashed):
                return
            except HoldfastError:
                if world.nth.left is None and not world.nth.fires and not world.index_nth.fires:
                    raise

    async def deleting(key: str) -> None:
        await clock.sleep(chance.uniform(0, 0.03))
        with contextlib.suppress(HoldfastError, Crashed):
            await world.call(
                lambda node: node.objects.delete_objects("bucket", [m.DeleteKey(key=key)], RequestId(""))
            )

    async def crashing(at: float) -> None:
        await clock.sleep(at)
        await world.crash()
        await world.start()

    if chance.random() < 0.7:
        world.node.chores.start()  # the collector, the sweep, repairs and debts have their say
    deletes_large = chance.random() < 0.4
    if not deletes_large:
        kept.append(LARGE)
    await asyncio.gather(
        *[rewriting(reason) for reason in reasons],
        reading(LARGE),
        reading(KEPT),
        deleting(DELETED),
        *([deleting(LARGE)] if deletes_large else []),
        *([crashing(crash_at)] if crash_at is not None else []),
    )
    world.nth.left = world.index_nth.left = None
    for slot in world.slots:
        slot.script.put_delay_s = None
    await clock.sleep(1.0)
    world.index.faults.clear()
    await world.node.chores.close()
    await settle(world, kept, began, before, tell)


@pytest.mark.parametrize("part", range(4))
def test_whoever_else_is_at_the_same_pack_nothing_is_lost(part: int) -> None:
    for seed in range(part, RACES, 4):
        run_virtual(one_race(seed))
