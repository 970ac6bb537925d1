"""What becomes of the rows of nodes in an index that is made again. Reads and writes rows, nothing else.

Who is a member stays so: nodes that are not there when the index is made again, and their stores, are still
known, and what only they hold is waited for. What tells of processes goes, because none of them runs on in
the new index: beats, fences, leases. The table is in `docs/formats-recovery.md`. What must hold: no row of
the new index says that a process may do what only a process of the new index may.
"""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.errors import InvalidInput
from holdfast.cluster.claiming import checks_to_write
from holdfast.cluster.rows import (
    BEATS,
    CLUSTER_ROW,
    FENCES,
    FORMAT,
    NODES,
    STOPPING_ROW,
    ClusterRow,
    MemberStore,
    NodeRow,
    all_of,
    decode,
    encode,
    name_of,
)
from holdfast.index.port import lease_row, prefix_end
from holdfast.objects.rows import decode_part
from holdfast.objects.rows import encode as encode_row
from holdfast.recovery.scratch import Scratch

_PARTS = b"part/"


class KnownNode(Struct, frozen=True):
    """A node as the rows know it."""

    name: str
    uuid: str
    peer: str
    stores: tuple[MemberStore, ...]


def known_nodes(scratch: Scratch) -> list[KnownNode]:
    """All members, by name."""
    rows = [(name_of(row.key), decode(NodeRow, row.value)) for row in scratch.scan(*all_of(NODES))]
    return [KnownNode(name, row.uuid, row.peer, row.stores) for name, row in rows]


def settle_nodes(
    scratch: Scratch,
    cluster: str,
    checks: Sequence[bytes],
    present: Mapping[str, str],
    made_ms: int,
    next_revision: Callable[[], int],
) -> list[str]:
    """Leave the rows of nodes as a new index begins with them. `cluster` is the installation and `checks` are
    what proves its secret, or both while it changes; `present` are the nodes that take part, with the uuid of
    their data folder. Answers what a person should know. Raises InvalidInput when the rows are another
    installation's."""
    told: list[str] = []
    (row,) = scratch.get([CLUSTER_ROW])
    found = decode(ClusterRow, row.value) if row is not None else None
    if found is not None and found.cluster != cluster:
        raise InvalidInput(
            f"The rows that were found are of cluster {found.cluster}, the stores of {cluster}.",
            hint="Which index was meant? See --incarnation.",
        )
    ours = checks[0], b"".join(checks[1:])
    known = checks_to_write(found, checks) if found is not None else ours
    if known is None:
        told.append("the index knew another secret than these nodes have: it takes theirs")
    check, also = known or ours
    in_force = found.format if found is not None else FORMAT
    fresh = ClusterRow(in_force, cluster, check, found.made_ms if found is not None else made_ms, also)
    if fresh != found:
        scratch.apply(next_revision(), ((CLUSTER_ROW, encode(fresh)),), ())
    gone = [STOPPING_ROW]
    for prefix in (BEATS, FENCES, lease_row("")):
        gone += [row.key for row in scratch.scan(prefix, prefix_end(prefix))]
    kept: list[tuple[bytes, bytes]] = []
    for row in scratch.scan(*all_of(NODES)):
        name, node = name_of(row.key), decode(NodeRow, row.value)
        if present.get(name, node.uuid) not in ("", node.uuid):
            gone.append(row.key)
            told.append(f"node {name} has another data folder than it had: it joins as a new one")
        elif node.ahead:
            # Of the index that is gone: the new one, nobody has seen yet.
            kept.append((row.key, encode(replace(node, ahead=False))))
    scratch.apply(next_revision(), kept, gone)
    return told


def keep_order_of_parts(scratch: Scratch) -> None:
    """Several attempts of a part are ordered by the revisions of their rows, which an engine that gives its
    own does not keep: let the rows say it."""
    for row in scratch.scan(_PARTS, prefix_end(_PARTS)):
        part = decode_part(row.value)
        if not part.arrived:
            scratch.put_rows([row._replace(value=encode_row(replace(part, arrived=row.revision)))])
