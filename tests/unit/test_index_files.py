"""The embedded index on real files: killed, robbed of disks, spoiled, replaced while it runs."""

import asyncio
import os
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path

import pytest
from msgspec.structs import replace

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Fenced, InvalidInput, Unavailable
from holdfast.base.randomness import SeededRandomness, SystemRandomness
from holdfast.index.port import ABSENT, Committed, Conflict, Expect, IndexState, Row, Transaction, Unknown
from holdfast.index.sqlite import DirectoryCopy, DirectoryMember, IndexOptions, SqliteIndex, open_index
from holdfast.index.sqlite.checkpoint import row_checksum
from holdfast.index.sqlite.copy import CopyFailed, DirectoryCopyFiles
from tests.kit.index_files import QUICK, disk, open_files
from tests.kit.process import delete_store

PATIENT = replace(QUICK, copies=replace(QUICK.copies, hedge_s=60.0))
"""For what depends on a second copy's opinion: on a busy machine it comes late."""

IMPATIENT = replace(QUICK, patience_s=1.5)
"""For commits that cannot succeed."""


@asynccontextmanager
async def opened(folder: Path, members: int = 3, options: IndexOptions = QUICK) -> AsyncIterator[SqliteIndex]:
    index = await open_files(folder, members, SystemClock(), SystemRandomness(), options)
    try:
        yield index
    finally:
        await index.close()


def put(key: bytes, value: bytes) -> Transaction:
    return Transaction((Expect(key, ABSENT),), ((key, value),))


async def fill(index: SqliteIndex, name: bytes, count: int, size: int = 2000) -> dict[bytes, Row]:
    rows = {}
    for at in range(0, count, 20):
        keys = [b"%s/%05d" % (name, number) for number in range(at, min(at + 20, count))]
        for key, outcome in zip(
            keys, await index.commit([put(key, key * (size // 12)) for key in keys]), strict=True
        ):
            assert isinstance(outcome, Committed)
            rows[key] = Row(key, key * (size // 12), outcome.revision)
    return rows


async def holds(index: SqliteIndex, rows: dict[bytes, Row]) -> None:
    """All of them are read right, by key and by range."""
    assert await index.get(list(rows)) == list(rows.values())
    listed, start = [], b"\0"
    while page := await index.scan(start, b"\xff", limit=500):
        listed += [item for item in page if item.key in rows]
        start = page[-1].key + b"\0"
    assert listed == sorted(rows.values())


async def until(condition: object, index: SqliteIndex) -> None:
    assert callable(condition)
    async with asyncio.timeout(120):
        while not condition():
            await SystemClock().sleep(0.02)


def members(index: SqliteIndex) -> dict[str, str]:
    return {s.name: s.state for s in index.status().members if not s.name.startswith("copy ")}


def copies(index: SqliteIndex) -> list[str]:
    return [s.state for s in index.status().members if s.name.startswith("copy ")]


async def child(folder: Path, count: int) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.kit.index_child", str(folder), str(count), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"ready\n"
    return process


async def test_a_process_that_is_killed_at_any_instant_loses_nothing_it_acknowledged(tmp_path: Path) -> None:
    chance, acknowledged = SeededRandomness(7), {}
    for _ in range(6):
        process = await child(tmp_path, 3)
        await SystemClock().sleep(0.05 + 0.4 * chance.fraction())
        process.send_signal(signal.SIGKILL)
        told, _ = await process.communicate()
        for line in told.splitlines(keepends=True):
            if line.endswith(b"\n"):
                key, revision = line.split()
                acknowledged[key] = Row(key, key * 20, int(revision))
    assert len(acknowledged) > 100
    async with opened(tmp_path) as index:
        await holds(index, acknowledged)


async def test_a_second_process_takes_over_and_the_first_is_fenced(tmp_path: Path) -> None:
    process = await child(tmp_path, 3)
    process.send_signal(signal.SIGSTOP)
    try:
        async with opened(tmp_path) as index:
            before = index.status().revision
            await fill(index, b"mine", 40)
            process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(60):
                told, _ = await process.communicate()
            lines = told.split(b"\n")
            assert b"fenced" in lines
            acknowledged = [line.split() for line in lines if b" " in line]
            assert all(int(revision) <= before for _, revision in acknowledged)
            assert await index.get([key for key, _ in acknowledged]) == [
                Row(key, key * 20, int(revision)) for key, revision in acknowledged
            ]
            await holds(index, await fill(index, b"more", 40))
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_first_of_two_in_one_place_says_that_it_is_fenced(tmp_path: Path) -> None:
    async with opened(tmp_path) as first:
        rows = await fill(first, b"first", 20)
        async with opened(tmp_path) as second:
            await holds(second, rows)
            outcome = None
            with suppress(Fenced):
                outcome = (await first.commit([put(b"late", b"")]))[0]
            assert outcome is None or isinstance(outcome, Unknown)
            assert first.status().state is IndexState.FENCED
            for call in (first.get([b"late"]), first.commit([put(b"later", b"")])):
                with pytest.raises(Fenced):
                    await call
            await fill(second, b"second", 20)


class Contested(DirectoryCopyFiles):
    """A copy that another process advances to `later`, behind the back of who opened it, before its first
    change."""

    def __init__(self, directory: Path, later: list[Path]) -> None:
        super().__init__(directory)
        self._copy, self._later = directory / "copy.sqlite", later

    def witness(self) -> None:
        super().witness()
        if self._later:
            with (
                closing(sqlite3.connect(self._later.pop())) as later,
                closing(sqlite3.connect(self._copy)) as it,
            ):
                later.backup(it)


class ContestedCopy(DirectoryCopy):
    def __init__(self, directory: Path, later: list[Path]) -> None:
        super().__init__(directory.parent.name, directory)
        self._directory, self.later = directory, later

    def files(self) -> Contested:
        return Contested(self._directory, self.later)


@pytest.mark.parametrize("count", [1, 3])
async def test_copies_that_a_fenced_process_still_writes_do_not_keep_the_next_from_opening(
    tmp_path: Path, count: int
) -> None:
    rows, found = await filled_copies(tmp_path, count)
    earlier = {path: path.with_name("earlier") for path in found}
    later = {path: path.with_name("later") for path in found}
    for path in found:
        shutil.copy(path, earlier[path])
    async with opened(tmp_path, count) as index:
        rows |= await fill(index, b"row of the fenced", 20)
    async with opened(tmp_path, count) as index:
        await until(lambda: copies(index).count("ready") == len(found), index)
    for path in found:
        path.rename(later[path])
        earlier[path].rename(path)
    files = [path.stat().st_ino for path in found]
    paths = [disk(tmp_path, number) / "index" for number in range(count)]
    places = [
        ContestedCopy(path, [copy for at, copy in later.items() if at.parent == path]) for path in paths
    ]
    index = await open_index(
        members=[DirectoryMember(path.parent.name, path) for path in paths],
        copies=places,
        clock=SystemClock(),
        randomness=SystemRandomness(),
        options=QUICK,
    )
    try:
        await holds(index, rows)
        await until(lambda: copies(index).count("ready") == len(found), index)
        assert not any(place.later for place in places), "each was written by the other"
        assert [path.stat().st_ino for path in found] == files, (
            "what another process writes is not thrown away"
        )
    finally:
        await index.close()


@pytest.mark.parametrize("count", [1, 3])
async def test_copies_that_a_stopped_process_has_locked_are_replaced_at_the_start(
    tmp_path: Path, count: int
) -> None:
    rows, found = await filled_copies(tmp_path, count)
    held = [sqlite3.connect(path, isolation_level=None) for path in found]
    try:
        for connection in held:
            connection.execute("BEGIN IMMEDIATE")
        async with opened(tmp_path, count) as index:
            await holds(index, rows)
    finally:
        for connection in held:
            connection.close()


def lose_copies(folder: Path) -> None:
    for path in folder.glob("disk*/index/copy.sqlite*"):
        path.unlink(missing_ok=True)


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    for at in range(700, len(raw), 4099):
        raw[at] ^= 4
    path.write_bytes(raw)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("harm", [zero, flip, truncate, remove])
async def test_two_of_five_members_spoiled_and_all_copies_lost(tmp_path: Path, harm: object) -> None:
    assert callable(harm)
    async with opened(tmp_path, 5) as index:
        rows = await fill(index, b"row", 300)
        await index.checkpoint()
        rows |= await fill(index, b"more", 100)
    for number in (1, 3):
        for path in (disk(tmp_path, number) / "index").iterdir():
            harm(path)
    lose_copies(tmp_path)
    async with opened(tmp_path, 5) as index:
        await holds(index, rows)
        await fill(index, b"after", 40)
        await until(lambda: set(members(index).values()) == {"current"}, index)
    # What was copied anew is as good as the others.
    for number in (0, 2):
        delete_store(disk(tmp_path, number))
        disk(tmp_path, number)
    async with opened(tmp_path, 5) as index:
        await holds(index, rows)


async def test_one_member_alone_with_a_majority_of_empty_ones_is_refused_with_names(tmp_path: Path) -> None:
    async with opened(tmp_path) as index:
        await fill(index, b"row", 20)
    for number in (0, 1):
        delete_store(disk(tmp_path, number) / "index")
    with pytest.raises(
        Unavailable, match=r"needs 2 of its 3 members and has 1.*disk0.*is empty.*disk1"
    ) as caught:
        await open_files(tmp_path, 3, SystemClock(), SystemRandomness())
    assert str(tmp_path) in str(caught.value)


async def test_directories_removed_while_it_runs_are_survived_and_taken_back_when_they_return(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, 5) as index:
        rows = await fill(index, b"row", 100)
        for number in (0, 1):
            delete_store(tmp_path / f"disk{number}")
        rows |= await fill(index, b"without", 100)
        await holds(index, rows)
        await until(lambda: list(members(index).values()).count("out") == 2, index)
        assert index.status().losses_survivable == 0
        assert not (tmp_path / "disk0").exists(), "a directory that was removed is not made up"
        for number in (0, 1):
            disk(tmp_path, number)
        await until(lambda: set(members(index).values()) == {"current"}, index)
        assert index.status().losses_survivable == 2
        # Copies that lay there were made elsewhere, and nobody is told of the places that failed.
        await until(lambda: sorted(copies(index)) == ["idle", "idle", "ready", "ready", "ready"], index)
        rows |= await fill(index, b"with", 100)
    for number in (2, 3):
        delete_store(disk(tmp_path, number))
    async with opened(tmp_path, 5) as index:
        await holds(index, rows)


async def test_below_a_majority_commits_end_in_time_and_reads_go_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as index:
        rows = await fill(index, b"row", 20)
    async with opened(tmp_path, options=IMPATIENT) as index:
        for number in (0, 1):
            delete_store(tmp_path / f"disk{number}")
        answers = []
        for number in range(3):
            try:
                answers += await index.commit([put(b"lost?%d" % number, b"1")])
            except Unavailable:
                answers.append(None)
        assert all(answer is None or isinstance(answer, Unknown) for answer in answers)
        assert isinstance(answers[0], Unknown), "it was appended to the member that is left"
        assert answers[2] is None, "nothing is appended once it is known that no majority is there"
        assert index.status().state is IndexState.UNAVAILABLE
        await until(lambda: "ready" in copies(index), index)
        assert await index.get(list(rows)) == list(rows.values())
        for number in (0, 1):
            disk(tmp_path, number)
        await until(lambda: index.status().state is IndexState.SERVING, index)
        # The same expectation cannot commit twice.
        second: object = None
        tries = 0
        while not isinstance(second, Committed | Conflict):
            tries += 1
            with suppress(Unavailable):
                second = (await index.commit([put(b"lost?0", b"2")]))[0]
        row = (await index.get([b"lost?0"]))[0]
        assert row is not None
        assert row.value == b"2" if isinstance(second, Committed) else row.value == b"1" or tries > 1


async def test_checkpoints_bound_the_log_and_carry_all_rows(tmp_path: Path) -> None:
    async with opened(tmp_path) as index:
        rows = {}
        for number in range(12):
            rows |= await fill(index, b"round%d" % number, 60)
            await index.commit([Transaction((), (), (b"round%d/00000" % number,))])
            del rows[b"round%d/00000" % number]
            await SystemClock().sleep(0.1)
        await until(lambda: any(disk(tmp_path, 0).glob("index/checkpoint-*")), index)
        await index.checkpoint()
        with pytest.raises(InvalidInput):
            await anext(index.changes(0))
        await holds(index, rows)
    size = sum(path.stat().st_size for path in disk(tmp_path, 1).glob("index/log-*"))
    assert size <= 3 * (128 << 10)
    for number in (0, 1):
        for path in disk(tmp_path, number).glob("index/copy.sqlite*"):
            path.unlink()
    async with opened(tmp_path) as index:
        await holds(index, rows)


async def filled_copies(folder: Path, count: int = 3) -> tuple[dict[bytes, Row], list[Path]]:
    """An index of `count` members that was closed when all of its copies had all rows; the rows and the
    copies."""
    kept = count // 2 + 1
    async with opened(folder, count) as index:
        rows = await fill(index, b"row", 50)
        await until(lambda: copies(index).count("ready") == kept, index)
        await holds(index, rows)
    for _ in range(10):
        # What a copy had not applied yet is applied at the next start.
        async with opened(folder, count) as index:
            await until(lambda: copies(index).count("ready") == kept, index)
        found = [path for n in range(count) if (path := disk(folder, n) / "index" / "copy.sqlite").exists()]
        if all(keys_in(path) >= set(rows) for path in found):
            return rows, found
    raise AssertionError("the copies do not get all rows")


def keys_in(path: Path) -> set[bytes]:
    """The keys in a copy's own file, to which what is beside it is added first."""
    with closing(sqlite3.connect(path)) as connection:
        (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return set() if busy else {key for (key,) in connection.execute("SELECT key FROM rows")}


async def test_a_wrong_row_in_a_copy_is_never_answered(tmp_path: Path) -> None:
    rows, found = await filled_copies(tmp_path)
    assert len(found) == 2
    for path, key in zip(found, (b"row/00017", b"row/00023"), strict=True):
        raw = path.read_bytes()
        at = raw.find(key + key)
        assert at > 0
        path.write_bytes(raw[: at + 30] + b"X" + raw[at + 31 :])
    async with opened(tmp_path) as index:
        await holds(index, rows)
        await until(lambda: copies(index).count("ready") == 2, index)
        await holds(index, rows)


def lose_row(path: Path, key: bytes) -> None:
    """As if its pages had never been written: SQLite finds nothing wrong."""
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute("DELETE FROM rows WHERE key = ?", (key,)).rowcount == 1


async def test_a_row_that_one_copy_has_lost_is_found_in_the_other(tmp_path: Path) -> None:
    rows, found = await filled_copies(tmp_path)
    lost = (b"row/00017", b"row/00023")
    async with opened(tmp_path, options=PATIENT) as index:
        await until(lambda: copies(index).count("ready") == 2, index)
        for path, key in zip(found, lost, strict=True):
            lose_row(path, key)
        assert await index.get(lost) == [rows[key] for key in lost]
        await until(lambda: copies(index).count("ready") == 2, index)
        assert await index.commit([put(lost[0], b"")]) == [Conflict(lost[0])]
        await holds(index, rows)


async def test_copies_that_lost_rows_are_not_asked_when_they_are_opened(tmp_path: Path) -> None:
    rows, found = await filled_copies(tmp_path)
    for path in found:
        lose_row(path, b"row/00017")
    async with opened(tmp_path) as index:
        await holds(index, rows)


async def test_a_copy_in_which_an_older_row_came_back_is_not_asked_when_it_is_opened(tmp_path: Path) -> None:
    rows, found = await filled_copies(tmp_path)
    key = b"row/00017"
    async with opened(tmp_path) as index:
        change = Transaction((Expect(key, rows[key].revision),), ((key, b"new"),))
        (outcome,) = await index.commit([change])
        assert isinstance(outcome, Committed)
        await until(lambda: copies(index).count("ready") == 2, index)
    async with opened(tmp_path) as index:
        await until(lambda: copies(index).count("ready") == 2, index)
    old = rows[key].revision, row_checksum(*rows[key]), rows[key].value, key
    for path in found:
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE rows SET revision = ?, checksum = ?, value = ? WHERE key = ?", old)
    async with opened(tmp_path) as index:
        await holds(index, rows | {key: Row(key, b"new", outcome.revision)})


async def test_a_copy_that_loses_a_row_while_it_is_open_is_found_and_made_anew(tmp_path: Path) -> None:
    rows, found = await filled_copies(tmp_path)
    options = replace(PATIENT, copies=replace(PATIENT.copies, add_up_s=0.1))
    async with opened(tmp_path, options=options) as index:
        await until(lambda: copies(index).count("ready") == 2, index)
        for path in found:
            lose_row(path, b"row/00017")
        await until(lambda: copies(index).count("ready") < 2, index)
        await until(lambda: copies(index).count("ready") == 2, index)
        await holds(index, rows)


async def test_copies_lost_while_it_runs_are_made_anew(tmp_path: Path) -> None:
    async with opened(tmp_path) as index:
        rows = await fill(index, b"row", 50)
        await until(lambda: copies(index).count("ready") == 2, index)
        lose_copies(tmp_path)
        rows |= await fill(index, b"more", 50)
        await holds(index, rows)
        await until(lambda: len(list(tmp_path.glob("disk*/index/copy.sqlite"))) >= 2, index)
        await holds(index, rows)


async def test_a_member_is_moved_to_another_disk(tmp_path: Path) -> None:
    async with opened(tmp_path) as index:
        rows = await fill(index, b"row", 200)
        delete_store(disk(tmp_path, 2))
        await index.replace_member("disk2", DirectoryMember("disk9", disk(tmp_path, 9) / "index"))
        assert set(members(index)) == {"disk0", "disk1", "disk9"}
        with pytest.raises(InvalidInput, match="disk2"):
            await index.replace_member("disk2", DirectoryMember("disk8", disk(tmp_path, 8) / "index"))
        rows |= await fill(index, b"more", 20)
        await holds(index, rows)


async def test_five_members_become_three_and_go_on_without_the_two(tmp_path: Path) -> None:
    async with opened(tmp_path, members=5) as index:
        rows = await fill(index, b"row", 100)
        for gone in ("disk1", "disk4"):
            await index.drop_member(gone)
            await index.drop_member(gone)  # asked again
            await index.remove_copy(gone)
            delete_store(disk(tmp_path, int(gone[-1])))
        assert set(index.members) == {"disk0", "disk2", "disk3"}
        rows |= await fill(index, b"more", 20)
        delete_store(disk(tmp_path, 0))
        rows |= await fill(index, b"and more", 20)
        await holds(index, rows)
    async with opened(tmp_path, members=5) as index:
        assert set(index.members) == {"disk0", "disk2", "disk3"}
        await holds(index, rows)


async def test_a_member_is_not_dropped_when_the_others_are_too_few(tmp_path: Path) -> None:
    async with opened(tmp_path) as index:
        rows = await fill(index, b"row", 20)
        # One that is still being brought up is not current either, and is for a moment when it has been.
        await until(lambda: set(members(index).values()) == {"current"}, index)
        delete_store(disk(tmp_path, 1))
        await until(lambda: members(index)["disk1"] != "current", index)
        with pytest.raises(InvalidInput, match="Without 'disk0' the index has 1 of 2"):
            await index.drop_member("disk0")
        with pytest.raises(InvalidInput, match="Without 'disk0' the index has 1 of 3"):
            index.reopen_member("disk0")
        await holds(index, rows)


async def test_a_copy_that_has_lost_a_row_gives_no_checkpoint(tmp_path: Path) -> None:
    rows, found = await filled_copies(tmp_path)
    async with opened(tmp_path, options=PATIENT) as index:
        await until(lambda: copies(index).count("ready") == 2, index)
        for path in found:
            lose_row(path, b"row/00017")
        with pytest.raises(CopyFailed, match="50 rows should be there and 49 are"):
            await index.checkpoint()
        await until(lambda: not any(tmp_path.glob("disk*/index/checkpoint-*")), index)
        # The other one is as bad, and is found out when it is asked. Meanwhile there may be none to ask.
        async with asyncio.timeout(120):
            made = False
            while not made:
                with suppress(CopyFailed, Unavailable):
                    await index.checkpoint()
                    made = True
                await SystemClock().sleep(0.02)
        await holds(index, rows)
    lose_copies(tmp_path)
    async with opened(tmp_path) as index:
        await holds(index, rows)


async def test_a_copy_whose_pages_hide_rows_is_not_asked(tmp_path: Path) -> None:
    rows, found = await filled_copies(tmp_path)
    for path in found:
        raw = bytearray(path.read_bytes())
        # The last key on each leaf of the index of keys is not found any more.
        for page in range(0, len(raw), 4096):
            if raw[page] == 10 and (cells := int.from_bytes(raw[page + 3 : page + 5], "big")) > 1:
                raw[page + 3 : page + 5] = (cells - 1).to_bytes(2, "big")
        path.write_bytes(raw)
    async with opened(tmp_path) as index:
        await holds(index, rows)
