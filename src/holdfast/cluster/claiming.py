"""Whether an index is that of this cluster, and whether this node may be part of it: the first thing that a
node asks of an index that others use, too.

What must hold: an index that knows nothing of the cluster that this node's data folder belongs to is not
taken for a new one; and of several nodes that begin a cluster together one makes its row, which the others
find.
"""

from collections.abc import Sequence

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.cluster.rows import CLUSTER_ROW, FORMAT, ClusterRow, decode, encode
from holdfast.cluster.secret import check_of
from holdfast.index.port import ABSENT, Committed, Expect, Index, Transaction

TRIES = 5


def new_cluster_name(randomness: Randomness) -> str:
    """A name that tells installations apart."""
    return f"holdfast-{randomness.token(8).hex()}"


async def claim(
    index: Index,
    secret: bytes,
    *,
    known: str,
    known_incarnation: str,
    incarnations: Sequence[str],
    clock: Clock,
    randomness: Randomness,
) -> str:
    """The name of the cluster whose index this is; its row is made if there is none.

    `known` is the cluster that the data folder belongs to, and `known_incarnation` the index that it has
    seen, both empty for a new node; `incarnations` are this index and those that it was made from.

    Raises Fenced (another cluster's, or an empty index where there was one), InvalidInput (another secret),
    Unavailable.
    """
    if known_incarnation and known_incarnation not in incarnations:
        raise Fenced(
            f"The index that was found is {incarnations[0]}, that of this node is {known_incarnation}:",
            hint="it is another cluster's, or was made anew. Is the address of the index right?",
        )
    for _ in range(TRIES):
        (row,) = await index.get([CLUSTER_ROW])
        if row is not None:
            found = decode(ClusterRow, row.value)
            if known and found.cluster != known:
                raise Fenced(
                    f"This node belongs to cluster {known}, and the index to {found.cluster}.",
                    hint="Is the address of the index right, or the data folder another node's?",
                )
            if found.check != check_of(secret, found.cluster):
                raise InvalidInput(
                    f"The secret of this node is not that of cluster {found.cluster}:",
                    hint="copy the file that secret_file names from another node.",
                )
            return found.cluster
        name = known or new_cluster_name(randomness)
        made = ClusterRow(FORMAT, name, check_of(secret, name), int(clock.wall() * 1000))
        begin = Transaction((Expect(CLUSTER_ROW, ABSENT),), ((CLUSTER_ROW, encode(made)),))
        (outcome,) = await index.commit([begin])
        if isinstance(outcome, Committed):
            return name
    raise Unavailable("Whether the cluster was begun stayed unknown.", hint="Start the node again.")
