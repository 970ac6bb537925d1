"""Verifying as a job: started by one request, followed by others, ended when nobody asks any more."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from holdfast.base.errors import Unavailable
from holdfast.base.ids import PackId, StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.node.verification import Broken, Line, PackFinding, Progress, Started, Summary, decode_line
from holdfast.node.verifying import FORGOTTEN_S, JOBS_MAX, LINES_MAX, Verifications
from holdfast.packs.verifying import PackHealth, PackReport, ShardFault
from holdfast.s3.face import AdminRequest
from holdfast.scheme import Scheme
from tests.kit.virtual import VirtualClock

RS42 = Scheme(4, 2)
FAULT = ShardFault(1, StoreId("store-b"), "missing")


def report(number: int, health: PackHealth = PackHealth.WHOLE) -> PackReport:
    faults = () if health is PackHealth.WHOLE else (FAULT,)
    return PackReport(PackId(number.to_bytes(16, "big")), RS42, health, faults, 2, 1000)


class World:
    """Verifications over reports that a test makes up."""

    def __init__(self, *reports: PackReport, slow_s: float = 0.0, fails: bool = False) -> None:
        self.clock = VirtualClock()
        self.read = 0
        self._reports = reports
        self._slow_s = slow_s
        self._fails = fails
        self.jobs = Verifications(
            self._all, lambda: len(reports), lambda _: "disk2", self.clock, SeededRandomness(1)
        )

    async def _all(self) -> AsyncIterator[PackReport]:
        for one in self._reports:
            await self.clock.sleep(self._slow_s)
            self.read += 1
            yield one
        if self._fails:
            raise Unavailable("The index is away.")

    async def start(self) -> str:
        answer = await self.jobs.answer(AdminRequest("POST", "/-/verify", {}, b""))
        (line,) = [decode_line(raw) for raw in answer.body.splitlines()]
        assert isinstance(line, Started)
        return line.job

    async def ask(self, job: str) -> list[Line]:
        answer = await self.jobs.answer(AdminRequest("GET", "/-/verify", {"job": job}, b""))
        assert answer.status == 200
        return [decode_line(raw) for raw in answer.body.splitlines()]

    async def all_of(self, job: str) -> list[Line]:
        lines: list[Line] = []
        while not lines or not isinstance(lines[-1], Summary | Broken):
            lines += await self.ask(job)
        return lines


@pytest.mark.virtual
async def test_what_is_not_whole_is_told_and_all_is_summed_up() -> None:
    world = World(report(1), report(2, PackHealth.DEGRADED), report(3, PackHealth.LOST), slow_s=0.1)
    lines = await world.all_of(await world.start())
    findings = [line for line in lines if isinstance(line, PackFinding)]
    assert [finding.state.value for finding in findings] == ["degraded", "lost"]
    assert findings[0].faults == ("shard 1 at disk2: missing",)
    summary = lines[-1]
    assert isinstance(summary, Summary)
    assert (summary.packs, summary.whole, summary.degraded, summary.lost) == (3, 1, 1, 1)
    assert (summary.shards, summary.bytes_read) == (18, 3000)
    assert summary.seconds == pytest.approx(0.3)


@pytest.mark.virtual
async def test_a_long_one_tells_how_far_it_is() -> None:
    world = World(*[report(number) for number in range(30)], slow_s=0.5)
    lines = await world.all_of(await world.start())
    progress = [line for line in lines if isinstance(line, Progress)]
    assert len(progress) > 5
    assert all(line.packs_total == 30 for line in progress)


@pytest.mark.virtual
async def test_what_cannot_go_on_says_why() -> None:
    world = World(report(1), fails=True)
    assert (await world.all_of(await world.start()))[-1] == Broken("The index is away.")


@pytest.mark.virtual
async def test_a_job_that_is_done_is_gone() -> None:
    world = World(report(1))
    job = await world.start()
    await world.all_of(job)
    answer = await world.jobs.answer(AdminRequest("GET", "/-/verify", {"job": job}, b""))
    assert answer.status == 404


@pytest.mark.virtual
async def test_there_are_not_more_at_once_than_the_disks_should_bear() -> None:
    world = World(*[report(number) for number in range(10)], slow_s=10)
    for _ in range(JOBS_MAX):
        await world.start()
    answer = await world.jobs.answer(AdminRequest("POST", "/-/verify", {}, b""))
    assert answer.status == 503
    await world.jobs.close()


@pytest.mark.virtual
async def test_a_job_that_nobody_asks_about_ends_and_makes_room() -> None:
    world = World(*[report(number) for number in range(1000)], slow_s=1)
    for _ in range(JOBS_MAX):
        await world.start()
    await world.clock.sleep(FORGOTTEN_S + 1)
    read = world.read
    await world.clock.sleep(100)
    assert world.read == read
    await world.start()
    await world.jobs.close()


@pytest.mark.virtual
async def test_reading_waits_for_whoever_asks() -> None:
    world = World(*[report(number, PackHealth.LOST) for number in range(3 * LINES_MAX)])
    job = await world.start()
    for _ in range(10):
        await asyncio.sleep(0.1)
    assert world.read <= LINES_MAX + 2
    lines = await world.all_of(job)
    assert len([line for line in lines if isinstance(line, PackFinding)]) == 3 * LINES_MAX
