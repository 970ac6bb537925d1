"""What can go wrong between peers, and how the port's errors travel.

What must hold: what a store raises at one node is raised at the other as itself, because callers of the port
tell its errors apart; what the protocol adds are StoreFailed, so that who knows only the port does the right
thing; and a kind that this version does not know is one, too.
"""

from enum import Enum

import msgspec
from msgspec import Struct

from holdfast.base.errors import Busy, Damaged, Fenced, HoldfastError, Unavailable
from holdfast.base.ids import StoreId
from holdfast.stores.port import (
    ShardExists,
    ShardMissing,
    ShardSpoiled,
    ShardTruncated,
    ShardUnreadable,
    StoreBusy,
    StoreFailed,
    StoreFull,
    StoreOverdue,
    StoreReadOnly,
)


class Refusal(Enum):
    """Why a peer takes no request; the value is the kind on the wire, where it comes from there."""

    FOREIGN_CLUSTER = "ForeignCluster"
    WRONG_SECRET = "WrongSecret"  # noqa: S105 - a kind of error
    OTHER_NODE = "OtherNode"
    NO_COMMON_VERSION = "NoCommonVersion"
    MALFORMED = "Malformed"
    ALTERED = "Altered"
    NO_HELLO = "NoHello"
    NOT_A_PEER = "NotAPeer"
    """What answered does not speak the peer protocol, or cannot prove who it is."""


class PeerRefused(StoreFailed):
    """The peer, or whatever is at its address, takes no request of ours. Time does not mend it."""

    def __init__(self, refusal: Refusal, message: str, *, hint: str = "", **facts: object) -> None:
        super().__init__(message, hint=hint, **facts)
        self.refusal = refusal


class Kind(Enum):
    """An error on the wire: its name and status."""

    SHARD_EXISTS = ("ShardExists", 409)
    SHARD_MISSING = ("ShardMissing", 404)
    SHARD_TRUNCATED = ("ShardTruncated", 416)
    SHARD_UNREADABLE = ("ShardUnreadable", 500)
    SHARD_SPOILED = ("ShardSpoiled", 500)
    DAMAGED = ("Damaged", 500)
    STORE_FULL = ("StoreFull", 507)
    STORE_READ_ONLY = ("StoreReadOnly", 403)
    STORE_FAILED = ("StoreFailed", 502)
    STORE_OVERDUE = ("StoreOverdue", 504)
    STORE_BUSY = ("StoreBusy", 503)
    STORE_AWAY = ("StoreAway", 404)
    ALTERED = ("Altered", 400)
    NO_HELLO = ("NoHello", 401)
    MALFORMED = ("Malformed", 400)
    FOREIGN_CLUSTER = ("ForeignCluster", 403)
    WRONG_SECRET = ("WrongSecret", 401)
    OTHER_NODE = ("OtherNode", 421)
    NO_COMMON_VERSION = ("NoCommonVersion", 426)
    FAULT = ("Fault", 500)

    @property
    def wire(self) -> str:
        """The name on the wire."""
        return self.value[0]

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.value[1]


REFUSALS = tuple(
    kind.wire
    for kind in (
        Kind.ALTERED,
        Kind.NO_HELLO,
        Kind.MALFORMED,
        Kind.FOREIGN_CLUSTER,
        Kind.WRONG_SECRET,
        Kind.OTHER_NODE,
        Kind.NO_COMMON_VERSION,
    )
)
"""What is answered to who is not, or not as, another node of the cluster should be."""

_KINDS: dict[type[HoldfastError], Kind] = {
    ShardExists: Kind.SHARD_EXISTS,
    ShardMissing: Kind.SHARD_MISSING,
    ShardTruncated: Kind.SHARD_TRUNCATED,
    ShardSpoiled: Kind.SHARD_SPOILED,
    ShardUnreadable: Kind.SHARD_UNREADABLE,
    StoreFull: Kind.STORE_FULL,
    StoreReadOnly: Kind.STORE_READ_ONLY,
    StoreFailed: Kind.STORE_FAILED,
    StoreOverdue: Kind.STORE_OVERDUE,
    StoreBusy: Kind.STORE_BUSY,
    Damaged: Kind.DAMAGED,
    Busy: Kind.STORE_BUSY,
    Unavailable: Kind.STORE_FAILED,
    Fenced: Kind.STORE_FAILED,
    HoldfastError: Kind.FAULT,
}
"""By the nearest of an error's classes."""

_BY_CLASS: dict[type, Kind] = {**_KINDS}
_RAISED: dict[str, type[HoldfastError]] = {
    kind.wire: error
    for error, kind in _KINDS.items()
    if error not in {Busy, Unavailable, Fenced, HoldfastError}
}
_REFUSALS = {refusal.value: refusal for refusal in Refusal}
assert set(_RAISED) <= {kind.wire for kind in Kind}


class WireError(Struct, frozen=True):
    """An error as it is sent."""

    kind: str
    message: str
    hint: str = ""
    facts: dict[str, str | int | float | bool] = {}


_DECODER = msgspec.json.Decoder(WireError)


def kind_of(error: BaseException) -> Kind:
    """The kind that tells a caller to do what this error tells; FAULT for what is not ours."""
    return next((kind for each in type(error).__mro__ if (kind := _BY_CLASS.get(each))), Kind.FAULT)


def encode_error(kind: Kind, error: HoldfastError) -> bytes:
    """The content of an answer."""
    facts = {
        name: value for name, value in error.facts.items() if isinstance(value, str | int | float | bool)
    }
    return msgspec.json.encode(WireError(kind.wire, error.message, error.hint, facts))


def decode_error(content: bytes, node: str, store: StoreId | None) -> HoldfastError:
    """The error that an answer of `node` tells."""
    try:
        found = _DECODER.decode(content)
    except msgspec.DecodeError:
        return StoreFailed(f"Peer {node} answered with an error that cannot be read.", peer=node)
    facts: dict[str, object] = {**found.facts, "peer": node}
    facts.pop("message", None)
    facts.pop("hint", None)
    if store is not None:
        facts["store"] = store
    refusal = _REFUSALS.get(found.kind)
    if refusal is not None:
        return PeerRefused(refusal, found.message, hint=found.hint, **facts)
    raised = _RAISED.get(found.kind, StoreFailed)
    return raised(found.message, hint=found.hint, **facts)
