"""Everything that counts what a node does: its stores, its index, its requests, its ledger.

Built in the order in which the node is: observers first, since parts are handed them when they are made;
then what looks at the parts. What must hold: counting never changes what is counted, nor fails it.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.randomness import Randomness
from holdfast.chores.canary import Canary
from holdfast.health import StoreHealth
from holdfast.health.accounting import Histogram, StoreAccounts
from holdfast.health.ledger import StoreSight
from holdfast.health.observing import HealthObserver
from holdfast.index.port import Index, IndexState
from holdfast.node.accounting import RequestAccounts
from holdfast.node.config import Config
from holdfast.node.keeper import Held, Keeper
from holdfast.node.ledger_keeping import LedgerKeeper
from holdfast.packs.model import PackStorage
from holdfast.scheme import Scheme
from holdfast.stores.measured import MeasuredStore
from holdfast.stores.port import Store

TIDY_EVERY_S = 60.0


class IndexAccount:
    """An observer of a measured index."""

    def __init__(self) -> None:
        self.latency = Histogram()
        self.transactions = self.errors = 0

    def committed(self, seconds: float, transactions: int, error: BaseException | None) -> None:
        """One commit has ended."""
        if error is None:
            self.latency.add(seconds)
            self.transactions += transactions
        elif isinstance(error, Exception):
            self.errors += 1


class Watching:
    """All of it, for one node."""

    def __init__(
        self,
        config: Config,
        keeper: Keeper,
        health: StoreHealth,
        clock: Clock,
        tell: Callable[[str], None],
    ) -> None:
        self._config = config
        self._keeper = keeper
        self._health = health
        self._clock = clock
        self._index: Index | None = None
        self._canary: Canary | None = None
        self._tidying: asyncio.Task[None] | None = None
        self._observer = HealthObserver(health, clock)
        self.stores = StoreAccounts(self._observer, clock)
        self.index = IndexAccount()
        self.keeping = LedgerKeeper(
            config.data, clock, tell, serving=self._serving, sights=self._sights, canary=self._sender
        )
        self.requests = RequestAccounts(self.keeping.ledger)

    def measure(self, store: Store) -> Store:
        """`store`, told to the accounts and to health."""
        return MeasuredStore(store, self.stores, self._clock, watch=self._observer)

    async def serve(
        self, index: Index, packs: PackStorage, randomness: Randomness, *, scheme: Scheme, may_delete: bool
    ) -> None:
        """The node takes requests from now on. Without `may_delete`, what a canary leaves would not be
        collected, so none is sent."""
        self._index = index
        if may_delete:
            self._canary = Canary(index, packs, self._clock, randomness, scheme)
            self._tidying = asyncio.create_task(self._keep_tidy(self._canary))
        await self.keeping.serve()

    def send_no_canary(self) -> None:
        """What one leaves would not be collected any more."""
        self._canary = None

    async def _keep_tidy(self, canary: Canary) -> None:
        """See to it that what a canary left, which was cut short, is let go, also when no other follows."""
        while True:
            if not canary.tidied:
                with contextlib.suppress(HoldfastError):  # tried again; the index's state tells why
                    await canary.tidy()
            await self._clock.sleep(TIDY_EVERY_S)

    def draining(self) -> None:
        """The node takes no more requests."""
        self.keeping.draining()

    async def close(self) -> None:
        """Keep what is left."""
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.gather(self._tidying, return_exceptions=True)
        await self.keeping.close()

    def _serving(self) -> bool:
        return self._index is not None and self._index.status().state is IndexState.SERVING

    def _sender(self) -> Callable[[], Awaitable[float]] | None:
        return self._canary.send if self._canary is not None and self._config.canary else None

    def _sights(self) -> dict[str, StoreSight]:
        return {slot: self._sight(held) for slot, held in self._keeper.held.items()}

    def _sight(self, held: Held) -> StoreSight:
        if held.id is None:
            return StoreSight(held.attachment.value, held.since, held.reason)
        account = self.stores.of(held.id)
        state, since, reason = held.attachment.value, held.since, held.reason
        if held.opened is not None and held.id in self._health.stores:
            state, since = self._health.state(held.id).value, self._health.since(held.id)
            reason = self._health.counts(held.id).last_error
        return StoreSight(
            state,
            since,
            reason,
            account.unwell_since,
            account.reads.calls,
            account.reads.errors,
            account.reads.slow,
            account.writes.calls,
            account.writes.errors,
            account.writes.slow,
        )
