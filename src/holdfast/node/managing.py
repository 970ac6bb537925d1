"""Everything that changes the stores of a running node, put together: commands, the list, housekeeping."""

from collections.abc import Callable, Mapping

from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.health import StoreHealth
from holdfast.index.port import Index
from holdfast.node.background import Background
from holdfast.node.changing import Changes
from holdfast.node.config import Config
from holdfast.node.housekeeping import SPARE_PATIENCE_S, Housekeeping
from holdfast.node.keeper import Keeper
from holdfast.node.leaving import cost_of_leaving
from holdfast.node.membership import Places
from holdfast.node.store_commands import StoreCommands
from holdfast.node.store_list import StoreLister
from holdfast.node.store_routes import store_routes
from holdfast.s3.face import Route


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
    ) -> None:
        changes, drain = Changes(keeper, clock), background.drain

        def is_up(store: StoreId) -> bool:
            return health.readable(store) or health.writable(store)

        async def is_needed(store: StoreId) -> bool:
            there = frozenset(one for one in keeper.attached if is_up(one))
            return (await cost_of_leaving(index, store, there, there)).lost > 0

        self.commands = StoreCommands(keeper, changes, places, index, is_up, config.scheme, tell)
        self._lister = StoreLister(keeper, health, places, background.census, drain, background.rebalance)
        self.housekeeping = Housekeeping(
            keeper,
            health,
            changes,
            lambda store: store in drain.empty,
            clock,
            tell,
            patience_s=min(SPARE_PATIENCE_S, config.chores.away_patience_s),
            is_needed=is_needed,
        )

    def routes(self) -> Mapping[str, Route]:
        """The internal paths."""
        return store_routes(self._lister, self.commands)
