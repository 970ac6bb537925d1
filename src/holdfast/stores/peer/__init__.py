"""Stores of other nodes, and one's own for them, over the peer protocol (docs/formats-peer.md)."""

from holdfast.stores.peer.client import ClientLimits, PeerClient
from holdfast.stores.peer.errors import REFUSALS, PeerRefused, Refusal
from holdfast.stores.peer.greeting import check_secret
from holdfast.stores.peer.messages import SPEAKS, HelloAnswer, PeerIdentity
from holdfast.stores.peer.server import PeerLimits, PeerServer
from holdfast.stores.peer.signing import Roots
from holdfast.stores.peer.store import PeerStore
from holdfast.stores.peer.tls import TlsFiles, client_tls, server_tls

__all__ = [
    "REFUSALS",
    "SPEAKS",
    "ClientLimits",
    "HelloAnswer",
    "PeerClient",
    "PeerIdentity",
    "PeerLimits",
    "PeerRefused",
    "PeerServer",
    "PeerStore",
    "Refusal",
    "Roots",
    "TlsFiles",
    "check_secret",
    "client_tls",
    "server_tls",
]
