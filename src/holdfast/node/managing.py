"""Everything that changes the stores of a running node, put together: commands, the list, housekeeping."""

from collections.abc import Callable, Mapping

from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.health import StoreHealth
from holdfast.index.port import Index, IndexState
from holdfast.node.background import Background
from holdfast.node.census import Census
from holdfast.node.changing import Changes
from holdfast.node.config import Config
from holdfast.node.housekeeping import SPARE_PATIENCE_S, Housekeeping
from holdfast.node.joining import Joining
from holdfast.node.keeper import Keeper
from holdfast.node.leaving import cost_of_leaving
from holdfast.node.membership import Places
from holdfast.node.node_commands import NodeCommands
from holdfast.node.store_commands import StoreCommands
from holdfast.node.store_list import StoreLister
from holdfast.node.store_routes import store_routes
from holdfast.s3.face import Route
from holdfast.scheme import Scheme


class StoreManaging:
    """`places` knows where the index lies."""

    def __init__(
        self,
        keeper: Keeper,
        places: Places,
        index: Index,
        health: StoreHealth,
        background: Background,
        config: Config,
        clock: Clock,
        tell: Callable[[str], None],
        joining: Joining | None = None,
    ) -> None:
        changes, drain = Changes(keeper, clock), background.drain

        def is_up(store: StoreId) -> bool:
            return health.readable(store) or health.writable(store)

        async def is_needed(store: StoreId) -> bool:
            there = frozenset(one for one in keeper.attached if is_up(one))
            return (await cost_of_leaving(index, store, there, there)).lost > 0

        # Where nobody chose a scheme, new objects get what fits; below two copies nothing does.
        scheme = config.scheme if config.scheme_given else Scheme(1, 1)
        name = config.name if joining is not None else ""
        self.commands = StoreCommands(keeper, changes, places, index, is_up, scheme, tell, name)
        self._nodes = NodeCommands(
            joining,
            keeper,
            self.commands,
            background.census,
            index,
            is_up,
            lambda: index.status().state is IndexState.SERVING,
            clock,
            tell,
        )
        nothing_left = NothingLeft(background.census)
        self._lister = StoreLister(keeper, health, places, background.census, drain, background.rebalance)
        self.housekeeping = Housekeeping(
            keeper,
            health,
            changes,
            # The walk that proves a store empty may be another node's; then two counts have to do.
            lambda store: store in drain.empty or (joining is not None and nothing_left(store)),
            clock,
            tell,
            patience_s=min(SPARE_PATIENCE_S, config.chores.away_patience_s),
            is_needed=is_needed,
        )

    def routes(self) -> Mapping[str, Route]:
        """The internal paths."""
        return {**store_routes(self._lister, self.commands), **self._nodes.routes()}


class NothingLeft:
    """Whether counts of the packs have found nothing on a store for so long that nothing can be under way to
    it any more."""

    LONG_S = 120.0

    def __init__(self, census: Census) -> None:
        self._census = census
        self._since: dict[StoreId, float] = {}

    def __call__(self, store: StoreId) -> bool:
        count = self._census.last
        if count.shards_at[store]:
            self._since.pop(store, None)
            return False
        return count.began_at - self._since.setdefault(store, count.began_at) >= self.LONG_S
