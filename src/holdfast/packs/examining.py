"""Whether the shards of some stripes are right, each in itself and all together. Pure, and made for a thread.

First each shard against its checksums, all of its blocks at once (`packs.folding`); then, stripe by stripe,
those that are right against each other: what the first k make of the others must be what was read. What
is wrong is only said here: which blocks, and whose fault, is found out where it is believed.
"""

from collections.abc import Mapping

from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.packs import codec
from holdfast.packs.folding import Run, wrong_runs
from holdfast.scheme import Scheme


class Chunk(Struct, frozen=True):
    """Some whole stripes of a pack: the blocks of each shard that was read, with their entries and the seed
    of the first one; the shards that are virtual; the bytes of a unit of each stripe, in order."""

    scheme: Scheme
    runs: Mapping[int, Run]
    virtual: tuple[int, ...]
    unit_bytes: tuple[int, ...]


class Found(Struct, frozen=True):
    """Shards whose blocks or entries are wrong; and which of the stripes have other shards that disagree."""

    wrong: tuple[int, ...] = ()
    disagree: tuple[int, ...] = ()


def units_of(chunk: Chunk, shards: Mapping[int, Run], number: int) -> dict[int, Buffer]:
    """The units of stripe `number` of a chunk, those of virtual shards included."""
    at, unit = sum(chunk.unit_bytes[:number]), chunk.unit_bytes[number]
    units: dict[int, Buffer] = {shard: memoryview(run.data)[at : at + unit] for shard, run in shards.items()}
    units.update(dict.fromkeys(chunk.virtual, bytes(unit)))
    return units


def examine(chunk: Chunk, *, in_thread: bool) -> Found:
    """What is wrong with a chunk."""
    shards = list(chunk.runs)
    wrong = tuple(shards[at] for at in wrong_runs(list(chunk.runs.values())))
    right = {shard: run for shard, run in chunk.runs.items() if shard not in wrong}
    disagree = []
    if len(right) + len(chunk.virtual) > chunk.scheme.k:
        for number, unit in enumerate(chunk.unit_bytes):
            units = units_of(chunk, right, number)
            if codec.strangers(chunk.scheme, units, unit, in_thread=in_thread):
                disagree.append(number)
    return Found(wrong, tuple(disagree))
