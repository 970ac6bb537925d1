"""Bytes of journal pieces and snapshots. The tables are in `docs/formats-recovery.md`. Pure.

The chain is over changes, not over pieces: it is the hash of the one before with the next change, so
however the same history is cut into pieces, each revision has one chain value. What must hold: a piece
whose changes do not lead from the chain value it begins with to the one it ends with is not believed; and
a page or head of another snapshot is noticed.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import TypeVar

import msgspec
from msgspec import Struct

from holdfast.base.errors import Damaged
from holdfast.index.port import Change, Row
from holdfast.recovery.names import PieceName, SnapshotName

FORMAT = 1
CHAIN_BYTES = 16

RawChange = tuple[int, tuple[tuple[bytes, bytes], ...], tuple[bytes, ...]]
"""Revision, puts, deletes."""


class Piece(Struct, frozen=True, array_like=True):
    """Some changes of the index, in order. `chain_before` is the chain at revision `before`, `chain_after`
    that at `after`. `began` is the revision at which the process that wrote it began to serve; `written_ms`
    its wall clock, a label. `bytes_before` counts all of the journal before it."""

    format: int
    lineage: int
    incarnation: str
    before: int
    after: int
    chain_before: bytes
    chain_after: bytes
    written_ms: int
    began: int
    bytes_before: int
    changes: tuple[RawChange, ...]


class Head(Struct, frozen=True, array_like=True):
    """The end of a snapshot. Its pages were read while commits went on, between the revisions `since` and
    `through`: with the journal's changes between them they are all rows as of `through`. `chain` is that
    of the journal at `since`, `journal_bytes` how long it was; `ancestors` are the incarnations that this
    index was made from."""

    format: int
    lineage: int
    incarnation: str
    since: int
    through: int
    chain: bytes
    pages: int
    rows: int
    size: int
    journal_bytes: int
    written_ms: int
    ancestors: tuple[str, ...] = ()


class LineageRow(Struct, frozen=True, array_like=True):
    """`lineage`: how often this index was made anew, from which ones (oldest first), and when last. An
    index that never was has no such row."""

    format: int
    number: int
    ancestors: tuple[str, ...]
    made_ms: int


LINEAGE_ROW = b"lineage"

_encode = msgspec.msgpack.Encoder().encode
_piece = msgspec.msgpack.Decoder(Piece)
_head = msgspec.msgpack.Decoder(Head)
_lineage = msgspec.msgpack.Decoder(LineageRow)
_T = TypeVar("_T", Piece, Head, LineageRow)

_PAGE_MAGIC = b"HFSP0001"
_PAGE = struct.Struct("<8s16sII")
_ROW = struct.Struct("<HIQ")


def first_chain(incarnation: str, revision: int) -> bytes:
    """Where a chain begins that has no past."""
    return blake2b(f"{incarnation} {revision}".encode(), digest_size=CHAIN_BYTES).digest()


def next_chain(chain: bytes, raw: bytes) -> bytes:
    """The chain after a change, given its encoding."""
    return blake2b(chain + raw, digest_size=CHAIN_BYTES).digest()


def encode_change(change: Change) -> bytes:
    """A change as pieces hold it, and as the chain goes over it."""
    return _encode((change.revision, change.puts, change.deletes))


def encode_piece(piece: Piece, changes: Sequence[bytes]) -> bytes:
    """A piece whose changes are encoded already (`piece.changes` is not looked at)."""
    fields = [getattr(piece, name) for name in Piece.__struct_fields__[:-1]]
    return _encode([*fields, [msgspec.Raw(raw) for raw in changes]])


def decode_piece(data: bytes, name: PieceName) -> Piece:
    """Raises Damaged when it is not what its name says, or its changes do not follow from each other."""
    piece = _decoded(_piece, data, str(name))
    said = (piece.lineage, piece.incarnation, piece.before, piece.after)
    if said != (*name.lineage, name.before, name.after):
        raise Damaged(f"The journal piece {name} says that it is another.")
    chain, revision = piece.chain_before, piece.before
    for change in piece.changes:
        chain = next_chain(chain, _encode(change))
        if change[0] <= revision:
            raise Damaged(f"The journal piece {name} is out of order at revision {change[0]}.")
        revision = change[0]
    if chain != piece.chain_after or revision != piece.after:
        raise Damaged(f"The journal piece {name} does not end as it says.")
    return piece


def chain_at(piece: Piece, revision: int) -> bytes:
    """The chain at a revision inside a piece."""
    chain = piece.chain_before
    for change in piece.changes:
        if change[0] > revision:
            break
        chain = next_chain(chain, _encode(change))
    return chain


def encoded_changes(piece: Piece) -> list[bytes]:
    """Its changes, each encoded, to be put into another piece."""
    return [_encode(change) for change in piece.changes]


def encode_head(head: Head) -> bytes:
    """As bytes."""
    return _encode(head)


def decode_head(data: bytes, name: SnapshotName) -> Head:
    """Raises Damaged when it is not what its name says."""
    head = _decoded(_head, data, name.head)
    if (head.lineage, head.incarnation, head.since) != (*name.lineage, name.since):
        raise Damaged(f"The snapshot {name.head} says that it is another.")
    return head


def encode_lineage(row: LineageRow) -> bytes:
    """The value of the row `lineage`."""
    return _encode(row)


def decode_lineage(value: bytes) -> LineageRow:
    """Raises Damaged."""
    return _decoded(_lineage, value, "the row that says what the index was made from")


def encode_page(snapshot: SnapshotName, number: int, rows: Iterable[Row]) -> list[bytes]:
    """Page `number` with `rows`, in pieces to be laid end to end."""
    parts: list[bytes] = [b""]
    count = 0
    for key, value, revision in rows:
        parts += (_ROW.pack(len(key), len(value), revision), key, value)
        count += 1
    parts[0] = _PAGE.pack(_PAGE_MAGIC, _binding(snapshot), number, count)
    return parts


def decode_page(data: bytes, snapshot: SnapshotName, number: int) -> list[Row]:
    """The rows of a page. Raises Damaged when it is none, or of another snapshot, or another page."""
    where = snapshot.page(number)
    if len(data) < _PAGE.size:
        raise Damaged(f"The snapshot page {where} is too short.")
    magic, binding, said, count = _PAGE.unpack_from(data)
    if (magic, binding, said) != (_PAGE_MAGIC, _binding(snapshot), number):
        raise Damaged(f"The snapshot page {where} is something else.")
    rows = list(_rows(data, where))
    if len(rows) != count:
        raise Damaged(f"The snapshot page {where} has {len(rows)} rows, and says {count}.")
    return rows


def _rows(data: bytes, where: str) -> Iterator[Row]:
    at = _PAGE.size
    while at < len(data):
        if at + _ROW.size > len(data):
            raise Damaged(f"The snapshot page {where} is cut short.")
        key_bytes, value_bytes, revision = _ROW.unpack_from(data, at)
        at += _ROW.size
        middle, end = at + key_bytes, at + key_bytes + value_bytes
        if end > len(data):
            raise Damaged(f"The snapshot page {where} is cut short.")
        yield Row(data[at:middle], data[middle:end], revision)
        at = end


def _binding(snapshot: SnapshotName) -> bytes:
    return blake2b(snapshot.prefix.encode(), digest_size=16).digest()


def _decoded(decoder: "msgspec.msgpack.Decoder[_T]", data: bytes, where: str) -> _T:
    try:
        value = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"What should be {where} cannot be read: {error}.") from error
    if value.format != FORMAT:
        raise Damaged(
            f"{where} has format {value.format}; this Holdfast knows {FORMAT}.", hint="Use a newer Holdfast."
        )
    return value
