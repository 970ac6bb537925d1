"""The format of the cluster as a whole: what every node that joins must know.

Rows grow at their end, and an older version passes over what it does not know, also where that does harm. So
there is one number for all, the format of the `cluster` row: each version, from the first on, reads that row
before it joins, and ends with exit code 65 when the number is beyond what it knows. What must hold: it is
only raised once every member says that it knows the new one, by command, since no member can go back from
then on; and whoever writes what older versions must not pass over asks for the number first.
"""

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.errors import Busy, InvalidInput, Unavailable
from holdfast.cluster.rows import (
    CLUSTER_ROW,
    KNOWN,
    NODES,
    ClusterRow,
    NodeRow,
    all_of,
    decode,
    encode,
    name_of,
)
from holdfast.index.port import Committed, Expect, Index, Row, Transaction

NODES_MAX = 1000


class NodeKnows(Struct, frozen=True):
    """One member: its version, and the highest format that it knows."""

    name: str
    version: str
    knows: int


class ClusterFormat(Struct, frozen=True):
    """The format that is in force, the one that this node knows, and what each member knows."""

    format: int
    known: int
    nodes: tuple[NodeKnows, ...]

    @property
    def behind(self) -> tuple[NodeKnows, ...]:
        """Members that know less than this node."""
        return tuple(node for node in self.nodes if node.knows < self.known)


async def read_format(index: Index) -> ClusterFormat:
    """How it stands. Raises Unavailable."""
    return (await _read(index))[0]


async def raise_format(index: Index) -> ClusterFormat:
    """Raise it to what this node knows; how it stands then. Raises InvalidInput while a member knows less,
    Busy when rows changed meanwhile, Unavailable."""
    found, cluster, nodes = await _read(index)
    if found.behind:
        told = ", ".join(f"{node.name} ({node.version})" for node in found.behind)
        raise InvalidInput(
            f"Not every node knows format {found.known} of the cluster: {told} would be shut out.",
            hint="Bring them up to date first, or remove those that are gone: `holdfast node remove`.",
        )
    if found.format >= found.known:
        return found
    raised = encode(replace(decode(ClusterRow, cluster.value), format=found.known))
    expects = tuple(Expect(row.key, row.revision) for row in (cluster, *nodes))
    (outcome,) = await index.commit([Transaction(expects, ((CLUSTER_ROW, raised),))])
    if not isinstance(outcome, Committed):
        raise Busy("A node changed or joined at the same time.", hint="Try again.")
    return replace(found, format=found.known)


async def _read(index: Index) -> tuple[ClusterFormat, Row, list[Row]]:
    (cluster,) = await index.get([CLUSTER_ROW])
    if cluster is None:
        raise Unavailable("The cluster's row is not there.", hint="Is the address of the index right?")
    rows = [row for row in await index.scan(*all_of(NODES), limit=NODES_MAX) if isinstance(row, Row)]
    members = []
    for row in rows:
        node = decode(NodeRow, row.value)
        members.append(NodeKnows(name_of(row.key), node.version, node.knows))
    return ClusterFormat(decode(ClusterRow, cluster.value).format, KNOWN, tuple(members)), cluster, rows
