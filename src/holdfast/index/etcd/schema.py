"""How the index lies in etcd. Pure.

    <namespace>/meta            format, incarnation, base of the revisions, whether it began empty
    <namespace>/gate            while it exists, only whoever put it may commit; see `committing`
    <namespace>/lane/<name>     the last transaction of etcd on one lane of one process: which one it was,
                                and how what it changed divides into transactions of the port
    <namespace>/row/<key>       place in its transaction of etcd (1 byte), CRC32C of key, place and value
                                (4 bytes, little-endian), value

A *lane* is a series of transactions, one at a time; each puts the lane's row, expecting it at the one
before. So each is applied once, however often it was sent, and whoever lost the answer can ask.

Up to 128 transactions of the port share one transaction of etcd and so one of its revisions. The revision
of the port is `base + 128 * (revision of etcd) + place`. What must hold: `base` is such that every revision
is greater than all that earlier incarnations gave, wherever they lay.
"""

from typing import NamedTuple

import msgspec
from msgspec import Struct

from holdfast.base.checksums import crc32c
from holdfast.base.errors import Damaged, InvalidInput
from holdfast.index.copying import Kind
from holdfast.index.port import Row

FORMAT = 1
PLACES = 128
"""How many transactions of the port one of etcd can hold; a place is one byte below this."""

HEADER_BYTES = 5


class Keys:
    """Where what is, in one namespace."""

    def __init__(self, namespace: str) -> None:
        root = namespace.encode()
        self.all = root + b"/"
        self.all_end = root + b"0"
        self.meta = root + b"/meta"
        self.gate = root + b"/gate"
        self.lanes = root + b"/lane/"
        self.lanes_end = root + b"/lane0"
        self.rows = root + b"/row/"

    def row(self, key: bytes) -> bytes:
        """Where the row of `key` is."""
        return self.rows + key

    def lane(self, name: str) -> bytes:
        """Where the row of a lane is."""
        return self.lanes + name.encode()


class Meta(Struct, frozen=True, array_like=True):
    """The row that names the index. `whole`: it began empty, so that its feed tells all of it. `state`, with
    `other` and `where`, is a `Kind` of `index/copying.py`. `filled`, of one that did not: the revision of
    etcd at which it held all that it began with, so that its feed tells the rest; 0 where nobody asked."""

    format: int
    incarnation: str
    base: int = 0
    whole: bool = True
    state: str = Kind.OPEN.value
    other: str = ""
    where: str = ""
    filled: int = 0


class Known(NamedTuple):
    """The meta row, as it was when the index was opened, and the revision of etcd that it had."""

    meta: Meta
    modified: int


def encode_meta(meta: Meta) -> bytes:
    """The value of the meta row."""
    return msgspec.msgpack.encode(meta)


def decode_meta(value: bytes) -> Meta:
    """Raises InvalidInput for a format that is not ours."""
    try:
        meta = msgspec.msgpack.decode(value, type=Meta)
    except msgspec.MsgspecError:
        raise InvalidInput(
            "What etcd holds in this namespace was not made by Holdfast.", hint="Name another namespace."
        ) from None
    if meta.format != FORMAT:
        raise InvalidInput(
            f"The index in etcd has format {meta.format}, this Holdfast knows {FORMAT}.",
            hint="Use the version that made it, or a newer one.",
        )
    return meta


class Revisions:
    """Revisions of the port from those of etcd, and back."""

    def __init__(self, base: int) -> None:
        self._base = base

    def port(self, modified: int, place: int = 0) -> int:
        """The revision of the transaction at that place."""
        return self._base + modified * PLACES + place

    def etcd(self, revision: int) -> tuple[int, int]:
        """The revision of etcd and the place; (0, 0) for one that was never given here."""
        modified, place = divmod(revision - self._base, PLACES)
        return (modified, place) if modified > 0 else (0, 0)


def encode_row(key: bytes, value: bytes, place: int) -> bytes:
    """What is stored for a row."""
    start = bytes((place,))
    return start + _checksum(key, start, value).to_bytes(4, "little") + value


def decode_row(key: bytes, stored: bytes, modified: int, revisions: Revisions) -> Row:
    """A row of the port. Raises Damaged when it is not what was put."""
    start, value = stored[:1], stored[HEADER_BYTES:]
    if (
        len(stored) < HEADER_BYTES
        or stored[0] >= PLACES
        or _checksum(key, start, value).to_bytes(4, "little") != stored[1:HEADER_BYTES]
    ):
        raise Damaged(
            f"A member of etcd answered with wrong bytes for row {key!r}.",
            hint="Compare the members (`etcdctl endpoint hashkv`); replace the one that differs.",
        )
    return Row(key, value, revisions.port(modified, stored[0]))


def _checksum(key: bytes, start: bytes, value: bytes) -> int:
    return crc32c(value, crc32c(key + start))


class Frame(Struct, frozen=True, array_like=True):
    """The value of a lane's row. `attempt` names the transaction of etcd; `count` of the port's are in it,
    which put `puts` rows in all. `deletes` are (place, key), also of rows that were not there; None: it is
    one transaction, and its deletes are those that etcd tells of."""

    attempt: int
    count: int
    puts: int
    deletes: tuple[tuple[int, bytes], ...] | None = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode_frame(frame: Frame) -> bytes:
    """The value of a lane's row."""
    return _encoder.encode(frame)


def decode_frame(value: bytes) -> Frame:
    """Raises Damaged."""
    try:
        return _decoder.decode(value)
    except msgspec.MsgspecError:
        raise Damaged("A member of etcd answered with wrong bytes for the row of a lane.") from None


class Gate(Struct, frozen=True, array_like=True):
    """The value of the gate's row: who put it, and for how long others should wait before they take it
    away; 0: it goes by itself, with a lease."""

    owner: str
    patience_s: float


def encode_gate(gate: Gate) -> bytes:
    """The value of the gate's row."""
    return _encoder.encode(gate)


def decode_gate(value: bytes) -> Gate:
    """Raises Damaged."""
    try:
        return msgspec.msgpack.decode(value, type=Gate)
    except msgspec.MsgspecError:
        raise Damaged("A member of etcd answered with wrong bytes for the row of the gate.") from None
