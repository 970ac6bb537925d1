"""One run from one seed: a node, clients, troubles, and in the end the proofs."""

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.randomness import SeededRandomness
from holdfast.objects import model as m
from tests.kit.virtual import run_virtual
from tests.simulation.book import Book, Violation
from tests.simulation.clients import SHARED_KEYS, Client
from tests.simulation.faults import DiskFault, Troubles, after, end
from tests.simulation.node import SimulationSettings
from tests.simulation.operator import Operator
from tests.simulation.proofs import (
    Strays,
    check_schemes,
    until_collected,
    until_kept,
    until_settled,
    until_swept,
    until_tidy,
    until_whole,
)
from tests.simulation.world import Slot, World

BUCKETS = ("alpha", "beta")
CLIENTS = 3
LAYOUTS = (
    SimulationSettings(stores=6, losses=2, scheme="rs-4-2", other_scheme="mirror-3"),
    SimulationSettings(stores=8, losses=2, scheme="rs-4-2", other_scheme="rs-2-2"),
    SimulationSettings(stores=5, spares=1, losses=1, scheme="rs-4-1", other_scheme="mirror-2"),
    SimulationSettings(stores=4, losses=1, scheme="raid5", other_scheme="raid1", inline_bytes_max=200),
    SimulationSettings(
        stores=7, spares=1, losses=2, scheme="raid6", other_scheme="rs-4-2", inline_bytes_max=200
    ),
)
SCHEMES = {2: ("rs-4-2", "mirror-3", "rs-2-2", "rs-3-2"), 1: ("mirror-2", "rs-2-1", "rs-3-1", "mirror-3")}
"""By the losses that a bucket must bear: what operators change schemes to. All fit the fewest stores."""

LONG_ONE_IN = 4
"""One run of so many has several phases, so that what was left by one meets the next; the others are short.
Four short ones cost as much as two long ones, and find more of what is planted (`mutants`)."""

LONG_S = 45.0
"""Longer than there is patience for a store that is away, and than a spare waits."""

AFTERMATH_S = 15.0
"""How long after more disks were away than may be lost a request may still fail for that."""

PASSING = (
    DiskFault.HANG,
    DiskFault.VANISH,
    DiskFault.SLOW,
    DiskFault.CRAWL,
    DiskFault.READ_ERRORS,
    DiskFault.WRITE_ERRORS,
    DiskFault.FULL,
    DiskFault.READ_ONLY,
)
"""What more disks than may be lost can have at once: afterwards everything is there again."""

COMPACT_EVERY_S = (0.1, 0.5, 3.0)
"""Far more often than a node does it, so that packs move while clients work."""


SCRUB_PASS_S = (40.0, 600.0, 600.0)


class Finished(Struct, frozen=True):
    """What a run came to."""

    seed: int
    digest: str
    requests: int
    acknowledged: int
    failed: int
    crashes: int
    troubles: dict[str, int]
    strays: Strays
    unowned: int
    virtual_s: float
    slowest_s: float


class SeedFailed(AssertionError):
    """A run found something; the message says how to see it again."""


def run_seed(seed: int) -> Finished:
    """Raises SeedFailed."""
    with on_its_own():
        return run_virtual(_run(seed))


@contextmanager
def on_its_own() -> Iterator[None]:
    """No garbage is collected while a run goes on: when that happens depends on the machine, and generators
    must end when the run says so. Afterwards its own is, which is little beside all that is loaded."""
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()
        gc.enable()


async def _run(seed: int) -> Finished:
    plan = SeededRandomness(f"{seed}/plan")
    settings = LAYOUTS[plan.below(len(LAYOUTS))]
    paced = replace(
        settings,
        compact_every_s=COMPACT_EVERY_S[seed % len(COMPACT_EVERY_S)],
        scrub_pass_s=SCRUB_PASS_S[seed // len(COMPACT_EVERY_S) % len(SCRUB_PASS_S)],
    )
    world = World(seed, paced)
    book, troubles = Book(), Troubles(world)
    world.on_crash.append(book.crashed)
    async with explained(seed, world, "test_seeds.py"):
        clients = await begin_clients(world, book)
        schemes = SCHEMES[settings.losses]
        operator = Operator(world, world.chance("operator"), BUCKETS, schemes, troubles.counts)
        phases = 2 + plan.below(3) if plan.below(LONG_ONE_IN) == 0 else 1
        restless = plan.below(5) == 0
        for phase in range(phases):
            quiet = phases > 1 and phase == 0 and plan.below(3) == 0
            await _phase(world, troubles, clients, operator, plan, quiet=quiet, restless=restless)
            if phase + 1 < phases:  # the last is proven with everything else
                await until_whole(world)
            await until_kept(world)
        await operator.finish()
        strays, unowned = await _prove(world, book, troubles, clients[0])
    return Finished(
        seed,
        world.trace.digest,
        book.requests,
        book.acknowledged,
        sum(bool(one.error) for one in book.answered),
        len(world.crashes),
        troubles.counts,
        strays,
        unowned,
        world.clock.monotonic(),
        max(one.took_s for one in book.answered if not one.error),
    )


@asynccontextmanager
async def explained(seed: int, world: World, test: str) -> AsyncIterator[None]:
    """To the end of the run in a world: whatever is raised says what went before, and how to see it again."""
    try:
        yield
    except BaseException as error:
        where = f"HOLDFAST_SIM_SEED={seed} .venv/bin/python -m pytest tests/simulation/{test} -x -q"
        raise SeedFailed(
            f"seed {seed} at {world.clock.monotonic():.6f}: {type(error).__name__}: {error}\n"
            f"replay: {where}\n{world.trace.tail()}"
        ) from error
    finally:
        world.trace.close()
        await world.stop()


async def begin_clients(world: World, book: Book) -> list[Client]:
    """The node, two buckets, and clients that have not begun."""
    await world.start()
    schemes = (None, world.settings.other_scheme)
    for bucket, scheme in zip(BUCKETS, schemes, strict=True):
        await world.call(lambda node, b=bucket, s=scheme: node.objects.create_bucket(b, s))  # type: ignore[misc]
    return [Client(world, book, number, BUCKETS) for number in range(CLIENTS)]


async def _phase(
    world: World,
    troubles: Troubles,
    clients: list[Client],
    operator: Operator,
    plan: SeededRandomness,
    *,
    quiet: bool,
    restless: bool,
) -> None:
    """Clients work while things go wrong; when they are done, all is healed. The operator does something
    now and then, or is `restless`."""
    requests = 8 + plan.below(25)
    length_s = 0.1 + 8.0 * plan.fraction() ** 2
    keys = SHARED_KEYS if plan.below(3) else SHARED_KEYS[:2]
    for client in clients:
        client.pause_s = (0.0, 2 * length_s / requests)
        client.bytes_max = (100_000, 1 << 20, 4 << 20)[plan.below(3)]
        client.keys = keys
    for slot in world.slots:
        if slot.image is None or plan.below(4) == 0:
            slot.take_image()
    slots = world.slots_in_use()
    todo = []
    if restless:
        todo.append(operator.work(3 + plan.below(6), length_s))
    elif plan.below(3) == 0:
        todo.append(operator.work(1 + plan.below(3), length_s))
    if not quiet and plan.below(10) == 0:
        await asyncio.gather(
            *[client.work(requests) for client in clients], *todo, _too_many(world, troubles, plan, slots)
        )
        _no_surprises(world)
        return
    losses = 0 if quiet else plan.below(world.settings.losses + 1)
    left = world.settings.losses - losses
    if not quiet:
        if losses >= 2 and plan.below(6) == 0:
            losses -= 2
            one, other = (slots.pop(plan.below(len(slots))) for _ in range(2))
            todo.append(after(world, length_s * plan.fraction() * 0.7, lambda: troubles.swap(one, other)))
        for _ in range(losses):
            slot = slots.pop(plan.below(len(slots)))
            for _ in range(1 + plan.below(2)):
                fault = _some_fault(plan)
                begin = lambda s=slot, f=fault: troubles.disk(s, f, plan)  # noqa: E731
                todo.append(after(world, length_s * plan.fraction() * 0.7, begin))
            if plan.below(3) == 0:
                todo.append(after(world, length_s * plan.fraction(), lambda s=slot: end(s)))
        todo += [
            after(world, length_s * plan.fraction(), lambda: troubles.index(plan, 1.5))
            for _ in range(max(0, plan.below(5) - 2))
        ]
        if plan.below(3) == 0:
            todo.append(_crashes(world, troubles, plan, length_s))
    tasks = [asyncio.ensure_future(one) for one in todo]
    await asyncio.gather(*[client.work(requests) for client in clients], *tasks)
    if losses and plan.below(8) == 0:
        await world.clock.sleep(LONG_S)
        await asyncio.gather(*[client.work(5) for client in clients])
    if not quiet and plan.below(6) == 0:
        await troubles.crash(plan)
    for slot in world.slots:
        end(slot)
    if left and not quiet and plan.below(2):
        await _another_while_it_heals(world, troubles, clients, plan, slots[:left])
    _no_surprises(world)
    world.trace.note("healed")


async def _too_many(world: World, troubles: Troubles, plan: SeededRandomness, slots: list[Slot]) -> None:
    """More disks than may be lost are away for a while: requests fail, and then everything is there again."""
    began = world.clock.monotonic()
    chosen = [slots.pop(plan.below(len(slots))) for _ in range(world.settings.losses + 1)]
    for slot in chosen:
        await world.clock.sleep(plan.fraction())
        troubles.disk(slot, PASSING[plan.below(len(PASSING))], plan)
    troubles.too_many()
    await world.clock.sleep((2.0, 8.0, LONG_S)[plan.below(3)])
    for slot in chosen:
        end(slot)
    troubles.excuses.append((began, world.clock.monotonic() + AFTERMATH_S))


def _some_fault(plan: SeededRandomness) -> DiskFault:
    return tuple(DiskFault)[plan.below(len(DiskFault))]


async def _another_while_it_heals(
    world: World, troubles: Troubles, clients: list[Client], plan: SeededRandomness, slots: list[Slot]
) -> None:
    """What is left of the promise is used up in the middle of the repair."""
    node = world.node
    mended = node.mended
    for _ in range(150):
        await world.clock.sleep(0.1)
        if node.mended > mended:
            break
    world.trace.note("while it heals", node.mended - mended)
    for slot in slots:
        troubles.another(slot, _some_fault(plan), plan, repairing=node.mended > mended)
    await asyncio.gather(*[client.work(5) for client in clients])
    if plan.below(4) == 0:
        await troubles.crash(plan)
    for slot in slots:
        end(slot)


async def _crashes(world: World, troubles: Troubles, plan: SeededRandomness, length_s: float) -> None:
    for _ in range(1 + plan.below(2)):
        await world.clock.sleep(length_s * plan.fraction())
        await troubles.crash(plan)


def _no_surprises(world: World) -> None:
    if world.failures:
        raise Violation(f"a task of the node failed: {world.failures[0]!r}") from world.failures[0]


async def _prove(world: World, book: Book, troubles: Troubles, client: Client) -> tuple[Strays, int]:
    excused_until = max((until for _, until in troubles.excuses), default=0.0)
    await world.clock.sleep(max(0.0, excused_until - world.clock.monotonic()))
    for bucket in BUCKETS:
        names = set(SHARED_KEYS)
        names |= {key.partition("/")[2] for key in book.histories if key.startswith(f"{bucket}/")}
        there = {name for name in sorted(names) if await client.read_all(bucket, name) is not None}
        await _list_all(client, bucket, there)
    book.check()
    failed = [
        (one.began, one.ended)
        for one in book.answered
        if one.error or one.refused or one.what == "broken put"
    ] + troubles.excuses
    for one in book.answered:
        if (
            one.error not in ("", "crashed")
            and not troubles.excused(one.began, one.ended)
            and not _overtaken(one, book)
        ):
            raise Violation(f"a request failed within the promise: {one}")
    await until_tidy(world)
    await until_whole(world)
    await until_collected(world)
    check_schemes(world)
    settled = await until_settled(world, failed)
    await until_swept(world)
    _no_surprises(world)
    await world.node.chores.close()
    return settled


def _overtaken(one: object, book: Book) -> bool:
    """A read in pieces whose object was replaced or deleted meanwhile may end with an error."""
    return getattr(one, "what", "") == "get" and "while it was being read" in getattr(one, "error", "")


async def _list_all(client: Client, bucket: str, there: set[str]) -> None:
    found: list[str] = []
    after_ = ""
    while True:
        page = await client.list_page(m.ListObjects(bucket=bucket, after=after_, limit=3))
        assert page is not None
        found += [entry if isinstance(entry, str) else entry.key for entry in page.entries]
        if not page.truncated:
            break
        after_ = page.next_after
    if set(found) != there or len(found) != len(there):
        raise Violation(f"{bucket} lists {found}, and {sorted(there)} is there")
