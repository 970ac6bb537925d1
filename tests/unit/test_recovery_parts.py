"""The pure parts of recovery, and the new index itself: whole, or not there."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Damaged, Unavailable
from holdfast.base.randomness import SeededRandomness
from holdfast.index.port import KEY_BYTES_MAX, Change, Expect, Row, Transaction
from holdfast.index.sqlite import DirectoryCopy, DirectoryMember, IndexOptions, LogOptions, open_index
from holdfast.index.sqlite.refounding import Refounding, new_incarnation
from holdfast.recovery.format import (
    FORMAT,
    Piece,
    decode_page,
    decode_piece,
    encode_change,
    encode_page,
    encode_piece,
    first_chain,
    next_chain,
)
from holdfast.recovery.names import (
    Lineage,
    PieceName,
    SnapshotName,
    lineage_of,
    parse_piece,
    parse_snapshot,
    path_from,
    superfluous,
    to_merge,
)

US = Lineage(1, "ab" * 16)


def piece(before: int, after: int, level: int = 0, nonce: str = "000") -> PieceName:
    return PieceName(US, before, after, level, nonce)


def test_names_come_apart_as_they_were_put_together() -> None:
    name = PieceName(Lineage(0x1F, "0f" * 16), 3, 1 << 47, 2, "abc")
    assert parse_piece(str(name)) == name
    snapshot = SnapshotName(US, 77, "00ff00")
    assert parse_snapshot(snapshot.head) == (snapshot, True)
    assert parse_snapshot(snapshot.page(3)) == (snapshot, False)
    assert lineage_of(snapshot.page(3)) == lineage_of(str(piece(1, 2))) == US
    for other in ("", "index-", "ledger-0", str(piece(2, 2)), str(piece(1, 2)) + "0", snapshot.prefix):
        assert lineage_of(other) is None, other


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 10)), max_size=30))
def test_a_way_through_pieces_has_no_gap_and_goes_as_far_as_any(cuts: list[tuple[int, int]]) -> None:
    pieces = [piece(before, before + length) for before, length in cuts]
    path = path_from(pieces, 0)
    at = 0
    for one in path:
        assert one.before <= at < one.after
        at = one.after
    reached = {0}
    for _ in pieces:
        reached |= {one.after for one in pieces if any(one.before <= there < one.after for there in reached)}
    assert at == max(reached)


def test_nothing_goes_before_two_snapshots_are_whole_and_then_what_neither_needs() -> None:
    old, middle, new, unfinished = (SnapshotName(US, since, "000000") for since in (10, 20, 30, 40))
    older, newer = US._replace(number=0), US._replace(number=2, incarnation="cd" * 16)
    names = [
        *(one.page(0) for one in (old, middle, new, unfinished)),
        *(one.head for one in (old, middle, new)),
        *(str(piece(at, at + 5)) for at in range(0, 40, 5)),
        str(piece(0, 5)._replace(lineage=older)),
        str(piece(0, 5)._replace(lineage=newer)),
        "ledger-x",
    ]
    assert superfluous(names, US, [new]) == []
    assert set(superfluous(names, US, [new, middle, old])) == {
        old.page(0),
        old.head,
        *(str(piece(at, at + 5)) for at in range(0, 20, 5)),
        str(piece(0, 5)._replace(lineage=older)),
    }


def test_only_adjacent_pieces_of_one_level_are_put_together() -> None:
    run = [piece(at, at + 1) for at in range(4)]
    assert to_merge(run, 4, 2) == run
    assert to_merge([*run[:2], *run[3:]], 3, 2) == []
    assert to_merge([*run[:2], run[2]._replace(level=1), run[3]], 3, 2) == []
    assert to_merge([one._replace(level=2) for one in run], 4, 2) == []


def make_piece(changes: list[Change], before: int, chain: bytes) -> tuple[PieceName, bytes, bytes]:
    raws = [encode_change(change) for change in changes]
    after = chain
    for raw in raws:
        after = next_chain(after, raw)
    name = piece(before, changes[-1].revision)
    whole = Piece(FORMAT, *US, before, name.after, chain, after, 1, 0, 0, ())
    return name, encode_piece(whole, raws), after


@given(st.data())
def test_a_piece_that_was_changed_anywhere_is_not_believed(data: st.DataObject) -> None:
    changes = [Change(number, ((b"k%d" % number, b"v" * number),), (b"d",)) for number in range(1, 6)]
    name, raw, _ = make_piece(changes, 0, first_chain(US.incarnation, 0))
    assert [change[0] for change in decode_piece(raw, name).changes] == [1, 2, 3, 4, 5]
    at = data.draw(st.integers(0, len(raw) - 1))
    spoiled = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
    try:
        found = decode_piece(spoiled, name)
    except Damaged:
        return
    # Only what is a label, or what the chain begins with (which the piece before is held against).
    assert found.changes == decode_piece(raw, name).changes or found.chain_before != first_chain(
        US.incarnation, 0
    )


def test_a_page_of_another_snapshot_or_place_is_not_believed() -> None:
    rows = [Row(b"a", b"1", 7), Row(b"b", b"", 9)]
    snapshot = SnapshotName(US, 5, "123456")
    page = b"".join(encode_page(snapshot, 3, rows))
    assert decode_page(page, snapshot, 3) == rows
    for wrong in (snapshot._replace(nonce="123457"), snapshot._replace(since=6)):
        with pytest.raises(Damaged):
            decode_page(page, wrong, 3)
    with pytest.raises(Damaged):
        decode_page(page, snapshot, 4)
    for cut in range(len(page)):
        with pytest.raises(Damaged):
            decode_page(page[:cut], snapshot, 3)


OPTIONS = IndexOptions(log=LogOptions(patience_s=1.0, grace_s=0.1, segment_bytes=1 << 16))


def some_rows() -> Iterator[Row]:
    for number in range(5_000):
        yield Row(b"head/b/%05d" % number, b"v" * 300, 100_000 - number)


async def test_a_new_index_holds_all_rows_at_their_revisions_or_is_not_there(tmp_path: Path) -> None:
    members = [DirectoryMember(f"m{number}", tmp_path / f"m{number}") for number in range(3)]
    copies = [DirectoryCopy(f"m{number}", tmp_path / f"m{number}") for number in range(3)]
    chance, clock = SeededRandomness(1), SystemClock()
    incarnation = new_incarnation(chance)
    refounding = Refounding(members, some_rows, incarnation, 123_456, chance)
    refounding.write()
    for _ in range(2):
        with pytest.raises(Unavailable, match="has 0"):
            await open_index(members=members, copies=copies, clock=clock, randomness=chance, options=OPTIONS)
    refounding.join()
    index = await open_index(members=members, copies=copies, clock=clock, randomness=chance, options=OPTIONS)
    try:
        status = index.status()
        assert (status.incarnation, status.revision) == (incarnation, 123_456)
        found = await index.scan(b"\0", b"\xff" * KEY_BYTES_MAX, limit=10_000)
        assert found == list(some_rows())
        outcomes = await index.commit([Transaction((Expect(b"head/b/00007", 99_993),), ((b"new", b"1"),))])
        assert outcomes[0] == (123_457,)
    finally:
        await index.close()


async def test_members_that_hold_something_else_are_made_anew(tmp_path: Path) -> None:
    members = [DirectoryMember(f"m{number}", tmp_path / f"m{number}") for number in range(3)]
    copies = [DirectoryCopy("m0", tmp_path / "c")]
    chance, clock = SeededRandomness(2), SystemClock()
    (tmp_path / "c").mkdir()
    before = await open_index(members=members, copies=copies, clock=clock, randomness=chance, options=OPTIONS)
    await before.commit([Transaction((), ((b"old", b"1"),))])
    await before.close()
    incarnation = new_incarnation(chance)
    refounding = Refounding(members, some_rows, incarnation, 200_000, chance)
    refounding.write()
    refounding.join()
    index = await open_index(members=members, copies=copies, clock=clock, randomness=chance, options=OPTIONS)
    try:
        assert index.status().incarnation == incarnation
        assert await index.get([b"old"]) == [None]
    finally:
        await index.close()
