"""The pure parts of the embedded index: bytes, decisions about members, deciding transactions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.index.port import ABSENT, Committed, Conflict, Expect, Row, Transaction
from holdfast.index.sqlite import checkpoint as ckpt
from holdfast.index.sqlite.chain import Chain
from holdfast.index.sqlite.checkpoint import Base, empty_base
from holdfast.index.sqlite.live import LiveRows
from holdfast.index.sqlite.records import (
    FRAME_ALIGN,
    FRAME_HEADER_BYTES,
    NO_HASH,
    Founding,
    Kind,
    Record,
    SegmentHeader,
    changes_body,
    changes_of,
    founding_body,
    founding_of,
    frame_bytes,
    frame_payload,
    frame_payload_bytes,
    make_frame,
    make_record,
    members_of,
    parse_segment_header,
    records_in,
    revision_after,
)
from holdfast.index.sqlite.recovery import Verdict, choose, last_common, majority
from holdfast.index.sqlite.replication import Acked, Dropped, FencedOff, Replication, Send, Standing
from holdfast.index.sqlite.scan import Entry, Scan

INCARNATION = b"i" * 16


def chain_of(count: int, epoch: int = 1, after: Record | None = None) -> list[Record]:
    records = [after] if after else []
    for _ in range(count):
        last = records[-1] if records else None
        body = changes_body([(((b"key", b"value"),), (b"gone",))])
        records.append(
            make_record(
                Kind.TRANSACTIONS,
                epoch,
                last.sequence + 1 if last else 1,
                last.revision + 1 if last else 0,
                last.hash if last else NO_HASH,
                body,
            )
        )
    return records[1:] if after else records


# Bytes


def test_records_of_a_frame_are_read_as_they_were_written() -> None:
    records = chain_of(3)
    frame = make_frame(7, 2, 1024, records)
    assert len(frame) % FRAME_ALIGN == 0
    length = frame_payload_bytes(frame[:FRAME_HEADER_BYTES], 7, 2, 1024)
    assert length is not None
    assert frame_bytes(length) == len(frame)
    payload = frame_payload(frame, length)
    assert payload is not None
    assert list(records_in(payload)) == records
    assert changes_of(records[0]) == ((((b"key", b"value"),), (b"gone",)),)


@pytest.mark.parametrize("place", [(8, 2, 1024), (7, 3, 1024), (7, 2, 1536)])
def test_a_frame_in_another_place_is_no_frame(place: tuple[int, int, int]) -> None:
    frame = make_frame(7, 2, 1024, chain_of(1))
    assert frame_payload_bytes(frame, *place) is None


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_frame_is_caught(at: int, bit: int) -> None:
    records = chain_of(2)
    frame = bytearray(make_frame(1, 1, 512, records))
    used = FRAME_HEADER_BYTES + sum(len(record.raw) for record in records)
    frame[at % used] ^= 1 << bit
    length = frame_payload_bytes(bytes(frame), 1, 1, 512)
    assert length is None or frame_payload(bytes(frame), length) is None


def test_payloads_that_are_cut_short_are_refused() -> None:
    raw = chain_of(1)[0].raw
    for end in range(1, len(raw)):
        with pytest.raises(ValueError, match="cut short"):
            list(records_in(raw[:end]))


@given(at=st.integers(0, 75), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_segment_header_is_caught(at: int, bit: int) -> None:
    header = SegmentHeader(INCARNATION, 3, 4, 1 << 20, 17, b"h" * 16)
    raw = bytearray(header.pack())
    assert parse_segment_header(bytes(raw)) == header
    raw[at] ^= 1 << bit
    assert parse_segment_header(bytes(raw)) is None


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_the_revision_after_a_record_is_read_without_its_rows(count: int) -> None:
    body = changes_body([((), ())] * count)
    assert revision_after(make_record(Kind.TRANSACTIONS, 1, 7, 100, NO_HASH, body)) == 100 + count
    assert revision_after(make_record(Kind.EPOCH, 1, 7, 100, NO_HASH, b"")) == 100


def test_the_founding_record_says_who_is_a_member() -> None:
    founding = Founding(INCARNATION, ("a", "b", "c"))
    record = make_record(Kind.FOUNDING, 1, 1, 0, NO_HASH, founding_body(founding))
    assert founding_of(record) == founding
    assert members_of(record) == ("a", "b", "c")
    assert changes_of(record) == ()


BASE = Base(INCARNATION, 9, 2, b"h" * 16, 40, ("a", "b", "c"))


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_checkpoint_is_caught(at: int, bit: int) -> None:
    rows = [Row(b"a", b"1", 3), Row(b"b" * 300, b"", 4)]
    raw = ckpt.pack_block(BASE, 5, rows)
    assert ckpt.parse_block(raw, BASE, 5) == rows
    spoiled = bytearray(raw)
    spoiled[at % len(raw)] ^= 1 << bit
    assert ckpt.parse_block(bytes(spoiled), BASE, 5) is None
    end = bytearray(ckpt.pack_end(BASE, 6, 12))
    assert ckpt.parse_end(bytes(end), BASE) == (6, 12)
    end[at % len(end)] ^= 1 << bit
    assert ckpt.parse_end(bytes(end), BASE) is None


def test_a_checkpoint_block_belongs_to_one_place_of_one_checkpoint() -> None:
    raw = ckpt.pack_block(BASE, 5, [Row(b"a", b"1", 3)])
    other = Base(INCARNATION, 9, 2, b"x" * 16, 40, ())
    assert ckpt.parse_block(raw, BASE, 4) is None
    assert ckpt.parse_block(raw, other, 5) is None
    assert ckpt.parse_head(ckpt.pack_head(BASE)) == BASE
    assert ckpt.parse_head(ckpt.pack_head(BASE)[:-1]) is None


# The chain in memory


def test_the_tail_keeps_what_is_not_acknowledged_and_gives_the_rest_away_when_it_is_too_large() -> None:
    records = chain_of(20)
    chain = Chain(empty_base(INCARNATION), [], len(records[0].raw) * 4)
    for record in records:
        chain.add(record)
    chain.trim(0)
    assert chain.after(0, 20, 1 << 20) == records
    chain.trim(15)
    assert chain.after(0, 20, 1 << 20) is None
    tail = chain.after(17, 20, 1 << 20)
    assert tail == records[17:]
    assert chain.after(18, 19, 1 << 20) == records[18:19]
    assert chain.after(20, 20, 1 << 20) == []
    assert chain.hash_at(3) == records[2].hash
    chain.forget_before(10)
    assert chain.hash_at(3) is None
    assert (chain.low, chain.tip) == (10, 20)


# Which log is the log


def scan_of(records: list[Record], members: tuple[str, ...], **changes: object) -> Scan:
    entries = tuple(Entry(r.sequence, r.epoch, r.hash, r.revision) for r in records)
    facts: dict[str, object] = {
        "incarnation": INCARNATION,
        "promised": 1,
        "base": empty_base(INCARNATION),
        "entries": entries,
        "members": members,
        "damage": (),
        "places": (),
        "checkpoint": "",
        "checkpoint_bytes": 0,
        "generation": 1,
    } | changes
    return Scan(**facts)  # type: ignore[arg-type]


NAMES = ("a", "b", "c")


def test_the_highest_epoch_wins_over_the_longer_chain() -> None:
    common = chain_of(3)
    longer, later = common + chain_of(4, 1, common[-1]), common + chain_of(1, 2, common[-1])
    scans = {"a": scan_of(longer, NAMES), "b": scan_of(later, NAMES)}
    choice = choose(NAMES, scans, {"c": "gone"})
    assert (choice.verdict, choice.source, choice.voters) == (Verdict.CHOSEN, "b", ("a", "b"))
    assert choice.wanting == (("c", "gone"),)
    assert last_common(scans["a"], 0, 4, scans["b"].hash_at) == 3


def test_empty_damaged_joining_and_foreign_members_do_not_vote() -> None:
    good, short = chain_of(5), chain_of(3)
    for other in (
        scan_of([], (), incarnation=None, base=None),
        scan_of(short, NAMES, damage=("bad",)),
        scan_of(short, NAMES, joining=True),
        scan_of(short, NAMES, incarnation=b"x" * 16),
    ):
        choice = choose(NAMES, {"a": scan_of(good, NAMES), "b": other}, {})
        assert choice.verdict is Verdict.TOO_FEW, other
        assert {name for name, _ in choice.wanting} == {"b", "c"}


def test_a_damaged_member_may_still_be_the_one_with_the_records() -> None:
    records = chain_of(5)
    scans = {
        "a": scan_of(records[:3], NAMES),
        "b": scan_of(records[:3], NAMES),
        "c": scan_of(records, NAMES, damage=("bad",)),
    }
    choice = choose(NAMES, scans, {})
    assert (choice.verdict, choice.source, choice.voters) == (Verdict.CHOSEN, "c", ("a", "b"))


def test_the_newest_membership_says_which_majority_counts() -> None:
    common = chain_of(2)
    newer = common + chain_of(1, 1, common[-1])
    scans = {"a": scan_of(newer, ("a", "d", "e")), "b": scan_of(common, NAMES), "c": scan_of(common, NAMES)}
    choice = choose((*NAMES, "d", "e"), scans, {})
    assert choice.verdict is Verdict.TOO_FEW
    assert [name for name, _ in choice.wanting] == ["d", "e"]


def test_a_new_log_needs_all_members_empty() -> None:
    empty = scan_of([], (), incarnation=None, base=None)
    assert choose(NAMES, dict.fromkeys(NAMES, empty), {}).verdict is Verdict.NEW
    assert choose(NAMES, {"a": empty, "b": empty}, {"c": "gone"}).verdict is Verdict.TOO_FEW


# Who holds what


def started(count: int = 3, tip: int = 10) -> Replication:
    names = tuple("abcde"[:count])
    core = Replication(names, tip, overdue_s=1.0)
    for name in names:
        assert core.attached(name, tip, 0.0) == []
    return core


def test_a_majority_of_an_older_epoch_alone_acknowledges_nothing() -> None:
    core = started()
    assert core.acked == 0
    core.proposed(11, 0.0)
    assert core.synced("a", 11, 0.0) == []
    assert core.synced("b", 11, 0.0) == [Acked(11)]


def test_each_member_has_one_append_under_way_and_then_gets_all_that_is_new() -> None:
    core = started()
    assert core.proposed(11, 0.0) == [Send("a", 10), Send("b", 10), Send("c", 10)]
    assert core.proposed(12, 0.0) == []
    assert core.proposed(13, 0.0) == []
    assert core.synced("a", 11, 0.0) == [Send("a", 11)]
    assert core.synced("b", 11, 0.0) == [Acked(11), Send("b", 11)]
    assert core.synced("a", 13, 0.0) == []
    assert core.synced("c", 11, 0.0) == [Send("c", 11)]
    assert core.synced("b", 13, 0.0) == [Acked(13)]


def test_who_is_out_is_not_counted_and_not_sent_to_until_attached_anew() -> None:
    core = started()
    core.proposed(11, 0.0)
    core.synced("a", 11, 0.0)
    assert core.failed("a", "gone") == [Dropped("a", "gone")]
    assert core.synced("b", 11, 0.0) == []
    assert core.synced("a", 11, 0.0) == []
    assert core.progress("a") == (Standing.OUT, 11, "gone")
    assert core.attached("a", 11, 0.0) == [Acked(11)]


def test_an_overdue_append_costs_the_member_its_place() -> None:
    core = started()
    core.proposed(11, 0.0)
    core.synced("a", 11, 0.5)
    core.synced("b", 11, 0.5)
    assert core.tick(0.9) == []
    assert [action.member for action in core.tick(1.1) if isinstance(action, Dropped)] == ["c"]
    assert core.reachable()
    assert core.losses_survivable() == 0


def test_fenced_is_who_cannot_have_a_majority_any_more() -> None:
    core = started()
    assert core.refused("a", 9)[-1] == Dropped("a", "has promised epoch 9 to another process")
    assert core.fenced_by is None
    assert core.refused("b", 9)[-1] == FencedOff(9)
    core.proposed(11, 0.0)
    assert core.synced("c", 11, 0.0) == []
    assert not core.reachable()


@given(count=st.integers(1, 9))
def test_two_majorities_always_meet(count: int) -> None:
    assert 2 * majority(count) > count
    assert majority(count) + majority(count + 1) > count + 1


# Deciding


def put(key: bytes, revision: int, value: bytes = b"") -> Transaction:
    return Transaction((Expect(key, revision),), ((key, value),))


def test_what_depends_on_the_unacknowledged_waits_for_it() -> None:
    live = LiveRows(0)
    made = live.decide([put(b"k", ABSENT)], {b"k": None}, 1, 100)
    assert made.decisions == [(Committed(101), 1)]
    live.stage(1, made.entries)
    made = live.decide([put(b"k", ABSENT), put(b"k", 101), put(b"x", 7)], {b"x": None}, 2, 101)
    assert made.decisions == [(Conflict(b"k"), 1), (Committed(102), 2), (Conflict(b"x"), 0)]
    assert b"k" not in live.acked
    live.stage(2, made.entries)
    live.acknowledge(1)
    assert live.acked[b"k"].row == Row(b"k", b"", 101)
    assert live.pending[b"k"].row == Row(b"k", b"", 102)
    live.acknowledge(2)
    assert live.acked[b"k"].row == Row(b"k", b"", 102)
    assert not live.pending


def test_the_floor_stays_while_it_is_held() -> None:
    live = LiveRows(0)
    for sequence, key in ((1, b"a"), (2, b"b"), (3, b"a")):
        live.stage(sequence, live.decide([Transaction((), ((key, b""),))], {}, sequence, sequence).entries)
    live.acknowledge(3)
    live.hold()
    live.hold()
    live.raise_floor(2)
    live.release()
    assert set(live.acked) == {b"a", b"b"}
    live.release()
    assert (set(live.acked), live.floor) == ({b"a"}, 2)
    live.raise_floor(3)
    assert not live.acked
