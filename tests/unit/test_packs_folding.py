"""Many blocks at once are found right or wrong as each of them alone would be."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.packs.folding import Run, _tables, prepare, wrong_runs
from holdfast.packs.format import block_checksums, pack_table, wrong_blocks
from holdfast.packs.layout import BLOCK_BYTES


def run_of(chance: random.Random, count: int, seed: int) -> Run:
    data = chance.randbytes(count * BLOCK_BYTES)
    return Run(data, pack_table(block_checksums(data, seed, 0)), seed)


SEEDS = st.integers(0, 2**32 - 1) | st.integers(2**32 - 40, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.lists(SEEDS, min_size=1, max_size=7), st.integers())
def test_what_is_right_is_found_right(count: int, seeds: list[int], chance: int) -> None:
    runs = [run_of(random.Random(chance + at), count, seed) for at, seed in enumerate(seeds)]
    assert wrong_runs(runs) == []


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 20), SEEDS, st.data())
def test_a_flipped_bit_is_found_in_its_run_wherever_it_is(count: int, seed: int, data: st.DataObject) -> None:
    chance = random.Random(data.draw(st.integers()))
    runs = [run_of(chance, count, (seed + 1000 * at) % 2**32) for at in range(3)]
    which = data.draw(st.integers(0, 2))
    right = runs[which]
    content, entries = bytearray(right.data), bytearray(right.entries)
    broken = data.draw(st.sampled_from([content, entries]))
    bit = data.draw(st.integers(0, 8 * len(broken) - 1))
    broken[bit // 8] ^= 1 << bit % 8
    runs[which] = Run(content, entries, right.seed)
    assert wrong_runs(runs) == [which]


@pytest.mark.parametrize("count", [2, 3, 8, 64])
def test_blocks_in_each_others_place_are_found_with_their_entries_or_without(count: int) -> None:
    seed = 77
    right = run_of(random.Random(count), count, seed)
    for one in range(count - 1):
        content, entries = bytearray(right.data), bytearray(right.entries)
        for what, size in ((content, BLOCK_BYTES), (entries, 4)):
            first, second = slice(one * size, (one + 1) * size), slice((one + 1) * size, (one + 2) * size)
            what[first], what[second] = what[second], what[first]
        assert wrong_runs([Run(content, right.entries, seed)]) == [0]
        assert wrong_runs([Run(right.data, entries, seed)]) == [0]
        assert wrong_runs([Run(content, entries, seed)]) == [0]


def test_once_prepared_no_run_has_to_wait_for_tables() -> None:
    prepare(256)
    made = _tables.cache_info().misses
    for count in (1, 2, 129, 256):
        assert wrong_runs([run_of(random.Random(count), count, 9)]) == []
    assert _tables.cache_info().misses == made


def test_a_run_of_another_place_shard_or_attempt_is_found() -> None:
    right = run_of(random.Random(1), 256, 5000)
    for seed in (4999, 5001, 5000 + 256, 5000 ^ 1 << 31, 123456789):
        assert wrong_runs([Run(right.data, right.entries, seed), right]) == [0]
    zeros = Run(bytes(256 * BLOCK_BYTES), bytes(4 * 256), 5000)
    assert wrong_runs([right, zeros]) == [1]


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), SEEDS, st.lists(st.integers(0, 11), min_size=1, max_size=5), st.integers())
def test_it_says_what_the_checksum_of_each_block_says(
    count: int, seed: int, spoiled: list[int], chance: int
) -> None:
    right = run_of(random.Random(chance), count, seed)
    content = bytearray(right.data)
    for block in spoiled:
        at = block % count * BLOCK_BYTES
        content[at : at + BLOCK_BYTES] = random.Random(chance + block).randbytes(BLOCK_BYTES)
    alone = wrong_blocks(content, right.entries, seed, 0)
    assert bool(alone) == bool(wrong_runs([Run(content, right.entries, seed)]))
