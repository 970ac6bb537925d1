"""What journal and snapshots keep is what the index had, whenever it is asked for, whatever m stores do."""

import asyncio
import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from holdfast.base.errors import Fenced, HoldfastError, Unavailable
from holdfast.index.memory import MemoryRows
from holdfast.index.port import Row
from holdfast.packs.named import parse_named_shard
from holdfast.recovery.first_snapshot import write_first
from holdfast.recovery.format import FORMAT, LINEAGE_ROW, LineageRow, encode_lineage
from holdfast.recovery.journal import PATIENCE_S
from holdfast.recovery.keeping import RecoveryStatus, sentences_of
from holdfast.recovery.names import PREFIX, Lineage, parse_piece, parse_snapshot
from holdfast.recovery.upkeep import MERGE_EVERY_S, RUN, SETTLE_S
from holdfast.stores.port import JOURNAL_SHARE
from tests.kit.kept import INCARNATION, Kept, cut, delete, put
from tests.kit.virtual import run_virtual

pytestmark = pytest.mark.virtual


async def some_history(kept: Kept, chance: random.Random, commits: int) -> None:
    for _ in range(commits):
        key = f"head/b/{chance.randrange(30)}"
        if chance.random() < 0.3:
            await kept.commit(delete(key))
        else:
            await kept.commit(put(key, chance.randbytes(chance.randrange(200))))


async def test_all_rows_come_back_with_their_revisions_from_any_stores_but_m() -> None:
    kept, chance = Kept(), random.Random(1)
    for _ in range(30):
        await some_history(kept, chance, 10)
        await kept.run_all()
    assert kept.snapshots.made > 2
    await asyncio.sleep(1)
    for lost in combinations(kept.rig.stores, 2):
        gone = {store: kept.rig.attached.pop(store) for store in lost}
        loaded, rows = await kept.loaded()
        assert (loaded.revision, rows) == (kept.rows.revision, kept.now())
        assert loaded.gap == ""
        kept.rig.attached.update(gone)


async def test_nothing_is_written_when_nothing_changes() -> None:
    kept = Kept()
    await kept.commit(put("a", b"1"))
    await kept.run_all()
    await asyncio.sleep(1)
    before = kept.blobs()
    for _ in range(100):
        assert not await kept.journal.step()
        assert not await kept.snapshots.step()
        await kept.upkeep.step()
        await asyncio.sleep(1)
    assert kept.blobs() == before


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**9))
def test_a_crash_at_any_moment_loses_only_what_the_journal_had_not_taken(seed: int) -> None:
    """Lives end at random instants of journal, snapshots and upkeep, while rows change; what is made again
    is the state of one revision, no older than what was covered, and the next life goes on from there."""

    async def main() -> None:
        chance = random.Random(seed)
        kept = Kept(seed=seed % 1000)
        for _ in range(chance.randrange(2, 6)):
            kept.live()

            async def chore(step: object) -> None:
                while True:
                    await step()  # type: ignore[operator]
                    await asyncio.sleep(0.02)

            async def clients() -> None:
                for _ in range(chance.randrange(1, 60)):
                    await some_history(kept, chance, 1)
                    await asyncio.sleep(chance.random() * 0.02)

            tasks = [
                asyncio.ensure_future(work)
                for work in (
                    chore(kept.journal.step),
                    chore(kept.snapshots.step),
                    chore(kept.upkeep.step),
                    clients(),
                )
            ]
            await asyncio.sleep(chance.random() * 0.6)
            covered = kept.journal.position.revision
            await cut(tasks)
            if not covered:
                continue
            # What a crash left half written may lie anywhere; m stores are lost besides.
            lost = chance.sample(kept.rig.stores, 2)
            gone = {store: kept.rig.attached.pop(store) for store in lost}
            loaded, rows = await kept.loaded()
            assert covered <= loaded.revision <= kept.rows.revision
            assert rows == kept.states[loaded.revision]
            kept.rig.attached.update(gone)
        kept.live()
        await kept.run_all()
        loaded, rows = await kept.loaded()
        assert (loaded.revision, rows) == (kept.rows.revision, kept.now())

    run_virtual(main())


async def test_a_piece_that_is_lost_ends_the_journal_there_and_is_told() -> None:
    kept, chance = Kept(), random.Random(2)
    kept.live(journal_bytes_min=1 << 30)
    ends = []
    for _ in range(5):
        await some_history(kept, chance, 8)
        await kept.run_all()
        ends.append(kept.rows.revision)
    await asyncio.sleep(1)
    for store, memory in kept.rig.memories.items():
        for blob in list(memory._blobs):
            parsed = parse_named_shard(store, blob)
            assert parsed is not None
            piece = parse_piece(parsed[0])
            if piece is not None and piece.before == ends[2]:
                memory.damage(blob, 4200, 1)
    loaded, rows = await kept.loaded()
    assert (loaded.revision, rows) == (ends[2], kept.states[ends[2]])
    assert f"after revision {ends[2]}" in loaded.gap
    assert "wrong blocks" in loaded.gap


async def test_a_snapshot_that_cannot_be_read_is_passed_over_for_the_one_before() -> None:
    kept, chance = Kept(), random.Random(3)
    while kept.snapshots.made < 3:
        await some_history(kept, chance, 10)
        await kept.run_all()
    await asyncio.sleep(1)
    assert kept.journal.snapshot is not None
    newest = kept.journal.snapshot.name
    for store, memory in kept.rig.memories.items():
        for blob in list(memory._blobs):
            parsed = parse_named_shard(store, blob)
            assert parsed is not None
            if parsed[0] == newest.page(0):
                memory.damage(blob, 4200, 1)
    loaded, rows = await kept.loaded()
    assert loaded.snapshot is not None
    assert loaded.snapshot < newest
    assert (loaded.revision, rows) == (kept.rows.revision, kept.now())
    assert len(loaded.passed_over) == 1


async def test_two_snapshots_stay_and_the_journal_since_the_older() -> None:
    kept, chance = Kept(), random.Random(4)
    while kept.snapshots.made < 5:
        await some_history(kept, chance, 10)
        await kept.run_all()
    names = await kept.packs.list("index-")
    heads = [found[0] for name in names if (found := parse_snapshot(name)) and found[1]]
    assert len(heads) == 2
    pages = {found[0] for name in names if (found := parse_snapshot(name))}
    assert pages == set(heads)
    pieces = [piece for name in names if (piece := parse_piece(name))]
    assert min(piece.after for piece in pieces) > min(head.since for head in heads)


async def test_small_pieces_are_put_together_and_tell_the_same() -> None:
    kept, chance = Kept(), random.Random(5)
    kept.live(journal_bytes_min=1 << 30)
    for _ in range(RUN + 5):
        await some_history(kept, chance, 2)
        await kept.journal.step()
    await asyncio.sleep(MERGE_EVERY_S + 1)
    assert await kept.upkeep.step()
    assert len(await kept.packs.list("index-")) == 6
    loaded, rows = await kept.loaded()
    assert (loaded.revision, rows, loaded.pieces) == (kept.rows.revision, kept.now(), 6)
    await some_history(kept, chance, 3)
    kept.live(journal_bytes_min=1 << 30)
    await kept.run_all()
    loaded, rows = await kept.loaded()
    assert (loaded.revision, rows, loaded.pieces) == (kept.rows.revision, kept.now(), 7)


async def test_what_lost_stores_is_written_anew_until_m_more_can_go() -> None:
    kept, chance = Kept(), random.Random(6)
    while kept.snapshots.made < 2:
        await some_history(kept, chance, 10)
        await kept.run_all()
    await asyncio.sleep(1)
    for store in kept.rig.stores[:2]:
        kept.rig.attached.pop(store)
        kept.rig.health.vanished(store, kept.rig.clock.monotonic(), "gone")
    await kept.upkeep.step()
    await asyncio.sleep(SETTLE_S + 1)
    while await kept.upkeep.step():
        pass
    assert kept.upkeep.rewritten > 0
    for store in kept.rig.stores[2:4]:
        kept.rig.attached.pop(store)
    loaded, rows = await kept.loaded()
    assert (loaded.revision, rows) == (kept.rows.revision, kept.now())


async def tend_all(kept: Kept) -> int:
    """Read all that is kept; how often that ended in an error."""
    failed = 0
    kept.upkeep.tend_now()
    while True:
        try:
            if not await kept.upkeep.step():
                return failed
        except HoldfastError:
            failed += 1


async def test_what_a_store_brings_back_of_pieces_that_were_put_together_goes() -> None:
    kept, chance = Kept(), random.Random(8)
    kept.live(journal_bytes_min=1 << 30)
    for number in range(RUN + 5):
        await kept.commit(put(f"head/b/{number}", chance.randbytes(14_000)))
        await kept.journal.step()
    await asyncio.sleep(1)
    away = {store: kept.rig.attached.pop(store) for store in kept.rig.stores[:2]}
    for store in away:
        kept.rig.health.vanished(store, kept.rig.clock.monotonic(), "its node was removed")
    await asyncio.sleep(MERGE_EVERY_S + 1)
    while await kept.upkeep.step():
        pass
    assert kept.upkeep.merged == RUN
    whole = await kept.packs.list("index-")
    # The node is taken back, with too few shards of each part that has gone meanwhile.
    kept.rig.attached.update(away)
    assert len(await kept.packs.list("index-")) == len(whole) + RUN
    assert await tend_all(kept) == 0
    assert kept.upkeep.lost == set()
    assert not kept.journal.starts_anew
    assert await kept.packs.list("index-") == whole
    loaded, rows = await kept.loaded()
    assert (loaded.revision, rows) == (kept.rows.revision, kept.now())


async def test_a_piece_that_is_lost_is_no_worry_once_a_snapshot_does_without_it() -> None:
    kept, chance = Kept(), random.Random(9)
    kept.live(journal_bytes_min=1 << 30)
    await kept.commit(put("head/b/1", chance.randbytes(14_000)))
    await kept.journal.step()
    (name,) = await kept.packs.list("index-")
    for memory in list(kept.rig.memories.values())[:3]:
        for blob in [blob for blob in memory._blobs if blob.startswith(name)]:
            del memory._blobs[blob]
    assert await tend_all(kept) == 1
    assert kept.upkeep.unreadable == {name}
    assert kept.snapshots.is_due()
    await kept.run_all()
    assert kept.snapshots.made == 1
    assert kept.upkeep.unreadable == set()
    # Nor does reading it again make another one.
    assert await tend_all(kept) == 0
    assert not kept.snapshots.is_due()
    loaded, rows = await kept.loaded()
    assert (loaded.revision, rows) == (kept.rows.revision, kept.now())


def test_a_person_is_told_what_is_done_about_it() -> None:
    status = RecoveryStatus(
        journal_revision=1,
        journal_bytes=1,
        behind_commits=0,
        behind_s=0.0,
        snapshot_revision=None,
        snapshot_age_s=None,
        snapshot_rows=None,
        pieces_written_anew=0,
        unreadable=("index-1",),
    )
    (one,) = sentences_of(status)
    assert one.startswith("1 part of the journal or a snapshot cannot be read any more")
    (two,) = sentences_of(replace(status, unreadable=("index-1", "index-2")))
    assert two.startswith("2 parts of")


async def test_a_feed_that_does_not_reach_back_begins_anew_with_a_snapshot() -> None:
    kept, chance = Kept(), random.Random(7)
    await some_history(kept, chance, 5)
    await kept.run_all()
    kept.rows._changes.clear()
    await kept.commit(put("a", b"unknown to the journal"))
    kept.rows._changes.clear()
    await kept.commit(put("b", b"2"))
    assert not kept.snapshots.is_due()
    await kept.run_all()
    assert kept.snapshots.made == 1
    loaded, rows = await kept.loaded()
    assert (loaded.revision, rows) == (kept.rows.revision, kept.now())


async def test_an_index_that_went_back_is_not_written_about_and_nothing_is_covered() -> None:
    kept, chance = Kept(), random.Random(8)
    await some_history(kept, chance, 5)
    await kept.run_all()
    before = kept.blobs()
    kept.rows = type(kept.rows)(INCARNATION)
    kept.live()
    await kept.commit(put("a", b"1"))
    with pytest.raises(Fenced, match="went back"):
        await kept.journal.step()
    await asyncio.sleep(PATIENCE_S + 1)
    assert not await kept.journal.step()
    assert not kept.journal.covers(1)
    assert kept.blobs() == before


async def test_a_journal_that_cannot_be_written_keeps_little_and_catches_up() -> None:
    kept, chance = Kept(), random.Random(9)
    await kept.commit(put("a", b"1"))
    await kept.run_all()
    gone = {store: kept.rig.attached.pop(store) for store in kept.rig.stores[:4]}
    revision = kept.rows.revision
    await some_history(kept, chance, 50)
    for _ in range(3):
        assert not await kept.journal.step()
    assert ["cannot be written" in told for told in kept.told] == [True]
    assert not kept.journal.covers(revision + 1)
    await asyncio.sleep(PATIENCE_S + 1)
    assert not kept.journal.covers(revision + 1), "nothing is full"
    kept.journal.room_is_needed = lambda: True
    assert kept.journal.covers(revision + 1), "room has to come back"
    kept.rig.attached.update(gone)
    await kept.run_all()
    assert kept.journal.behind_s() == 0
    loaded, rows = await kept.loaded()
    assert (loaded.revision, rows) == (kept.rows.revision, kept.now())


async def test_stores_that_are_full_take_the_journal_and_a_snapshot_all_the_same() -> None:
    """Deleting is the way out of full stores, and what recovery does not know of is not removed."""
    kept = Kept()
    for memory in kept.rig.memories.values():
        memory._bytes_capacity = memory._bytes_reserve = 1_000_000
    with pytest.raises(Unavailable):
        await kept.packs.write("other-thing", [b"x"])
    await some_history(kept, random.Random(7), 30)
    await kept.run_all()
    assert kept.journal.covers(kept.rows.revision)
    assert kept.snapshots.made
    loaded, rows = await kept.loaded()
    assert (loaded.revision, rows) == (kept.rows.revision, kept.now())
    await kept.run_all()
    taken = max(sum(map(len, memory._blobs.values())) for memory in kept.rig.memories.values())
    assert taken <= JOURNAL_SHARE * 1_000_000


async def test_an_index_that_is_lost_again_before_it_made_a_snapshot_is_known_by_its_first() -> None:
    kept, chance = Kept(), random.Random(8)
    await some_history(kept, chance, 60)
    await kept.run_all()
    before = await kept.packs.list(PREFIX)
    # Recovery writes the first snapshot of the new index; then that one serves, and makes none.
    now = [Row(key, value, revision) for key, (value, revision) in sorted(kept.now().items())]
    again = Lineage(1, "cd" * 16)
    made = LineageRow(FORMAT, 1, (INCARNATION,), 0)
    revision = kept.rows.revision + 1
    now.append(Row(LINEAGE_ROW, encode_lineage(made), revision))
    first = await write_first(
        kept.packs, now, again, revision, made.ancestors, 0, kept.rig.randomness, page_bytes=500
    )
    kept.rows = MemoryRows(again.incarnation)
    for row in now:
        kept.rows._rows[row.key] = row
    kept.rows._keys = sorted(kept.rows._rows)
    kept.rows.revision = revision
    kept.live(journal_bytes_min=1 << 30)
    await some_history(kept, chance, 40)
    while await kept.journal.step():
        pass
    assert kept.journal.covers(kept.rows.revision)
    loaded, rows = await kept.loaded()
    assert (loaded.lineage, loaded.snapshot) == (again, first)
    assert (loaded.revision, rows) == (kept.rows.revision, kept.now())
    assert (loaded.gap, loaded.ancestors) == ("", (INCARNATION,))
    # What the older index left goes when there are two snapshots of the new one, and not before.
    assert set(before) <= set(await kept.packs.list(PREFIX))
    await kept.run_all()
    assert kept.snapshots.made == 1
    assert not set(before) & set(await kept.packs.list(PREFIX))
    assert (await kept.loaded())[1] == kept.now()
