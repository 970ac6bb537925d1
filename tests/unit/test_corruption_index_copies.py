"""Silent corruption of the copies of the index's rows, by the book: every kind of region of the SQLite file,
its write-ahead log and its shared memory, every harm, in one copy or in all, at the start and while it runs.

What is promised: copies are disposable, so whatever happens to them, every row is read right, and they are
made anew. And a copy that knows more than the log says that the log has lost something, before anybody is
served.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.randomness import SystemRandomness
from holdfast.index.port import Row
from holdfast.index.sqlite.copies import LogLost
from tests.kit.harm import Harm, harmed
from tests.kit.index_files import open_files
from tests.kit.process import delete_store
from tests.kit.regions import Region, assert_covers, sqlite_regions
from tests.unit.test_index_files import copies, fill, filled_copies, holds, lose_copies, opened, until

THOROUGH = bool(os.environ.get("HOLDFAST_THOROUGH"))
EVERY = 3 if THOROUGH else 150
FILES = ("copy.sqlite", "copy.sqlite-wal", "copy.sqlite-shm")


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def put_back(folder: Path, files: dict[Path, bytes]) -> None:
    for path in folder.iterdir():
        delete_store(path)  # a copy that was just closed may still be taking its files away
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def cases(files: dict[Path, bytes], first: int) -> Iterator[tuple[str, Region, Harm]]:
    """Each `EVERY`-th of all regions with every harm, and all harms of whole files."""
    turn = first
    for name in FILES:
        path = next((path for path in files if path.name == name and files[path]), None)
        regions = sqlite_regions(name, files[path]) if path else []
        for region in regions:
            for harm in Harm:
                of_file = harm in (Harm.EXTEND, Harm.REMOVE, Harm.SWAP)
                if of_file and region != regions[-1]:
                    continue
                turn += 1
                if of_file or turn % EVERY == 0:
                    yield name, region, harm


def spoil(folder: Path, older: dict[Path, bytes], name: str, region: Region, harm: Harm, most: int) -> int:
    """Do it to so many copies; how many are different now."""
    changed = 0
    for path in sorted(folder.rglob(name))[:most]:
        old = path.read_bytes()
        if region.end > len(old):
            continue
        new = harmed(old, harm, region.start, region.end, older.get(path))
        if new is None:
            path.unlink()
        elif new != old:
            path.write_bytes(new)
        changed += new != old
    return changed


async def grown(folder: Path) -> tuple[dict[bytes, Row], dict[Path, bytes], dict[Path, bytes]]:
    """Rows, the files of an index that was killed while its copies were open, and older files of the same."""
    rows, _ = await filled_copies(folder)
    older = snapshot(folder)
    async with opened(folder) as index:
        rows |= await fill(index, b"row-more", 60)
        await until(lambda: copies(index).count("ready") == 2, index)
        await holds(index, rows)
        # Whoever lingers has not applied them yet.
        await until(lambda: all(copy.applied >= index._log.acked for copy in index._copies.ready()), index)
        now = snapshot(folder)
    return rows, now, older


async def test_the_regions_of_a_copy_cover_its_files(tmp_path: Path) -> None:
    _, now, _ = await grown(tmp_path)
    found = {path.name: content for path, content in now.items() if path.name in FILES and content}
    assert set(found) == set(FILES)
    for name, content in found.items():
        assert_covers(sqlite_regions(name, content), len(content))


@pytest.mark.parametrize("most", [1, 3])
async def test_whatever_is_spoiled_in_copies_at_the_start_every_row_is_read_right(
    tmp_path: Path, most: int
) -> None:
    rows, now, older = await grown(tmp_path)
    count = 0
    for case in cases(now, most):
        put_back(tmp_path, now)
        count += spoil(tmp_path, older, *case, most) > 0
        try:
            async with opened(tmp_path) as index:
                await holds(index, rows)
        except Exception as error:
            raise AssertionError(f"{case} in {most}: {error!r}") from error
    assert count > 10


async def test_whatever_is_spoiled_in_copies_while_they_are_open_every_row_is_read_right(
    tmp_path: Path,
) -> None:
    rows, now, older = await grown(tmp_path)
    for case in cases(now, 7):
        if case[2] is Harm.EXTEND:
            continue
        put_back(tmp_path, now)
        try:
            async with opened(tmp_path) as index:
                await until(lambda index=index: copies(index).count("ready") == 2, index)  # type: ignore[misc]
                spoil(tmp_path, older, *case, 1)
                async with asyncio.timeout(60):
                    await holds(index, rows)
                    more = await fill(index, b"row-while", 20)
                    await holds(index, rows | more)
        except Exception as error:
            raise AssertionError(f"{case}: {error!r}") from error


async def test_a_log_that_lost_what_was_acknowledged_is_not_served(tmp_path: Path) -> None:
    """Every member of the log is older than the copies: what a rollback of all disks but one looks like."""
    rows, now, older = await grown(tmp_path)
    rolled_back = {path: content for path, content in older.items() if path.name not in FILES}
    rolled_back |= {path: content for path, content in now.items() if path.name in FILES}
    put_back(tmp_path, rolled_back)
    with pytest.raises(LogLost, match="lost changes that were acknowledged"):
        await open_files(tmp_path, 3, SystemClock(), SystemRandomness())
    # It is found again, and again: nothing was done to the proof.
    with pytest.raises(LogLost):
        await open_files(tmp_path, 3, SystemClock(), SystemRandomness())
    lose_copies(tmp_path)
    async with opened(tmp_path) as index:
        await holds(index, {key: row for key, row in rows.items() if not key.startswith(b"row-more")})
