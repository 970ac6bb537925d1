"""The format of the cluster: raised when all know it, and then nobody joins who does not."""

import msgspec
import pytest

from holdfast.base.errors import Busy, Damaged, InvalidInput
from holdfast.base.randomness import SeededRandomness
from holdfast.cluster.claiming import claim
from holdfast.cluster.formats import raise_format, read_format
from holdfast.cluster.rows import (
    CLUSTER_ROW,
    FORMAT,
    KNOWN,
    ClusterRow,
    NodeRow,
    decode,
    encode,
    node_row,
)
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import Transaction
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual

SECRET = b"s" * 32


def node(knows: int) -> bytes:
    row = NodeRow(FORMAT, "", "b", "1.2", (1,), "", "", "r", "z", "h", False, False, (), 0, False, knows)
    return encode(row)


async def join(index: MemoryIndex, clock: VirtualClock) -> str:
    return await claim(
        index,
        [SECRET],
        known="",
        known_incarnation="",
        incarnations=[],
        clock=clock,
        randomness=SeededRandomness("f"),
    )


async def put(index: MemoryIndex, name: str, row: bytes) -> None:
    await index.commit([Transaction((), ((node_row(name), row),))])


async def test_it_is_raised_once_all_know_it_and_not_before() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    name = await join(index, clock)
    await put(index, "n1", node(KNOWN))
    # As an older version writes it, which knows nothing of this field.
    await put(index, "n2", msgspec.msgpack.encode(msgspec.msgpack.decode(node(KNOWN))[:-1]))
    found = await read_format(index)
    assert (found.format, [one.name for one in found.behind]) == (1, ["n2"])
    with pytest.raises(InvalidInput, match=r"n2 \(1.2\) would be shut out"):
        await raise_format(index)
    assert (await read_format(index)).format == 1

    await put(index, "n2", node(KNOWN))
    for _ in range(2):
        assert (await raise_format(index)).format == KNOWN
    assert (await read_format(index)).format == KNOWN
    assert await join(index, clock) == name, "whoever knows it joins, and nothing else has changed"
    assert (await read_format(index)).format == KNOWN


async def test_a_version_that_does_not_know_it_does_not_join() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    await join(index, clock)
    (row,) = await index.get([CLUSTER_ROW])
    assert row is not None
    found = decode(ClusterRow, row.value)
    newer = encode(msgspec.structs.replace(found, format=KNOWN + 1))
    await index.commit([Transaction((), ((CLUSTER_ROW, newer),))])
    with pytest.raises(Damaged, match=f"format {KNOWN + 1}, this Holdfast knows {KNOWN}"):
        await join(index, clock)


async def test_a_node_that_joins_at_the_same_time_is_not_passed_over() -> None:
    clock = VirtualClock()

    class Racing(MemoryIndex):
        """A member changes between the look and the commit."""

        racing = False

        async def commit(self, transactions):  # type: ignore[no-untyped-def]
            if self.racing:
                self.racing = False
                await put(self, "n1", node(1))
            return await super().commit(transactions)

    index = Racing(clock)
    await join(index, clock)
    await put(index, "n1", node(KNOWN))
    index.racing = True
    with pytest.raises(Busy):
        await raise_format(index)
    assert (await read_format(index)).format == 1
