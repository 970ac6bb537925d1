"""A peer and its caller over pipes on a virtual clock: faults at will, time-outs that take no time."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.memory import MemoryStore
from holdfast.stores.peer import PeerClient, PeerIdentity, PeerLimits, PeerServer, PeerStore
from holdfast.stores.port import Store
from tests.kit.peers import CALLER, SECRET, SERVER
from tests.kit.pipes import PipeNetwork
from tests.kit.virtual import VirtualClock

ADDRESS = "node-b:9100"


class Pair(NamedTuple):
    """A server over `inner`, and its store as the caller sees it."""

    network: PipeNetwork
    server: PeerServer
    client: PeerClient
    inner: MemoryStore
    store: PeerStore


def virtual_store(name: str = "store", **options: Any) -> MemoryStore:
    """A store in memory on the virtual clock."""
    return MemoryStore(StoreId(name), clock=VirtualClock(), randomness=SeededRandomness(name), **options)


def piped_server(
    network: PipeNetwork,
    stores: Mapping[StoreId, Store],
    *,
    identity: PeerIdentity = SERVER,
    secret: bytes = SECRET,
    seed: str = "server",
    limits: PeerLimits | None = None,
    **options: Any,
) -> PeerServer:
    """A server at ADDRESS, not started yet."""
    return PeerServer(
        stores,
        identity,
        secret,
        VirtualClock(),
        SeededRandomness(seed),
        limits=limits,
        listen=network.listen(ADDRESS),
        **options,
    )


def piped_client(network: PipeNetwork, **options: Any) -> PeerClient:
    """A caller of whoever listens at ADDRESS; options replace what is usual."""
    given: dict[str, Any] = {
        "address": ADDRESS,
        "node": SERVER.node,
        "identity": CALLER,
        "secret": SECRET,
        "randomness": SeededRandomness("caller"),
        "dial": network.dial(ADDRESS),
    }
    return PeerClient(**{**given, **options})


@asynccontextmanager
async def pair(
    inner: MemoryStore | None = None,
    *,
    network: PipeNetwork | None = None,
    client: Mapping[str, Any] | None = None,
    wrapped: Store | None = None,
    **server: Any,
) -> AsyncIterator[Pair]:
    """Both of them, gone with the block. `wrapped` is exported in the place of `inner`."""
    network = network or PipeNetwork()
    inner = inner or virtual_store()
    served = piped_server(network, {inner.id: wrapped or inner}, **server)
    caller = piped_client(network, **(client or {}))
    await served.start()
    try:
        yield Pair(network, served, caller, inner, PeerStore(inner.id, caller))
    finally:
        await caller.close()
        await served.stop(1.0)
