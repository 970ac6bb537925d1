"""What the ledger keeps, and its bytes: records, and the frames they lie in (docs/formats-ledger.md). Pure.

A file is a row of frames, each with a checksum of its own, only ever appended to. What must hold: whatever
was cut off or damaged, every frame that is whole is read, and nothing else is; a record is never understood
in part.
"""

import struct
from collections.abc import Iterable
from typing import NamedTuple

import msgspec
from msgspec import Struct

from holdfast.base.checksums import crc32c

MAGIC = b"HFLR"
VERSION = 1
PAYLOAD_BYTES_MAX = 4 << 20
_HEAD = struct.Struct("<4sHxxII")

ALL = "*"
"""In a view: all buckets, or all operations."""

OTHER = "(other)"
"""The bucket of what came when as many buckets as can be told apart had a row already."""

MINUTE_MS = 60_000
DAY_MINUTES = 24 * 60


class Cell(Struct, frozen=True, array_like=True):
    """What became of the requests for one bucket and operation in a minute. `neither` were given up by their
    clients. Masks have a bit for each second: `good` where one succeeded, `bad` where one failed."""

    bucket: str
    operation: str
    successes: int = 0
    failures: int = 0
    neither: int = 0
    slow: int = 0
    waited_ms: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    good: int = 0
    bad: int = 0


class StoreCell(Struct, frozen=True, array_like=True):
    """What one store did in a minute; `away_ms` is how long it could not be used at all."""

    slot: str
    reads: int = 0
    read_errors: int = 0
    reads_slow: int = 0
    writes: int = 0
    write_errors: int = 0
    writes_slow: int = 0
    away_ms: int = 0


class Minute(Struct, frozen=True, array_like=True, tag=1):
    """One minute (since 1970 UTC) as one process saw it, `covered_ms` of it. Several records of one minute
    add up."""

    minute: int
    covered_ms: int
    index_away_ms: int = 0
    cells: tuple[Cell, ...] = ()
    canary: Cell | None = None
    stores: tuple[StoreCell, ...] = ()
    lost_before: int = 0


class Away(Struct, frozen=True, array_like=True, tag=2):
    """Time in which the node did not serve, within one day (UTC). `why` is `stopped`, `crashed`, `rebooted`
    (the machine) or `stalled`; it may have begun up to `uncertain_ms` later than said. `continues` for what
    began on an earlier day."""

    from_ms: int
    until_ms: int
    why: str
    uncertain_ms: int = 0
    continues: bool = False


class StoreChange(Struct, frozen=True, array_like=True, tag=3):
    """A store was seen in another state. `before` is empty at the start of a process; `unwell_ms` is when its
    first call failed of those that led here, 0 where nothing had failed."""

    at_ms: int
    slot: str
    before: str
    after: str
    reason: str = ""
    unwell_ms: int = 0


class Segment(Struct, frozen=True, array_like=True):
    """An interruption: nothing succeeded from `start_ms` to `end_ms`."""

    start_ms: int
    end_ms: int

    @property
    def length_ms(self) -> int:
        return self.end_ms - self.start_ms


class Stretch(Struct, frozen=True, array_like=True):
    """Some time as one view of the requests saw it. Of it, `known_ms` have data; of these, `unavailable_ms`
    did not serve, of these again `away_ms` because the node was not running. `left` and `right` are the
    interruptions at its edges, which may go on in the next stretch; `whole` when both are the same one;
    `blank` when nothing succeeded or failed in it. See `holdfast.health.ledger_periods.join`."""

    known_ms: int = 0
    away_ms: int = 0
    unavailable_ms: int = 0
    index_away_ms: int = 0
    successes: int = 0
    failures: int = 0
    neither: int = 0
    slow: int = 0
    waited_ms: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    canary_successes: int = 0
    canary_failures: int = 0
    left: Segment | None = None
    right: Segment | None = None
    longest: Segment | None = None
    whole: bool = False
    blank: bool = True


class View(Struct, frozen=True, array_like=True):
    """A stretch of one bucket (or all) and one operation (or all)."""

    bucket: str
    operation: str
    stretch: Stretch


class StoreStretch(Struct, frozen=True, array_like=True):
    """Some time as one store went through it."""

    slot: str
    known_ms: int = 0
    away_ms: int = 0
    unavailable_ms: int = 0
    reads: int = 0
    read_errors: int = 0
    reads_slow: int = 0
    writes: int = 0
    write_errors: int = 0
    writes_slow: int = 0


class Period(Struct, frozen=True, array_like=True, tag=4):
    """Minutes rolled up: `minutes` of them from `start` on, with every view that had requests of its own."""

    start: int
    minutes: int
    views: tuple[View, ...]
    stores: tuple[StoreStretch, ...] = ()


Record = Minute | Away | StoreChange | Period

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Record)


class Found(NamedTuple):
    """What a file held. `damaged` counts stretches of bytes that are no whole frame; a torn end is one."""

    records: list[Record]
    damaged: int


def encode_frame(record: Record) -> bytes:
    """The frame of one record."""
    payload = _encoder.encode(record)
    assert len(payload) <= PAYLOAD_BYTES_MAX, "the caps on rows keep records small"
    return _HEAD.pack(MAGIC, VERSION, len(payload), crc32c(payload, len(payload))) + payload


def encode_frames(records: Iterable[Record]) -> bytes:
    """The frames of several."""
    return b"".join(map(encode_frame, records))


def decode_frames(data: bytes) -> Found:
    """Every whole frame of a file, in order."""
    records: list[Record] = []
    damaged = at = 0
    lost = False
    while at < len(data):
        end = _frame_end(data, at)
        if end:
            try:
                records.append(_decoder.decode(data[at + _HEAD.size : end]))
            except msgspec.MsgspecError:
                damaged += 1  # whole, and of a kind that this version does not know
            at, lost = end, False
            continue
        damaged += not lost
        lost = True
        found = data.find(MAGIC, at + 1)
        at = len(data) if found < 0 else found
    return Found(records, damaged)


def _frame_end(data: bytes, at: int) -> int:
    """Where the frame at `at` ends; 0 when there is no whole one."""
    if len(data) - at < _HEAD.size:
        return 0
    magic, version, length, checksum = _HEAD.unpack_from(data, at)
    end = at + _HEAD.size + length
    if magic != MAGIC or version != VERSION or length > PAYLOAD_BYTES_MAX or end > len(data):
        return 0
    return end if crc32c(data[at + _HEAD.size : end], length) == checksum else 0


class Beat(NamedTuple):
    """A sign of life. `boot` tells one run of the machine from the next."""

    wall_ms: int
    stopped: bool
    boot: bytes
    sequence: int


BEAT_BYTES = 64
BEAT_SLOTS = 2
_BEAT = struct.Struct("<4sHBxQQ16s20xI")
_BEAT_MAGIC = b"HFLB"
assert _BEAT.size == BEAT_BYTES


def encode_beat(beat: Beat) -> bytes:
    """One slot of the beat file."""
    fields = (_BEAT_MAGIC, VERSION, beat.stopped, beat.sequence, beat.wall_ms, beat.boot)
    return _BEAT.pack(*fields, crc32c(_BEAT.pack(*fields, 0)[:-4]))


def decode_beats(data: bytes) -> Beat | None:
    """The newest beat of a beat file; None when there is none that is whole."""
    beats = []
    for slot in range(BEAT_SLOTS):
        raw = data[slot * BEAT_BYTES : (slot + 1) * BEAT_BYTES]
        if len(raw) < BEAT_BYTES:
            continue
        magic, version, stopped, sequence, wall_ms, boot, checksum = _BEAT.unpack(raw)
        if magic == _BEAT_MAGIC and version == VERSION and crc32c(raw[:-4]) == checksum:
            beats.append(Beat(wall_ms, bool(stopped), boot, sequence))
    return max(beats, key=lambda beat: beat.sequence, default=None)
