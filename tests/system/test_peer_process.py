"""A peer that is a process: it hangs as a whole, goes on, and is killed in the middle of puts."""

import asyncio
import signal
from pathlib import Path

import pytest

from holdfast.base.ids import StoreId
from holdfast.stores.peer import PeerStore
from holdfast.stores.port import Range, StoreFailed, StoreOverdue
from tests.kit.peer_child import peer_child
from tests.kit.peers import peer_client

T = 120.0
BLOB = bytes(range(256)) * 4096


def stands_still(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "T"


async def stop(process: asyncio.subprocess.Process) -> None:
    """Return when it stands still."""
    process.send_signal(signal.SIGSTOP)
    async with asyncio.timeout(T):
        while not stands_still(process.pid):  # noqa: ASYNC110 (nobody tells when)
            await asyncio.sleep(0.005)


async def test_a_peer_that_hangs_costs_each_call_its_time_and_is_as_before_when_it_goes_on() -> None:
    async with peer_child() as (process, port):
        client = peer_client(port)
        store = PeerStore(StoreId("store"), client)
        await store.put("blob", [BLOB], timeout_s=T)
        await stop(process)
        # The kernel goes on taking connections and bytes for it.
        calls = (
            store.get("blob", [Range(0, 10)], timeout_s=0.3),
            store.put("other", [BLOB], timeout_s=0.3),
            store.probe(timeout_s=0.3),
            client.ping(timeout_s=0.3),
            client.greet(timeout_s=0.3),
        )
        async with asyncio.timeout(T):
            ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [StoreOverdue] * len(calls)
        process.send_signal(signal.SIGCONT)
        assert await store.get("blob", [Range(0, len(BLOB))], timeout_s=T) == [BLOB]
        await store.put("next", [BLOB], timeout_s=T)
        # The put that was given up was not done, or all of it was.
        names = await store.list("", limit=10, timeout_s=T)
        assert names in (["blob", "next"], ["blob", "next", "other"])
        await client.close()


async def test_a_peer_that_is_killed_fails_what_is_under_way_and_what_comes_after_at_once() -> None:
    async with peer_child() as (process, port):
        client = peer_client(port)
        store = PeerStore(StoreId("store"), client)
        done = 0

        async def put_on(worker: int) -> None:
            nonlocal done
            number = 0
            while True:
                await store.put(f"{worker}-{number}", [BLOB], timeout_s=T)
                number, done = number + 1, done + 1

        workers = [asyncio.create_task(put_on(worker)) for worker in range(8)]
        async with asyncio.timeout(T):
            while done < 40:  # noqa: ASYNC110 (nobody tells when)
                await asyncio.sleep(0.005)
            process.kill()
            ends = await asyncio.gather(*workers, return_exceptions=True)
            assert [type(end) for end in ends] == [StoreFailed] * len(workers)
            await process.wait()
            for call in (store.usage, store.probe, client.ping, client.greet):
                with pytest.raises(StoreFailed, match="cannot be reached"):
                    await call(timeout_s=T)
        assert client.connections == 0
        await client.close()
