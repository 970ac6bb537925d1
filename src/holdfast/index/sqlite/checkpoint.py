"""Bytes of a checkpoint: all rows as of one record of the log, in key order. Pure.

It stands for every record up to and with its sequence, so that older ones can be dropped. Byte tables
are in `docs/formats-index.md`. What must hold: every block has a checksum that binds it to its place, the
end says how many blocks and rows there were, and a file without a valid end is no checkpoint.
"""

import struct
from collections.abc import Iterable, Iterator

import msgspec

from holdfast.base.checksums import crc32c
from holdfast.index.port import Row
from holdfast.index.sqlite.records import NO_HASH

HEAD_BYTES = 4096
BLOCK_BYTES = 1 << 20
"""About how large a block grows before it is closed; one row more may lie above it."""

_HEAD_MAGIC = b"HFCKP001"
_HEAD = struct.Struct("<8sI")
_BLOCK_MAGIC = b"HFCB"
_END_MAGIC = b"HFCE"
_BLOCK = struct.Struct("<4sIQI16sI")
BLOCK_HEAD_BYTES = _BLOCK.size
_ROW = struct.Struct("<HIQ")


class Sums(msgspec.Struct, frozen=True, array_like=True):
    """What all rows of one moment add up to: their number, their revisions, the checksums of their content.
    A row that is lost, or an older one in its place, changes them."""

    rows: int = 0
    revisions: int = 0
    checksums: int = 0

    def plus(self, other: "Sums") -> "Sums":
        """Of two sets of rows that share none."""
        return Sums(
            self.rows + other.rows, self.revisions + other.revisions, self.checksums + other.checksums
        )

    def minus(self, other: "Sums") -> "Sums":
        """Without rows that are among them."""
        return Sums(
            self.rows - other.rows, self.revisions - other.revisions, self.checksums - other.checksums
        )


def row_checksum(key: bytes, value: bytes, revision: int) -> int:
    """Over all that a row is."""
    return crc32c(value, crc32c(revision.to_bytes(8, "little") + key))


def sums_of(rows: Iterable[Row]) -> Sums:
    """What `rows` add up to."""
    count = revisions = checksums = 0
    for key, value, revision in rows:
        count += 1
        revisions += revision
        checksums += row_checksum(key, value, revision)
    return Sums(count, revisions, checksums)


class Base(msgspec.Struct, frozen=True, array_like=True):
    """Where in the log a checkpoint or a copy stands: the record `sequence`, and revision, membership and
    the sums of all rows after it."""

    incarnation: bytes
    sequence: int
    epoch: int
    hash: bytes
    revision: int
    members: tuple[str, ...]
    sums: Sums = Sums()


def empty_base(incarnation: bytes) -> Base:
    """Before the first record: no rows, nobody a member."""
    return Base(incarnation, 0, 0, NO_HASH, 0, ())


def pack_head(base: Base) -> bytes:
    """The first `HEAD_BYTES` of the file."""
    body = msgspec.msgpack.encode(base)
    raw = _HEAD.pack(_HEAD_MAGIC, len(body)) + body
    assert len(raw) + 4 <= HEAD_BYTES
    return (raw + crc32c(raw).to_bytes(4, "little")).ljust(HEAD_BYTES, b"\0")


def parse_head(raw: bytes) -> Base | None:
    """What the head says, or None when it does not verify."""
    if len(raw) < HEAD_BYTES:
        return None
    magic, length = _HEAD.unpack_from(raw)
    end = _HEAD.size + length
    if magic != _HEAD_MAGIC or end + 4 > HEAD_BYTES:
        return None
    if crc32c(raw[:end]) != int.from_bytes(raw[end : end + 4], "little"):
        return None
    try:
        return msgspec.msgpack.decode(raw[_HEAD.size : end], type=Base)
    except msgspec.MsgspecError:
        return None


def pack_block(base: Base, number: int, rows: Iterable[Row]) -> bytes:
    """Block `number` (from 0) with `rows`, head and payload."""
    parts: list[bytes] = []
    for key, value, revision in rows:
        parts += (_ROW.pack(len(key), len(value), revision), key, value)
    return _frame(_BLOCK_MAGIC, base, number, len(parts) // 3, b"".join(parts))


def pack_end(base: Base, blocks: int, rows: int) -> bytes:
    """What closes a file of that many blocks and rows."""
    return _frame(_END_MAGIC, base, blocks, 0, rows.to_bytes(8, "little"))


def _frame(magic: bytes, base: Base, number: int, rows: int, payload: bytes) -> bytes:
    head = _BLOCK.pack(magic, len(payload), number, rows, base.hash, 0)[:-4]
    return b"".join((head, crc32c(payload, crc32c(head)).to_bytes(4, "little"), payload))


END_BYTES = BLOCK_HEAD_BYTES + 8


def payload_bytes(head: bytes) -> int | None:
    """How long the payload behind this block head is; None when it is no head."""
    if len(head) < BLOCK_HEAD_BYTES or head[:4] not in (_BLOCK_MAGIC, _END_MAGIC):
        return None
    return int(_BLOCK.unpack_from(head)[1])


def is_block(raw: bytes, base: Base, number: int) -> bool:
    """Whether it is block `number` of that checkpoint and verifies."""
    return _verifies(raw, _BLOCK_MAGIC, base, number)


def parse_block(raw: bytes, base: Base, number: int) -> list[Row] | None:
    """The rows of block `number`, or None when it does not verify."""
    if not _verifies(raw, _BLOCK_MAGIC, base, number):
        return None
    rows = list(_rows(raw))
    return rows if len(rows) == _BLOCK.unpack_from(raw)[3] else None


def parse_end(raw: bytes, base: Base) -> tuple[int, int] | None:
    """(blocks, rows) of a valid end, or None."""
    if len(raw) != END_BYTES or not _verifies(raw, _END_MAGIC, base, None):
        return None
    return int(_BLOCK.unpack_from(raw)[2]), int.from_bytes(raw[BLOCK_HEAD_BYTES:], "little")


def _verifies(raw: bytes, wanted: bytes, base: Base, number: int | None) -> bool:
    if len(raw) < BLOCK_HEAD_BYTES:
        return False
    magic, length, found, _, at, crc = _BLOCK.unpack_from(raw)
    if magic != wanted or at != base.hash or len(raw) != BLOCK_HEAD_BYTES + length:
        return False
    if number is not None and found != number:
        return False
    return crc32c(raw[BLOCK_HEAD_BYTES:], crc32c(raw[: BLOCK_HEAD_BYTES - 4])) == int(crc)


def _rows(raw: bytes) -> Iterator[Row]:
    at = BLOCK_HEAD_BYTES
    while at < len(raw):
        key_bytes, value_bytes, revision = _ROW.unpack_from(raw, at)
        at += _ROW.size
        middle, end = at + key_bytes, at + key_bytes + value_bytes
        yield Row(raw[at:middle], raw[middle:end], revision)
        at = end
