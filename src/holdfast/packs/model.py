"""The values that packs speak in: extents, pack rows, manifest entries, receipts.

Stored types are `array_like`: fields are only ever added at the end, with a default, so that an old
row reads as a new one. Byte layouts are in `docs/formats.md`.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from enum import Enum
from typing import Protocol

from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.base.ids import PackId, StoreId
from holdfast.index.port import Outcome, Transaction
from holdfast.scheme import Scheme

PACK_BYTES_MAX = 16 << 20
"""The largest payload of a pack: object bytes, without the manifest."""

SMALL_BYTES_MAX = 128 << 10
"""Bodies up to this size share packs; larger ones get packs of their own."""


class Extent(Struct, frozen=True, array_like=True):
    """`length` bytes of a pack's payload from `offset`."""

    pack: PackId
    offset: int
    length: int


class Place(Struct, frozen=True, array_like=True):
    """One durable shard: which, where, and under which attempt of its name."""

    shard: int
    store: StoreId
    attempt: int


class PackRow(Struct, frozen=True, array_like=True):
    """What the index says of a pack (`pack/<id>`). A shard without a place is virtual (all zeros, lies
    wholly behind `stored_bytes`) or missing; a `debt` row says which are missing. `object_bytes` is the
    payload without filling between pieces: when `dead` rows add up to it, nothing needs the pack."""

    scheme: Scheme
    payload_bytes: int
    manifest_bytes: int
    object_bytes: int
    places: tuple[Place, ...]
    format: int = 1

    @property
    def stored_bytes(self) -> int:
        """Payload and manifest: what the data shards hold."""
        return self.payload_bytes + self.manifest_bytes


class DebtReason(Enum):
    """Why a pack has less than was promised."""

    STORES_MISSING = "stores-missing"
    STRAGGLER = "straggler"
    PLACEMENT = "placement"
    SCHEME = "scheme"


class DebtRow(Struct, frozen=True, array_like=True):
    """`debt/<pack>`: what was promised when less was written. A chore pays it."""

    promised: Scheme
    reason: DebtReason
    missing_shards: tuple[int, ...] = ()


class Receipt(Struct, frozen=True):
    """What a write really got. `survives` maps a level (store, host, zone, region) to how many of
    its domains may be lost; never rounded up."""

    scheme: Scheme
    shards_durable: int
    shards_total: int
    survives: dict[str, int]
    debt: bool

    def header(self) -> str:
        """As the `x-holdfast-receipt` header says it."""
        levels = ",".join(f"{level}:{count}" for level, count in self.survives.items())
        return (
            f"scheme={self.scheme.name}; durable={self.shards_durable}/{self.shards_total}; "
            f"survives={levels}; debt={'yes' if self.debt else 'none'}"
        )


class ManifestEntry(Struct, frozen=True, array_like=True):
    """What a pack says of one piece inside it, so that packs describe themselves.

    `record` is the msgpack of the object version (objects' own type, opaque here) where the piece
    completes a version, else empty. `order` is the version's order in its key; `part` and `piece`
    place the piece in a larger object (part number 0 outside multipart uploads). `moved` says that the
    piece came from another pack: what it belongs to was in the index before this pack was begun.
    `conditional` says that the write could still be refused, for what its client asked to hold.
    """

    bucket: str
    key: str
    version: str
    offset: int
    length: int
    part: int = 0
    piece: int = 0
    record: bytes = b""
    moved: bool = False
    conditional: bool = False


class Piece(Struct, frozen=True):
    """Bytes to be put into a shared pack. `describe` makes the manifest entry once the extent is
    known; `propose` the index transaction (without the expectation that the pack is alive, which
    packs adds)."""

    data: Buffer
    describe: Callable[[Extent], ManifestEntry]
    propose: Callable[[Extent], Transaction]


class Appended(Struct, frozen=True):
    """A piece that became durable in a shared pack whose row is in the index. `outcome` is that of its
    own transaction. Conflict: the bytes are durable and the transaction was refused; the caller may
    commit another one that names the extent, expecting `pack_row(extent.pack)` to be PRESENT. Unknown:
    the caller resolves it by committing `transaction` again."""

    extent: Extent
    outcome: Outcome
    transaction: Transaction
    receipt: Receipt


def _nothing() -> None:
    return


class Written(Struct, frozen=True):
    """A pack of its own that is durable on its stores and not in the index yet. The caller commits
    `transactions` (pack row, debt) in the same call as, and before, what refers to it; or calls `abandon`,
    so that its shards go at once. If the row came to be after all, that does nothing. Who has held it for
    long commits what `as_it_is` answers right before: with what has landed since. It raises Unavailable when
    too little is left, for no row said until now that what stores take with them has to be written again."""

    extent: Extent
    receipt: Receipt
    transactions: tuple[Transaction, ...]
    abandon: Callable[[], None] = _nothing
    as_it_is: Callable[[], tuple[Transaction, ...]] | None = None


def pack_row(pack: PackId) -> bytes:
    """Key of the row of a pack that is alive."""
    return b"pack/" + pack.hex().encode()


def buried_row(pack: PackId) -> bytes:
    """Key of the row that says that a pack id is dead for good; it and `pack_row` never both exist."""
    return b"buried/" + pack.hex().encode()


def debt_row(pack: PackId) -> bytes:
    """Key of the row that says what a pack was promised beyond what it has."""
    return b"debt/" + pack.hex().encode()


def trash_row(store: StoreId, name: str) -> bytes:
    """Key of the row that says that a shard's name at a store is dead for good, though its pack lives."""
    return f"trash/{store}/{name}".encode()


class PackStorage(Protocol):
    """What objects ask of packs."""

    async def append(self, scheme: Scheme, piece: Piece) -> Appended:
        """Put a small piece into the pack that is filling; return when it and its transaction are
        decided. Raises Unavailable below the floor (nothing acknowledged, nothing visible)."""
        ...

    async def write(
        self,
        scheme: Scheme,
        data: Sequence[Buffer],
        describe: Callable[[Extent], Sequence[ManifestEntry]],
        object_bytes: int | None = None,
        *,
        reserve_share: float = 0.0,
        bytes_max: int | None = None,
    ) -> Written:
        """Write a pack of its own; at most PACK_BYTES_MAX bytes, of which `object_bytes` (else all) are
        not filling. A list is emptied as soon as its buffers are encoded. It may take `reserve_share` of
        the stores' reserve, and no more than `bytes_max` on all stores together. Raises Unavailable."""
        ...

    def read(self, extents: Sequence[Extent], offset: int, length: int) -> AsyncIterator[Buffer]:
        """`length` bytes from `offset` of the extents laid end to end, verified, in pieces of at most
        1 MiB. Raises Damaged or Unavailable when fewer than k shards answer, never yields a guess;
        raises PackGone when a pack of these extents is not in the index any more (look up again)."""
        ...

    async def read_small(self, extent: Extent) -> Buffer:
        """All of one extent of at most 1 MiB: the fast way. Raises as `read`."""
        ...

    async def manifest(self, pack: PackId) -> tuple[ManifestEntry, ...]:
        """What a pack says of itself. It is as old as the pack: the index says what holds now. Raises as
        `read`."""
        ...
