"""A store of a peer, beyond what every store promises: errors, whose time it is, what is sent twice, bounds.

Over pipes on a virtual clock, so that a time-out is exact and takes no time.
"""

import array
import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from holdfast.base.checksums import Buffer
from holdfast.base.errors import Damaged, HoldfastError
from holdfast.base.ids import StoreId
from holdfast.stores import port
from holdfast.stores.memory import MemoryStore
from holdfast.stores.peer import PeerLimits, PeerStore
from holdfast.stores.peer.messages import ANSWER_BYTES_MAX, BLOB_BYTES_MAX
from holdfast.stores.peer.store import WIDTH
from holdfast.stores.port import Range, StoreBusy, StoreFailed, StoreOverdue
from tests.kit.peer_pair import ADDRESS, pair, piped_client, piped_server, virtual_store
from tests.kit.pipes import PipeNetwork
from tests.kit.wire_faults import Does, Fault, Way

pytestmark = pytest.mark.virtual

T = 10.0
MIB = 1 << 20


def now() -> float:
    return asyncio.get_running_loop().time()


class Watched(MemoryStore):
    """Counts what was begun and what was given up, and may fail or wait for a gate."""

    def __init__(self, **options: Any) -> None:
        inner = virtual_store(**options)
        self.__dict__.update(inner.__dict__)
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.begun: list[str] = []
        self.given_up: list[str] = []
        self.timeouts_s: list[float] = []

    async def _pass(self, what: str, timeout_s: float) -> None:
        self.begun.append(what)
        self.timeouts_s.append(timeout_s)
        if self.error is not None:
            raise self.error
        if self.gate is not None:
            try:
                await self.gate.wait()
            except asyncio.CancelledError:
                self.given_up.append(what)
                raise

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        await self._pass(f"put {name}", timeout_s)
        await super().put(name, data, timeout_s=timeout_s, reserve_share=reserve_share)

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> "Found":
        await self._pass(f"get {name}{' uncached' if uncached else ''}", timeout_s)
        return await super().get(name, ranges, timeout_s=timeout_s, uncached=uncached)

    def peek(self, name: str, ranges: Sequence[Range]) -> "Found | None":
        return None if self.gate or self.error else super().peek(name, ranges)

    async def probe(self, *, timeout_s: float) -> None:
        await self._pass("probe", timeout_s)
        await super().probe(timeout_s=timeout_s)


Found = list[Buffer]


async def turns(count: int = 50) -> None:
    """Let everything happen that needs no time but the pipes'."""
    for _ in range(count):
        await asyncio.sleep(0.0001)


# Errors


@pytest.mark.parametrize(
    "error",
    [
        port.ShardExists,
        port.ShardMissing,
        port.ShardTruncated,
        port.ShardSpoiled,
        port.ShardUnreadable,
        port.StoreFull,
        port.StoreReadOnly,
        port.StoreFailed,
        port.StoreOverdue,
        port.StoreBusy,
        Damaged,
    ],
)
async def test_what_the_store_raises_is_raised_here(error: type[HoldfastError]) -> None:
    inner = Watched()
    inner.error = error("It is as it is.", hint="Look.")
    async with pair(inner) as both:
        for call in (
            both.store.put("blob", [b"x"], timeout_s=T),
            both.store.get("blob", [Range(0, 1)], timeout_s=T),
            both.store.probe(timeout_s=T),
        ):
            with pytest.raises(error, match="It is as it is") as caught:
                await call
            assert type(caught.value) is error
            assert caught.value.facts["peer"] == "node-b"
        assert both.network.dials == 1


async def test_a_bug_of_the_peer_is_told_without_its_inside(caplog: pytest.LogCaptureFixture) -> None:
    inner = Watched()
    inner.error = KeyError("the inside")
    async with pair(inner) as both:
        with pytest.raises(StoreFailed, match="made a mistake") as caught:
            await both.store.put("blob", [b"x"], timeout_s=T)
        assert "inside" not in str(caught.value)
        assert "the inside" in caplog.text
        inner.error = None
        await both.store.put("other", [b"x"], timeout_s=T)


async def test_stores_come_and_go_while_the_peer_runs() -> None:
    network, stores = PipeNetwork(), dict[StoreId, MemoryStore]()
    server, client = piped_server(network, stores), piped_client(network)
    await server.start()
    store = PeerStore(StoreId("late"), client)
    with pytest.raises(StoreFailed, match="Node node-b has no store late"):
        await store.usage(timeout_s=T)
    with pytest.raises(StoreFailed, match="has no store late"):
        await store.get("blob", [Range(0, 1)], timeout_s=T)
    stores[store.id] = virtual_store("late")
    await store.put("blob", [b"x"], timeout_s=T)
    del stores[store.id]
    with pytest.raises(StoreFailed, match="has no store late"):
        await store.get("blob", [Range(0, 1)], timeout_s=T)
    await client.close()
    await server.stop(1.0)


# Time


async def test_a_peer_that_is_down_is_an_error_at_once() -> None:
    async with pair() as both:
        both.network.down.add(ADDRESS)
        for call in (both.store.usage(timeout_s=T), both.store.put("blob", [b"x"], timeout_s=T)):
            with pytest.raises(StoreFailed, match="cannot be reached at node-b:9100: Connection refused"):
                await call
        assert now() < 0.1
        both.network.down.clear()
        await asyncio.sleep(0.2)
        await both.store.put("blob", [b"x"], timeout_s=T)


async def test_many_calls_to_a_peer_that_is_down_are_few_attempts() -> None:
    async with pair() as both:
        both.network.down.add(ADDRESS)
        for _ in range(100):
            with pytest.raises(StoreFailed, match="cannot be reached"):
                await both.store.usage(timeout_s=T)
        assert both.network.dials == 1


@pytest.mark.parametrize("timeout_s", [0.05, 0.5, 1.5])
async def test_a_peer_that_takes_connections_and_says_nothing_costs_the_callers_time_only(
    timeout_s: float,
) -> None:
    async with pair() as both:
        both.network.silent.add(ADDRESS)
        for call in (both.store.usage, both.store.probe, both.client.ping):
            began = now()
            with pytest.raises(StoreOverdue):
                await call(timeout_s=timeout_s)
            assert now() - began == pytest.approx(timeout_s, abs=0.001)
        assert both.client.connections == 0


async def test_nobody_waits_longer_for_a_hello_than_a_hello_takes() -> None:
    async with pair() as both:
        both.network.silent.add(ADDRESS)
        with pytest.raises(StoreOverdue):
            await both.store.usage(timeout_s=3600.0)
        assert now() == pytest.approx(2.0, abs=0.01)


async def test_a_connection_that_cannot_be_had_in_a_second_is_given_up() -> None:
    async def dial(make: Any) -> Any:
        await asyncio.sleep(3600)

    async with pair(client={"dial": dial}) as both:
        with pytest.raises(StoreFailed, match="no answer within 1 s"):
            await both.store.usage(timeout_s=T)
        assert now() == pytest.approx(1.0, abs=0.01)
        began = now()
        await asyncio.sleep(1)
        with pytest.raises(StoreOverdue):
            await both.store.usage(timeout_s=0.25)
        assert now() - began == pytest.approx(1.25, abs=0.01)


async def test_a_store_that_hangs_is_said_to_be_late_by_its_peer_and_the_connection_goes_on() -> None:
    inner = Watched()
    inner.gate = asyncio.Event()
    async with pair(inner) as both:
        for call in (
            both.store.get("blob", [Range(0, 1)], timeout_s=2.0),
            both.store.put("blob", [b"x" * MIB], timeout_s=2.0),
            both.store.probe(timeout_s=2.0),
        ):
            began = now()
            with pytest.raises(StoreOverdue):
                await call
            assert 1.9 < now() - began < 2.0
        assert inner.given_up == ["get blob", "put blob", "probe"]
        assert all(1.9 < timeout_s < 2.0 for timeout_s in inner.timeouts_s)
        await both.client.ping(timeout_s=T)
        assert both.network.dials == 1


async def test_a_call_that_is_given_up_is_given_up_at_the_peer() -> None:
    inner = Watched()
    inner.gate = asyncio.Event()
    async with pair(inner) as both:
        calls = [
            asyncio.create_task(both.store.put("blob", [b"x" * 1000], timeout_s=T)),
            asyncio.create_task(both.store.get("blob", [Range(0, MIB)], timeout_s=T)),
        ]
        await turns()
        assert sorted(inner.begun) == ["get blob", "put blob"]
        for call in calls:
            call.cancel()
        await turns()
        assert sorted(inner.given_up) == ["get blob", "put blob"]
        assert both.client.connections == 0
        inner.gate = None
        await both.store.put("other", [b"x"], timeout_s=T)
        assert "blob" not in inner.medium


async def test_a_small_answer_that_nobody_wants_any_more_is_dropped_and_the_connection_kept() -> None:
    inner = Watched()
    await inner.put("blob", [bytes(range(256))], timeout_s=T)
    inner.gate = asyncio.Event()
    async with pair(inner) as both:
        for _ in range(3):
            call = asyncio.create_task(both.store.get("blob", [Range(0, 4)], timeout_s=T))
            await turns()
            call.cancel()
            await turns()
        assert (both.client.connections, both.client.idle) == (3, 0)
        inner.gate.set()
        await turns()
        assert (both.client.connections, both.client.idle) == (3, 3)
        inner.gate = None
        for at in range(8):
            found = await both.store.get("blob", [Range(at, 2)], timeout_s=T)
            assert found == [bytes([at, at + 1])]
        assert both.network.dials == 3


async def test_an_unwanted_answer_that_never_comes_keeps_its_connection_no_longer_than_its_time() -> None:
    async with pair() as both:
        await both.client.ping(timeout_s=T)
        both.network.faults.set(Fault(Way.BACK, 0, Does.HOLD))
        call = asyncio.create_task(both.store.get("blob", [Range(0, 4)], timeout_s=5.0))
        await turns()
        call.cancel()
        await turns()
        assert both.client.connections == 1
        await asyncio.sleep(5.0)
        assert both.client.connections == 0
        await both.client.ping(timeout_s=T)


async def test_when_one_call_hears_nothing_idle_connections_are_not_trusted_either() -> None:
    """Else each of them would cost the next caller its whole time."""
    async with pair() as both:
        await asyncio.gather(*(both.store.usage(timeout_s=T) for _ in range(8)))
        assert both.client.idle == 8
        await asyncio.sleep(1)
        for end in both.network.ends:
            end._held = True
        with pytest.raises(StoreOverdue):
            await both.client.ping(timeout_s=0.5)
        await turns()
        assert both.client.connections == 0
        began = now()
        await both.client.ping(timeout_s=T)
        assert now() - began < 0.1


# What is sent twice


async def test_a_restarted_peer_is_found_again() -> None:
    async with pair() as both:
        await both.store.put("blob", [b"x"], timeout_s=T)
        both.network.cut()
        await turns()
        assert both.client.connections == 0
        await both.store.put("other", [b"x"], timeout_s=T)
        assert await both.store.list("", limit=9, timeout_s=T) == ["blob", "other"]


async def test_a_read_whose_connection_breaks_is_asked_again() -> None:
    inner = Watched()
    await inner.put("blob", [b"holdfast"], timeout_s=T)
    inner.gate = asyncio.Event()
    async with pair(inner) as both:
        call = asyncio.create_task(both.store.get("blob", [Range(0, 8)], timeout_s=T, uncached=True))
        await turns()
        both.network.cut()
        inner.gate.set()
        assert await call == [b"holdfast"]
        assert inner.begun.count("get blob uncached") == 2


async def test_a_put_whose_answer_is_lost_is_not_sent_twice() -> None:
    inner = Watched()
    async with pair(inner) as both:
        await both.client.ping(timeout_s=T)
        inner.gate = asyncio.Event()
        call = asyncio.create_task(both.store.put("blob", [b"x"], timeout_s=T))
        await turns()
        both.network.cut()
        with pytest.raises(StoreFailed, match="ended before the answer"):
            await call
        assert inner.begun == ["put blob"]


async def test_a_call_whose_connection_had_ended_before_is_sent_on_another() -> None:
    async with pair() as both:
        await both.client.ping(timeout_s=T)
        (line,) = both.client._idle
        line._closing = True  # as in the moment between the end and its notice
        await both.store.put("blob", [b"x"], timeout_s=T)
        assert both.network.dials == 2


# Bounds


async def test_small_reads_do_not_wait_behind_large_ones() -> None:
    network = PipeNetwork(latency_s=0.004, piece_bytes_max=16 << 10)  # 4 MB/s a connection
    inner = virtual_store(latency_s=(0.0001, 0.0002))
    await inner.put("large", [bytes(4 * MIB)], timeout_s=T)
    await inner.put("small", [b"small"], timeout_s=T)
    async with pair(inner, network=network) as both:
        large = [
            asyncio.create_task(both.store.get("large", [Range(0, 4 * MIB)], timeout_s=600.0))
            for _ in range(20)
        ]
        await asyncio.sleep(0.1)
        began = now()
        assert await both.store.get("small", [Range(0, 5)], timeout_s=T) == [b"small"]
        assert now() - began < 0.05
        await asyncio.gather(*large)
        assert now() - began > 0.5


async def test_a_store_that_hangs_leaves_connections_to_the_others() -> None:
    hanging, well = Watched(name="hanging"), virtual_store("well")
    hanging.gate = asyncio.Event()
    network = PipeNetwork()
    server, client = piped_server(network, {hanging.id: hanging, well.id: well}), piped_client(network)
    await server.start()
    hung, other = PeerStore(hanging.id, client), PeerStore(well.id, client)
    calls = [asyncio.create_task(hung.probe(timeout_s=60.0)) for _ in range(500)]
    await turns()
    assert client.connections == WIDTH
    began = now()
    await other.put("blob", [b"x"], timeout_s=T)
    assert now() - began < 0.1
    hanging.gate.set()
    await asyncio.gather(*calls)
    await client.close()
    await server.stop(1.0)


async def test_reads_that_are_given_up_one_after_the_other_take_no_connections_from_other_stores() -> None:
    """As when a store hangs and each read of it is overtaken by others."""
    hanging, well = Watched(name="hanging"), virtual_store("well")
    hanging.gate = asyncio.Event()
    network = PipeNetwork()
    server, client = piped_server(network, {hanging.id: hanging, well.id: well}), piped_client(network)
    await server.start()
    hung, other = PeerStore(hanging.id, client), PeerStore(well.id, client)
    for _ in range(200):
        call = asyncio.create_task(hung.get("blob", [Range(0, 4096)], timeout_s=10.0))
        await turns(5)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert client.connections == WIDTH
    began = now()
    await other.put("blob", [b"x"], timeout_s=T)
    assert now() - began < 0.1
    await asyncio.sleep(10)
    assert (client.connections, client.idle) == (WIDTH + 1, WIDTH + 1)
    hanging.gate = None
    await hung.put("blob", [b"y"], timeout_s=T)
    assert await hung.get("blob", [Range(0, 1)], timeout_s=T) == [b"y"]
    await client.close()
    await server.stop(1.0)


async def test_stores_that_hang_never_make_a_peer_look_dead() -> None:
    hanging = [Watched(name=f"hanging{number}") for number in range(6)]
    network = PipeNetwork()
    server, client = piped_server(network, {store.id: store for store in hanging}), piped_client(network)
    await server.start()
    for store in hanging:
        store.gate = asyncio.Event()
    stores = [PeerStore(store.id, client) for store in hanging]
    calls = [asyncio.create_task(store.probe(timeout_s=60.0)) for store in stores for _ in range(WIDTH)]
    await turns()
    assert client.connections == 128
    for _ in range(3):
        began = now()
        await asyncio.gather(*(client.ping(timeout_s=0.5) for _ in range(20)))
        assert now() - began < 0.1
    for store in hanging:
        assert store.gate is not None
        store.gate.set()
    await asyncio.gather(*calls)
    await client.close()
    await server.stop(1.0)


async def test_too_many_calls_are_refused_at_once() -> None:
    inner = Watched()
    inner.gate = asyncio.Event()
    async with pair(inner) as both:
        calls = [asyncio.create_task(both.store.probe(timeout_s=60.0)) for _ in range(WIDTH + 1024)]
        await turns()
        with pytest.raises(StoreBusy, match="Too many calls wait"):
            await both.store.probe(timeout_s=T)
        inner.gate.set()
        await asyncio.gather(*calls)


async def test_contents_in_the_memory_of_a_peer_keep_to_a_limit_and_all_have_their_turn() -> None:
    most = BLOB_BYTES_MAX + MIB
    inner = virtual_store(latency_s=(0.01, 0.02))
    async with pair(inner, limits=PeerLimits(content_bytes_max=most)) as both:
        blob, held = bytes(8 * MIB), list[int]()

        async def look() -> None:
            while True:
                held.append(both.server.face.content_bytes)
                await asyncio.sleep(0.001)

        looking = asyncio.create_task(look())
        await asyncio.gather(*(both.store.put(f"blob{n}", [blob], timeout_s=60.0) for n in range(24)))
        found = await asyncio.gather(
            *(both.store.get(f"blob{n}", [Range(0, ANSWER_BYTES_MAX)], timeout_s=60.0) for n in range(24))
        )
        looking.cancel()
        assert all(piece == blob[:ANSWER_BYTES_MAX] for (piece,) in found)
        assert 32 * MIB < max(held) <= most
        await turns()
        assert both.server.face.content_bytes == 0


async def test_a_get_of_any_size_is_several_requests_with_one_time_out() -> None:
    blob = bytes(range(256)) * (12 * MIB // 256)
    async with pair() as both:
        await both.inner.put("blob", [blob], timeout_s=T)
        ranges = [Range(5, 3), Range(100, 9 * MIB), Range(0, 1), Range(7, ANSWER_BYTES_MAX)]
        found = await both.store.get("blob", ranges, timeout_s=T)
        assert found == [blob[offset : offset + length] for offset, length in ranges]
        many = [Range(number, 2) for number in range(3000)]
        assert await both.store.get("blob", many, timeout_s=T) == [blob[n : n + 2] for n in range(3000)]
        both.inner.latency_s = (0.6, 0.6)
        began = now()
        with pytest.raises(StoreOverdue):
            await both.store.get("blob", ranges, timeout_s=1.0)
        assert now() - began <= 1.001


async def test_views_of_any_kind_are_put_as_their_bytes() -> None:
    numbers = array.array("I", range(100_000))
    async with pair() as both:
        await both.store.put("blob", [memoryview(numbers), b"", memoryview(b"end")], timeout_s=T)
        assert both.inner.medium["blob"] == numbers.tobytes() + b"end"


async def test_idle_connections_are_closed_after_a_while() -> None:
    async with pair() as both:
        await asyncio.gather(*(both.store.usage(timeout_s=T) for _ in range(5)))
        assert both.client.connections == 5
        for _ in range(6):
            await asyncio.sleep(10)
            await both.client.ping(timeout_s=T)
        assert both.client.connections == 1
        await asyncio.sleep(60)
        assert both.client.connections == 0


async def test_closing_ends_what_is_under_way() -> None:
    inner = Watched()
    inner.gate = asyncio.Event()
    async with pair(inner) as both:
        calls = [
            asyncio.create_task(both.store.probe(timeout_s=T)),
            asyncio.create_task(both.store.get("blob", [Range(0, 1)], timeout_s=T)),
        ]
        await turns()
        await both.client.close()
        for call in calls:
            with pytest.raises(StoreFailed):
                await call
        with pytest.raises(StoreFailed, match="are closed"):
            await both.client.ping(timeout_s=T)
        await turns()
        assert sorted(inner.given_up) == ["get blob", "probe"]


async def test_a_peer_that_stops_answers_what_is_under_way() -> None:
    inner = Watched()
    inner.gate = asyncio.Event()
    async with pair(inner) as both:
        call = asyncio.create_task(both.store.put("blob", [b"x"], timeout_s=T))
        await turns()
        stopping = asyncio.create_task(both.server.stop(5.0))
        await turns()
        inner.gate.set()
        await call
        await stopping
        assert both.client.connections == 0
        with pytest.raises(StoreFailed, match="cannot be reached"):
            await both.store.usage(timeout_s=T)
