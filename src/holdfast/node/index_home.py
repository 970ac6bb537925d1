"""The index of a node and where it lies: embedded, on the node's own stores, or shared, and elsewhere.

The two differ in the order of a start. An embedded index lies on stores, so these are attached first; a
shared one says which cluster the stores belong to, so it is opened first. What must hold either way: an index
that is not the one that stores and data folder know is not used.
"""

from collections.abc import Sequence

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced
from holdfast.base.randomness import Randomness
from holdfast.cluster.claiming import claim
from holdfast.index.copying import moved_hint
from holdfast.index.port import Index
from holdfast.index.sqlite.moving import moved_to
from holdfast.node.cluster import Cluster, read_cluster
from holdfast.node.config import Config
from holdfast.node.index import OWN_NAME, Members, open_index
from holdfast.node.keeper import Keeper
from holdfast.node.lineage import check_not_lost, lineage_of
from holdfast.node.membership import Membership, Places
from holdfast.node.shared_index import Elsewhere, open_shared, survives
from holdfast.node.status import Promise, promise_of
from holdfast.scheme import Scheme
from holdfast.topology import Topology


class Home(Struct, frozen=True):
    """An index that was opened. `members` are the places of an embedded one, None for one that is shared."""

    index: Index
    places: Places
    members: Members | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What the data folder remembers of where the index lies."""
        return self.members.first if self.members is not None else ()

    def promise(self, topology: Topology, scheme: Scheme) -> Promise:
        """What data and index survive when all is well."""
        if self.members is not None:
            return promise_of(topology, scheme, self.members.topology())
        return promise_of(topology, scheme, None, survives(self.index.status()))

    def remarks(self) -> list[str]:
        """What a person should know about where it lies."""
        if OWN_NAME not in self.names:
            return []
        return [
            "few stores are no majority of anything, so the data folder holds a part of the index, too; "
            "put it on a disk of its own, or say index_dirs in holdfast.toml."
        ]


async def embedded_home(config: Config, keeper: Keeper, clock: Clock, randomness: Randomness) -> Home:
    """The index on the keeper's stores. Raises Unavailable, Fenced, InvalidInput."""
    members = Members(config, keeper)
    check_not_lost(keeper, members)
    log = await open_index(members, clock, randomness)
    if (moved := await moved_to(log)) is not None:
        await log.close()
        raise Fenced(
            f"The index was moved to {moved.where} ({moved.incarnation}), which is the truth now.",
            hint=moved_hint(moved),
        )
    return Home(log, Membership(members, log, keeper), members)


async def shared_home(config: Config, clock: Clock, randomness: Randomness) -> Home:
    """The index that the configuration names. Raises Unavailable, InvalidInput, Fenced."""
    assert config.index is not None
    index = await open_shared(config.index, clock, randomness, managed=config.index_managed, etcd=config.etcd)
    return Home(index, Elsewhere())


async def cluster_of(
    home: Home, config: Config, secrets: Sequence[bytes], clock: Clock, randomness: Randomness
) -> str:
    """The name of the cluster that a shared index belongs to. Raises Fenced, InvalidInput, Unavailable."""
    known = read_cluster(config.data) or Cluster("", {})
    return await claim(
        home.index,
        secrets,
        known=known.cluster,
        known_incarnation=known.incarnation,
        incarnations=await lineage_of(home.index),
        clock=clock,
        randomness=randomness,
    )


async def check_known(home: Home, keeper: Keeper) -> None:
    """Raises Fenced when the index is not the one that the data folder knows."""
    known, found = keeper.cluster.incarnation, home.index.status().incarnation
    if not known or known == found:
        return
    if home.members is None and known in await lineage_of(home.index):
        return  # it was recovered or copied, by another node perhaps
    raise Fenced(
        f"The index that was found is {found}, that of this installation is {known}:",
        hint="the directories of its members were emptied or replaced. Put the old ones back.",
    )
