"""When a pack's shards are durable enough: one round of writing, as a state machine. Pure.

The shell starts a put for every `Start`, tells every result, and calls `at` when `wake` says so, until
`verdict` is set.

    verdict        when
    ACKNOWLEDGE    every shard is durable; or every shard that is waited for is, and the floor is
                   reached; or the stragglers' deadline has passed and the floor is reached
                   (and never what does not keep its promise)
    RETRY          a shard failed and has no spare store, or some are past their deadline and the others are
                   below the floor, and a smaller scheme fits the stores that are left: the pack is
                   written again, under another id, without those in `exclude`
    FAIL           the same, and no smaller scheme fits; what is only late is waited for until `PATIENCE_S`

The floor is one shard more than a read needs (where the scheme has one to give), so that even the
hastiest acknowledgement survives a store; and where the pack must survive more than that (`keeps`, which is
asked with the stores of the durable shards), it is reached when that holds, too. A spare store is taken only
where that can still hold. Stragglers are judged against their peers: the deadline is `STRAGGLER_S`, or twice
what the first few took when everybody is slow; and besides, what the way to each store takes (`ways`).

When are others taken instead of those that are late? At once where enough stores have answered, and what the
pack must survive can be had without the late ones. After `UNPROVEN_S` where too few have answered: the others
may be no better. After `LAST_RESORT_S` where the promise can't be kept on those that are left: a region that
is away for a moment is worth a moment, and one that hangs is out of use soon, and then no write waits for it.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from holdfast.base.ids import StoreId

STRAGGLER_S = 0.080
SPARE_AFTER_S = 0.040
UNPROVEN_S = 0.5
LAST_RESORT_S = 1.0
PATIENCE_S = 10.0

assert SPARE_AFTER_S < STRAGGLER_S < UNPROVEN_S < LAST_RESORT_S < PATIENCE_S


_PAST = 1e-6
"""A timer rings this much later, so that what is due by then is past."""


class Verdict(Enum):
    """How a round ends."""

    ACKNOWLEDGE = "acknowledge"
    RETRY = "retry"
    FAIL = "fail"


class Attempt(NamedTuple):
    """One put of one shard. `attempt` numbers the tries of this shard in this pack."""

    shard: int
    store: StoreId
    attempt: int


Keeps = Callable[[Collection[StoreId]], bool]
"""Whether shards at these stores survive what they must."""


def always(stores: Collection[StoreId]) -> bool:
    """Where counting shards is enough."""
    return True


_NO_WAYS: Mapping[StoreId, float] = {}


class WriteRound:
    """`homes` gives the store of each real shard; `needed` how many real shards a read needs; `spares`
    other stores that could take a shard, best first; `unhurried` stores that are not waited for;
    `stores_min` how many stores the smallest scheme of the same redundancy needs (m + 1); `keeps` holds for
    all of `homes`, and for what is acknowledged; `fits` says whether the pack could be laid over some stores
    so that it holds there; `ways` is what the way to a store may take, in seconds. Attempts are numbered from
    `first_attempt` on: no shard of this pack has ever had one of these."""

    def __init__(
        self,
        homes: Mapping[int, StoreId],
        needed: int,
        spares: Sequence[StoreId],
        unhurried: frozenset[StoreId],
        *,
        stores_min: int,
        now: float,
        keeps: Keeps = always,
        fits: Keeps = always,
        ways: Mapping[StoreId, float] = _NO_WAYS,
        first_attempt: int = 0,
    ) -> None:
        assert 1 <= needed <= len(homes)
        assert keeps(homes.values())
        self._keeps = keeps
        self._fits = fits
        self._ways = ways
        self._needed = needed
        self._floor = min(needed + 1, len(homes))
        self._homes = dict(homes)
        self._at = dict(homes)
        self._spares = list(spares)
        self._unhurried = unhurried
        self._stores_min = stores_min
        self._all_stores = frozenset(homes.values()) | frozenset(spares)
        self._started = now
        self._peers_took: float | None = None
        self._attempts = dict.fromkeys(homes, first_attempt)
        self._pending: dict[Attempt, None] = {}
        self._replaced: set[int] = set()
        self.durable: dict[int, Attempt] = {}
        self.failed: dict[Attempt, None] = {}
        self.surplus: dict[Attempt, None] = {}
        self.verdict: Verdict | None = None
        self.exclude: frozenset[StoreId] = frozenset()

    def start(self) -> list[Attempt]:
        """The puts to begin with."""
        return [self._begin(shard, store) for shard, store in self._homes.items()]

    @property
    def pending(self) -> tuple[Attempt, ...]:
        """Puts that have not answered."""
        return tuple(self._pending)

    @property
    def ended(self) -> tuple[Attempt, ...]:
        """Puts that have answered, whatever they said."""
        return (*self.durable.values(), *self.surplus, *self.failed)

    @property
    def missing(self) -> tuple[int, ...]:
        """Real shards that are not durable (yet)."""
        return tuple(shard for shard in self._homes if shard not in self.durable)

    def succeeded(self, attempt: Attempt, now: float) -> None:
        """A put is durable. One that lands second for its shard is surplus."""
        self._pending.pop(attempt, None)
        first_of_both = self.durable.setdefault(attempt.shard, attempt)
        if first_of_both != attempt:
            # Two spares may each be right and both together not: then the one that lands second counts.
            others = [at.store for at in self.durable.values() if at != first_of_both]
            worse = not self._keeps([*others, first_of_both.store]) and self._keeps([*others, attempt.store])
            if worse and self.verdict is None:
                self.durable[attempt.shard], attempt = attempt, first_of_both
            self.surplus[attempt] = None
        # As soon as only the redundancy is outstanding: of a pack of few shards, all others may hang.
        first, last = min(self._needed, self._stores_min), min(self._floor, self._stores_min)
        if first <= len(self.durable) <= last:
            self._peers_took = max(0.0, now - self._started - self._way(attempt))
        self._judge(now)

    def erred(self, attempt: Attempt, now: float) -> list[Attempt]:
        """A put has failed for good; the shard may or may not have landed. Answers puts to start."""
        self._pending.pop(attempt, None)
        self.failed[attempt] = None
        started = []
        lost = attempt.shard not in self.durable and not self._is_pending(attempt.shard)
        if lost and self.verdict is None and (spare := self._spare(attempt.shard)) is not None:
            started.append(self._begin(attempt.shard, spare))
        self._judge(now)
        return started

    def at(self, now: float) -> list[Attempt]:
        """Time has passed. Answers puts to start on spare stores."""
        started = []
        if now - self._started >= SPARE_AFTER_S and self._peers_took is not None and self.verdict is None:
            for late in list(self._pending):
                if late.shard in self._replaced or late.shard in self.durable:
                    continue
                if now < self._spare_at(late):
                    continue
                if (spare := self._spare(late.shard)) is not None:
                    self._replaced.add(late.shard)
                    started.append(self._begin(late.shard, spare))
        self._judge(now)
        return started

    def wake(self) -> float:
        """When to call `at` next, monotonic seconds."""
        moments = [
            self._started + UNPROVEN_S,
            self._started + LAST_RESORT_S,
            self._started + PATIENCE_S + _PAST,
        ]
        for attempt in self._pending:
            moments += (self._spare_at(attempt), self._due(attempt) + _PAST)
        return min(moment for moment in moments if moment > self._looked_at)

    _looked_at = float("-inf")

    def _begin(self, shard: int, store: StoreId) -> Attempt:
        attempt = Attempt(shard, store, self._attempts[shard])
        self._attempts[shard] += 1
        self._at[shard] = store
        self._pending[attempt] = None
        return attempt

    def _spare(self, shard: int) -> StoreId | None:
        """Takes the best spare with which the pack could still become what it must be."""
        others = [store for other, store in self._at.items() if other != shard]
        for number, spare in enumerate(self._spares):
            if self._keeps([*others, spare]):
                return self._spares.pop(number)
        return None

    def _is_pending(self, shard: int) -> bool:
        return any(attempt.shard == shard for attempt in self._pending)

    def _way(self, attempt: Attempt) -> float:
        return self._ways.get(attempt.store, 0.0)

    def _spare_at(self, attempt: Attempt) -> float:
        return self._started + SPARE_AFTER_S + self._way(attempt)

    def _due(self, attempt: Attempt) -> float:
        """When a put is late."""
        if self._peers_took is None:
            return self._started + PATIENCE_S
        return self._started + min(self._way(attempt) + max(STRAGGLER_S, 2 * self._peers_took), PATIENCE_S)

    def _judge(self, now: float) -> None:
        self._looked_at = max(self._looked_at, now)
        if self.verdict is not None:
            return
        kept = self._keeps([attempt.store for attempt in self.durable.values()])
        if not self.missing and kept:
            self.verdict = Verdict.ACKNOWLEDGE
            return
        lost = [shard for shard in self.missing if not self._is_pending(shard)]
        erred = {attempt.store for attempt in self.failed}
        if lost:
            # Only stragglers may be acknowledged at the floor; what failed is written elsewhere or not
            # at all.
            possible = len(self._all_stores - erred) >= self._stores_min
            self._give_up(Verdict.RETRY if possible else Verdict.FAIL, erred)
            return
        late = {attempt for attempt in self._pending if now > self._due(attempt)}
        if not self.missing:
            # Spares of which each was right, and all together are not.
            if len(late) == len(self._pending):
                spares = set(self._at.values()) - set(self._homes.values())
                self._give_up(Verdict.RETRY, erred | {attempt.store for attempt in self._pending} | spares)
            return
        waiting = [attempt for attempt in self._pending if attempt.shard not in self.durable]
        hurried = any(attempt.store not in self._unhurried and attempt not in late for attempt in waiting)
        if kept and len(self.durable) >= self._floor and not hurried:
            self.verdict = Verdict.ACKNOWLEDGE
        elif late and self._should_retry(now, erred, late, waiting):
            self._give_up(Verdict.RETRY, erred | {attempt.store for attempt in late})
        elif not self._pending or now > self._started + PATIENCE_S:
            # Without those that did not answer, too: the others are not to be done without as well.
            self._give_up(Verdict.FAIL, erred | {attempt.store for attempt in self._pending})

    def _should_retry(
        self, now: float, erred: set[StoreId], late: Collection[Attempt], waiting: Sequence[Attempt]
    ) -> bool:
        """Whether to go on without those that are late: not while the floor may still be reached with the
        others."""
        hoped = {attempt.shard: attempt.store for attempt in waiting if attempt not in late}
        hoped |= {shard: attempt.store for shard, attempt in self.durable.items()}
        if len(hoped) >= self._floor and self._keeps(hoped.values()):
            return False
        left = self._all_stores - erred - {attempt.store for attempt in late}
        if len(left) < self._stores_min:
            return False
        if not self._fits(left):
            return now >= self._started + LAST_RESORT_S
        return len(self.durable) >= self._stores_min or now >= self._started + UNPROVEN_S

    def _give_up(self, verdict: Verdict, exclude: set[StoreId]) -> None:
        self.verdict = verdict
        self.exclude = frozenset(exclude)
