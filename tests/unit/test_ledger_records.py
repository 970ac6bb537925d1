"""What the ledger wrote is read back whole, and what was cut off or damaged costs itself only."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.health.ledger_records import (
    BEAT_BYTES,
    Away,
    Beat,
    Cell,
    Minute,
    Record,
    StoreCell,
    StoreChange,
    decode_beats,
    decode_frames,
    encode_beat,
    encode_frame,
    encode_frames,
)

RECORDS: list[Record] = [
    Minute(
        29_000_000,
        60_000,
        0,
        (Cell("photos", "GetObject", 3, 1, good=5, bad=2),),
        None,
        (StoreCell("disk1"),),
    ),
    Away(1_740_000_000_000, 1_740_000_005_000, "crashed", 2000),
    StoreChange(1_740_000_001_000, "disk1", "healthy", "down", "gone"),
    Minute(29_000_001, 60_000, canary=Cell("", "Canary", 1)),
]


def test_records_come_back_as_they_were() -> None:
    assert decode_frames(encode_frames(RECORDS)) == (RECORDS, 0)
    assert decode_frames(b"") == ([], 0)


@given(st.integers(min_value=0))
def test_a_torn_end_loses_only_the_last_record(cut: int) -> None:
    last = encode_frame(RECORDS[-1])
    data = encode_frames(RECORDS[:-1]) + last[: cut % len(last)]
    records, damaged = decode_frames(data)
    assert records == RECORDS[:-1]
    assert damaged == (1 if cut % len(last) else 0)


def test_what_is_written_behind_a_torn_end_is_read() -> None:
    torn = encode_frame(RECORDS[0])[:-5]
    assert decode_frames(torn + encode_frames(RECORDS[1:])) == (RECORDS[1:], 1)


@given(st.data())
def test_a_flipped_bit_never_makes_another_record(data: st.DataObject) -> None:
    whole = encode_frames(RECORDS)
    at = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    records, damaged = decode_frames(bytes(flipped))
    assert all(record in RECORDS for record in records)
    # A bit that is not looked at (filling) may change nothing; any other costs exactly one record.
    assert len(records) == len(RECORDS) - (1 if damaged else 0)


@pytest.mark.parametrize("stopped", [False, True])
def test_the_newest_whole_beat_counts(stopped: bool) -> None:
    boot = bytes(range(16))
    old, new = Beat(1000, False, boot, 6), Beat(2000, stopped, boot, 7)
    both = encode_beat(old) + encode_beat(new)
    assert decode_beats(both) == new
    assert decode_beats(both[:BEAT_BYTES]) == old
    torn = both[: BEAT_BYTES + 30] + bytes(BEAT_BYTES - 30)
    assert decode_beats(torn) == old
    assert decode_beats(b"") is None
