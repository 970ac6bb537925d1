"""The rows by which nodes know each other. Pure: values and their bytes.

Layouts are in `docs/formats-cluster.md`. What must hold: a row is written by its own node, except that
`node remove` takes all of a node's rows away and whoever may fences it; and a row of a format that is newer
than ours is refused, never guessed at.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec
from msgspec import Struct

from holdfast.base.errors import Damaged
from holdfast.base.ids import StoreId
from holdfast.index.port import Row, prefix_end

FORMAT = 1
KNOWN = 2
"""The highest format of a cluster that this version can be part of. The format is that of the `cluster` row,
which every version looks at before it joins (`holdfast.cluster.formats`):

1   from the first on
2   each node that joins knows `removed/`, `also` of the `cluster` row, and what its own row says it knows
"""

CLUSTER_ROW = b"cluster"
STOPPING_ROW = b"stopping"
NODES = b"node/"
BEATS = b"beat/"
FENCES = b"fence/"
REMOVED = b"removed/"

NODE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
"""What a node's name looks like."""


def node_row(name: str) -> bytes:
    """The key of a node's own row."""
    return NODES + name.encode()


def beat_row(name: str) -> bytes:
    """The key of a node's beat."""
    return BEATS + name.encode()


def removed_row(name: str) -> bytes:
    """The key of what is left of a node that was removed."""
    return REMOVED + name.encode()


def fences_of(name: str) -> bytes:
    """What the keys of all fences of a node begin with."""
    return FENCES + name.encode() + b"/"


def fence_row(name: str, number: str) -> bytes:
    """The key of one of a node's fences: its revision is what transactions that make packs expect."""
    return fences_of(name) + number.encode()


class ClusterRow(Struct, frozen=True, array_like=True):
    """`cluster`: which installation this index belongs to. `cluster` is the random name that stores carry in
    their identity; `check` is made of the cluster's secret, so that a node with another one is told so, and
    `also` of the other one while the cluster changes its secret."""

    format: int
    cluster: str
    check: bytes
    made_ms: int
    also: bytes = b""


class MemberStore(Struct, frozen=True, array_like=True):
    """A store as its owner sees it. `attachment` is the word of `stores.port.Attachment`, with the reason
    why it is not `ready`; `takes_new` is false for one that is being emptied or is a spare that waits.
    `draining` and `forced` are what was said about it by command, `into` is the store that takes over what
    lies on it when it is being replaced. Space is not in here: whoever needs it asks the store."""

    slot: str
    store: StoreId
    region: str
    zone: str
    host: str
    device: str
    attachment: str
    reason: str = ""
    takes_new: bool = True
    draining: bool = False
    forced: bool = False
    into: str = ""
    path: str = ""


class NodeRow(Struct, frozen=True, array_like=True):
    """`node/<name>`: who a node is. `uuid` is made with its data folder, `boot` at each start and is the
    holder of its leases. `client` is where clients reach it, as `http://10.0.0.1:9000`; `peer` where other
    nodes do, as `10.0.0.1:9100`; `protocols` are the versions of the peer protocol it speaks. `draining` is
    set by `node drain`: its stores are being emptied, and balancers send it nothing new. `ahead` says that
    its stores have seen more of the index than there is: then no node deletes anything on its word. `knows`
    is the highest format of a cluster that it can be part of."""

    format: int
    uuid: str
    boot: str
    version: str
    protocols: tuple[int, ...]
    client: str
    peer: str
    region: str
    zone: str
    host: str
    draining: bool
    stopping: bool
    stores: tuple[MemberStore, ...]
    started_ms: int
    ahead: bool = False
    knows: int = 1


class BeatRow(Struct, frozen=True, array_like=True):
    """`beat/<name>`: a node is at work. `count` grows with each beat of a boot, so that no two are alike.

    `reading` is the oldest index revision at which a read that is still under way looked up its extents; with
    none under way, the revision known when the beat began."""

    format: int
    boot: str
    count: int
    reading: int
    ready: bool


class FenceRow(Struct, frozen=True, array_like=True):
    """`fence/<name>/<number>`: as long as it is there, process `boot` of the node may make packs under it.
    Never changed; taken away by that process when it needs it no more, and by whoever fences the node."""

    format: int
    boot: str


class StoppingRow(Struct, frozen=True, array_like=True):
    """`stopping`: the node that was last told that it may stop, the process that said so, and the how many'th
    time it did."""

    format: int
    node: str
    boot: str
    count: int


class RemovedRow(Struct, frozen=True, array_like=True):
    """`removed/<name>`: the node with the data folder `uuid` was taken out of the cluster, and does not join
    again by itself. Taken away by `node remove --cancel`, or by another node that takes the name."""

    format: int
    uuid: str


ClusterRows = ClusterRow | NodeRow | BeatRow | FenceRow | StoppingRow | RemovedRow
T = TypeVar("T", ClusterRow, NodeRow, BeatRow, FenceRow, StoppingRow, RemovedRow)

_encoder = msgspec.msgpack.Encoder()
_decoders: Mapping[type, msgspec.msgpack.Decoder[object]] = {
    kind: msgspec.msgpack.Decoder(kind)
    for kind in (ClusterRow, NodeRow, BeatRow, FenceRow, StoppingRow, RemovedRow)
}


def encode(row: ClusterRows) -> bytes:
    """A row as the index holds it."""
    return _encoder.encode(row)


def decode(kind: type[T], value: bytes) -> T:
    """The other way. Raises Damaged for what was not written by a Holdfast that we know."""
    try:
        (format_,) = msgspec.msgpack.decode(value, type=list)[:1]
    except (msgspec.MsgspecError, ValueError) as error:
        raise Damaged(f"A row of the cluster cannot be read ({error}).") from None
    known = KNOWN if kind is ClusterRow else FORMAT
    if not isinstance(format_, int) or not FORMAT <= format_ <= known:
        raise Damaged(
            f"A row of the cluster has format {format_}, this Holdfast knows {known}.",
            hint="Update this node to the version of the others.",
        )
    try:
        found = _decoders[kind].decode(value)
    except msgspec.MsgspecError as error:
        raise Damaged(f"A row of the cluster cannot be read ({error}).") from None
    assert isinstance(found, kind)
    return found


def name_of(key: bytes) -> str:
    """The node that a key of `node/`, `beat/` or `fence/` belongs to."""
    return key.split(b"/")[1].decode()


def rows_of(found: Sequence[object], kind: type[T]) -> dict[str, tuple[T, int]]:
    """The rows of a scan with their revisions, by node."""
    return {
        name_of(row.key): (decode(kind, row.value), row.revision) for row in found if isinstance(row, Row)
    }


def all_of(prefix: bytes) -> tuple[bytes, bytes]:
    """The range of a scan over all keys that begin so."""
    return prefix, prefix_end(prefix)
