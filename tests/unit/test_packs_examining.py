"""What is wrong with some stripes is said of the right shard, in a thread as on the loop."""

import random
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from holdfast.base.checksums import Buffer
from holdfast.packs import codec
from holdfast.packs.examining import Chunk, Found, examine, units_of
from holdfast.packs.folding import Run
from holdfast.packs.format import block_checksums, pack_table
from holdfast.packs.layout import BLOCK_BYTES
from holdfast.scheme import Scheme

UNITS = (40 * BLOCK_BYTES, 40 * BLOCK_BYTES, 3 * BLOCK_BYTES)
SCHEMES = [Scheme(4, 2), Scheme(1, 2), Scheme(2, 1)]


def run_of(shard: int, content: Buffer) -> Run:
    seed = 1000 * shard + 2**32 - 50
    return Run(content, pack_table(block_checksums(content, seed, 0)), seed)


def contents(scheme: Scheme) -> dict[int, bytearray]:
    shards: dict[int, bytearray] = {shard: bytearray() for shard in range(scheme.n)}
    for number, unit in enumerate(UNITS):
        data = random.Random(number).randbytes(scheme.k * unit)
        parts = [data[at : at + unit] for at in range(0, len(data), unit)] + codec.parity(scheme, data)
        for shard, part in enumerate(parts):
            shards[shard] += part
    return shards


def looked_at(scheme: Scheme, runs: Mapping[int, Run], in_thread: bool) -> Found:
    chunk = Chunk(scheme, runs, (), UNITS)
    if not in_thread:
        return examine(chunk, in_thread=False)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(examine, chunk, in_thread=True).result()


@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_wrong_is_said_and_nothing_else(scheme: Scheme, in_thread: bool) -> None:
    right = contents(scheme)
    runs = {shard: run_of(shard, content) for shard, content in right.items()}
    assert looked_at(scheme, runs, in_thread) == Found()
    for shard, content in right.items():
        for at in (0, UNITS[0] - 1, UNITS[0], len(content) - 1):
            spoiled = bytearray(content)
            spoiled[at] ^= 4
            broken = Run(spoiled, runs[shard].entries, runs[shard].seed)
            assert looked_at(scheme, runs | {shard: broken}, in_thread) == Found((shard,), ())
            # With checksums of its own, it is right in itself, and does not belong to the others.
            stripe = 0 if at < UNITS[0] else 1 if at < UNITS[0] + UNITS[1] else 2
            stranger = run_of(shard, spoiled)
            assert looked_at(scheme, runs | {shard: stranger}, in_thread) == Found((), (stripe,))


@pytest.mark.parametrize("in_thread", [False, True])
def test_a_shard_that_is_wrong_has_no_say_in_whether_the_others_agree(in_thread: bool) -> None:
    scheme = Scheme(4, 2)
    right = contents(scheme)
    runs = {shard: run_of(shard, content) for shard, content in right.items()}
    broken = Run(bytes(len(right[1])), runs[1].entries, runs[1].seed)
    stranger = bytearray(right[5])
    stranger[UNITS[0]] ^= 1
    runs |= {1: broken, 5: run_of(5, stranger)}
    assert looked_at(scheme, runs, in_thread) == Found((1,), (1,))


def test_nothing_can_be_compared_where_there_are_no_more_than_k() -> None:
    scheme = Scheme(4, 2)
    runs = {
        shard: run_of(shard, content) for shard, content in contents(scheme).items() if shard not in (0, 5)
    }
    assert looked_at(scheme, runs, False) == Found()


def test_virtual_shards_are_zeros() -> None:
    scheme, unit = Scheme(4, 2), 2 * BLOCK_BYTES
    data = random.Random(1).randbytes(2 * unit) + bytes(2 * unit)
    parts = [data[:unit], data[unit : 2 * unit], *codec.parity(scheme, data)]
    runs = {shard: run_of(shard, part) for shard, part in zip((0, 1, 4, 5), parts, strict=True)}
    chunk = Chunk(scheme, runs, (2, 3), (unit,))
    assert examine(chunk, in_thread=False) == Found()
    assert sorted(units_of(chunk, runs, 0)) == [0, 1, 2, 3, 4, 5]
    stranger = run_of(4, random.Random(2).randbytes(unit))
    assert examine(Chunk(scheme, runs | {4: stranger}, (2, 3), (unit,)), in_thread=False) == Found((), (0,))
