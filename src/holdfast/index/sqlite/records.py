"""Bytes of the log: records, the frames that carry them, and segment headers. Pure.

Byte tables are in `docs/formats-index.md`. What must hold:

- a record is the same bytes on every member, and names the hash of the record before it, so that two
  logs that agree on one hash agree on everything before it.
- a frame is what one member writes and syncs at once. It begins at a multiple of `FRAME_ALIGN`, so that
  a torn write cannot touch a frame that was synced earlier, and its header binds it to its segment and
  offset, so that a misplaced or stale one is caught. A member writes the next frame only when this one
  is synced; hence a bad frame before a good one is damage, never a crash.
"""

import struct
from collections.abc import Iterator, Sequence
from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from holdfast.base.checksums import crc32c
from holdfast.index.port import TRANSACTION_BYTES_MAX

HASH_BYTES = 16
NO_HASH = bytes(HASH_BYTES)
"""The hash before the first record."""

INCARNATION_BYTES = 16
FRAME_ALIGN = 512
RECORD_BYTES_MAX = 4 << 20
"""A record, header and body. Holds any single transaction with room for its framing."""

assert RECORD_BYTES_MAX > 2 * TRANSACTION_BYTES_MAX

SEGMENT_HEADER_BYTES = FRAME_ALIGN
_SEGMENT_MAGIC = b"HFSEG001"
_SEGMENT = struct.Struct("<8s16sQQQQ16sI")
_FRAME_MAGIC = b"HFLF"
_FRAME = struct.Struct("<4sIIQQQI")
_RECORD = struct.Struct("<IBxxxQQQ16s")
FRAME_HEADER_BYTES = _FRAME.size
RECORD_HEADER_BYTES = _RECORD.size


class Kind(IntEnum):
    """What a record says."""

    TRANSACTIONS = 1
    FOUNDING = 2
    EPOCH = 3
    MEMBERS = 4


Changes = tuple[tuple[tuple[tuple[bytes, bytes], ...], tuple[bytes, ...]], ...]
"""Of each committed transaction: puts and deletes."""


class Founding(msgspec.Struct, frozen=True, array_like=True):
    """Body of the first record of a log."""

    incarnation: bytes
    members: tuple[str, ...]


class Record(NamedTuple):
    """One record with its place in the chain. `revision` is that before its first transaction; `raw` is
    header and body; `hash` is over `raw`."""

    sequence: int
    epoch: int
    revision: int
    kind: Kind
    previous: bytes
    hash: bytes
    raw: bytes

    @property
    def body(self) -> memoryview:
        """The body's bytes."""
        return memoryview(self.raw)[RECORD_HEADER_BYTES:]


_encode = msgspec.msgpack.Encoder().encode
_decode_changes = msgspec.msgpack.Decoder(Changes).decode
_decode_founding = msgspec.msgpack.Decoder(Founding).decode
_decode_members = msgspec.msgpack.Decoder(tuple[str, ...]).decode


def changes_body(changes: Sequence[tuple[Sequence[tuple[bytes, bytes]], Sequence[bytes]]]) -> bytes:
    """The body of a TRANSACTIONS record."""
    return _encode(changes)


def founding_body(founding: Founding) -> bytes:
    """The body of a FOUNDING record."""
    return _encode(founding)


def members_body(members: Sequence[str]) -> bytes:
    """The body of a MEMBERS record."""
    return _encode(tuple(members))


def changes_of(record: Record) -> Changes:
    """What a record changes in the rows; nothing for those that are about the log itself."""
    return _decode_changes(record.body) if record.kind is Kind.TRANSACTIONS else ()


def revision_after(record: Record) -> int:
    """The revision once the record's transactions are applied. Reads only how many there are: this is asked
    for every record, on the event loop."""
    if record.kind is not Kind.TRANSACTIONS:
        return record.revision
    first = record.raw[RECORD_HEADER_BYTES]
    if first >> 4 == 9:
        return record.revision + (first & 15)
    assert first in (0xDC, 0xDD), "the body is an array"
    width = 2 if first == 0xDC else 4
    at = RECORD_HEADER_BYTES + 1
    return record.revision + int.from_bytes(record.raw[at : at + width], "big")


def members_of(record: Record) -> tuple[str, ...] | None:
    """The membership that a record sets, or None."""
    if record.kind is Kind.FOUNDING:
        return _decode_founding(record.body).members
    return _decode_members(record.body) if record.kind is Kind.MEMBERS else None


def founding_of(record: Record) -> Founding:
    """The body of the first record."""
    return _decode_founding(record.body)


def make_record(kind: Kind, epoch: int, sequence: int, revision: int, previous: bytes, body: bytes) -> Record:
    """A record of the chain; its hash is made here."""
    raw = _RECORD.pack(len(body), kind, epoch, sequence, revision, previous) + body
    assert len(raw) <= RECORD_BYTES_MAX
    return Record(sequence, epoch, revision, kind, previous, record_hash(raw), raw)


def record_hash(raw: bytes) -> bytes:
    """BLAKE2b of header and body, 16 bytes."""
    return blake2b(raw, digest_size=HASH_BYTES).digest()


def make_frame(segment_epoch: int, generation: int, offset: int, records: Sequence[Record]) -> bytes:
    """Records as one aligned frame for `offset` of the segment."""
    assert offset % FRAME_ALIGN == 0
    payload = b"".join([record.raw for record in records])
    head = _FRAME.pack(_FRAME_MAGIC, len(payload), crc32c(payload), segment_epoch, generation, offset, 0)[:-4]
    size = FRAME_HEADER_BYTES + len(payload)
    return b"".join((head, crc32c(head).to_bytes(4, "little"), payload, bytes(-size % FRAME_ALIGN)))


def frame_bytes(payload_bytes: int) -> int:
    """Bytes that a frame with that payload takes in a segment."""
    size = FRAME_HEADER_BYTES + payload_bytes
    return size + -size % FRAME_ALIGN


def frame_payload_bytes(head: bytes, segment_epoch: int, generation: int, offset: int) -> int | None:
    """Length of the payload that a valid frame header announces, or None when it is not one."""
    if len(head) < FRAME_HEADER_BYTES:
        return None
    magic, length, _, epoch, number, at, crc = _FRAME.unpack_from(head)
    if magic != _FRAME_MAGIC or (epoch, number, at) != (segment_epoch, generation, offset):
        return None
    return length if crc32c(head[: FRAME_HEADER_BYTES - 4]) == crc and length else None


def frame_payload(frame: bytes, payload_bytes: int) -> bytes | None:
    """The payload of a frame whose header was found valid, or None when it does not verify."""
    payload = frame[FRAME_HEADER_BYTES : FRAME_HEADER_BYTES + payload_bytes]
    good = len(payload) == payload_bytes and crc32c(payload) == int.from_bytes(frame[8:12], "little")
    return payload if good else None


def records_in(payload: bytes) -> Iterator[Record]:
    """The records of a payload that verified. Raises ValueError when they do not fill it exactly."""
    at = 0
    while at < len(payload):
        if at + RECORD_HEADER_BYTES > len(payload):
            raise ValueError("a record is cut short")
        length, kind, epoch, sequence, revision, previous = _RECORD.unpack_from(payload, at)
        end = at + RECORD_HEADER_BYTES + length
        if end > len(payload):
            raise ValueError("a record is cut short")
        raw = payload[at:end]
        yield Record(sequence, epoch, revision, Kind(kind), previous, record_hash(raw), raw)
        at = end


class SegmentHeader(NamedTuple):
    """The first bytes of a segment. `start` is the sequence of its first record, `previous` the hash of
    the record before that; all records of older segments from `start` on are cut by it. `size` is the
    length of the whole file as it was allocated: one that is shorter was damaged."""

    incarnation: bytes
    epoch: int
    generation: int
    size: int
    start: int
    previous: bytes

    def pack(self) -> bytes:
        """As bytes, padded to `SEGMENT_HEADER_BYTES`."""
        raw = _SEGMENT.pack(
            _SEGMENT_MAGIC,
            self.incarnation,
            self.epoch,
            self.generation,
            self.size,
            self.start,
            self.previous,
            0,
        )[:-4]
        return (raw + crc32c(raw).to_bytes(4, "little")).ljust(SEGMENT_HEADER_BYTES, b"\0")


def parse_segment_header(raw: bytes) -> SegmentHeader | None:
    """The header, or None when it does not verify."""
    if len(raw) < _SEGMENT.size:
        return None
    magic, incarnation, epoch, generation, size, start, previous, crc = _SEGMENT.unpack_from(raw)
    if magic != _SEGMENT_MAGIC or crc32c(raw[: _SEGMENT.size - 4]) != crc:
        return None
    return SegmentHeader(incarnation, epoch, generation, size, start, previous)
