"""The runner: a lease each, pauses that last, errors that stay visible, progress with rate and time left."""

import pytest

from holdfast.base.errors import Fenced, InvalidInput, Unavailable
from holdfast.chores.chore import ChoreState, ChoreStatus, Progress
from holdfast.chores.lease import TTL_S
from holdfast.chores.runner import ChoreRunner
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import Committed, Conflict, Transaction
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual


class Digging:
    """Has so many units to do, each taking a tenth of a second, then nothing more."""

    name = "digging"
    interval_s = 5.0

    def __init__(self, clock: VirtualClock, total: int) -> None:
        self._clock = clock
        self.total = total
        self.done = 0
        self.broken = 0

    async def step(self) -> bool:
        if self.broken:
            self.broken -= 1
            raise Unavailable("The shovel broke.")
        if self.done == self.total:
            return False
        await self._clock.sleep(0.1)
        self.done += 1
        return True

    def progress(self) -> Progress:
        return Progress(self.done, self.total, "holes")


def runner_of(
    chore: Digging, clock: VirtualClock, index: MemoryIndex | None = None, holder: str = "a"
) -> ChoreRunner:
    return ChoreRunner([chore], clock, lambda *_: None, index=index, holder=holder)


def status_of(runner: ChoreRunner) -> ChoreStatus:
    (status,) = runner.status()
    return status


async def test_progress_is_told_with_rate_and_time_left() -> None:
    clock = VirtualClock()
    chore = Digging(clock, 1000)
    runner = runner_of(chore, clock)
    runner.start()
    await clock.sleep(20)
    status = status_of(runner)
    assert status.state is ChoreState.WORKING
    assert status.progress == Progress(chore.done, 1000, "holes")
    assert status.rate == pytest.approx(10, rel=0.1)
    assert status.left_s == pytest.approx((1000 - chore.done) / 10, rel=0.1)
    assert status.worked_s == pytest.approx(20, rel=0.1)
    await clock.sleep(100)
    assert (chore.done, status_of(runner).state, status_of(runner).left_s) == (1000, ChoreState.IDLE, 0)
    await runner.close()


async def test_errors_stay_visible() -> None:
    clock = VirtualClock()
    chore = Digging(clock, 10)
    chore.broken = 2
    runner = runner_of(chore, clock)
    runner.start()
    await clock.sleep(6)
    status = status_of(runner)
    assert (status.state, status.why, status.errors) == (ChoreState.FAILED, "The shovel broke.", 2)
    await clock.sleep(10)
    status = status_of(runner)
    assert (chore.done, status.state, status.last_error) == (10, ChoreState.IDLE, "The shovel broke.")
    assert status.last_error_s_ago == pytest.approx(11)
    await runner.close()


async def test_a_pause_holds_until_resumed_and_over_restarts() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    chore = Digging(clock, 10_000)
    runner = runner_of(chore, clock, index)
    runner.start()
    await clock.sleep(1)
    await runner.pause("digging")
    await clock.sleep(0.2)
    done = chore.done
    assert done > 0
    await clock.sleep(100)
    assert (chore.done, status_of(runner).state) == (done, ChoreState.PAUSED)
    await runner.close()
    again = runner_of(chore, clock, index)
    again.start()
    await clock.sleep(100)
    assert (chore.done, status_of(again).state) == (done, ChoreState.PAUSED)
    await again.resume("digging")
    await clock.sleep(1)
    assert chore.done > done
    with pytest.raises(InvalidInput, match="digging"):
        await again.pause("diging")
    await again.close()


async def test_who_is_woken_does_not_wait_for_its_interval() -> None:
    clock = VirtualClock()
    chore = Digging(clock, 0)
    runner = runner_of(chore, clock)
    runner.start()
    await clock.sleep(1)
    chore.total = 1
    runner.wake("digging")
    await clock.sleep(0.2)
    assert chore.done == 1
    await runner.close()


async def test_of_two_nodes_one_works_and_the_other_takes_over() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    ours, theirs = Digging(clock, 10**6), Digging(clock, 10**6)
    one, other = runner_of(ours, clock, index, "a"), runner_of(theirs, clock, index, "b")
    one.start()
    await clock.sleep(1)
    other.start()
    await clock.sleep(2 * TTL_S)
    assert (ours.done > 500, theirs.done) == (True, 0)
    assert status_of(other).state is ChoreState.ELSEWHERE
    stale = one.fence("digging")
    (outcome,) = await index.commit([Transaction(stale, ((b"only the holder", b""),))])
    assert isinstance(outcome, Committed)
    with pytest.raises(Fenced):
        other.fence("digging")
    await one.close()
    await clock.sleep(TTL_S + 5)
    assert theirs.done > 10
    (outcome,) = await index.commit([Transaction(stale, ((b"only the holder", b""),))])
    assert isinstance(outcome, Conflict)
    await other.close()


async def test_a_lease_costs_no_commits_and_outlasts_a_short_absence_of_the_index() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    chore = Digging(clock, 10**6)
    runner = runner_of(chore, clock, index)
    runner.start()
    await clock.sleep(1)
    revision = index.status().revision
    await clock.sleep(300)
    assert index.status().revision == revision
    assert status_of(runner).errors == 0
    index.away = True
    before = chore.done
    await clock.sleep(9)
    assert chore.done > before + 80
    assert status_of(runner).errors == 0
    await clock.sleep(TTL_S)
    stopped = chore.done
    await clock.sleep(10)
    assert (chore.done, status_of(runner).state) == (stopped, ChoreState.FAILED)
    index.away = False
    await clock.sleep(10)
    assert chore.done > stopped
    await runner.close()


async def test_who_is_stopped_ends_in_the_middle_of_a_unit_and_cannot_be_resumed() -> None:
    clock = VirtualClock()
    chore = Digging(clock, 10)
    runner = runner_of(chore, clock, MemoryIndex(clock))
    runner.start()
    await clock.sleep(0.25)
    dug = chore.done
    assert 0 < dug < 10
    runner.stop(["digging"], "it is too dangerous")
    await runner.resume("digging")
    runner.wake("digging")
    await clock.sleep(20)
    assert chore.done == dug
    assert (status_of(runner).state, status_of(runner).why) == (ChoreState.PAUSED, "it is too dangerous")
    await runner.close()
