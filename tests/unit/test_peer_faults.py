"""What a network does to peers: every byte of requests and answers cut off, changed, held back, repeated.

What must hold whatever happens: bytes that are returned are right; a put is all there or not at all, and is
never done by anybody but who asked for it; errors are those of the port; nothing outlives its time-out; and
the next call is none the worse for it.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from holdfast.base.ids import StoreId
from holdfast.stores.peer import PeerClient, PeerRefused, PeerStore, Refusal
from holdfast.stores.port import Range, StoreBusy, StoreFailed, StoreOverdue
from tests.kit.peer_pair import Pair, pair
from tests.kit.peers import exporting, memory_store, peer_client
from tests.kit.pipes import PipeNetwork
from tests.kit.proxy import Proxy, proxy_to
from tests.kit.wire_faults import Does, Fault, Way

T = 10.0
BLOB = bytes(range(256))
OURS = (StoreFailed, StoreOverdue, StoreBusy)


async def get(both: Pair) -> None:
    assert await both.store.get("there", [Range(3, 100), Range(0, 7)], timeout_s=T) == [BLOB[3:103], BLOB[:7]]


async def size(both: Pair) -> None:
    assert await both.store.size("there", timeout_s=T) == 256


async def listing(both: Pair) -> None:
    names = await both.store.list("", limit=5, timeout_s=T)
    assert set(names) - {"new"} == {"there"}


async def put(both: Pair) -> None:
    await both.store.put("new", [BLOB, b"and more"], timeout_s=T)
    assert both.inner.medium["new"] == BLOB + b"and more"


async def delete(both: Pair) -> None:
    await both.store.delete("there", timeout_s=T)
    assert "there" not in both.inner.medium


Act = Callable[[Pair], Awaitable[None]]
READS: tuple[Act, ...] = (get, size, listing)
ACTS: tuple[Act, ...] = (*READS, put, delete)


async def lengths(act: Act, *, hello: bool) -> dict[Way, int]:
    """How many bytes go each way."""
    async with pair() as both:
        await both.inner.put("there", [BLOB], timeout_s=T)
        if not hello:
            await both.client.ping(timeout_s=T)
        both.network.faults.set(None)
        await act(both)
        return dict(both.network.faults.passed)


async def suffer(act: Act, fault: Fault, *, hello: bool, piece_bytes_max: int = 1 << 20) -> str:
    """One call under one fault: how it ended."""
    network = PipeNetwork(piece_bytes_max=piece_bytes_max)
    async with pair(network=network) as both:
        await both.inner.put("there", [BLOB], timeout_s=T)
        if not hello:
            await both.client.ping(timeout_s=T)
        network.faults.set(fault)
        began = asyncio.get_running_loop().time()
        try:
            await act(both)
            ended = "done"
        except OURS as error:
            ended = type(error).__name__
        assert network.faults.happened == 1
        assert asyncio.get_running_loop().time() - began <= T + 0.001
        medium = both.inner.medium
        assert medium.get("new", BLOB + b"and more") == BLOB + b"and more"
        assert medium.get("there", BLOB) == BLOB
        assert set(medium) <= {"new", "there"}
        if act is not delete:
            assert "there" in medium
        # Whatever it was, it was that once.
        await asyncio.sleep(1.0)
        await both.client.ping(timeout_s=T)
        await both.store.put("next", [b"x"], timeout_s=T)
        return ended


@pytest.mark.virtual
@pytest.mark.parametrize("hello", [False, True], ids=["known", "new"])
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
async def test_a_connection_may_be_cut_at_every_byte(act: Act, hello: bool) -> None:
    for way, length in (await lengths(act, hello=hello)).items():
        for at in range(length):
            ended = await suffer(act, Fault(way, at, Does.CUT), hello=hello)
            # Who only reads asks again, and nobody notices.
            assert ended == "done" if act in READS and not hello else ended in {"done", "StoreFailed"}


@pytest.mark.virtual
@pytest.mark.parametrize("hello", [False, True], ids=["known", "new"])
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
async def test_every_byte_may_be_changed_and_nothing_wrong_is_done_or_returned(act: Act, hello: bool) -> None:
    ends: set[str] = set()
    for way, length in (await lengths(act, hello=hello)).items():
        for at in range(length):
            mask = 1 << (at * 5 % 8)
            ends.add(await suffer(act, Fault(way, at, Does.FLIP, mask), hello=hello))
    # In a hello, a change looks like somebody else; later, most of them cost a second try and no more.
    assert ends <= {"done", "StoreFailed", "PeerRefused", "StoreOverdue"}
    assert "done" in ends
    assert ("PeerRefused" in ends) == hello


@pytest.mark.virtual
async def test_what_is_changed_each_time_is_an_error() -> None:
    async with pair() as both:
        await both.client.ping(timeout_s=T)
        both.network.faults.flips_always = b"blobs/new"
        with pytest.raises(PeerRefused, match="changed on its way") as caught:
            await both.store.put("new", [b"x"], timeout_s=T)
        assert caught.value.refusal is Refusal.ALTERED
        assert not both.inner.medium


@pytest.mark.virtual
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
async def test_a_connection_may_fall_silent_at_every_byte(act: Act) -> None:
    for way, length in (await lengths(act, hello=False)).items():
        for at in range(0, length, 3):
            ended = await suffer(act, Fault(way, at, Does.HOLD), hello=False)
            # The peer itself ends a connection with half a head on it, before the caller's time is up.
            assert ended == "StoreOverdue" or (way is Way.OUT and ended in {"done", "StoreFailed"})


@pytest.mark.virtual
@pytest.mark.parametrize("hello", [False, True], ids=["known", "new"])
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
async def test_a_peer_of_a_byte_a_second_costs_no_more_than_the_time_given(act: Act, hello: bool) -> None:
    """However often something still comes: each of a hundred bytes would start the clock anew."""
    network = PipeNetwork()
    async with pair(network=network) as both:
        await both.inner.put("there", [BLOB], timeout_s=T)
        if not hello:
            await both.client.ping(timeout_s=T)
        network.latency_s, network.piece_bytes_max = 1.0, 1
        began = asyncio.get_running_loop().time()
        with pytest.raises(OURS):
            await act(both)
        assert asyncio.get_running_loop().time() - began <= T + 0.001
        assert both.inner.medium == {"there": BLOB}
        network.latency_s, network.piece_bytes_max = 0.001, 1 << 20
        await asyncio.sleep(1.0)
        await both.client.ping(timeout_s=T)


@pytest.mark.virtual
@pytest.mark.parametrize("act", ACTS, ids=lambda act: act.__name__)
async def test_bytes_may_come_one_by_one(act: Act) -> None:
    async with pair(network=PipeNetwork(piece_bytes_max=1)) as both:
        await both.inner.put("there", [BLOB], timeout_s=T)
        await act(both)
    for at in (0, 100):
        await suffer(act, Fault(Way.BACK, at, Does.CUT), hello=False, piece_bytes_max=1)


@pytest.mark.virtual
@pytest.mark.parametrize("way", Way)
async def test_a_large_content_that_is_changed_anywhere_is_not_taken(way: Way) -> None:
    blob = BLOB * 4096
    for at in (5_000, 65_536, 300_000, 900_000, len(blob)):
        async with pair() as both:
            await both.inner.put("there", [blob], timeout_s=T)
            await both.client.ping(timeout_s=T)
            both.network.faults.set(Fault(way, at, Does.FLIP))
            if way is Way.OUT:
                # Refused, and sent a second time.
                await both.store.put("new", [blob], timeout_s=T)
                assert both.inner.medium["new"] == blob
            else:
                # Asked a second time.
                assert await both.store.get("there", [Range(0, len(blob))], timeout_s=T) == [blob]
            assert both.network.faults.happened == 1


# On sockets, through a proxy


@asynccontextmanager
async def through_proxy() -> AsyncIterator[tuple[Proxy, PeerClient, PeerStore]]:
    inner = memory_store()
    await inner.put("there", [BLOB], timeout_s=T)
    async with exporting({StoreId("store"): inner}) as server, proxy_to(server.port) as proxy:
        client = peer_client(proxy.port)
        yield proxy, client, PeerStore(inner.id, client)
        await client.close()


async def test_recorded_requests_are_worth_nothing_on_another_connection() -> None:
    async with through_proxy() as (proxy, client, store):
        await client.ping(timeout_s=60.0)
        hello = bytes(proxy.faults.recorded[Way.OUT])
        proxy.faults.set(None)
        await store.put("new", [b"once"], timeout_s=60.0)
        recorded_put = bytes(proxy.faults.recorded[Way.OUT])
        await store.delete("new", timeout_s=60.0)
        assert b"PUT /v1/stores/store/blobs/new" in recorded_put
        assert hello.startswith(b"GET /hello")
        first_request = hello.index(b"\r\n\r\n") + 4
        for said, answer in [
            (recorded_put, b"NoHello"),
            (hello[:first_request] + recorded_put, b"Altered"),
            (hello, b"Altered"),
        ]:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
            writer.write(said)
            async with asyncio.timeout(60):
                assert answer in await reader.read()
            writer.close()
        assert await store.list("", limit=9, timeout_s=60.0) == ["there"]


async def test_what_is_sent_twice_on_one_connection_is_done_once() -> None:
    """Somebody in between repeats each request that it sees."""
    async with through_proxy() as (proxy, client, store):
        await client.ping(timeout_s=60.0)
        proxy.repeats = True
        ends = [await _put(store, f"new{number}") for number in range(3)]
        proxy.repeats = False
        assert "refused" in ends
        names = await store.list("", limit=9, timeout_s=60.0)
        assert {f"new{number}" for number, end in enumerate(ends) if end == "done"} <= set(names)
        assert len(names) == len(set(names))


async def _put(store: PeerStore, name: str) -> str:
    try:
        await store.put(name, [b"once"], timeout_s=60.0)
    except StoreFailed:
        return "refused"
    return "done"


@pytest.mark.parametrize("does", [Does.CUT, Does.FLIP])
async def test_sockets_that_are_cut_or_change_bytes_lead_to_right_bytes_or_an_error(does: Does) -> None:
    async with through_proxy() as (proxy, client, store):
        for way in Way:
            for at in range(0, 200, 37):
                await client.ping(timeout_s=60.0)
                proxy.faults.set(Fault(way, at, does, 0x01))
                try:
                    found = await store.get("there", [Range(0, 256)], timeout_s=1.0)
                    assert found == [BLOB]
                except OURS:
                    pass
                proxy.faults.set(Fault(way, at, does, 0x01))
                name = f"{way.value}-{at}"
                try:
                    await store.put(name, [BLOB], timeout_s=1.0)
                except OURS:
                    proxy.faults.set(None)
                    if name not in await store.list("", limit=500, timeout_s=60.0):
                        continue
                proxy.faults.set(None)
                assert await store.get(name, [Range(0, 256)], timeout_s=60.0) == [BLOB]
                assert await store.size(name, timeout_s=60.0) == 256


async def test_a_peer_behind_a_dead_line_costs_each_caller_its_own_time() -> None:
    async with through_proxy() as (proxy, client, store):
        await client.ping(timeout_s=60.0)
        proxy.faults.set(Fault(Way.BACK, 0, Does.HOLD))
        with pytest.raises(StoreOverdue):
            await store.get("there", [Range(0, 1)], timeout_s=0.2)
        assert await store.get("there", [Range(0, 1)], timeout_s=60.0) == [b"\0"]
