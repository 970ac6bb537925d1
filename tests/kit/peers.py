"""Peers under test: a server over given stores on a free port of 127.0.0.1, and callers of it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from holdfast.base.clock import SystemClock
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.memory import MemoryStore
from holdfast.stores.peer import ClientLimits, PeerClient, PeerIdentity, PeerLimits, PeerServer, PeerStore
from holdfast.stores.port import Store

SECRET = b"a secret for tests, and long enough"
CLUSTER = "holdfast-test"
SERVER = PeerIdentity(CLUSTER, "node-b", "uuid-b", "boot-b")
CALLER = PeerIdentity(CLUSTER, "node-a", "uuid-a", "boot-a")


def memory_store(name: str = "store", **options: Any) -> MemoryStore:
    """A store in memory."""
    return MemoryStore(StoreId(name), clock=SystemClock(), randomness=SeededRandomness(name), **options)


def peer_client(port: int, **options: Any) -> PeerClient:
    """A caller of the server on that port; options replace what is usual."""
    given: dict[str, Any] = {
        "address": f"127.0.0.1:{port}",
        "node": SERVER.node,
        "identity": CALLER,
        "secret": SECRET,
        "randomness": SeededRandomness("caller"),
        "limits": ClientLimits(connect_s=30.0, hello_s=30.0, refused_s=0.0),
    }
    return PeerClient(**{**given, **options})


@asynccontextmanager
async def exporting(
    stores: Mapping[StoreId, Store],
    *,
    identity: PeerIdentity = SERVER,
    secret: bytes = SECRET,
    limits: PeerLimits | None = None,
    **options: Any,
) -> AsyncIterator[PeerServer]:
    """A server, gone with the block."""
    server = PeerServer(
        stores,
        identity,
        secret,
        SystemClock(),
        SeededRandomness("server"),
        port=0,
        limits=limits,
        **options,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop(1.0)


@asynccontextmanager
async def exported(store: Store, **options: Any) -> AsyncIterator[PeerStore]:
    """`store`, as a peer sees it."""
    async with exporting({store.id: store}) as server:
        client = peer_client(server.port, **options)
        try:
            yield PeerStore(store.id, client)
        finally:
            await client.close()
