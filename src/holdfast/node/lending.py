"""`holdfast recover --lend`: a node lends its stores to the recovery that runs on another one.

Without an index nobody serves; but the stores of all nodes are wanted. So each other node runs this: it
exports its stores to peers as ever, and beside them one that is none, the *desk*, over which it is told what
becomes of them. What must hold: a node that serves has no desk, so nobody takes its stores for lent; at most
one recovery has them; and what the stores have noted is in the data folder, too, when the desk says so.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack

import msgspec
from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.node.config import Config
from holdfast.node.config_cluster import read_secrets
from holdfast.node.joining import reachable
from holdfast.node.recovering_stores import OwnFound
from holdfast.node.runtime import DataLock
from holdfast.recovery.report import StoreFound
from holdfast.stores.peer import PeerIdentity, PeerServer, Roots, server_tls
from holdfast.stores.port import Range, ShardMissing, Store, StoreBusy, StoreFailed, Usage
from holdfast.topology import Location

DESK = StoreId("holdfast-lending-desk")
"""No store has this name: those are made by chance."""

WHO, TROUBLE = "who", "trouble"
"""What can be read at the desk: what is lent, and which stores did not note the new index."""
TAKEN, NOTED, RELEASED, DONE = "taken", "noted", "released", "done"
"""What can be said there."""
DRAIN_S = 2.0

Tell = Callable[[str], None]


class LentStore(Struct, frozen=True):
    """A store that can be read and written."""

    store: StoreId
    slot: str
    region: str
    zone: str
    host: str
    device: str

    @property
    def location(self) -> Location:
        """Where it is."""
        return Location(self.store, self.region, self.zone, self.host, self.device)


class Lent(Struct, frozen=True):
    """What a node lends. `noted` are the incarnations of the index that its stores and data folder know,
    `found` is what it says of all its stores."""

    uuid: str
    stores: tuple[LentStore, ...]
    found: tuple[StoreFound, ...]
    noted: tuple[str, ...]


class Said(Struct, frozen=True):
    """What a recovery says at the desk: which node it runs on, and about which index."""

    node: str
    incarnation: str = ""
    revision: int = 0


class Desk:
    """Looks like a store to peers. `note` has all stores note an index and answers with what went wrong."""

    def __init__(self, lent: Lent, note: Callable[[str, int], Awaitable[list[str]]], tell: Tell) -> None:
        self._told = {WHO: msgspec.json.encode(lent), TROUBLE: b"[]"}
        self._note = note
        self._tell = tell
        self._borrower = ""
        self.done = asyncio.Event()

    @property
    def id(self) -> StoreId:
        return DESK

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        """Something is said. Raises StoreBusy for another recovery than the one that has the stores."""
        try:
            said = msgspec.json.decode(b"".join(data), type=Said)
        except msgspec.MsgspecError:
            raise StoreFailed("What was said at the desk cannot be understood.") from None
        if name == TAKEN:
            if self._borrower not in ("", said.node):
                raise StoreBusy(
                    f"A recovery on node {self._borrower} has these stores.",
                    hint="Wait for that to end. If it has died, stop `holdfast recover --lend` here and "
                    "start it again.",
                )
            self._borrower = said.node
            self._tell(f"a recovery on node {said.node} reads the stores")
            return
        if self._borrower != said.node:
            raise StoreBusy(f"These stores are not lent to node {said.node}.", hint="Begin again.")
        if name == NOTED:
            failed = await self._note(said.incarnation, said.revision)
            self._told[TROUBLE] = msgspec.json.encode(failed)
            for sentence in failed:
                self._tell(sentence)
            self._tell(f"the stores have noted the new index {said.incarnation}")
        elif name == RELEASED:
            self._borrower = ""
            self._tell(f"the recovery on node {said.node} has let the stores go")
        elif name == DONE:
            self.done.set()
        else:
            raise StoreFailed(f"Nobody knows what {name!r} means.")

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        """What this node tells."""
        told = memoryview(self._find(name))
        return [told[offset : offset + length] for offset, length in ranges]

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        return None

    async def size(self, name: str, *, timeout_s: float) -> int:
        return len(self._find(name))

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        return [name for name in sorted(self._told) if name > after]

    async def delete(self, name: str, *, timeout_s: float) -> None:
        raise StoreFailed("Nothing is kept at the desk.")

    async def usage(self, *, timeout_s: float) -> Usage:
        return Usage(0, 0, 0)

    async def probe(self, *, timeout_s: float) -> None:
        raise StoreFailed("Nothing is kept at the desk.")

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _find(self, name: str) -> bytes:
        if name not in self._told:
            raise ShardMissing(f"There is no {name!r} at the desk.")
        return self._told[name]


async def lend(
    config: Config,
    clock: Clock,
    randomness: Randomness,
    tell: Tell,
    *,
    serving: Callable[[PeerServer], None] = lambda _: None,
) -> None:
    """Lend this node's stores until a recovery is done with them. `serving` is told once they can be had.

    Raises Busy when a node runs on the data folder, InvalidInput, Unavailable, Fenced."""
    settings = config.cluster
    if settings is None:
        raise InvalidInput(
            "This node has no [cluster] in its configuration, and so no peers to lend its stores to:",
            hint="a single node is recovered with `holdfast recover` alone.",
        )
    secrets = read_secrets(settings.secret_file)
    async with AsyncExitStack() as stack:
        config.data.mkdir(exist_ok=True)
        lock = DataLock(config.data)
        stack.callback(lock.release)
        own = OwnFound(config, clock, randomness)
        await own.open(stack)

        async def note(incarnation: str, revision: int) -> list[str]:
            return await own.note(incarnation, revision, ())

        desk = Desk(lent_by(own), note, tell)
        exported: Mapping[StoreId, Store] = {**own.stores, DESK: desk}
        identity = PeerIdentity(own.cluster.cluster, config.name, own.cluster.node, randomness.token(8).hex())
        server = PeerServer(
            exported,
            identity,
            Roots(secrets, identity.cluster),
            clock,
            randomness,
            host=settings.peer.bare_host,
            port=settings.peer.port,
            tls=server_tls(settings.tls) if settings.tls is not None else None,
        )
        await server.start()
        stack.push_async_callback(server.stop, DRAIN_S)
        where = settings.advertise or reachable(settings.peer, server.port)
        for found in own.found:
            if found.state != "used":
                tell(f"not lent: {found.path}: {found.state}")
        tell(
            f"node {config.name} lends {len(own.held)} of {len(own.found)} stores; on the node that "
            f"recovers, say --peer {config.name}={where}"
        )
        serving(server)
        await desk.done.wait()
        tell("the index was made again; start this node with `holdfast serve`")


def lent_by(own: OwnFound) -> Lent:
    """What a node has to lend."""
    stores = tuple(
        LentStore(held.id, slot, held.place.region, held.place.zone, held.place.host, held.device)
        for slot, held in own.held.items()
        if held.id is not None
    )
    return Lent(own.cluster.node, stores, tuple(own.found), tuple(sorted(own.noted())))
