"""Reed-Solomon (Cauchy matrices, by ISA-L), and mirrors, which need none.

Cauchy, not Vandermonde: ISA-L's Vandermonde matrices are not invertible for every loss once m > 3. One
call handles one stripe at most, and says nothing of what is right: any k units make something of the others.
"""

from collections.abc import Mapping

from holdfast.base.checksums import Buffer
from holdfast.packs import isal
from holdfast.packs.layout import STRIPE_BYTES
from holdfast.scheme import Scheme

_PIECE_BYTES = 128 << 10
"""What is compared at once of each unit: what it should be, made for that, stays in the processor's cache."""


def prepare(scheme: Scheme) -> None:
    """Load the library and make the matrix of a scheme, so that no request has to wait for it, or is
    the first to hear that there is none, whatever the scheme. Raises InvalidInput then."""
    isal.prepare()
    if scheme.k > 1 and scheme.m:
        _encoder(scheme)


def _encoder(scheme: Scheme) -> isal.Table:
    return isal.table(scheme, tuple(range(scheme.k)), tuple(range(scheme.k, scheme.n)))


def parity(scheme: Scheme, stripe: Buffer) -> list[Buffer]:
    """The m redundant units of a stripe of k equal units laid end to end."""
    assert len(stripe) % scheme.k == 0
    assert len(stripe) <= STRIPE_BYTES
    if scheme.k == 1:
        return [stripe] * scheme.m
    unit = len(stripe) // scheme.k
    made = [bytearray(unit) for _ in range(scheme.m)]
    if made:
        view = memoryview(stripe)
        _encoder(scheme).make([view[at : at + unit] for at in range(0, len(stripe), unit)], made, unit)
    return [memoryview(redundant) for redundant in made]


def strangers(
    scheme: Scheme, units: Mapping[int, Buffer], unit_bytes: int, *, in_thread: bool = False
) -> list[int]:
    """Of more than k units of a stripe, those that are not what the first k make of them."""
    shards = sorted(units)
    basis, others = shards[: scheme.k], shards[scheme.k :]
    assert others
    views = {shard: memoryview(unit) for shard, unit in units.items()}
    if scheme.k == 1:
        first = bytearray(views[basis[0]])
        return [shard for shard in others if first != views[shard]]
    table = isal.table(scheme, tuple(basis), tuple(others))
    found: set[int] = set()
    made: list[bytearray] = []
    for at in range(0, unit_bytes, _PIECE_BYTES):
        size = min(_PIECE_BYTES, unit_bytes - at)
        if not made or len(made[0]) != size:
            made = [bytearray(size) for _ in others]
        table.make([views[shard][at : at + size] for shard in basis], made, size, in_thread=in_thread)
        for shard, right in zip(others, made, strict=True):
            # A bytearray on the left: memory views are compared item by item, 6 ms a MiB.
            if right != views[shard][at : at + size]:
                found.add(shard)
    return sorted(found)


def restore(scheme: Scheme, units: Mapping[int, Buffer], unit_bytes: int) -> Buffer:
    """The k data units of a stripe, end to end, from any k of its units (by shard number).

    A part of each unit will do, too, the same part of all: the code works byte by byte.
    """
    assert len(units) >= scheme.k, "fewer than k units cannot restore a stripe"
    assert all(len(unit) == unit_bytes for unit in units.values())
    if scheme.k == 1:
        return bytes(next(iter(units.values())))
    missing = [shard for shard in range(scheme.k) if shard not in units]
    if not missing:
        return b"".join([units[shard] for shard in range(scheme.k)])
    # Exactly k, data first.
    basis = sorted(units)[: scheme.k]
    whole = bytearray(scheme.k * unit_bytes)
    view = memoryview(whole)
    for shard in basis:
        if shard < scheme.k:
            view[shard * unit_bytes : (shard + 1) * unit_bytes] = units[shard]
    isal.table(scheme, tuple(basis), tuple(missing)).make(
        [units[shard] for shard in basis],
        [view[shard * unit_bytes : (shard + 1) * unit_bytes] for shard in missing],
        unit_bytes,
    )
    return whole
