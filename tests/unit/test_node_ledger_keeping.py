"""The ledger of a node: kept each minute and at the stop, by threads, and never at the cost of the node."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from holdfast.base.clock import Clock
from holdfast.base.errors import Unavailable
from holdfast.health.ledger import StoreSight, Verdict
from holdfast.health.ledger_records import MINUTE_MS, Away, Minute, Record, decode_frames
from holdfast.node import ledger_keeping
from holdfast.node.ledger_keeping import LedgerKeeper

START = 1_790_000_040.0  # the first second of a minute
PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def _a_busy_disk_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long the keeper waits for its disk is real time, and other tests use the disk, too."""
    monkeypatch.setattr(ledger_keeping, "WRITE_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(ledger_keeping, "STOP_TIMEOUT_S", PATIENCE_S)


class Steps:
    """A clock on which a second passes whenever somebody has slept one; others wait until it is time."""

    def __init__(self) -> None:
        self.now = 50.0
        self.limit = 50.0
        self._moved = asyncio.Event()

    def monotonic(self) -> float:
        return self.now

    def aging(self) -> float:
        return self.now

    def wall(self) -> float:
        return START - 50.0 + self.now

    async def sleep(self, seconds: float) -> None:
        due = self.now + seconds
        while due > self.limit:
            self._moved.clear()
            await self._moved.wait()
        self.now = max(self.now, due)

    async def pass_s(self, seconds: int) -> None:
        for _ in range(seconds):
            self.limit += 1.0
            self._moved.set()
            for _ in range(5):
                await asyncio.sleep(0)
        self.now = self.limit


class Kept:
    """A keeper over a folder, and what it said."""

    def __init__(self, folder: Path, canary: Callable[[], Awaitable[float]] | None = None) -> None:
        self.said: list[str] = []
        self.clock = Steps()
        clock: Clock = self.clock
        self.keeper = LedgerKeeper(
            folder,
            clock,
            self.said.append,
            serving=lambda: True,
            sights=lambda: {"disk1": StoreSight("healthy")},
            canary=lambda: canary,
        )

    def count(self) -> None:
        self.keeper.ledger.count("photos", "GetObject", Verdict.SUCCESS, False, 0.01, 1, 2)


def records(folder: Path) -> list[Record]:
    found: list[Record] = []
    for path in sorted((folder / "ledger").glob("minutes-*")):
        here, damaged = decode_frames(path.read_bytes())
        assert not damaged
        found += here
    return found


async def test_minutes_are_kept_as_they_end_and_the_last_one_at_the_stop(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    await kept.keeper.serve()
    await kept.clock.pass_s(20)
    kept.count()
    await kept.clock.pass_s(45)
    kept.count()
    await kept.keeper.close()
    minutes = [record for record in records(tmp_path) if isinstance(record, Minute)]
    assert [minute.minute - START // 60 for minute in minutes] == [0, 1]
    assert [minute.cells[0].successes for minute in minutes] == [1, 1]
    assert minutes[0].covered_ms == MINUTE_MS
    beat = kept.keeper.files.last_beat()
    assert beat is not None
    assert beat.stopped
    assert kept.said == []


async def test_the_next_process_says_how_long_nobody_served(tmp_path: Path) -> None:
    first = Kept(tmp_path)
    await first.keeper.serve()
    await first.clock.pass_s(10)
    first.keeper.draining()
    await first.clock.pass_s(5)  # requests under way finish; no new ones are taken
    await first.keeper.close()
    second = Kept(tmp_path)
    second.clock.now = second.clock.limit = 100.0
    await second.keeper.serve()
    await second.keeper.close()
    (away,) = [record for record in records(tmp_path) if isinstance(record, Away)]
    assert (away.why, away.until_ms - away.from_ms) == ("stopped", 40_000)


async def test_a_canary_that_fails_is_told_and_kept(tmp_path: Path) -> None:
    async def fail() -> float:
        raise Unavailable("Too few stores.")

    kept = Kept(tmp_path, fail)
    await kept.keeper.serve()
    await kept.clock.pass_s(61)
    await kept.keeper.close()
    canary = next(record.canary for record in records(tmp_path) if isinstance(record, Minute))
    assert canary is not None
    assert (canary.successes, canary.failures) == (0, 1)
    assert kept.keeper.canaries == [1, 0]
    assert len(kept.said) == 1
    assert "Too few stores" in kept.said[0]


async def test_a_disk_that_takes_nothing_costs_minutes_and_is_told_once(tmp_path: Path) -> None:
    # A folder where the day's file should be refuses every write, also of a process that may do all. It is
    # there before the keeper begins, whose threads could make the file at any moment after.
    blocked = tmp_path / "ledger" / "minutes-20260921"
    blocked.mkdir(parents=True)
    kept = Kept(tmp_path)
    await kept.keeper.serve()
    for _ in range(3):
        before = kept.keeper.records_lost
        kept.count()
        await kept.clock.pass_s(60)
        async with asyncio.timeout(PATIENCE_S):
            while kept.keeper.records_lost == before:  # noqa: ASYNC110 (a thread says so)
                await asyncio.sleep(0.01)
    assert len(kept.said) == 1
    assert "cannot be written" in kept.said[0]
    blocked.rmdir()
    kept.count()
    await kept.clock.pass_s(60)
    await kept.keeper.close()
    minutes = [record for record in records(tmp_path) if isinstance(record, Minute)]
    assert sum(minute.lost_before for minute in minutes) >= 1
    assert any("written again" in text for text in kept.said)


async def test_a_node_that_never_served_leaves_no_sign(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.keeper.draining()
    await kept.keeper.close()
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    assert kept.said == []
