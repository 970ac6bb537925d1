"""How each store is, from what its traffic and probes say. Pure: events and `now` in, states out.

The detectors find evidence (`phi`: silence, `fence`: slowness, `error_rate`, failures in a row, probes), the
table in `transitions` says what it changes, and this is what holds them together: it tells the detectors
of every call, looks at everybody a few times a second (`tick`), and says which stores to probe.

What must hold. A store that answers well ends healthy without anybody's help; the shell only has to carry out
the probes that `tick` asks for. Judgement never takes more stores out of use than every scheme in use can
lose (`ejections_max`): slow and silent ones beyond that stay in use, suspect ones are `kept`. When everything
looks bad, the observer is distrusted: silence counts only while most peers answer, slowness only while most
peers are quick, and neither while this process was not running itself. Who comes and goes is damped: the rest
before it is used again doubles with each fall, and is forgiven bit by bit while it is well.
"""

from collections.abc import Iterable, Mapping

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.health.comparing import LOOK_S, behind, compare
from holdfast.health.damping import FALLS_MAX, FORGIVEN_AFTER_S, hold_s, rest_s
from holdfast.health.distance import Distance, allowed_s, nearness
from holdfast.health.fence import Lately
from holdfast.health.record import Record, StoreCounts, StoreEvent
from holdfast.health.transitions import Evidence, Guard, StoreState, find
from holdfast.stores.measured import Operation
from holdfast.stores.port import (
    ShardExists,
    ShardMissing,
    ShardTruncated,
    StoreBusy,
    StoreFull,
    StoreOverdue,
)

FAILURES_SUSPECT = 3
FAILURES_DOWN = 8
PHI_DOUBT = 1.0
PHI_SILENT = 8.0
OBSERVER_LATE_S = 1.5
"""With so long between two looks, it was this process that did not run."""

PROBATION_S = 5.0
RELAPSE_S = 30.0
"""A store whose answers are overdue again within this time sits out: it is not failing, it is slow."""

PROBE_IDLE_S = 0.7
"""A store is probed when its medium was not heard of for so long; each look, while there is a doubt."""

PROBE_DOWN_S = 0.7
PROBE_ALWAYS_S = 10.0
"""A probe writes, reads and deletes; traffic seldom does all three, so it does not replace all probes."""

PROBE_SELDOM_S = 60.0
PROBE_SELDOM_DOUBTED_S = 1.0
PROBE_SELDOM_DOWN_S = 5.0
"""The same for who asks money for each probe. Its traffic is judged as everybody's."""

FULL_REST_S = 2.0
LATE_ANSWER_S = 0.060
"""A success that took longer than this does not clear a store of suspicion."""

FROM_MEMORY_S = 0.0002
"""Reads quicker than this came from memory and say nothing of the medium."""

HEDGE_MIN_S = 0.003
HEDGE_MAX_S = 0.150
HEDGE_DEFAULT_S = 0.030

assert FAILURES_SUSPECT < FAILURES_DOWN
assert PHI_DOUBT < PHI_SILENT
assert LOOK_S < PROBE_IDLE_S < OBSERVER_LATE_S < PROBE_ALWAYS_S
assert HEDGE_MIN_S < HEDGE_DEFAULT_S < HEDGE_MAX_S

# Answers that say something of the request or of load, not of the store's health.
_NOT_THE_STORES_FAULT = (ShardExists, ShardMissing, ShardTruncated, StoreBusy, StoreFull)

_WRITING = {Operation.PUT: True, Operation.DELETE: True, Operation.GET: False, Operation.GET_UNCACHED: False}
"""The calls that touch the medium, by whether they write."""

_IN_USE = (StoreState.HEALTHY, StoreState.PROBATION)


class StoreHealth:
    """All stores of this node's view. `ejections_max` is what every scheme in use can lose."""

    def __init__(self, stores: Iterable[StoreId], ejections_max: int, now: float) -> None:
        self._records = {store: Record(now) for store in stores}
        self._ejections_max = ejections_max
        self._events: list[StoreEvent] = []
        self._written: dict[int, float] = {}
        self._hedge_cap_s = HEDGE_MAX_S
        self._looked_at = now
        self.has_far = False
        """Whether some stores are farther away than others: if not, nobody need ask which."""

    @property
    def stores(self) -> tuple[StoreId, ...]:
        """All stores, in the order given."""
        return tuple(self._records)

    @property
    def ejections_max(self) -> int:
        """How many stores judgement may keep out of use at once."""
        return self._ejections_max

    @ejections_max.setter
    def ejections_max(self, value: int) -> None:
        self._ejections_max = value
        self._reckon()

    def written(self, m: int, now: float) -> None:
        """A pack was written that can lose `m` stores: from now on no more than that may be out of use. Those
        that can lose none are read from all their stores anyway."""
        if m:
            self._written[m] = now
            if m < self._ejections_max:
                self.ejections_max = m

    def written_since(self, since: float) -> list[int]:
        """What packs written since then can lose: who counted them may have passed by before."""
        return [m for m, at in self._written.items() if at >= since]

    def add(self, store: StoreId, now: float) -> None:
        """Know one more store; a known one starts anew, on probation."""
        record = self._records.get(store)
        if record is None:
            self._records[store] = Record(now)
            return
        record.gone = False
        record.heard_at = now
        self._step(store, record, Evidence.ATTACHED, now, "keeper", {})

    def forget(self, store: StoreId) -> None:
        """It is no longer part of the house."""
        self._records.pop(store, None)

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

    def reason(self, store: StoreId) -> str:
        """Why it is in the state that it is in; empty before anything changed."""
        return self._records[store].reason

    def readable(self, store: StoreId) -> bool:
        """Whether it is the first choice for reads."""
        record = self._records.get(store)
        return record is not None and (record.state in _IN_USE or record.kept)

    def preferred(self, store: StoreId) -> bool:
        """Whether reads go there first. Who is suspect beyond what may be taken out of use is not, nor who
        lags behind the better half: they are in use, but others are asked before them."""
        record = self._records.get(store)
        if record is None or record.kept:
            return False
        return record.state in _IN_USE and record.doubted_until <= self._looked_at

    def waited_for(self, store: StoreId) -> bool:
        """Whether a write waits for it."""
        return self.readable(store)

    def writable(self, store: StoreId) -> bool:
        """Whether a write is sent to it at all."""
        return self.readable(store) or self.state(store) is StoreState.SITTING_OUT

    def full(self, store: StoreId, now: float) -> None:
        """It refused a write for lack of room; it is left alone for a while."""
        if (record := self._records.get(store)) is not None:
            record.full_until = now + FULL_REST_S
            record.full = True

    def is_full(self, store: StoreId) -> bool:
        """Whether it lately refused a write for lack of room."""
        record = self._records.get(store)
        return record is not None and record.full

    def hedge_after_s(self, store: StoreId, size: int = 0) -> float:
        """How long to wait for a read of `size` bytes before starting others: the store's own recent tail,
        but never more than a few times what its peers need; and the way there."""
        record = self._records.get(store)
        if record is None:
            return HEDGE_MIN_S
        own = record.waits.quantile(0.97)
        way_s = allowed_s(record.trip_s, size) if record.distance is not None else 0.0
        if own is None:
            return HEDGE_DEFAULT_S + way_s
        return min(max(2.0 * own, HEDGE_MIN_S), self._hedge_cap_s) + way_s

    # Where stores are

    def is_elsewhere(self, store: StoreId) -> None:
        """The way to it takes time that is to be measured (`travelled`)."""
        if (record := self._records.get(store)) is not None and record.distance is None:
            record.distance = Distance()

    def probe_seldom(self, store: StoreId) -> None:
        """Probes of it cost money."""
        if (record := self._records.get(store)) is not None:
            record.probe_seldom()

    def travelled(self, store: StoreId, seconds: float, now: float) -> None:
        """A round trip to whoever keeps it, that touched no medium, took so long."""
        self.is_elsewhere(store)
        if (record := self._records.get(store)) is not None and record.distance is not None:
            record.distance.told(seconds, now)
            self.has_far = self.has_far or nearness(record.trip_s) > 0

    def trip_s(self, store: StoreId) -> float:
        """How far away it is: the least time of a round trip, 0.0 for what is here."""
        record = self._records.get(store)
        return record.trip_s if record is not None else 0.0

    def way_s(self, store: StoreId, size: int) -> float:
        """What a call that moves `size` bytes may take because of the way alone; 0.0 for what is here."""
        record = self._records.get(store)
        return allowed_s(record.trip_s, size) if record is not None and record.distance is not None else 0.0

    def nearness(self, store: StoreId) -> int:
        """Stores with the same number are equally near, lower ones nearer."""
        record = self._records.get(store)
        return nearness(record.trip_s) if record is not None and record.distance is not None else 0

    # What calls tell

    def began(self, store: StoreId, operation: Operation, now: float) -> None:
        """A call of a store begins; `observed` says how it ended."""
        record = self._records.get(store)
        if record is not None and (writing := _WRITING.get(operation)) is not None:
            record.calls[writing].asked(now)

    def observed(
        self,
        store: StoreId,
        operation: Operation,
        seconds: float,
        size: int,
        error: BaseException | None,
        now: float,
    ) -> None:
        """One call of a store has ended; an error that is not ours was the caller giving up. Probes are told
        by `probed`."""
        record = self._records.get(store)
        if record is None:
            return
        writing = operation in (Operation.PUT, Operation.DELETE)
        from_memory = operation is Operation.GET and seconds <= FROM_MEMORY_S
        if operation in _WRITING:
            phi = record.calls[writing]
            if isinstance(error, StoreOverdue):
                phi.unanswered()
            elif from_memory or isinstance(error, StoreBusy) or not isinstance(error, HoldfastError | None):
                phi.withdrawn()
            else:
                phi.answered(now)
        if operation is Operation.PROBE:
            return
        counts = record.counts
        if error is None:
            if writing:
                counts.writes += 1
                counts.bytes_written += size
            else:
                counts.reads += 1
                counts.bytes_read += size
            record.error_rates[writing].succeeded(now)
            if operation in _WRITING and not from_memory:
                self._answered_well(store, record, operation, seconds, size, now, writing=writing)
        elif isinstance(error, HoldfastError) and not isinstance(error, _NOT_THE_STORES_FAULT):
            if writing:
                counts.write_errors += 1
            else:
                counts.read_errors += 1
            overdue = isinstance(error, StoreOverdue)
            record.error_rates[writing].failed(now, age_s=seconds if overdue else 0.0)
            # Who was heard of since the call began has ended the row that it would belong to.
            count = 0 if overdue and now - seconds < record.heard_at else 1
            self._failed(store, record, count, str(error), now, writing=writing)

    def overdue(self, store: StoreId, now: float) -> None:
        """A read is outstanding for much longer than it should be; nothing is known yet."""
        if (record := self._records.get(store)) is not None:
            record.counts.overdue += 1
            record.failures[False] += 1
            if record.failures[False] >= FAILURES_SUSPECT:
                facts = {"failures": str(record.failures[False]), "error": "reads are overdue"}
                self._step(store, record, Evidence.FAILURES, now, "overdue reads", facts)

    def wrong(self, store: StoreId, blocks: int) -> None:
        """It answered with bytes that are not what was written there."""
        if (record := self._records.get(store)) is not None:
            record.counts.wrong_blocks += blocks

    def vanished(self, store: StoreId, now: float, reason: str) -> None:
        """It is known to be gone."""
        record = self._records[store]
        record.gone = True
        record.probe_began = None
        if record.state is not StoreState.DOWN:
            record.counts.last_error = reason
            self._step(store, record, Evidence.GONE, now, "keeper", {"error": reason})

    def probed(self, store: StoreId, error: HoldfastError | None, now: float) -> None:
        """A probe that `tick` asked for has ended."""
        record = self._records.get(store)
        if record is None:
            return
        began, record.probe_began = record.probe_began, None
        if isinstance(error, StoreOverdue):
            record.counts.last_error = str(error)
            record.probe.unanswered()
        elif isinstance(error, StoreBusy):
            record.probe.withdrawn()
        else:
            record.probe.answered(now)
            record.heard_at = now
        if isinstance(error, StoreBusy | StoreOverdue):
            return  # silence is judged by looking
        if error is None or isinstance(error, StoreFull):
            for rate in record.error_rates.values():
                rate.succeeded(now)
            if began is not None:
                self._took(record, record.lately[Operation.PROBE], now - began, 0, now)
            record.heard(now)
            record.forget_failures()
            self._step(store, record, Evidence.PROBED, now, "probe", {})
            return
        record.counts.last_error = str(error)
        for rate in record.error_rates.values():
            rate.failed(now)
        self._failed(store, record, FAILURES_SUSPECT, f"probe failed: {error}", now, writing=True)

    # Looking at everybody

    def tick(self, now: float) -> list[StoreId]:
        """Look at everybody; call it every LOOK_S. Answers the stores to probe now: the caller does so, and
        tells `probed` of each."""
        late = now - self._looked_at > OBSERVER_LATE_S
        for store, record in self._records.items():
            if late:
                record.run.end()
                record.heard(now)
            if record.full and now >= record.full_until:
                record.full = False
            self._time_passes(store, record, now)
        doubt = self._look_for_silent(now)
        if not late:
            doubt |= self._look_for_slow(now)
        self._learn_hedge_cap()
        self.has_far = any(map(self.nearness, self._records))
        self._looked_at = now
        return [store for store, record in self._records.items() if self._probe_due(record, now, doubt=doubt)]

    def take_events(self) -> list[StoreEvent]:
        """The changes since the last call."""
        events, self._events = self._events, []
        return events

    def _time_passes(self, store: StoreId, record: Record, now: float) -> None:
        if record.state is StoreState.HEALTHY and record.falls:
            if now - max(record.since, record.forgiven_at) >= FORGIVEN_AFTER_S:
                record.falls -= 1
                record.forgiven_at = now
        elif record.state is StoreState.SITTING_OUT and now >= record.rest_until and record.run.votes:
            record.falls = min(record.falls + 1, FALLS_MAX)
            record.rest_until = now + rest_s(record.falls)
        self._step(store, record, Evidence.TIME, now, "time", {})

    def _look_for_silent(self, now: float) -> bool:
        """Whether there is a doubt: somebody owes an answer for longer than is ordinary."""
        doubt = False
        for store, record in self._records.items():
            if record.state is StoreState.DOWN:
                continue
            phi, silent_s = max((detector.phi(now), detector.silent_s(now)) for detector in record.phis)
            doubt |= phi >= PHI_DOUBT
            if phi >= PHI_SILENT and self._peers_answer(record, now - silent_s / 2):
                facts = {"silence": f"{silent_s:.2f} s", "phi": f"{phi:.1f}"}
                self._step(store, record, Evidence.SILENT, now, "phi accrual", facts)
        return doubt

    def _peers_answer(self, record: Record, after: float) -> bool:
        """Whether most peers were heard of after `after`: if not, it is us who do not hear."""
        peers = [
            peer
            for peer in self._records.values()
            if peer is not record and peer.state is not StoreState.DOWN and not peer.gone
        ]
        return 2 * sum(peer.heard_at >= after for peer in peers) > len(peers)

    def _look_for_slow(self, now: float) -> bool:
        """Whether there is a doubt: somebody was beyond the fence."""
        judged = {
            store: record for store, record in self._records.items() if record.state is not StoreState.DOWN
        }
        found = compare(judged, self._looked_at, now)
        lagging = behind(judged, self._looked_at, now)
        for store, record in judged.items():
            if store in lagging:
                record.behind.beyond(now)
                if record.behind.proven(now):
                    record.doubt(now)
            elif store in found.ordinary:
                record.behind.end()
        for store, record in judged.items():
            if store in found.beyond:
                record.run.beyond(now)
                if record.run.proven(now):
                    self._step(store, record, Evidence.SLOW, now, "latency fence", found.beyond[store])
            elif store in found.ordinary:
                record.run.end()
        return any(
            record.run.votes for record in judged.values() if record.state is not StoreState.SITTING_OUT
        )

    def _probe_due(self, record: Record, now: float, *, doubt: bool) -> bool:
        """Whether to probe it now; if so, that counts as done."""
        if record.gone or record.probe_began is not None:
            return False
        since_probe = now - record.probed_at
        if record.seldom:
            due = self._seldom_due(record, now, since_probe)
        elif record.state is StoreState.DOWN:
            due = since_probe >= PROBE_DOWN_S
        elif doubt or record.state is StoreState.SUSPECT:
            due = since_probe >= LOOK_S / 2
        else:
            due = now - record.heard_at >= PROBE_IDLE_S or since_probe >= PROBE_ALWAYS_S
        if due:
            record.probe_began = record.probed_at = now
            record.probe.asked(now)
        return due

    @staticmethod
    def _seldom_due(record: Record, now: float, since_probe: float) -> bool:
        """Whether to probe a store whose probes cost money: others' troubles are no reason."""
        if record.state is StoreState.DOWN:
            return since_probe >= PROBE_SELDOM_DOWN_S
        if record.state is not StoreState.HEALTHY or record.run.votes or record.owes_long(now, PHI_DOUBT):
            return since_probe >= PROBE_SELDOM_DOUBTED_S
        return since_probe >= PROBE_SELDOM_S

    def _learn_hedge_cap(self) -> None:
        tails = sorted(
            tail for record in self._records.values() if (tail := record.waits.quantile(0.97)) is not None
        )
        if tails:
            self._hedge_cap_s = min(max(4.0 * tails[len(tails) // 2], HEDGE_DEFAULT_S), HEDGE_MAX_S)

    # What follows from it

    def _answered_well(
        self,
        store: StoreId,
        record: Record,
        operation: Operation,
        seconds: float,
        size: int,
        now: float,
        *,
        writing: bool,
    ) -> None:
        record.heard_at = now
        own = seconds
        if (lately := record.lately.get(operation)) is not None:
            own = self._took(record, lately, seconds, size, now)
        if operation is Operation.GET:
            record.waits.add(own)
        if own < LATE_ANSWER_S:
            record.failures[writing] = 0
            record.late_only = record.late_only or not any(record.failures.values())
        if record.state is StoreState.SUSPECT and max(record.failures.values()) < FAILURES_SUSPECT:
            self._step(store, record, Evidence.ANSWERS, now, "traffic", {})

    @staticmethod
    def _took(record: Record, lately: Lately, seconds: float, size: int, now: float) -> float:
        """A call took so long, of which the way explains a part. Answers what it does not."""
        if record.distance is None:
            lately.add(now, seconds)
            return seconds
        own = max(0.0, seconds - allowed_s(record.distance.trip_s, size))
        lately.add(now, seconds - record.distance.trip_s, own)
        return own

    def _failed(
        self, store: StoreId, record: Record, count: int, reason: str, now: float, *, writing: bool
    ) -> None:
        record.counts.last_error = reason
        record.failures[writing] += count
        record.late_only = False
        failures = record.failures[writing]
        facts = {"failures": str(failures), "error": reason}
        if failures >= FAILURES_DOWN:
            self._step(store, record, Evidence.DEAD, now, "failures", facts)
        elif failures >= FAILURES_SUSPECT:
            self._step(store, record, Evidence.FAILURES, now, "failures", facts)
        elif record.error_rates[writing].too_high(now):
            facts["share"] = f"{100 * record.error_rates[writing].share(now):.0f} %"
            self._step(store, record, Evidence.ERROR_RATE, now, "error rate", facts)

    def _step(
        self,
        store: StoreId,
        record: Record,
        evidence: Evidence,
        now: float,
        detector: str,
        facts: Mapping[str, str],
    ) -> None:
        """Change the state as the table says."""
        line = find(record.state, evidence, lambda guard: self._holds(record, guard, now))
        if line is None:
            return
        before, after = record.state, line.after
        if before in _IN_USE and after not in _IN_USE:
            record.falls = min(record.falls + 1, FALLS_MAX)
        if after is StoreState.SUSPECT:
            record.suspected_at = now
        if after is StoreState.SITTING_OUT:
            record.rest_until = now + rest_s(record.falls)
        elif after not in _IN_USE:
            record.rest_until = now + hold_s(record.falls)
        if after in _IN_USE:
            record.heard(now)
            record.forget_failures()
        if after is StoreState.PROBATION:
            record.forget_speed()
        record.run.end()
        record.state, record.since = after, now
        reason = record.reason = line.reason.format_map(facts)
        self._events.append(StoreEvent(store, before, after, now, reason, detector, dict(facts)))
        self._reckon()

    def _holds(self, record: Record, guard: Guard, now: float) -> bool:
        match guard:
            case Guard.ROOM:
                return self._out(besides=record) < self._ejections_max
            case Guard.RELAPSED:
                return now - record.suspected_at < RELAPSE_S
            case Guard.LATE_ONLY:
                return record.late_only
            case Guard.CALM:
                return not record.run.votes and all(
                    rate.is_clear(now) for rate in record.error_rates.values()
                )
            case Guard.RESTED:
                return now >= record.rest_until or self._out() > self._ejections_max
            case Guard.PROVEN:
                return now - record.since >= PROBATION_S

    def _out(self, besides: Record | None = None) -> int:
        """How many stores are not in use."""
        return sum(
            record is not besides and record.state not in _IN_USE and not record.kept
            for record in self._records.values()
        )

    def _reckon(self) -> None:
        """Of the suspect stores, keep those in use that came last, as far as the others are too many."""
        suspects = []
        out = 0
        for record in self._records.values():
            record.kept = False
            if record.state is StoreState.SUSPECT:
                suspects.append(record)
            else:
                out += record.state not in _IN_USE
        suspects.sort(key=lambda record: record.since)
        for record in suspects[max(0, self._ejections_max - out) :]:
            record.kept = True
