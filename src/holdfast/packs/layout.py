"""Where each byte of a pack lies in its shards. Pure arithmetic.

A pack's stored bytes (payload, then manifest) are cut into stripes of k units, `unit_bytes` each;
unit i of a stripe belongs to data shard i. Only the last stripe may be shorter: it is cut into k
equal units of whole blocks, so that a small pack is never cut finer than a block, and is filled up
with zeros. A data shard that would hold nothing but those zeros is *virtual*: it is never written,
and counts as durable. Parity unit j of a stripe lies at the same place in shard k + j.

What must hold: `slices` covers exactly the bytes asked for, in order, and every stored byte lies in
exactly one place.
"""

from collections.abc import Iterator
from typing import NamedTuple

from holdfast.scheme import Scheme

BLOCK_BYTES = 4096
"""The unit of verification: each block has its own checksum."""

STRIPE_BYTES = 1 << 20
"""Upper bound of a stripe, and so of one call of the codec (which holds the interpreter lock)."""


class Slice(NamedTuple):
    """`length` bytes at `offset` of the data region of one data shard, all inside one stripe."""

    stripe: int
    shard: int
    offset: int
    length: int


class Layout:
    """The geometry of one pack."""

    __slots__ = ("full_stripes", "k", "last_unit_bytes", "shard_bytes", "stored_bytes", "unit_bytes")

    def __init__(self, k: int, stored_bytes: int) -> None:
        assert k >= 1
        assert stored_bytes >= 1
        self.k = k
        self.stored_bytes = stored_bytes
        self.unit_bytes = STRIPE_BYTES // k // BLOCK_BYTES * BLOCK_BYTES
        self.full_stripes, rest = divmod(stored_bytes, self.unit_bytes * k)
        blocks = -(-rest // (k * BLOCK_BYTES))
        self.last_unit_bytes = blocks * BLOCK_BYTES
        self.shard_bytes = self.full_stripes * self.unit_bytes + self.last_unit_bytes

    @property
    def stripes(self) -> int:
        """How many stripes there are, the short one included."""
        return self.full_stripes + (1 if self.last_unit_bytes else 0)

    @property
    def blocks(self) -> int:
        """Blocks of each shard."""
        return self.shard_bytes // BLOCK_BYTES

    @property
    def real_data_shards(self) -> int:
        """Data shards that hold at least one stored byte; the rest are virtual."""
        if self.full_stripes:
            return self.k
        return -(-self.stored_bytes // self.last_unit_bytes)

    def is_virtual(self, shard: int) -> bool:
        """Whether `shard` is never written because it is all zeros."""
        return self.real_data_shards <= shard < self.k

    def stripe_start(self, stripe: int) -> int:
        """Where a stripe begins among the stored bytes."""
        return stripe * self.unit_bytes * self.k

    def unit_of(self, stripe: int) -> int:
        """Bytes of each unit of a stripe."""
        return self.unit_bytes if stripe < self.full_stripes else self.last_unit_bytes

    def blocks_of(self, stripe: int) -> tuple[int, int]:
        """The first block of a stripe's units in the data region of their shards, and how many they are."""
        return self.shard_offset(stripe) // BLOCK_BYTES, self.unit_of(stripe) // BLOCK_BYTES

    def shard_offset(self, stripe: int) -> int:
        """Where a stripe's units lie in the data region of their shards."""
        return stripe * self.unit_bytes

    def slices(self, offset: int, length: int) -> Iterator[Slice]:
        """Where bytes `offset` to `offset + length` of the stored bytes lie, in order."""
        assert offset >= 0
        assert offset + length <= self.stored_bytes
        full = self.unit_bytes * self.k
        while length:
            stripe, inside = divmod(offset, full)
            unit = self.unit_of(stripe)
            shard, at = divmod(inside, unit)
            take = min(length, unit - at)
            yield Slice(stripe, shard, stripe * self.unit_bytes + at, take)
            offset += take
            length -= take


def choose_scheme(promised: Scheme, stored_bytes: int, stores: int) -> Scheme | None:
    """The scheme closest to `promised` whose real shards fit `stores` stores: m kept, k shrunk. None
    when not even one data shard fits."""
    for k in range(promised.k, 0, -1):
        if Layout(k, stored_bytes).real_data_shards + promised.m <= stores:
            return Scheme(k, promised.m)
    return None


def real_shards(scheme: Scheme, stored_bytes: int) -> list[int]:
    """The shards of a pack of so many stored bytes that are written at all."""
    layout = Layout(scheme.k, stored_bytes)
    return [shard for shard in range(scheme.n) if not layout.is_virtual(shard)]


def bytes_on_stores(scheme: Scheme, stored_bytes: int) -> int:
    """What a pack of so many stored bytes takes on all its stores together, but for the heads of shards."""
    layout = Layout(scheme.k, stored_bytes)
    return (layout.real_data_shards + scheme.m) * layout.shard_bytes
