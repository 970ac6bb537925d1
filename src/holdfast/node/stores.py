"""What `holdfast store` asks of a running node, and what it answers: the values. Pure.

A refusal carries the kind of the error by name, so that the program that asked ends with the same exit code
as if it had been refused there.
"""

import msgspec
from msgspec import Struct

from holdfast.base.errors import (
    Bug,
    Busy,
    Damaged,
    Fenced,
    HoldfastError,
    InvalidInput,
    Unavailable,
)
from holdfast.base.ids import StoreId
from holdfast.node.bucket_report import BucketStatus

STORES_PATH = "/-/stores"
ACTIONS = ("add", "drain", "replace", "remove")

_KINDS: dict[str, type[HoldfastError]] = {
    kind.__name__: kind for kind in (Busy, InvalidInput, Fenced, Unavailable, Damaged, Bug)
}


class DrainStatus(Struct, frozen=True):
    """How far a store is emptied. `bytes_left` and `shards_left` are by the last count; `seconds_left` is
    None while nothing moves. `stuck` packs could not be moved in the last walk, and `reason` says why one
    could not. `empty` is said only after a walk over everything found nothing on it."""

    bytes_left: int
    shards_left: int
    empty: bool
    rate_bytes_s: float
    seconds_left: float | None
    stuck: int = 0
    reason: str = ""
    replaced_by: str = ""


class StoreLine(Struct, frozen=True, kw_only=True):
    """One slot. `shards` and `bytes_held` are by the last count of the packs; `fill` is `bytes_held` of what
    the store could hold. `holds_index` says that a member of the index's log lies there. `node` is whose it
    is, where there are several."""

    slot: str
    store: StoreId | None
    path: str
    state: str
    node: str = ""
    reason: str = ""
    region: str
    zone: str
    host: str
    device: str = ""
    bytes_total: int | None = None
    bytes_free: int | None = None
    shards: int = 0
    bytes_held: int = 0
    fill: float | None = None
    holds_index: bool = False
    spare: bool = False
    added: bool = False
    drain: DrainStatus | None = None
    bucket: BucketStatus | None = None


class StoreList(Struct, frozen=True):
    """All slots; how far the most unevenly filled store is from even; what rebalancing does. `unasked` are
    nodes whose stores are not among them, and why."""

    stores: tuple[StoreLine, ...]
    uneven: float = 0.0
    rebalancing: bool = False
    bytes_moved: int = 0
    bytes_to_move: int = 0
    remarks: tuple[str, ...] = ()
    unasked: tuple[tuple[str, str], ...] = ()


class Done(Struct, frozen=True):
    """What a command did, in sentences. `slot`, `path` and labels are those of a store that was added or put
    in the place of another; `lines` are what a configuration file says of a bucket."""

    sentences: tuple[str, ...]
    slot: str = ""
    path: str = ""
    region: str = ""
    zone: str = ""
    host: str = ""
    lines: tuple[str, ...] = ()


class Refusal(Struct, frozen=True):
    """Why something was not done. `kind` is the name of an error kind."""

    kind: str
    message: str
    hint: str = ""


def refusal_of(error: HoldfastError) -> Refusal:
    """An error on its way to whoever asked."""
    kind = next((name for name, kind in _KINDS.items() if isinstance(error, kind)), Bug.__name__)
    return Refusal(kind, error.message, error.hint)


def error_of(raw: bytes) -> HoldfastError | None:
    """The error again; None when this is no refusal."""
    try:
        refusal = msgspec.json.decode(raw, type=Refusal)
    except msgspec.MsgspecError:
        return None
    kind = _KINDS.get(refusal.kind)
    return kind(refusal.message, hint=refusal.hint) if kind is not None else None
