"""Reed-Solomon through PyECLib (ISA-L, Cauchy matrices), and mirrors, which need none.

PyECLib wants `bytes` and puts an 80-byte header of its own before every fragment; we store the
payloads alone and give it headers it made itself for the same scheme and length. Cauchy, not
Vandermonde: ISA-L's Vandermonde matrices are not invertible for every loss once m > 3. One call
handles a piece of one stripe, because it holds the interpreter lock. `bytes` only: other buffers make
the library abort the process.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain

from pyeclib.ec_iface import ECDriver

from holdfast.base.checksums import Buffer
from holdfast.packs.layout import STRIPE_BYTES
from holdfast.scheme import Scheme

_FRAGMENT_HEADER_BYTES = 80

_PIECE_BYTES = 64 << 10
"""What one call of the library encodes. It makes and copies all k + m fragments anew in each; pieces of this
size stay in the processor's cache, and their memory is not got from the kernel each time. A stripe of 1 MiB
in one call takes four times as long."""

_ALIGNMENT = 64


@lru_cache(maxsize=128)
def _driver(scheme: Scheme) -> ECDriver:
    return ECDriver(k=scheme.k, m=scheme.m, ec_type="isa_l_rs_cauchy")


@lru_cache(maxsize=1024)
def _headers(scheme: Scheme, unit_bytes: int) -> tuple[bytes, ...]:
    """The header of each fragment when every unit has `unit_bytes` bytes; it says nothing of content."""
    fragments = _driver(scheme).encode(bytes(scheme.k * unit_bytes))
    assert len(fragments[0]) == _FRAGMENT_HEADER_BYTES + unit_bytes
    return tuple(fragment[:_FRAGMENT_HEADER_BYTES] for fragment in fragments)


def prepare(scheme: Scheme) -> None:
    """Load the library and make the matrix of a scheme, so that no request has to wait for it."""
    if scheme.k > 1 and scheme.m:
        _driver(scheme)


def parity(scheme: Scheme, stripe: bytes) -> list[Buffer]:
    """The m redundant units of a stripe of k equal units laid end to end."""
    assert len(stripe) % scheme.k == 0
    assert len(stripe) <= STRIPE_BYTES
    if scheme.k == 1:
        return [stripe] * scheme.m
    unit = len(stripe) // scheme.k
    if len(stripe) <= _PIECE_BYTES:
        return [memoryview(piece) for piece in _redundant(scheme, stripe)]
    view = memoryview(stripe)
    starts = range(0, len(stripe), unit)
    pieces = [
        _redundant(scheme, b"".join([view[start:][piece] for start in starts]))
        for piece in _pieces(scheme, unit)
    ]
    return [memoryview(b"".join(of_one)) for of_one in zip(*pieces, strict=True)]


def strangers(scheme: Scheme, units: Mapping[int, Buffer], unit_bytes: int) -> list[int]:
    """Of more than k units of a stripe, those that are not what the first k make of them."""
    shards = sorted(units)
    basis, others = shards[: scheme.k], shards[scheme.k :]
    found: set[int] = set()
    views = {shard: memoryview(unit) for shard, unit in units.items()}
    for piece in _pieces(scheme, unit_bytes):
        part = {shard: views[shard][piece] for shard in basis}
        data = restore(scheme, part, len(part[basis[0]]))
        redundant = _redundant(scheme, data) if scheme.k > 1 and others else [data] * scheme.m
        # As bytes: memory views are compared item by item, 6 ms a MiB.
        found |= {shard for shard in others if bytes(views[shard][piece]) != redundant[shard - scheme.k]}
    return sorted(found)


def _pieces(scheme: Scheme, unit_bytes: int) -> Iterator[slice]:
    """Parts of a unit, so that the same part of all k makes one call of the library."""
    step = max(1, _PIECE_BYTES // scheme.k // _ALIGNMENT) * _ALIGNMENT
    return (slice(at, min(at + step, unit_bytes)) for at in range(0, unit_bytes, step))


def _redundant(scheme: Scheme, data: bytes) -> list[Buffer]:
    fragments = _driver(scheme).encode(data)
    return [fragment[_FRAGMENT_HEADER_BYTES:] for fragment in fragments[scheme.k :]]


def restore(scheme: Scheme, units: Mapping[int, Buffer], unit_bytes: int) -> bytes:
    """The k data units of a stripe, end to end, from any k of its units (by shard number).

    A part of each unit will do, too, the same part of all: the code works byte by byte.
    """
    assert len(units) >= scheme.k, "fewer than k units cannot restore a stripe"
    assert all(len(unit) == unit_bytes for unit in units.values())
    if scheme.k == 1:
        return bytes(next(iter(units.values())))
    if all(shard in units for shard in range(scheme.k)):
        return b"".join([units[shard] for shard in range(scheme.k)])
    # Exactly k, data first: more would only be looked at and thrown away.
    views = {shard: memoryview(units[shard]) for shard in sorted(units)[: scheme.k]}
    parts: list[list[bytes]] = [[] for _ in range(scheme.k)]
    for piece in _pieces(scheme, unit_bytes):
        size = piece.stop - piece.start
        headers = _headers(scheme, size)
        data = _driver(scheme).decode([b"".join((headers[at], view[piece])) for at, view in views.items()])
        for shard, part in enumerate(parts):
            part.append(data[shard * size : (shard + 1) * size])
    return b"".join(chain.from_iterable(parts))


def rebuild(
    scheme: Scheme, units: Mapping[int, Buffer], unit_bytes: int, shards: Sequence[int]
) -> list[bytes]:
    """The units of `shards`, data or parity, from any k others."""
    stripe = restore(scheme, units, unit_bytes)
    wanted = list(shards)
    redundant = parity(scheme, stripe) if any(shard >= scheme.k for shard in wanted) else []
    return [
        bytes(redundant[shard - scheme.k])
        if shard >= scheme.k
        else stripe[shard * unit_bytes : (shard + 1) * unit_bytes]
        for shard in wanted
    ]
