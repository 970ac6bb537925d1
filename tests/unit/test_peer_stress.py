"""Many calls at once between peers, some given up, some too short of time, while the network does its worst.

What must hold: what is returned is right; what was acknowledged is there, whatever is there is whole; and
when all is over nothing is left behind: no place taken, no request under way, no connection in doubt.
"""

import asyncio

import pytest

from holdfast.base.randomness import SeededRandomness
from holdfast.stores.peer import PeerLimits, PeerStore
from holdfast.stores.peer.messages import BLOB_BYTES_MAX
from holdfast.stores.port import Range, ShardMissing, StoreBusy, StoreFailed, StoreOverdue
from tests.kit.peer_pair import ADDRESS, Pair, pair, virtual_store
from tests.kit.pipes import PipeNetwork
from tests.kit.wire_faults import Does, Fault, Way

pytestmark = pytest.mark.virtual

SIZES = (1, 100, 5_000, 70_000, 400_000)
CALLS = 400


def blob_of(number: int) -> bytes:
    return SeededRandomness(number).token(SIZES[number % len(SIZES)])


class Stress:
    """One run from one seed."""

    def __init__(self, both: Pair, seed: int) -> None:
        self.both = both
        self.chance = SeededRandomness(f"stress {seed}")
        self.put: set[int] = set()
        self.tried: set[int] = set()
        self.deleted: set[int] = set()
        self.answered = 0

    async def call(self, number: int) -> None:
        """One call of any kind."""
        chance, store = self.chance, self.both.store
        timeout_s = (0.02, 0.3, 3.0)[chance.below(3)]
        kind = chance.below(6)
        other = chance.below(CALLS)
        try:
            if kind <= 1:
                self.tried.add(number)
                await store.put(f"b{number}", [blob_of(number)], timeout_s=timeout_s)
                self.put.add(number)
            elif kind <= 3:
                await self._get(store, other, timeout_s, uncached=kind == 3)
            elif kind == 4:
                self.deleted.add(other)
                await store.delete(f"b{other}", timeout_s=timeout_s)
            else:
                names = await store.list("", limit=50, timeout_s=timeout_s)
                assert names == sorted(names)
            self.answered += 1
        except (StoreFailed, StoreOverdue, StoreBusy, ShardMissing):
            return

    async def _get(self, store: PeerStore, number: int, timeout_s: float, *, uncached: bool) -> None:
        blob = blob_of(number)
        at = self.chance.below(len(blob))
        ranges = [Range(at, len(blob) - at), Range(0, 1)]
        found = await store.get(f"b{number}", ranges, timeout_s=timeout_s, uncached=uncached)
        assert found == [blob[at:], blob[:1]]

    async def worst(self) -> None:
        """Faults, one after the other, until cancelled."""
        chance, network = self.chance, self.both.network
        while True:
            await asyncio.sleep(0.01 + 0.05 * chance.fraction())
            match chance.below(6):
                case 0:
                    network.cut()
                case 1:
                    network.down.add(ADDRESS)
                    await asyncio.sleep(0.02)
                    network.down.clear()
                case _:
                    does = (Does.CUT, Does.FLIP, Does.HOLD)[chance.below(3)]
                    way = (Way.OUT, Way.BACK)[chance.below(2)]
                    network.faults.set(Fault(way, chance.below(20_000), does, 1 << chance.below(8)))

    async def run(self) -> None:
        worst = asyncio.create_task(self.worst())
        calls = []
        for number in range(CALLS):
            call = asyncio.create_task(self.call(number))
            calls.append(call)
            if self.chance.below(4) == 0:
                asyncio.get_running_loop().call_later(0.05 * self.chance.fraction(), call.cancel)
            await asyncio.sleep(0.002 * self.chance.fraction())
        ends = await asyncio.gather(*calls, return_exceptions=True)
        worst.cancel()
        self.both.network.down.clear()
        for end in ends:
            if end is not None and not isinstance(end, asyncio.CancelledError):
                raise end


@pytest.mark.parametrize("seed", range(6))
async def test_nothing_is_left_behind_and_nothing_is_wrong(seed: int) -> None:
    inner = virtual_store(latency_s=(0.0005, 0.01) if seed % 2 else (0.0, 0.0))
    network = PipeNetwork(latency_s=0.0002, piece_bytes_max=(4 << 10, 64 << 10)[seed // 2 % 2])
    limits = PeerLimits(content_bytes_max=BLOB_BYTES_MAX + 32)
    async with pair(inner, network=network, limits=limits) as both:
        stress = Stress(both, seed)
        await stress.run()
        await asyncio.sleep(10)  # what was given up has had its time
        network.faults.set(None)
        client, store = both.client, both.store
        assert stress.answered > CALLS // 10
        assert (client._room.taken, client._reserve.taken, store._room.taken, store._large.taken) == (
            0,
            0,
            0,
            0,
        )
        assert (client._room.waiting, store._room.waiting, store._large.waiting) == (0, 0, 0)
        assert client.connections == client.idle
        assert both.server.face.content_bytes == 0
        for name, found in inner.medium.items():
            assert found == blob_of(int(name[1:]))
            assert int(name[1:]) in stress.tried
        for number in stress.put - stress.deleted:
            assert f"b{number}" in inner.medium
        await asyncio.gather(*(store.usage(timeout_s=5.0) for _ in range(40)))
        await asyncio.sleep(100)
        assert client.connections == both.server.connections == 0
