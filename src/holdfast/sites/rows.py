"""What a standby keeps in its index: which rows are the active's, and how far it has followed.

Rows of the active are byte for byte the same at the standby, but for those that say where bytes lie (`pack/`,
`buried/`, `debt/`), which each site has of its own, and the moment in `part/` rows. Layouts are in
`docs/sites.md`.
"""

import msgspec
from msgspec import Struct

from holdfast.base.errors import Damaged
from holdfast.base.ids import PackId
from holdfast.index.port import Prefix, Row, prefix_end
from holdfast.objects.rows import PartRow, decode_part

FORMAT = 1

STATE_ROW = b"site/state"
CHECKPOINT_ROW = b"site/checkpoint"
MARK_ROW = b"site/mark"

PACKS = b"pack/"
PARTS = b"part/"
COPIED = (
    b"bucket/",
    b"cleanup/",
    b"dead/",
    b"ended/",
    b"head/",
    PACKS,
    PARTS,
    b"request/",
    b"rescheme/",
    b"share/",
    b"upload/",
    b"version/",
)
"""What goes over, in key order. A prefix that is not here stays where it is."""

assert list(COPIED) == sorted(COPIED)


class Checkpoint(Struct, frozen=True, array_like=True):
    """`site/checkpoint`: every commit of the index `incarnation` up to `revision` is in, as far as it is
    about keys up to `copied` (None: all). From `whole` on that is a state which the active had."""

    format: int
    incarnation: str
    revision: int
    whole: int
    copied: bytes | None

    @property
    def is_whole(self) -> bool:
        """Whether the rows are a state that the active had."""
        return self.copied is None and self.revision >= self.whole

    def covers(self, key: bytes) -> bool:
        """Whether a commit about `key` is to be applied: else the key has yet to be copied."""
        return self.copied is None or key <= self.copied


_encode = msgspec.msgpack.Encoder().encode
_checkpoint = msgspec.msgpack.Decoder(Checkpoint)


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """As the index holds it."""
    return _encode(checkpoint)


def decode_checkpoint(value: bytes) -> Checkpoint:
    """The other way. Raises Damaged."""
    try:
        checkpoint = _checkpoint.decode(value)
    except msgspec.MsgspecError as error:
        raise Damaged(f"The row of how far this site has followed cannot be read: {error}.") from error
    if checkpoint.format != FORMAT:
        raise Damaged(
            f"The row of how far this site has followed has format {checkpoint.format}; "
            f"this program knows {FORMAT}.",
            hint="Use a newer Holdfast.",
        )
    return checkpoint


def is_copied(key: bytes) -> bool:
    """Whether the row of a key goes over to the standby, itself or what it stands for."""
    return key.startswith(COPIED)


def span_after(copied: bytes) -> tuple[bytes, bytes] | None:
    """Where copying goes on after the key `copied`: start and end of keys with one prefix. None: at the
    end."""
    for prefix in COPIED:
        end = prefix_end(prefix)
        if copied < end:
            return max(prefix, copied + b"\0" if copied else prefix), end
    return None


def pack_of(key: bytes) -> PackId:
    """The pack that a `pack/` row is about."""
    return PackId(bytes.fromhex(key.removeprefix(PACKS).decode()))


def part_number(key: bytes) -> bytes:
    """What attempts for one part of one upload have in common."""
    return key.rsplit(b"/", 1)[0]


def arrival(row: Row) -> int:
    """The moment of an attempt of a part, in revisions of the index that the row is from."""
    return decode_part(row.value).arrived or row.revision


def at_moment(value: bytes, arrived: int) -> bytes:
    """The row of an attempt of a part with another moment."""
    part: PartRow = decode_part(value)
    return _encode(msgspec.structs.replace(part, arrived=arrived))


def only_rows(items: list[Row | Prefix]) -> list[Row]:
    """What a scan without a delimiter answers."""
    return [item for item in items if isinstance(item, Row)]
