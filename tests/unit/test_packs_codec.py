"""Any k of k + m units give the stripe back; a block in the wrong place is found wrong."""

import random
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyeclib.ec_iface import ECDriver

from holdfast.base.errors import Damaged, InvalidInput
from holdfast.base.ids import PackId
from holdfast.packs import codec, isal
from holdfast.packs.format import (
    ShardHeader,
    binding,
    block_checksums,
    data_offset,
    decode_header,
    encode_head,
    pack_table,
    wrong_blocks,
)
from holdfast.packs.layout import BLOCK_BYTES, Layout
from holdfast.scheme import K_MAX, M_MAX, Scheme

PACK = PackId(bytes(range(16)))


@pytest.mark.parametrize(("k", "m"), [(1, 2), (2, 1), (2, 2), (3, 2), (4, 2), (5, 6), (8, 3)])
def test_every_choice_of_k_units_restores_the_stripe(k: int, m: int) -> None:
    scheme = Scheme(k, m)
    unit = 2 * BLOCK_BYTES
    stripe = random.Random(k).randbytes(k * unit)
    units = dict(
        enumerate([stripe[i * unit : (i + 1) * unit] for i in range(k)] + codec.parity(scheme, stripe))
    )
    for lost in combinations(range(k + m), m):
        left = {shard: data for shard, data in units.items() if shard not in lost}
        assert codec.restore(scheme, left, unit) == stripe


@settings(max_examples=60, deadline=None)
@given(st.integers(1, K_MAX), st.integers(1, M_MAX), st.integers())
def test_widest_schemes_lose_any_m(k: int, m: int, seed: int) -> None:
    chance = random.Random(seed)
    scheme, unit = Scheme(k, m), BLOCK_BYTES
    stripe = chance.randbytes(k * unit)
    units = dict(
        enumerate([stripe[i * unit : (i + 1) * unit] for i in range(k)] + codec.parity(scheme, stripe))
    )
    lost = chance.sample(range(k + m), m)
    left = {shard: data for shard, data in units.items() if shard not in lost}
    assert codec.restore(scheme, left, unit) == stripe


def test_a_part_of_the_units_decodes_to_that_part_of_the_stripe() -> None:
    scheme, unit = Scheme(4, 2), 8 * BLOCK_BYTES
    stripe = random.Random(1).randbytes(4 * unit)
    units = [stripe[i * unit : (i + 1) * unit] for i in range(4)] + codec.parity(scheme, stripe)
    part = slice(BLOCK_BYTES, 3 * BLOCK_BYTES)
    left = {shard: units[shard][part] for shard in (1, 3, 4, 5)}
    restored = codec.restore(scheme, left, 2 * BLOCK_BYTES)
    assert restored == b"".join(bytes(units[shard][part]) for shard in range(4))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, K_MAX), st.integers(1, M_MAX), st.integers(1, 3), st.integers())
def test_parity_is_what_liberasurecode_makes_of_the_same(k: int, m: int, blocks: int, seed: int) -> None:
    # What earlier versions wrote is read with what is computed here.
    stripe = random.Random(seed).randbytes(k * blocks * BLOCK_BYTES)
    fragments = ECDriver(k=k, m=m, ec_type="isa_l_rs_cauchy").encode(stripe)
    unit = blocks * BLOCK_BYTES
    assert codec.parity(Scheme(k, m), stripe) == [fragment[-unit:] for fragment in fragments[k:]]


@pytest.mark.parametrize("k", [1, 4])
def test_a_single_bit_makes_a_stranger_wherever_it_is(k: int) -> None:
    scheme, unit = Scheme(k, 2), 40 * BLOCK_BYTES
    stripe = random.Random(3).randbytes(k * unit)
    units = dict(
        enumerate([stripe[i * unit : (i + 1) * unit] for i in range(k)] + codec.parity(scheme, stripe))
    )
    assert codec.strangers(scheme, units, unit) == []
    for at in (0, BLOCK_BYTES, 32 * BLOCK_BYTES - 1, 32 * BLOCK_BYTES, unit - 1):
        wrong = bytearray(units[k])
        wrong[at] ^= 1
        assert codec.strangers(scheme, units | {k: wrong}, unit) == [k]
        wrong = bytearray(units[0])
        wrong[at] ^= 0x80
        assert codec.strangers(scheme, units | {0: wrong}, unit) == [k, k + 1]


def test_where_there_is_no_library_a_node_says_so_at_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    isal.prepare()
    monkeypatch.setattr(isal, "_names", lambda: iter(["no-such-library.so"]))
    isal._library.cache_clear()
    try:
        for scheme in (Scheme(4, 2), Scheme(1, 2)):
            with pytest.raises(InvalidInput, match="ISA-L"):
                codec.prepare(scheme)
    finally:
        isal._library.cache_clear()


def test_the_library_is_given_no_buffer_that_is_too_short_or_in_pieces() -> None:
    table = isal.table(Scheme(2, 1), (0, 1), (2,))
    with pytest.raises(AssertionError):
        table.make([bytes(64), bytes(63)], [bytearray(64)], 64)
    with pytest.raises(AssertionError):
        table.make([bytes(64), bytes(64)], [bytearray(63)], 64)
    with pytest.raises(BufferError):
        table.make([bytes(64), memoryview(bytes(128))[::2]], [bytearray(64)], 64)
    with pytest.raises(BufferError):
        table.make([bytes(64), bytes(64)], [memoryview(bytes(64))], 64)


@given(st.integers(1, K_MAX), st.integers(1, 9 << 20), st.data())
def test_every_stored_byte_lies_in_exactly_one_place(k: int, stored: int, data: st.DataObject) -> None:
    layout = Layout(k, stored)
    offset = data.draw(st.integers(0, stored - 1))
    length = data.draw(st.integers(1, stored - offset))
    slices = list(layout.slices(offset, length))
    assert sum(piece.length for piece in slices) == length
    at = offset
    for piece in slices:
        unit = layout.unit_of(piece.stripe)
        inside = piece.offset - layout.shard_offset(piece.stripe)
        assert 0 <= inside < unit
        assert inside + piece.length <= unit
        assert layout.stripe_start(piece.stripe) + piece.shard * unit + inside == at
        assert not layout.is_virtual(piece.shard)
        at += piece.length
    assert layout.shard_bytes % BLOCK_BYTES == 0
    assert layout.shard_bytes * k >= stored
    assert layout.shard_bytes * k - stored < k * BLOCK_BYTES or layout.last_unit_bytes == BLOCK_BYTES


@given(st.integers(2, K_MAX))
def test_a_small_pack_is_not_cut_finer_than_a_block(k: int) -> None:
    layout = Layout(k, 5000)
    assert layout.shard_bytes == BLOCK_BYTES
    assert layout.real_data_shards == 2
    assert [layout.is_virtual(shard) for shard in range(k)] == [shard >= 2 for shard in range(k)]


def test_the_header_survives_a_round_trip_and_every_flipped_byte_is_noticed() -> None:
    header = ShardHeader(PACK, 5, 77, Scheme(4, 2), 123456, 789)
    sums = list(range(header.layout.blocks))
    head = encode_head(header, sums)
    assert len(head) == data_offset(len(sums))
    assert decode_header(head, "x") == header
    for at in range(60):
        broken = bytearray(head)
        broken[at] ^= 0x10
        if at < 56 + 4:
            with pytest.raises(Damaged):
                decode_header(broken, "x")


def test_a_block_is_wrong_in_any_place_but_its_own() -> None:
    data = bytes(BLOCK_BYTES) + random.Random(2).randbytes(BLOCK_BYTES)
    seed = binding(PACK, 1, 0)
    table = pack_table(block_checksums(data, seed, 7))
    assert wrong_blocks(data, table, seed, 7) == []
    assert wrong_blocks(data, table, seed, 8) == [8, 9]
    for other in (binding(PACK, 2, 0), binding(PACK, 1, 1), binding(PackId(bytes(16)), 1, 0)):
        assert wrong_blocks(data, table, other, 7) == [7, 8]
    flipped = bytearray(data)
    flipped[BLOCK_BYTES] ^= 1
    assert wrong_blocks(flipped, table, seed, 7) == [8]
    # A file of zeros, table included, is not a shard of zeros.
    assert wrong_blocks(bytes(BLOCK_BYTES), bytes(4), seed, 7) == [7]
