"""The list of stores for `holdfast store list`, collected from the parts that know."""

from holdfast.chores.balance import Balance
from holdfast.chores.drain import Drain
from holdfast.chores.rebalance import Rebalance
from holdfast.health import StoreHealth
from holdfast.node.census import Census
from holdfast.node.cluster import Draining
from holdfast.node.filling import fills_of
from holdfast.node.keeper import Held, Keeper
from holdfast.node.membership import Places
from holdfast.node.report import store_statuses
from holdfast.node.status import StoreStatus
from holdfast.node.stores import DrainStatus, StoreLine, StoreList


class StoreLister:
    """Makes the list."""

    def __init__(
        self,
        keeper: Keeper,
        health: StoreHealth,
        membership: Places,
        census: Census,
        drain: Drain,
        rebalance: Rebalance,
    ) -> None:
        self._keeper = keeper
        self._health = health
        self._membership = membership
        self._census = census
        self._drain = drain
        self._rebalance = rebalance

    async def list(self) -> StoreList:
        """All slots as they are now; what they hold is counted anew."""
        keeper, chore = self._keeper, self._rebalance
        await self._census.whole()
        statuses = await store_statuses(list(keeper.held.values()), keeper.cluster, self._health)
        _, fills = fills_of(keeper, self._census)
        return StoreList(
            tuple(self._line(status) for status in statuses),
            Balance(fills, keeper.topology()).uneven,
            chore.running,
            chore.bytes_moved,
            chore.bytes_to_move,
            keeper.remarks,
        )

    def _line(self, status: StoreStatus) -> StoreLine:
        count, held = self._census.last, self._keeper.held.get(status.slot)
        line = self._keeper.cluster.slots.get(status.slot)
        bytes_held = count.bytes_at[status.store] if status.store is not None else 0
        shards = count.shards_at[status.store] if status.store is not None else 0
        room = bytes_held + status.bytes_free if status.bytes_free is not None else 0
        return StoreLine(
            slot=status.slot,
            store=status.store,
            path=status.path,
            state=status.state,
            reason=status.reason,
            region=status.region,
            zone=status.zone,
            host=status.host,
            device=status.device,
            bytes_total=status.bytes_total,
            bytes_free=status.bytes_free,
            shards=shards,
            bytes_held=bytes_held,
            fill=bytes_held / room if room else None,
            holds_index=self._membership.is_member(status.slot),
            spare=held is not None and line is not None and held.place.spare and not line.stands_in_for,
            added=line is not None and line.added is not None and not line.known_as,
            bucket=status.bucket,
            drain=self._drain_status(held, bytes_held, shards) if held is not None else None,
        )

    def _drain_status(self, held: Held, bytes_left: int, shards_left: int) -> DrainStatus | None:
        line, drain = self._keeper.cluster.slots[held.place.slot], self._drain
        if line.draining is Draining.NO:
            return None
        rate = drain.rate_bytes_s
        return DrainStatus(
            bytes_left,
            shards_left,
            shards_left == 0 and held.id in drain.empty,
            rate,
            bytes_left / rate if rate else None,
            drain.stuck,
            drain.reason,
            line.known_as,
        )
