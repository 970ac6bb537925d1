"""A node's part in its cluster: its rows, the stores it exports, and those that others export to it.

Only a node with a shared index has one. The order: who this node is, before any store is touched; then the
server for peers, so that the row names an address that answers; then the rows; then the others' stores.
What must hold: nothing that is served or written comes before the rows; and a node that is not ready says so
on its own, whoever asks.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from holdfast import __version__
from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.cluster.members import Changed, Member
from holdfast.cluster.presence import Presence
from holdfast.cluster.rows import FORMAT, KNOWN, MemberStore, NodeRow
from holdfast.health import StoreHealth
from holdfast.health.events import Teller
from holdfast.index.port import Index
from holdfast.node.cluster import Draining, read_cluster
from holdfast.node.config import Config
from holdfast.node.config_cluster import PeerAddress
from holdfast.node.keeper import Decorate, Held, Keeper
from holdfast.node.peer_accounting import PeerAccounts
from holdfast.node.peers import Peers, dial_peers
from holdfast.stores.peer import SPEAKS, PeerIdentity, PeerServer, Roots, client_tls, server_tls
from holdfast.stores.port import Attachment, Store

DRAIN_S = 2.0
"""How long requests of peers may take to finish once the node stops."""


class OwnStores(Mapping[StoreId, Store]):
    """The stores of this node that are there now: what peers may use."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper

    def __getitem__(self, store: StoreId) -> Store:
        for held in self._keeper.held.values():
            if held.id == store and held.store is not None:
                return held.store
        raise KeyError(store)

    def __iter__(self) -> Iterator[StoreId]:
        held = self._keeper.held.values()
        return iter([one.id for one in held if one.id is not None and one.store is not None])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Joining:
    """Made before the stores are attached; `on_fenced` is told when this process is no longer the node."""

    def __init__(
        self,
        config: Config,
        boot: str,
        cluster: str,
        roots: Roots,
        index: Index,
        keeper: Keeper,
        clock: Clock,
        randomness: Randomness,
        tell: Teller,
        *,
        on_fenced: Callable[[Fenced], None],
    ) -> None:
        assert config.cluster is not None
        known = read_cluster(config.data)
        uuid = known.node if known is not None else ""
        self._config = config
        self._settings = config.cluster
        self._roots = roots
        self._keeper = keeper
        self._clock = clock
        self._randomness = randomness
        self._tell = tell
        self.identity = PeerIdentity(cluster, config.name, uuid or randomness.token(16).hex(), boot)
        self._started_ms = int(clock.wall() * 1000)
        self._client = self._settings.client
        self._peer = str(self._settings.advertise or self._settings.peer)
        self.stopping = False
        self.is_ahead: Callable[[], bool] = lambda: False
        self.reading: Callable[[], int] = lambda: index.status().revision
        self.on_change: list[Callable[[Changed], None]] = []
        self.peers: Peers | None = None
        self.server: PeerServer | None = None
        self.peer_accounts = PeerAccounts()
        self._watch: asyncio.Task[None] | None = None
        self.presence = Presence(
            config.name,
            self.identity.uuid,
            boot,
            index,
            clock,
            describe=self._describe,
            reading=lambda: self.reading(),
            on_change=self._changed,
            on_fenced=on_fenced,
        )

    @property
    def name(self) -> str:
        return self._config.name

    @property
    def members(self) -> Mapping[str, Member]:
        """All nodes as this one sees them."""
        return self.presence.members

    @property
    def is_ready(self) -> bool:
        """Whether this node may be sent requests."""
        return self.presence.is_ready and not self.stopping

    def reaches_others(self) -> bool:
        """Whether this node can work with the stores of most others."""
        return self.peers is None or not self.peers.is_cut_off

    @property
    def draining(self) -> bool:
        """Whether all stores of this node are being emptied."""
        lines = [self._keeper.cluster.slots[slot] for slot in self._keeper.held]
        return bool(lines) and all(line.draining is not Draining.NO for line in lines)

    async def check(self) -> None:
        """Raises Fenced when this node's name is another's."""
        await self.presence.check()

    async def join(self, health: StoreHealth, decorate: Decorate) -> None:
        """Serve peers, and be a member. Raises InvalidInput (address, certificates), Fenced, Unavailable."""
        keeper, settings, tls = self._keeper, self._settings, self._settings.tls
        keeper.be_node(self.identity.uuid)
        self.server = PeerServer(
            OwnStores(keeper),
            self.identity,
            self._roots,
            self._clock,
            self._randomness,
            host=settings.peer.bare_host,
            port=settings.peer.port,
            tls=server_tls(tls) if tls is not None else None,
            observer=self.peer_accounts,
        )
        await self.server.start()
        self._peer = str(settings.advertise or reachable(settings.peer, self.server.port))
        self.peers = Peers(
            self.name,
            keeper,
            health,
            decorate,
            dial_peers(
                self.identity, self._roots, self._randomness, client_tls(tls) if tls is not None else None
            ),
            self._clock,
            self._tell,
        )
        await self.presence.register()
        self.peers.begin()
        self.presence.start()
        self._watch = asyncio.create_task(self.peers.watch(), name="holdfast peers")

    def serves(self, endpoint: str) -> None:
        """Clients are served at `endpoint` from now on."""
        self._client = self._settings.client or self._as_reached(endpoint)
        self.presence.announce()

    def _as_reached(self, endpoint: str) -> str:
        """Where clients on other machines find what listens on all addresses: where peers find this one."""
        advertised = self._settings.advertise
        if self._config.host.strip("[]") not in ("0.0.0.0", "::") or advertised is None:  # noqa: S104
            return endpoint
        return f"http://{PeerAddress(advertised.host, urlsplit(endpoint).port or 0)}"

    def remarks(self) -> list[str]:
        """What a person should know about how others reach this node."""
        client, peer = urlsplit(self._client).hostname or "", urlsplit(f"//{self._peer}").hostname or ""
        if is_loopback(client) and not is_loopback(peer):
            return [
                f"clients and balancers elsewhere cannot reach {self._client}: say host and client in "
                "holdfast.toml."
            ]
        return []

    def stop_soon(self) -> None:
        """Say that this node stops: balancers send it nothing any more."""
        self.stopping = True
        self.presence.announce()

    async def close(self) -> None:
        """Leave; the rows stay."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self.presence.close()
        if self.peers is not None:
            await self.peers.close()
        if self.server is not None:
            await self.server.stop(DRAIN_S)

    # What this node says of itself

    def _describe(self) -> NodeRow:
        first = next(iter(self._config.stores))
        return NodeRow(
            FORMAT,
            self.identity.uuid,
            self.identity.boot,
            __version__,
            SPEAKS,
            self._client,
            self._peer,
            first.region,
            first.zone,
            first.host,
            self.draining,
            self.stopping,
            tuple(
                self._described(slot, held, held.id)
                for slot, held in self._keeper.held.items()
                if held.id is not None
            )
            + self._unnamed(),
            self._started_ms,
            self.is_ahead(),
            KNOWN,
        )

    def _unnamed(self) -> tuple[MemberStore, ...]:
        """Stores on record that the configuration does not name any more: away, but not gone."""
        return tuple(
            MemberStore(
                slot,
                line.store,
                "local",
                "local",
                self.name,
                line.device,
                Attachment.MISSING.value,
                "It is not in the configuration of its node.",
                takes_new=False,
                path=line.path,
            )
            for slot, line in self._keeper.cluster.slots.items()
            if slot not in self._keeper.held and line.store is not None
        )

    def _described(self, slot: str, held: Held, store: StoreId) -> MemberStore:
        keeper, place = self._keeper, held.place
        line = keeper.cluster.slots[slot]
        heir = keeper.held.get(line.known_as) if line.known_as else None
        away = held.attachment if held.attachment is not Attachment.READY else Attachment.MISSING
        there = held.store is not None
        return MemberStore(
            slot,
            store,
            place.region,
            place.zone,
            place.host,
            held.device,
            (Attachment.READY if there else away).value,
            "" if there else held.reason,
            keeper.takes_new(slot),
            line.draining is not Draining.NO,
            line.draining is Draining.FORCED,
            (heir.id or "") if heir is not None else "",
            str(place.path),
        )

    def _changed(self, change: Changed) -> None:
        if self.peers is not None:
            self.peers.changed(change)
        for told in self.on_change:
            told(change)


def is_loopback(host: str) -> bool:
    """Whether a host means the machine that says it."""
    return host == "localhost" or host == "::1" or host.startswith("127.")


def reachable(listening: PeerAddress, port: int) -> PeerAddress:
    """Where others find what listens here, as far as that can be told."""
    if listening.is_everywhere:
        raise InvalidInput(
            f"The node listens for peers at {listening}, which says nothing to them:",
            hint=f'add advertise = "..." to [cluster], as "10.0.0.1:{port}".',
        )
    return PeerAddress(listening.host, port)
