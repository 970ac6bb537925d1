"""How each store is, from what its traffic and probes say. Pure: events and `now` in, states out.

    state         reads                    writes                     leaves to
    healthy       yes                      yes                        suspect, sitting out, down
    suspect       only when nothing else   only when nothing else     healthy (a success), down
    sitting out   only when nothing else   sent, not waited for       probation (rest over)
    down          no                       no                         probation (a probe succeeds)
    probation     yes                      yes                        healthy (good for a while), down

Suspect: `FAILURES_SUSPECT` reads in a row, or writes in a row, that failed or were overdue, with no success
of that kind between (reads from memory say nothing of a medium that refuses writes). Down:
`FAILURES_DOWN`, or the store said that it is gone. Sitting out: the median of its latencies lies far
outside its peers' at two looks in a row, or its reads were overdue soon after it was cleared; the rest
grows with each relapse, until it has been well for `REST_MAX_S`. At most `ejections_max`
stores are kept from reads at once for being slow or suspect: when more look bad, the observer is
distrusted and the ones that came last stay in use. What must hold: a store that answers well ends
healthy without anybody's help; the shell only has to carry out the probes that `tick` asks for.
"""

from collections.abc import Iterable
from enum import Enum

from msgspec import Struct

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.health.tail import Tail
from holdfast.stores.measured import Operation
from holdfast.stores.port import ShardExists, ShardMissing, ShardTruncated, StoreBusy, StoreFull

FAILURES_SUSPECT = 3
FAILURES_DOWN = 8
PROBATION_S = 5.0
REST_FIRST_S = 10.0
REST_MAX_S = 600.0
PROBE_INTERVAL_S = 1.0
FULL_REST_S = 2.0
LATE_ANSWER_S = 0.060
"""A success that took longer than this does not clear a store of suspicion."""

RELAPSE_S = 30.0
"""A store that is suspect again within this time sits out: it is not failing, it is slow."""
SLOW_FACTOR = 5.0
SLOW_FLOOR_S = 0.004
SLOW_SAMPLES_MIN = 24
FROM_MEMORY_S = 0.0002
"""Reads quicker than this came from memory and say nothing of how long to wait for the medium."""

HEDGE_MIN_S = 0.003
HEDGE_MAX_S = 0.150
HEDGE_DEFAULT_S = 0.030

assert FAILURES_SUSPECT < FAILURES_DOWN
assert HEDGE_MIN_S < HEDGE_DEFAULT_S < HEDGE_MAX_S


class StoreState(Enum):
    """See the table above."""

    HEALTHY = "healthy"
    SUSPECT = "suspect"
    SITTING_OUT = "sitting-out"
    DOWN = "down"
    PROBATION = "probation"


class StoreEvent(Struct, frozen=True):
    """A change of state, with why. `at` is monotonic seconds."""

    store: StoreId
    before: StoreState
    after: StoreState
    at: float
    reason: str


class StoreCounts(Struct):
    """What happened to a store since the node started."""

    reads: int = 0
    writes: int = 0
    read_errors: int = 0
    write_errors: int = 0
    wrong_blocks: int = 0
    overdue: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    last_error: str = ""


class _Record:
    __slots__ = (
        "counts",
        "failures",
        "full",
        "full_until",
        "rest_s",
        "since",
        "slow_looks",
        "state",
        "suspected",
        "tails",
        "until",
        "waits",
    )

    def __init__(self, now: float) -> None:
        self.state = StoreState.HEALTHY
        self.since = now
        self.until = 0.0
        self.full = False
        self.full_until = 0.0
        self.failures = {False: 0, True: 0}  # in a row: of reads, and of writes
        self.slow_looks = 0
        self.suspected = float("-inf")
        self.rest_s = REST_FIRST_S
        self.tails = {Operation.GET: Tail(), Operation.PUT: Tail()}
        self.waits = Tail()
        self.counts = StoreCounts()


# Answers that say something of the request or of load, not of the store's health.
_NOT_THE_STORES_FAULT = (ShardExists, ShardMissing, ShardTruncated, StoreBusy, StoreFull)


class StoreHealth:
    """All stores of this node's view. `ejections_max` is what the schemes in use can lose."""

    def __init__(self, stores: Iterable[StoreId], ejections_max: int, now: float) -> None:
        self._records = {store: _Record(now) for store in stores}
        self.ejections_max = ejections_max
        self._events: list[StoreEvent] = []
        self._hedge_cap_s = HEDGE_MAX_S

    @property
    def stores(self) -> tuple[StoreId, ...]:
        """All stores, in the order given."""
        return tuple(self._records)

    def add(self, store: StoreId, now: float) -> None:
        """Know one more store; a known one starts anew, on probation."""
        if store not in self._records:
            self._records[store] = _Record(now)
        else:
            self._become(store, StoreState.PROBATION, now, "attached again")

    def state(self, store: StoreId) -> StoreState:
        """Where a store stands; one that is not known is down."""
        record = self._records.get(store)
        return record.state if record else StoreState.DOWN

    def counts(self, store: StoreId) -> StoreCounts:
        """What happened to it so far; the caller must not change it."""
        return self._records[store].counts

    def since(self, store: StoreId) -> float:
        """Monotonic time of its last change of state."""
        return self._records[store].since

    def readable(self, store: StoreId) -> bool:
        """Whether it is the first choice for reads."""
        return self.state(store) in (StoreState.HEALTHY, StoreState.PROBATION)

    def waited_for(self, store: StoreId) -> bool:
        """Whether a write waits for it."""
        return self.state(store) in (StoreState.HEALTHY, StoreState.PROBATION)

    def writable(self, store: StoreId) -> bool:
        """Whether a write is sent to it at all."""
        return self.state(store) in (StoreState.HEALTHY, StoreState.PROBATION, StoreState.SITTING_OUT)

    def full(self, store: StoreId, now: float) -> None:
        """It refused a write for lack of room; it is left alone until the next look."""
        if (record := self._records.get(store)) is not None:
            record.full_until = now + FULL_REST_S
            record.full = True

    def is_full(self, store: StoreId) -> bool:
        """Whether it lately refused a write for lack of room."""
        record = self._records.get(store)
        return record is not None and record.full

    def hedge_after_s(self, store: StoreId) -> float:
        """How long to wait for a read before starting others: the store's own recent tail, but never
        more than a few times what its peers need."""
        record = self._records.get(store)
        if record is None:
            return HEDGE_MIN_S
        own = record.waits.quantile(0.97)
        if own is None:
            return HEDGE_DEFAULT_S
        return min(max(2.0 * own, HEDGE_MIN_S), self._hedge_cap_s)

    def observed(
        self,
        store: StoreId,
        operation: Operation,
        seconds: float,
        size: int,
        error: BaseException | None,
        now: float,
    ) -> None:
        """One call of a store has ended; an error that is not ours was the caller giving up."""
        record = self._records.get(store)
        if record is None:
            return
        counts = record.counts
        writing = operation in (Operation.PUT, Operation.DELETE)
        if error is None:
            if writing:
                counts.writes += 1
                counts.bytes_written += size
            else:
                counts.reads += 1
                counts.bytes_read += size
            if (tail := record.tails.get(operation)) is not None:
                tail.add(seconds)
                if operation is Operation.GET and seconds > FROM_MEMORY_S:
                    record.waits.add(seconds)
            if record.failures[writing] and seconds < LATE_ANSWER_S:
                record.failures[writing] = 0
                if record.state is StoreState.SUSPECT and max(record.failures.values()) < FAILURES_SUSPECT:
                    self._become(store, StoreState.HEALTHY, now, "answers again")
            return
        if isinstance(error, _NOT_THE_STORES_FAULT) or not isinstance(error, HoldfastError):
            return
        if writing:
            counts.write_errors += 1
        else:
            counts.read_errors += 1
        counts.last_error = str(error)
        self._failed(store, record, now, str(error), writing=writing)

    def overdue(self, store: StoreId, now: float) -> None:
        """A read is outstanding for much longer than it should be; nothing is known yet."""
        if (record := self._records.get(store)) is not None:
            record.counts.overdue += 1
            self._failed(store, record, now, "reads are overdue", writing=False, down=False)

    def wrong(self, store: StoreId, blocks: int) -> None:
        """It answered with bytes that are not what was written there."""
        if (record := self._records.get(store)) is not None:
            record.counts.wrong_blocks += blocks

    def vanished(self, store: StoreId, now: float, reason: str) -> None:
        """It is known to be gone."""
        record = self._records[store]
        if record.state is not StoreState.DOWN:
            record.counts.last_error = reason
            self._become(store, StoreState.DOWN, now, reason)

    def probed(self, store: StoreId, error: HoldfastError | None, now: float) -> None:
        """A probe that `tick` asked for has ended."""
        record = self._records.get(store)
        if record is None:
            return
        if error is not None and not isinstance(error, StoreFull):
            record.counts.last_error = str(error)
            if record.state is not StoreState.DOWN:
                self._become(store, StoreState.DOWN, now, f"probe failed: {error}")
        elif record.state is StoreState.DOWN:
            self._become(store, StoreState.PROBATION, now, "probe succeeded")
        elif record.state is StoreState.SUSPECT:
            self._become(store, StoreState.HEALTHY, now, "probe succeeded")

    def tick(self, now: float) -> list[StoreId]:
        """Look at everybody; call about once a second. Answers the stores to probe now."""
        for store, record in self._records.items():
            if record.state is StoreState.PROBATION and now - record.since >= PROBATION_S:
                self._become(store, StoreState.HEALTHY, now, f"well for {PROBATION_S:g} s")
            if record.state is StoreState.HEALTHY and now - record.since >= REST_MAX_S:
                record.rest_s = REST_FIRST_S
            if record.full and now >= record.full_until:
                record.full = False
            if record.state is StoreState.SITTING_OUT and now >= record.until:
                self._become(store, StoreState.PROBATION, now, "rest is over")
        self._look_for_slow(now)
        self._learn_hedge_cap()
        return [
            store
            for store, record in self._records.items()
            if record.state in (StoreState.DOWN, StoreState.SUSPECT)
        ]

    def take_events(self) -> list[StoreEvent]:
        """The changes since the last call."""
        events, self._events = self._events, []
        return events

    def _look_for_slow(self, now: float) -> None:
        slow: dict[StoreId, str] = {}
        for operation in (Operation.GET, Operation.PUT):
            medians = {
                store: median
                for store, record in self._records.items()
                if record.state in (StoreState.HEALTHY, StoreState.PROBATION)
                and len(record.tails[operation]) >= SLOW_SAMPLES_MIN
                and (median := record.tails[operation].quantile(0.5)) is not None
            }
            if len(medians) < 3:
                continue
            for store, median in medians.items():
                others = sorted(value for other, value in medians.items() if other != store)
                ordinary = others[len(others) * 3 // 4]
                if median > max(SLOW_FACTOR * ordinary, SLOW_FLOOR_S):
                    slow[store] = (
                        f"median {operation.value} {median * 1e3:.1f} ms, peers {ordinary * 1e3:.1f} ms"
                    )
        for store, record in self._records.items():
            record.slow_looks = record.slow_looks + 1 if store in slow else 0
            if record.slow_looks >= 2 and self._may_eject():
                self._sit_out(store, record, now, slow[store])

    def _sit_out(self, store: StoreId, record: _Record, now: float, why: str) -> None:
        record.until = now + record.rest_s
        record.rest_s = min(2 * record.rest_s, REST_MAX_S)
        self._become(store, StoreState.SITTING_OUT, now, why)

    def _learn_hedge_cap(self) -> None:
        tails = sorted(
            tail for record in self._records.values() if (tail := record.waits.quantile(0.97)) is not None
        )
        if tails:
            self._hedge_cap_s = min(max(4.0 * tails[len(tails) // 2], HEDGE_DEFAULT_S), HEDGE_MAX_S)

    def _failed(
        self, store: StoreId, record: _Record, now: float, reason: str, *, writing: bool, down: bool = True
    ) -> None:
        record.failures[writing] += 1
        failures = record.failures[writing]
        if record.state is StoreState.DOWN:
            return
        if down and failures >= FAILURES_DOWN:
            self._become(store, StoreState.DOWN, now, f"{failures} failures in a row, last: {reason}")
        elif (
            failures >= FAILURES_SUSPECT
            and record.state in (StoreState.HEALTHY, StoreState.PROBATION)
            and self._may_eject()
        ):
            why = f"{failures} in a row: {reason}"
            relapsed, record.suspected = now - record.suspected < RELAPSE_S, now
            if relapsed and not down:
                self._sit_out(store, record, now, f"again {why}")
            else:
                self._become(store, StoreState.SUSPECT, now, why)

    def _may_eject(self) -> bool:
        out = sum(
            record.state in (StoreState.SUSPECT, StoreState.SITTING_OUT, StoreState.DOWN)
            for record in self._records.values()
        )
        return out < self.ejections_max

    def _become(self, store: StoreId, state: StoreState, now: float, reason: str) -> None:
        record = self._records[store]
        self._events.append(StoreEvent(store, record.state, state, now, reason))
        record.state, record.since = state, now
        record.slow_looks = 0
        if state in (StoreState.PROBATION, StoreState.HEALTHY):
            record.failures = {False: 0, True: 0}
        if state is StoreState.PROBATION:
            for tail in (*record.tails.values(), record.waits):
                tail.clear()
