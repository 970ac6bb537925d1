"""Whether an index is that of this cluster, and whether this node may be part of it: the first thing that a
node asks of an index that others use, too.

What must hold: an index that knows nothing of the cluster that this node's data folder belongs to is not
taken for a new one; of several nodes that begin a cluster together one makes its row, which the others find;
and while the cluster changes its secret, whoever has either of the two is let in, until the first node has
one of them alone.
"""

from collections.abc import Sequence

from msgspec.structs import replace

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
    secrets: Sequence[bytes],
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
            hint="it is another cluster's, or was made anew. Is the address of the index right? If the old "
            "one is lost for good, `holdfast recover` makes it again.",
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
            await prove(index, secrets)
            return found.cluster
        name = known or new_cluster_name(randomness)
        checks = [check_of(secret, name) for secret in secrets]
        made = ClusterRow(FORMAT, name, checks[0], int(clock.wall() * 1000), b"".join(checks[1:]))
        begin = Transaction((Expect(CLUSTER_ROW, ABSENT),), ((CLUSTER_ROW, encode(made)),))
        (outcome,) = await index.commit([begin])
        if isinstance(outcome, Committed):
            return name
    raise Unavailable("Whether the cluster was begun stayed unknown.", hint="Start the node again.")


def checks_to_write(row: ClusterRow, checks: Sequence[bytes]) -> tuple[bytes, bytes] | None:
    """What the row should say of the secrets, `check` and `also`, once a node came that knows those with
    these checks; None when it knows none of those that the row says. What the row says first stays first:
    older versions look at nothing else."""
    known = [check for check in (row.check, row.also) if check and check in checks]
    if not known:
        return None
    others = [check for check in checks if check != known[0]]
    return known[0], others[0] if others else b""


async def prove(index: Index, secrets: Sequence[bytes]) -> None:
    """Have the cluster's row say which secrets are known. Raises InvalidInput when this node knows none of
    those that it says, Unavailable."""
    for _ in range(TRIES):
        (row,) = await index.get([CLUSTER_ROW])
        if row is None:
            raise Unavailable("The cluster's row is not there.", hint="Is the address of the index right?")
        found = decode(ClusterRow, row.value)
        wanted = checks_to_write(found, [check_of(secret, found.cluster) for secret in secrets])
        if wanted is None:
            raise InvalidInput(
                f"The secret of this node is not that of cluster {found.cluster}:",
                hint="copy the file that secret_file names from another node.",
            )
        if wanted == (found.check, found.also):
            return
        changed = encode(replace(found, check=wanted[0], also=wanted[1]))
        (outcome,) = await index.commit(
            [Transaction((Expect(CLUSTER_ROW, row.revision),), ((CLUSTER_ROW, changed),))]
        )
        if isinstance(outcome, Committed):
            return
    raise Unavailable("Whether the cluster's secret was changed stayed unknown.", hint="Try again.")
