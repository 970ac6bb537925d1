"""A node's own stores, exported to its peers: the house's HTTP/1.1 server with the peer face behind it."""

import ssl
from collections.abc import Mapping

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.stores.peer import messages
from holdfast.stores.peer.greeting import roots_of
from holdfast.stores.peer.messages import PeerIdentity
from holdfast.stores.peer.serving import PeerFace
from holdfast.stores.peer.signing import TAG_BYTES, Roots
from holdfast.stores.port import Store
from holdfast.wire.exchange import ExchangeObserver, Limits
from holdfast.wire.server import Listen, Server

PORT = 9100


class PeerLimits(Struct, frozen=True):
    """What a node takes on for all its peers together. Bytes and seconds."""

    connections_max: int = 4096
    content_bytes_max: int = 256 << 20
    head_s: float = 5.0
    idle_s: float = 75.0
    stall_s: float = 30.0


class PeerServer(Server):
    """Exports `stores`, which is looked at anew for each request, as the node `identity`. `port` 0 takes a
    free one, `listen` replaces TCP, for simulations. Raises InvalidInput when the secret is too short."""

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        identity: PeerIdentity,
        secret: bytes | Roots,
        clock: Clock,
        randomness: Randomness,
        *,
        host: str = "127.0.0.1",
        port: int = PORT,
        tls: ssl.SSLContext | None = None,
        limits: PeerLimits | None = None,
        speaks: tuple[int, ...] = messages.SPEAKS,
        listen: Listen | None = None,
        observer: ExchangeObserver | None = None,
    ) -> None:
        for name in (identity.node, identity.cluster):
            assert messages.is_node_name(name), f"{name!r} is no name for a node or a cluster"
        limits = limits or PeerLimits()
        assert limits.content_bytes_max >= messages.BLOB_BYTES_MAX + TAG_BYTES
        self.face = PeerFace(
            stores,
            identity,
            roots_of(secret, identity.cluster),
            clock,
            randomness,
            speaks=speaks,
            content_bytes_max=limits.content_bytes_max,
        )
        super().__init__(
            self.face,
            clock,
            host=host,
            port=port,
            hint="choose another for peers.",
            tls=tls,
            listen=listen,
            observer=observer,
            limits=Limits(
                connections_max=limits.connections_max,
                # What is under way is bounded by connections, which have one request each, and by bytes. One
                # that was given up with its connection may take a moment to end.
                requests_max=2 * limits.connections_max,
                head_s=limits.head_s,
                idle_s=limits.idle_s,
                stall_s=limits.stall_s,
            ),
        )
