"""The ledger's files: what was written is there, damage costs itself only, and what is old becomes small."""

import os
from pathlib import Path

import pytest

from holdfast.base.errors import Unavailable
from holdfast.health.ledger_records import (
    DAY_MINUTES,
    MINUTE_MS,
    Away,
    Beat,
    Cell,
    Minute,
    Record,
    StoreChange,
)
from holdfast.health.ledger_uptime import DAY_S, Uptime, uptime
from holdfast.node.ledger_files import HOURS_DAYS, MINUTES_DAYS, LedgerFiles
from tests.unit.test_kit_unsynced import All, done

DAY = 20_718
NOW_MS = (DAY * DAY_MINUTES + 600) * MINUTE_MS


@pytest.fixture
def files(tmp_path: Path) -> LedgerFiles:
    files = LedgerFiles(tmp_path)
    files.prepare()
    return files


def minutes(day: int, count: int = 30) -> list[Record]:
    return [
        Minute(
            day * DAY_MINUTES + 3 * number,
            MINUTE_MS,
            cells=(Cell("b", "GetObject", 9, number % 2, good=1, bad=2 * (number % 2)),),
        )
        for number in range(count)
    ]


def figure(files: LedgerFiles, days: int) -> Uptime:
    loaded = files.load(NOW_MS - days * DAY_S * 1000, NOW_MS)
    assert loaded.unreadable == ()
    return uptime(loaded.history, NOW_MS, days * DAY_S, 99.9)


def roll_up(files: LedgerFiles, today: int = DAY) -> None:
    for _ in files.roll_up(today):
        pass


def names(files: LedgerFiles) -> list[str]:
    return sorted(path.name for path in files.folder.iterdir())


def test_records_go_to_the_file_of_their_day_and_come_back(files: LedgerFiles) -> None:
    files.append([*minutes(DAY - 1), *minutes(DAY, 5)])
    files.append([Away(NOW_MS - 5000, NOW_MS - 1000, "crashed", 2000)])
    assert names(files) == ["minutes-20260921", "minutes-20260922"]
    found = figure(files, 3)
    assert (found.attempts, found.away_s) == (15 + 35 * 9 + 2, 4.0)
    assert figure(files, 1).attempts < found.attempts


def test_old_minutes_become_hours_and_old_hours_days_and_say_the_same(files: LedgerFiles) -> None:
    old, older = DAY - MINUTES_DAYS - 1, DAY - HOURS_DAYS - 1
    records = [*minutes(older), *minutes(old), *minutes(DAY, 5)]
    records += [Away(old * DAY_S * 1000 + 1000, old * DAY_S * 1000 + 9000, "stopped")]
    records += [StoreChange(older * DAY_S * 1000, "disk1", "healthy", "down")]
    files.append(records)
    before = figure(files, 200)
    roll_up(files)
    assert names(files) == ["days-2026", "hours-20260913", "minutes-20260922"]
    assert figure(files, 200) == before
    roll_up(files)
    assert figure(files, 200) == before
    assert before.store_faults == 1


def test_a_crash_between_two_steps_of_rolling_up_counts_nothing_twice(files: LedgerFiles) -> None:
    old = DAY - MINUTES_DAYS - 1
    files.append(minutes(old))
    path = next(files.folder.iterdir())
    content = path.read_bytes()
    before = figure(files, 20)
    roll_up(files)
    path.write_bytes(content)  # as if the process had ended before it removed the minutes
    assert figure(files, 20) == before
    roll_up(files)
    assert not path.exists()
    assert figure(files, 20) == before


def test_too_many_minutes_are_rolled_up_before_their_time(files: LedgerFiles, tmp_path: Path) -> None:
    for ago in range(5):
        files.append(minutes(DAY - ago))
    size = max(path.stat().st_size for path in files.folder.iterdir())
    before = figure(files, 8)
    roll_up(LedgerFiles(tmp_path, minutes_bytes_max=2 * size))
    assert [name for name in names(files) if name.startswith("minutes")] == [
        "minutes-20260921",
        "minutes-20260922",
    ]
    assert figure(files, 8) == before


def test_what_is_too_old_goes(files: LedgerFiles) -> None:
    (files.folder / "days-2019").write_bytes(b"")
    (files.folder / "days-2024").write_bytes(b"")
    roll_up(files)
    assert names(files) == ["days-2024"]


def test_a_torn_end_costs_one_minute_and_is_told(files: LedgerFiles) -> None:
    files.append(minutes(DAY, 5))
    path = files.folder / "minutes-20260922"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 7)
    files.append(minutes(DAY, 10)[9:])
    found = figure(files, 1)
    assert found.attempts == 9 * 5 + 3
    assert found.damaged_records == 1


def test_a_file_that_cannot_be_read_is_named_and_the_others_count(files: LedgerFiles) -> None:
    files.append(minutes(DAY, 5))
    (files.folder / "minutes-20260921").mkdir()
    loaded = files.load(NOW_MS - 5 * DAY_S * 1000, NOW_MS)
    assert len(loaded.history.minutes) == 5
    assert len(loaded.unreadable) == 1
    assert "minutes-20260921" in loaded.unreadable[0]


def test_a_day_that_is_rolled_up_takes_no_more_minutes(files: LedgerFiles) -> None:
    old = DAY - MINUTES_DAYS - 1
    files.append(minutes(old))
    roll_up(files)
    with pytest.raises(Unavailable):
        files.append(minutes(old, 1))


def test_the_last_beat_is_found_whatever_was_torn(files: LedgerFiles) -> None:
    assert files.last_beat() is None
    for sequence in range(5):
        files.beat(Beat(NOW_MS + sequence, False, bytes(16), sequence), sync=False)
    assert files.last_beat() == Beat(NOW_MS + 4, False, bytes(16), 4)
    path = files.folder / "beat"
    content = bytearray(path.read_bytes())
    content[5] ^= 1  # the slot of beat 4
    path.write_bytes(content)
    assert files.last_beat() == Beat(NOW_MS + 3, False, bytes(16), 3)
    os.truncate(path, 10)
    assert files.last_beat() is None


def test_what_was_appended_survives_a_power_cut_right_after_the_first_start(tmp_path: Path) -> None:
    program = """
from tests.unit.test_node_ledger_files import DAY, LedgerFiles, minutes
files = LedgerFiles(root)
files.prepare()
files.append(minutes(DAY))
"""
    _, left = done(tmp_path, program, All())
    assert {"ledger", "ledger/minutes-20260922"} <= set(left)
    files = LedgerFiles(tmp_path / "root")
    assert len(files.load(NOW_MS - DAY_S * 1000, NOW_MS).history.minutes) == 30
