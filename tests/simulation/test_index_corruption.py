"""Silent corruption of the index log, by the book: every byte region of every file of a member, every harm,
on one member, on as many as may be lost, on one more, and on all; found at the start, or while it runs.

What is promised: as long as a majority is right, everything that was ever acknowledged is there and every
member is right again; else the log says that it can't be opened and names whom it needs, or it has
everything all the same. It never opens without something that was acknowledged.
"""

import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import NamedTuple

import pytest

from holdfast.base.errors import HoldfastError, Unavailable
from holdfast.index.sqlite.log import Log
from holdfast.index.sqlite.records import Kind, changes_body
from tests.kit.harm import Harm, harmed
from tests.kit.index_disks import SimDisk, World
from tests.kit.regions import Region, assert_covers, index_regions
from tests.kit.virtual import VirtualClock, run_virtual
from tests.simulation.test_index_log import Ledger, all_current, make_disks, opened, write_checkpoint

THOROUGH = bool(os.environ.get("HOLDFAST_THOROUGH"))
"""Every case there is, as `make drill` has them; else enough of each kind to notice what breaks."""

Image = dict[str, bytes]
IN_PLACE = (Harm.FLIP, Harm.ZERO, Harm.TRUNCATE)
SECTOR = 512
FEW = 20


class Case(NamedTuple):
    """What is done to the file `name` of some members."""

    name: str
    region: Region
    harm: Harm
    members: tuple[int, ...]


class Past(NamedTuple):
    """A log that was closed: what lies on each disk, what lay there before the last records, and what was
    acknowledged."""

    now: list[Image]
    before: list[Image]
    ledger: Ledger


async def write(log: Log, text: bytes, size: int) -> None:
    """A record without a zero in its value, so that a sector of zeros is one that was never written."""
    body = changes_body([(((text, b"\xaa" * size),), ())])
    record = log.append(Kind.TRANSACTIONS, body, 1)
    log.send(record)
    await log.acknowledged(record.sequence, 5.0)


async def live(count: int, *, lagging: bool) -> Past:
    """Two lives with a checkpoint; with `lagging`, the last member is away for the last records."""
    disks, ledger = make_disks(count), Ledger()
    log = await opened(disks, World("first life"), ledger)
    for number in range(4):
        await write(log, b"first %d" % number, 900)
    await write_checkpoint(log)
    for number in range(3):
        await write(log, b"middle %d" % number, 100)
    await log.close()
    log = await opened(disks, World("second life"), ledger)
    await write(log, b"second", 1200)
    await log.close()
    before = [disk.image() for disk in disks]
    log = await opened(disks, World("third life"), ledger)
    disks[-1].gone = lagging
    for number in range(3):
        await write(log, b"third %d" % number, 100 + 600 * number)
    await log.close()
    return Past([disk.image() for disk in disks], before, ledger)


def put_back(past: Past) -> tuple[list[SimDisk], Ledger]:
    disks, ledger = make_disks(len(past.now)), Ledger()
    for disk, image in zip(disks, past.now, strict=True):
        disk.put_back(image)
    ledger.hashes = dict(past.ledger.hashes)
    return disks, ledger


def cases(past: Past, counts: tuple[int, ...], every: int) -> Iterator[Case]:
    """Every region flipped (but where few are wanted), each `every`-th zeroed and cut off; every file grown,
    gone and old."""
    turn = 0
    for name, content in sorted(past.now[0].items()):
        regions = index_regions(name, content)
        for region in regions:
            for harm in Harm:
                of_file = harm in (Harm.EXTEND, Harm.REMOVE, Harm.SWAP)
                if of_file and region != regions[-1]:
                    continue
                turn += 1
                if of_file or turn % every == 0 or (harm is Harm.FLIP and every < FEW):
                    for count in counts:
                        members = tuple((turn + step) % len(past.now) for step in range(count))
                        yield Case(name, region, harm, members)


def apply(past: Past, disks: list[SimDisk], case: Case) -> tuple[bool, bool]:
    """Whether something is different now, and whether a write that was never finished looks the same: then
    a member that lacks it cannot know that it ever had it."""
    changed = unknowable = False
    for number in case.members:
        disk = disks[number]
        old = disk.image().get(case.name)
        if old is None or case.region.end > len(old):
            continue
        new = harmed(old, case.harm, case.region.start, case.region.end, past.before[number].get(case.name))
        if new is None:
            disk.files.pop(case.name)
        else:
            disk.files[case.name] = bytearray(new)
        changed |= new != old
        newest = case.name == max(name for name in past.now[number] if name.startswith("log-"))
        unknowable |= new != old and (_as_unfinished(old, new) if new else newest)
    return changed, unknowable


def _as_unfinished(old: bytes, new: bytes) -> bool:
    """Whether a sector is zeros now and was not, in a file of the same length."""
    return len(new) == len(old) and any(
        any(old[at : at + SECTOR]) and not any(new[at : at + SECTOR]) for at in range(0, len(old), SECTOR)
    )


async def run_case(past: Past, case: Case) -> str:
    """What it came to: "there" or "refused"."""
    disks, ledger = put_back(past)
    changed, unknowable = apply(past, disks, case)
    within = len(case.members) <= (len(disks) - 1) // 2
    clock = VirtualClock()
    log, told = None, ""
    try:
        log = await opened(disks, World("after"), ledger)
    except Unavailable as error:
        told = str(error)
    if log is None:
        assert changed
        assert not within, told
        assert any(disks[number].name in told for number in case.members), told
        return "refused"
    if not within and unknowable:
        # Beyond the promise, and nothing in the log can tell: what has seen more can (copies, stores).
        await log.close()
        return "there"
    await ledger.check(log)
    await write(log, b"after", 50)
    await all_current(log, clock)
    await log.close()
    # Each of them is as good as the others now: any majority has everything.
    for number in range(len(disks)):
        disks[number].gone = True
        log = await opened(disks, World(f"again without {number}"), ledger)
        await ledger.check(log)
        await log.close()
        disks[number].gone = False
        if within:
            break
    return "there"


async def while_it_runs(past: Past, case: Case) -> str:
    """As `run_case`, but the harm is done to a log that is open, and goes on."""
    disks, ledger = put_back(past)
    clock, world = VirtualClock(), World("while it runs")
    log = await opened(disks, world, ledger)
    await all_current(log, clock)
    apply(past, disks, case)
    await write(log, b"on and on", 300)
    await ledger.check(log)
    # One of them goes and comes back, and is given what it lacks by members of which some are spoiled.
    away = disks[case.members[0]]
    away.gone = True
    await write(log, b"without one", 700)
    away.gone = False
    await all_current(log, clock)
    await write_checkpoint(log)
    await write(log, b"behind it", 300)
    await ledger.check(log)
    await log.close()
    log = await opened(disks, World("after"), ledger)
    await ledger.check(log)
    await all_current(log, clock)
    await log.close()
    return "there"


def run_all(
    run_one: Callable[[Past, Case], Coroutine[None, None, str]],
    members: int,
    counts: tuple[int, ...],
    every: int,
    *,
    lagging: bool,
) -> Counter[str]:
    outcomes: Counter[str] = Counter()

    async def run() -> None:
        past = await live(members, lagging=lagging)
        for case in cases(past, counts, every):
            try:
                outcomes[await run_one(past, case)] += 1
            except (HoldfastError, AssertionError, LookupError, ValueError) as error:
                raise AssertionError(f"{case}: {error!r}") from error

    run_virtual(run())
    return outcomes


@pytest.mark.parametrize("lagging", [True, False] if THOROUGH else [True])
def test_every_region_of_every_file_of_members_of_three(lagging: bool) -> None:
    """With a member that lacks the last records, so that those who have them are all that counts."""
    outcomes = run_all(run_case, 3, (1, 2, 3) if THOROUGH else (1, 2), 1 if THOROUGH else 6, lagging=lagging)
    assert min(outcomes["there"], outcomes["refused"]) > 300


def test_regions_of_members_of_five() -> None:
    outcomes = run_all(run_case, 5, (2, 3), 1 if THOROUGH else 21, lagging=True)
    assert outcomes["there"] > 50


@pytest.mark.parametrize(("members", "counts"), [(3, (1,)), (5, (2,))])
def test_regions_of_members_of_a_log_that_runs(members: int, counts: tuple[int, ...]) -> None:
    outcomes = run_all(while_it_runs, members, counts, 1 if THOROUGH else 21, lagging=False)
    assert outcomes["there"] > 50


def test_the_regions_of_a_members_files_cover_them() -> None:
    kinds = set()
    for name, content in run_virtual(live(3, lagging=False)).now[0].items():
        assert_covers(index_regions(name, content), len(content))
        kinds.add(name.partition("-")[0])
    assert kinds >= {"member", "log", "checkpoint"}
