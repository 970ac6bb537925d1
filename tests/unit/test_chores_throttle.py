"""The throttle: chores rest for as long as clients would feel them, and work all the time when nobody is
there."""

import itertools
import random

import pytest

from holdfast.chores.chore import Progress
from holdfast.chores.giving_way import GivingWay, Tally
from holdfast.chores.rate import Rate
from holdfast.chores.runner import ChoreRunner
from holdfast.chores.throttle import (
    IDLE_S,
    RESTS_FIRST,
    RESTS_MAX,
    RESTS_MAX_PRESSED,
    RESTS_MIN,
    URGENT_RESTS,
    Throttle,
    rests_max,
)
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual


class Disk:
    """Whoever comes while `busy` others are at it waits for them, one after the other."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._free_at = 0.0

    async def use(self, seconds: float) -> None:
        now = self._clock.monotonic()
        self._free_at = max(self._free_at, now) + seconds
        await self._clock.sleep(self._free_at - now)


class Reading:
    """A chore with more to do than there is time, in pieces of two milliseconds on the clients' disk."""

    name = "reading"
    interval_s = 1.0
    is_urgent = False
    pressure = 0.0

    def __init__(self, disk: Disk, clock: GivingWay) -> None:
        self._disk = disk
        self._clock = clock
        self.pieces = 0

    async def step(self) -> bool:
        for _ in range(10):
            await self._disk.use(0.002)
            self.pieces += 1
            await self._clock.sleep(0)
        return True

    def progress(self) -> Progress:
        return Progress(self.pieces, None, "pieces")


async def p99_of_clients(
    *, chores: bool, gives_way: bool = True, pressure: float = 0.0, rests: float | None = None
) -> tuple[float, int]:
    """Clients with a request each 10 ms, which takes 0.5 to 2.5 ms of the disk: their p99 in seconds, and
    what the chore did in the same minute."""
    clock = VirtualClock()
    disk = Disk(clock)
    chance = random.Random(5)
    throttle = Throttle(clock.monotonic())
    giving_way = GivingWay(clock, throttle if gives_way else Throttle(0.0), lambda: 0)
    throttle.rests = rests or throttle.rests
    reading = Reading(disk, giving_way)
    reading.pressure = pressure
    runner = ChoreRunner([reading] if chores else [], clock, lambda *_: None, giving_way=giving_way)
    runner.start()
    took: list[float] = []
    start = clock.monotonic()
    while clock.monotonic() < start + 60:
        began = clock.monotonic()
        await disk.use(chance.uniform(0.0005, 0.0025))
        now = clock.monotonic()
        if gives_way:
            throttle.request("GetObject", 4096, now - began, now)
        if now > start + 20:  # by then it has learned
            took.append(now - began)
        await clock.sleep(max(0.0, 0.01 - (now - began)))
    await runner.close()
    took.sort()
    return took[int(0.99 * len(took))], reading.pieces


async def test_clients_hardly_feel_chores_and_chores_go_on() -> None:
    alone, _ = await p99_of_clients(chores=False)
    beside, pieces = await p99_of_clients(chores=True)
    assert beside <= 1.3 * alone
    assert pieces > 200
    pushed_aside, all_pieces = await p99_of_clients(chores=True, gives_way=False)
    assert pushed_aside > 1.3 * alone, "what the throttle is for"
    assert all_pieces > 10 * pieces


async def test_who_presses_has_a_floor_that_clients_do_not_feel_in_their_p99() -> None:
    """Also when the throttle has gone as far as it goes, which it does while clients are never quiet."""
    alone, _ = await p99_of_clients(chores=False)
    _, without = await p99_of_clients(chores=True, rests=RESTS_MAX)
    beside, pieces = await p99_of_clients(chores=True, rests=RESTS_MAX, pressure=1.0)
    assert beside <= 1.3 * alone
    floor = 60 / (1 + RESTS_MAX_PRESSED) / 0.002
    assert pieces >= 0.6 * floor, "less what it waits for the disk, which is work, too"
    assert pieces > 1.5 * without


async def test_who_presses_gets_most_of_what_all_may_take() -> None:
    clock = VirtualClock()
    throttle = Throttle(0.0)
    throttle.rests = RESTS_MAX
    giving_way = GivingWay(clock, throttle, lambda: 1)
    chores = [Reading(Disk(clock), giving_way) for _ in range(5)]
    for number, chore in enumerate(chores):
        chore.name = f"reading-{number}"
    chores[0].pressure = 1.0
    runner = ChoreRunner(chores, clock, lambda *_: None, giving_way=giving_way)
    runner.start()
    await clock.sleep(120)
    await runner.close()
    pressed, others = chores[0].pieces, [chore.pieces for chore in chores[1:]]
    assert pressed > 2 * sum(others)
    assert min(others) > 0, "nobody starves"
    share = (pressed + sum(others)) * 0.002 / 120
    assert share == pytest.approx(1 / (1 + RESTS_MAX_PRESSED), rel=0.3)


def test_what_is_put_off_longer_gets_more_evenly() -> None:
    shares = [1 / rests_max(pressure / 10) for pressure in range(11)]
    assert (shares[0], shares[-1]) == (pytest.approx(1 / RESTS_MAX), pytest.approx(1 / RESTS_MAX_PRESSED))
    steps = [after - before for before, after in itertools.pairwise(shares)]
    assert max(steps) == pytest.approx(min(steps))


async def test_nobody_there_means_no_rest() -> None:
    clock = VirtualClock()
    giving_way = GivingWay(clock, Throttle(0.0), lambda: 0)
    reading = Reading(Disk(clock), giving_way)
    runner = ChoreRunner([reading], clock, lambda *_: None, giving_way=giving_way)
    runner.start()
    await clock.sleep(10)
    assert reading.pieces == pytest.approx(5000, rel=0.01)
    (status,) = runner.status()
    assert (status.rests, status.worked_s) == (0.0, pytest.approx(10, rel=0.01))
    await runner.close()


async def test_requests_under_way_count_before_they_end() -> None:
    clock = VirtualClock()
    under_way = 1
    giving_way = GivingWay(clock, Throttle(0.0), lambda: under_way)
    reading = Reading(Disk(clock), giving_way)
    runner = ChoreRunner([reading], clock, lambda *_: None, giving_way=giving_way)
    runner.start()
    await clock.sleep(10)
    share = reading.pieces * 0.002 / 10
    assert share == pytest.approx(1 / (1 + RESTS_FIRST), rel=0.05)
    under_way = 0
    before = reading.pieces
    await clock.sleep(10)
    assert reading.pieces - before > 4500
    await runner.close()


async def test_several_chores_share_what_one_alone_may_take() -> None:
    clock = VirtualClock()
    giving_way = GivingWay(clock, Throttle(0.0), lambda: 1)
    chores = [Reading(Disk(clock), giving_way) for _ in range(4)]
    for number, chore in enumerate(chores):
        chore.name = f"reading-{number}"
    runner = ChoreRunner(chores, clock, lambda *_: None, giving_way=giving_way)
    runner.start()
    await clock.sleep(20)
    await runner.close()
    share = sum(chore.pieces for chore in chores) * 0.002 / 20
    assert share == pytest.approx(1 / (1 + RESTS_FIRST), rel=0.25)


async def test_what_is_urgent_gets_half_of_the_time() -> None:
    clock = VirtualClock()
    throttle = Throttle(0.0)
    throttle.rests = RESTS_MAX
    giving_way = GivingWay(clock, throttle, lambda: 1)
    reading = Reading(Disk(clock), giving_way)
    reading.is_urgent = True
    runner = ChoreRunner([reading], clock, lambda *_: None, giving_way=giving_way)
    runner.start()
    await clock.sleep(10)
    await runner.close()
    assert reading.pieces * 0.002 / 10 == pytest.approx(0.5, rel=0.05)


def fed(throttle: Throttle, slower: float, rounds: int, start: float) -> float:
    """Requests that take 10 ms alone, and `slower` times as long when a chore is at work."""
    now = start
    for _ in range(rounds):
        throttle.request("GetObject", 100, 0.010, now := now + 0.05)
        throttle.begin()
        throttle.request("GetObject", 100, 0.010 * slower, now := now + 0.01)
        throttle.end(now)
        throttle.factor(now := now + 0.02)
    return now


def test_rest_grows_while_clients_feel_it_and_shrinks_when_they_do_not() -> None:
    throttle = Throttle(0.0)
    now = fed(throttle, 2.0, 400, 0.0)
    assert throttle.rests == RESTS_MAX
    assert throttle.factor(now, urgent=True) == URGENT_RESTS
    now = fed(throttle, 1.0, 2000, now + 60)
    assert throttle.rests == RESTS_MIN
    assert throttle.factor(now + IDLE_S + 1) == 0.0


def test_what_is_slow_for_everybody_is_nobodys_fault() -> None:
    throttle = Throttle(0.0)
    now = fed(throttle, 1.0, 300, 0.0)
    throttle.rests = 10.0
    chance = random.Random(1)
    for _ in range(600):
        slow = chance.uniform(0.01, 0.2)
        throttle.request("GetObject", 100, slow, now := now + 0.3)
        throttle.begin()
        throttle.request("GetObject", 100, chance.uniform(0.01, 0.2), now := now + 0.01)
        throttle.end(now)
        throttle.factor(now)
    assert throttle.rests < 3 * 10.0


async def test_outside_of_a_chore_it_is_the_clock_that_it_was() -> None:
    clock = VirtualClock()
    throttle = Throttle(0.0)
    giving_way = GivingWay(clock, throttle, lambda: 5)
    began = clock.monotonic()
    await giving_way.sleep(0)
    assert clock.monotonic() == began
    tally = Tally()
    with giving_way.work(tally):
        await clock.sleep(1)
        await giving_way.sleep(0)
    assert clock.monotonic() == pytest.approx(began + 1 + RESTS_FIRST)
    assert tally.worked_s == pytest.approx(1)


def test_a_rate_is_of_the_last_minute_and_starts_anew_with_its_count() -> None:
    rate = Rate()
    assert rate.per_s(0.0) is None
    for second in range(200):
        rate.sample(second * 10 if second < 100 else 1000 + (second - 100) * 50, float(second))
    assert rate.per_s(199.0) == pytest.approx(50)
    assert rate.left_s(1000 + 99 * 50 + 500, 199.0) == pytest.approx(10)
    rate.sample(3, 200.0)
    assert rate.per_s(200.0) is None
    assert rate.left_s(None, 200.0) is None
