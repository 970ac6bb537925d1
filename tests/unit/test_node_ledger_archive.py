"""The ledger's roll-ups lie in packs, too: what was rolled up outlives the data folder."""

import shutil
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.clock import SystemClock
from holdfast.base.randomness import SeededRandomness
from holdfast.health.ledger_records import DAY_MINUTES, MINUTE_MS, Cell, Minute, Record
from holdfast.health.ledger_uptime import DAY_S, Uptime, uptime
from holdfast.node.ledger_archive import Archived, ArchiveLedger, label_of, parse_archived, plan
from holdfast.node.ledger_files import HOURS_DAYS, MINUTES_DAYS, LedgerFiles
from holdfast.packs.named import NamedPacks
from holdfast.scheme import Scheme
from tests.kit.rig import Rig, build_rig


class Noon(SystemClock):
    """Real time, because the archive has a thread, on a day that does not end."""

    def wall(self) -> float:
        return 1_790_000_000.0


def minutes(day: int, count: int = 12) -> list[Record]:
    return [
        Minute(
            day * DAY_MINUTES + 50 * number,
            MINUTE_MS,
            cells=(Cell("b", "GetObject", 9, number % 2, good=1, bad=2 * (number % 2)),),
        )
        for number in range(count)
    ]


class Node:
    """A data folder beside stores that outlive it."""

    def __init__(self, rig: Rig, folder: Path, seed: str) -> None:
        self.files = LedgerFiles(folder)
        self.files.prepare()
        topology = rig.packs.writer._topology
        self.packs = NamedPacks(
            rig.attached, topology, rig.health, rig.clock, rig.randomness, lambda: Scheme(4, 2)
        )
        self.said: list[str] = []
        self.archive = ArchiveLedger(
            self.files, self.packs, rig.clock, SeededRandomness(seed), self.said.append, first_s=0.0
        )
        self.today = int(rig.clock.wall()) // DAY_S

    async def archive_all(self) -> list[Archived]:
        while await self.archive.step():
            pass
        names = await self.packs.list("ledger-")
        return [one for name in names if (one := parse_archived(name)) is not None]

    def figure(self) -> Uptime:
        until_ms = self.today * DAY_S * 1000
        days = 300
        return uptime(
            self.files.load(until_ms - days * DAY_S * 1000, until_ms).history, until_ms, days * DAY_S, 99.9
        )


async def test_what_was_archived_is_put_back_into_an_empty_data_folder(tmp_path: Path) -> None:
    rig = build_rig(clock=Noon())
    node = Node(rig, tmp_path, "first")
    for ago in (HOURS_DAYS + 20, HOURS_DAYS + 10, MINUTES_DAYS + 3, 2, 1, 0):
        node.files.append(minutes(node.today - ago))
    for _ in node.files.roll_up(node.today):
        pass
    there = await node.archive_all()
    assert [(one.year, node.today - one.day) for one in there if not one.year] == [
        (0, MINUTES_DAYS + 3),
        (0, 2),
        (0, 1),
    ]
    assert [node.today - one.day for one in there if one.year] == [HOURS_DAYS + 10]
    before = node.figure()
    node.archive.close()
    shutil.rmtree(tmp_path / "ledger")
    again = Node(rig, tmp_path, "second")
    assert again.figure().availability_percent is None
    again.files.append(minutes(again.today))
    assert await again.archive_all() == there
    assert again.figure() == before
    assert again.files.name() == there[0].ledger
    assert "4 parts of the old ledger" in again.said[0]
    assert (node.archive.progress().done, again.archive.progress().done) == (4, 0)
    again.archive.close()


async def test_a_ledger_that_has_a_past_is_given_none(tmp_path: Path) -> None:
    rig = build_rig(clock=Noon())
    first, second = Node(rig, tmp_path, "first"), tmp_path / "second"
    first.files.append(minutes(first.today - 1))
    await first.archive_all()
    second.mkdir()
    other = Node(rig, second, "second")
    other.files.append(minutes(other.today - 2))
    there = await other.archive_all()
    assert len({one.ledger for one in there}) == 2
    assert [path.name for path in sorted(other.files.folder.glob("*-2*"))] == [
        f"minutes-{label_of(other.today - 2)}"
    ]
    # Whose are they, when there are several? Nobody knows, so nobody is given them.
    third = tmp_path / "third"
    third.mkdir()
    lost = Node(rig, third, "third")
    await lost.archive_all()
    assert lost.archive.restored == 0
    for node in (first, other, lost):
        node.archive.close()


async def test_shards_that_were_lost_are_written_again(tmp_path: Path) -> None:
    rig = build_rig(clock=Noon())
    node = Node(rig, tmp_path, "first")
    node.files.append(minutes(node.today - 1))
    (one,) = await node.archive_all()

    def shards() -> list[str]:
        blobs = [name for memory in rig.memories.values() for name in memory._blobs]
        return [name for name in blobs if name.startswith(one.name)]

    whole = len(shards())
    holder = next(memory for memory in rig.memories.values() if memory._blobs)
    holder._blobs.clear()
    assert len(shards()) == whole - 1
    node.archive._tended = {one.name: -1e9}
    await node.archive.step()
    assert len(shards()) == whole
    node.archive.close()


@given(st.sets(st.integers(-400, -1), max_size=30), st.integers(30, 200), st.integers(20_500, 21_000))
def test_what_is_planned_comes_to_an_end_and_keeps_every_day_once(
    ago: set[int], rolled: int, today: int
) -> None:
    def year_of(day: int) -> int:
        return int(label_of(day)[:4])

    all_days = {today + one for one in ago}
    days = sorted(day for day in all_days if day >= today - rolled)
    years: dict[int, int] = {}
    for day in sorted(all_days.difference(days)):
        years[year_of(day)] = day
    there: list[Archived] = []
    for _ in range(3):
        todo = plan(days, years, there, today)
        there += [Archived("a", 0, day) for day in todo.days]
        there += [Archived("a", year, years[year]) for year in todo.years]
        there = [one for one in there if one not in todo.remove]
    assert plan(days, years, there, today) == ([], [], [])
    assert sorted(one.day for one in there if not one.year) == days
    assert {one.year: one.day for one in there if one.year} == years


def test_names_say_what_they_are_and_others_are_left_alone() -> None:
    for one in (Archived("0123abcd", 0, 20_717), Archived("0123abcd", 2026, 20_717)):
        assert parse_archived(one.name) == one
    for name in ("ledger-", "ledger-0123abcd-20261399", "index-0123abcd-20260921", "ledger-x-20260921"):
        assert parse_archived(name) is None
