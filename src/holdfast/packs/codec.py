"""Reed-Solomon through PyECLib (ISA-L, Cauchy matrices), and mirrors, which need none.

PyECLib wants `bytes` and puts an 80-byte header of its own before every fragment; we store the
payloads alone and give it headers it made itself for the same scheme and length. Cauchy, not
Vandermonde: ISA-L's Vandermonde matrices are not invertible for every loss once m > 3. One call
handles at most one stripe, because it holds the interpreter lock. `bytes` only: other buffers make
the library abort the process.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

from pyeclib.ec_iface import ECDriver

from holdfast.base.checksums import Buffer
from holdfast.packs.layout import STRIPE_BYTES
from holdfast.scheme import Scheme

_FRAGMENT_HEADER_BYTES = 80


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
    fragments = _driver(scheme).encode(stripe)
    return [memoryview(fragment)[_FRAGMENT_HEADER_BYTES:] for fragment in fragments[scheme.k :]]


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
    return bytes(_driver(scheme).decode(_fragments(scheme, units, unit_bytes)))


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


def _fragments(scheme: Scheme, units: Mapping[int, Buffer], unit_bytes: int) -> list[bytes]:
    headers = _headers(scheme, unit_bytes)
    # Exactly k, data first: more would only be looked at and thrown away.
    chosen = sorted(units)[: scheme.k]
    return [b"".join((headers[shard], units[shard])) for shard in chosen]
