"""The ledger's live side: counts what clients got, minute by minute. Pure: events, `now` and wall time in.

`judge` says what an answer counts as. A `Ledger` takes every answer and a look at the world each second
(`tick`), and gives out the records that are due. What must hold:

- Minutes are keyed by the wall clock, and measured by the monotonic one. So no jump of the wall clock makes
  time negative, nor counts it twice: a clock that jumps ends the minute where it was, begins one where it
  is now, and leaves the time between as time of which nothing is known. Whoever reads lets no minute be
  longer than a minute.
- Memory is bounded: `BUCKETS_MAX` buckets and `CELLS_MAX` rows a minute; what comes beyond has the bucket
  `(other)`. Buckets are told apart only for requests whose signature held.
- A loop that stood still for more than `STALL_S` served nobody, and says so.
"""

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct

from holdfast.health.ledger_records import (
    DAY_MINUTES,
    MINUTE_MS,
    OTHER,
    Away,
    Beat,
    Cell,
    Minute,
    Record,
    StoreCell,
    StoreChange,
)

BUCKETS_MAX = 64
CELLS_MAX = 512
BUCKETS_KNOWN_MAX = 4096
TICK_S = 1.0
BEAT_S = 2.0
SYNC_S = 10.0
"""A beat is in the kernel's memory within `BEAT_S`, on the disk within `SYNC_S` more."""
STALL_S = 5.0
CLOCK_STEP_S = 1.0
CLOCK_OFF_S = 300.0
CANARY_AFTER_S = 30.0
"""A minute this old without a request gets a canary."""

GAVE_UP_S = 10.0
"""A client that leaves after waiting this long for the first byte did not change its mind: it timed out."""

SLOW_DEFAULT_S = 1.0
SLOW_READ_S = 0.25
SLOW_COPY_S = 5.0
SLOW_S = {
    "GetObject": SLOW_READ_S,
    "HeadObject": SLOW_READ_S,
    "HeadBucket": SLOW_READ_S,
    "GetObjectAttributes": SLOW_READ_S,
    "CopyObject": SLOW_COPY_S,
    "UploadPartCopy": SLOW_COPY_S,
    "CompleteMultipartUpload": SLOW_COPY_S,
}
"""From the last byte of the request to the first of the answer; `SLOW_DEFAULT_S` for what is not here."""

SLOW_STORE_READ_S = 0.15
SLOW_STORE_WRITE_S = 0.5

USABLE = frozenset({"healthy", "probation", "suspect", "sitting-out"})
"""States of a store in which it is asked at all."""

_CLIENTS_FAULT = frozenset({"IncompleteBody", "RequestTimeout"})
_NOT_SERVED = frozenset({501})
_OURS = frozenset({"InternalError", "ServiceUnavailable", "SlowDown", "InsufficientStorage"})
_TIME_SKEWED = "RequestTimeTooSkewed"

assert BEAT_S < STALL_S
assert CANARY_AFTER_S < 60.0 - STALL_S


class Verdict(Enum):
    """What a request counts as."""

    SUCCESS = "success"
    FAILURE = "failure"
    NEITHER = "neither"


def judge(
    status: int, code: str, *, complete: bool, gone: bool, waited_s: float, clock_is_off: bool = False
) -> Verdict:
    """What an answer counts as. One that says no to a wrong request is good, 501 is such, too; a success
    that tells of our errors inside (a delete of many keys can) is not. A client that went away, or did not
    send what it announced, is neither, unless it had waited for `GAVE_UP_S`. A request refused for its time
    is ours where our own clock has jumped far."""
    if gone:
        return Verdict.FAILURE if waited_s >= GAVE_UP_S else Verdict.NEITHER
    if code in _CLIENTS_FAULT:
        return Verdict.NEITHER
    if not complete or code in _OURS or (status >= 500 and status not in _NOT_SERVED):
        return Verdict.FAILURE
    if clock_is_off and code == _TIME_SKEWED:
        return Verdict.FAILURE
    return Verdict.SUCCESS


class _Live:
    """A cell that is being counted."""

    __slots__ = (
        "bad",
        "bytes_in",
        "bytes_out",
        "failures",
        "good",
        "neither",
        "slow",
        "successes",
        "waited_s",
    )

    def __init__(self) -> None:
        self.successes = self.failures = self.neither = self.slow = 0
        self.waited_s = 0.0
        self.bytes_in = self.bytes_out = 0
        self.good = self.bad = 0

    def frozen(self, bucket: str, operation: str) -> Cell:
        return Cell(
            bucket,
            operation,
            self.successes,
            self.failures,
            self.neither,
            self.slow,
            int(self.waited_s * 1000),
            self.bytes_in,
            self.bytes_out,
            self.good,
            self.bad,
        )


class StoreSight(Struct, frozen=True):
    """A store as it is at a tick: its state in a word, since when (monotonic), why, since when its calls have
    failed (None: they do not), and what it did since the node started."""

    state: str
    since: float = 0.0
    reason: str = ""
    unwell_since: float | None = None
    reads: int = 0
    read_errors: int = 0
    reads_slow: int = 0
    writes: int = 0
    write_errors: int = 0
    writes_slow: int = 0


class Due(Struct, frozen=True):
    """What a tick asks for: records to keep, and whether to send a canary."""

    records: tuple[Record, ...] = ()
    canary: bool = False


class Ledger:
    """Counts, from the start of a process to its end."""

    def __init__(self, now: float, wall: float) -> None:
        self.begin(now, wall)
        self._cells: dict[tuple[str, str], _Live] = {}
        self._buckets: set[str] = set()
        self._known: set[str] = set()
        self._canary: _Live | None = None
        self._canary_sent = False
        self._covered_s = 0.0
        self._index_away_s = 0.0
        self._stores: dict[str, StoreSight] = {}
        self._stores_before: dict[str, StoreSight] = {}
        self._stores_away_s: dict[str, float] = {}
        self._lost = 0
        self.clock_jumps = 0
        self._clock_off_s = 0.0
        self.buckets: dict[str, list[int]] = {}
        """Successes and failures of each bucket in the minutes that are over, as far as told apart."""

    def begin(self, now: float, wall: float) -> None:
        """Time counts from now on."""
        self._now, self._wall = now, wall
        self._minute = int(wall // 60)
        self._bit = 1 << int(wall % 60)

    @property
    def clock_is_off(self) -> bool:
        """Whether the wall clock is far from where it was at the start: then it, and not its clients, may be
        wrong."""
        return abs(self._clock_off_s) > CLOCK_OFF_S

    def knows(self, bucket: str) -> bool:
        """Whether a request for this bucket was admitted since the start."""
        return bucket in self._known

    def count(
        self,
        bucket: str,
        operation: str,
        verdict: Verdict,
        slow: bool,
        waited_s: float,
        bytes_in: int,
        bytes_out: int,
    ) -> None:
        """One request is over. `bucket` must have been vouched for by a signature."""
        cell = self._cells.get((bucket, operation))
        if cell is None:
            cell = self._new_cell(bucket, operation)
        if verdict is Verdict.SUCCESS:
            cell.successes += 1
            cell.good |= self._bit
        elif verdict is Verdict.FAILURE:
            cell.failures += 1
            cell.bad |= self._bit
        else:
            cell.neither += 1
        cell.slow += slow
        cell.waited_s += waited_s
        cell.bytes_in += bytes_in
        cell.bytes_out += bytes_out

    def _new_cell(self, bucket: str, operation: str) -> _Live:
        if bucket and len(self._known) < BUCKETS_KNOWN_MAX:
            self._known.add(bucket)
        if bucket:
            if len(self._cells) >= CELLS_MAX:
                bucket = OTHER
            elif bucket not in self._buckets:
                if len(self._buckets) < BUCKETS_MAX:
                    self._buckets.add(bucket)
                else:
                    bucket = OTHER
        return self._cells.setdefault((bucket, operation), _Live())

    def canary(self, ok: bool, waited_s: float) -> None:
        """A canary has come back."""
        cell = self._canary = self._canary or _Live()
        if ok:
            cell.successes += 1
            cell.good |= self._bit
        else:
            cell.failures += 1
            cell.bad |= self._bit
        cell.waited_s += waited_s

    def lost(self, minutes: int) -> None:
        """So many records could not be kept; the next one says so."""
        self._lost += minutes

    def tick(self, now: float, wall: float, *, serving: bool, stores: Mapping[str, StoreSight]) -> Due:
        """A look at the world, about every `TICK_S`: whether the index is `serving`, and every store by its
        slot."""
        passed = max(0.0, now - self._now)
        jumped = abs((wall - self._wall) - passed) > CLOCK_STEP_S
        if jumped:
            self.clock_jumps += 1
            self._clock_off_s += (wall - self._wall) - passed
        records: list[Record] = []
        stalled = passed > STALL_S
        if stalled:
            records += split_away(wall - passed, wall, "stalled", 0.0)
        minute = int(wall // 60)
        into_s = 0.0 if jumped or stalled else min(passed, max(0.0, wall - minute * 60.0))
        if minute == self._minute:
            into_s = 0.0
        self._pass(0.0 if stalled else passed - into_s, serving, stores)
        records += self._changes(now, wall, stores)
        if minute != self._minute:
            records.append(self._close(stores))
            self._minute = minute
            self._pass(into_s, serving, stores)
        self._bit = 1 << int(wall % 60)
        self._now, self._wall = now, wall
        self._stores = dict(stores)
        canary = not self._canary_sent and wall % 60 >= CANARY_AFTER_S and not self._attempted()
        self._canary_sent |= canary
        return Due(tuple(records), canary)

    def _attempted(self) -> bool:
        return any(cell.successes or cell.failures for cell in self._cells.values())

    def finish(self) -> Minute:
        """The minute under way, as far as it got."""
        return self._close(self._stores)

    def _pass(self, seconds: float, serving: bool, stores: Mapping[str, StoreSight]) -> None:
        self._covered_s += seconds
        if not serving:
            self._index_away_s += seconds
        for slot, sight in stores.items():
            if sight.state not in USABLE:
                self._stores_away_s[slot] = self._stores_away_s.get(slot, 0.0) + seconds

    def _changes(self, now: float, wall: float, stores: Mapping[str, StoreSight]) -> list[Record]:
        changes: list[Record] = []
        for slot, sight in stores.items():
            before = self._stores.get(slot)
            if before is not None and before.state == sight.state:
                continue
            at = wall - max(0.0, now - sight.since) if before is not None else wall
            unwell = sight.unwell_since
            if unwell is None and before is not None:
                unwell = before.unwell_since
            unwell_ms = 0 if unwell is None else int((wall - max(0.0, now - unwell)) * 1000)
            changes.append(
                StoreChange(
                    int(at * 1000),
                    slot,
                    before.state if before is not None else "",
                    sight.state,
                    sight.reason[:200],
                    unwell_ms,
                )
            )
        return changes

    def _close(self, stores: Mapping[str, StoreSight]) -> Minute:
        minute = Minute(
            self._minute,
            min(MINUTE_MS, round(self._covered_s * 1000)),
            min(MINUTE_MS, round(self._index_away_s * 1000)),
            tuple(cell.frozen(*key) for key, cell in self._cells.items()),
            self._canary.frozen("", "Canary") if self._canary is not None else None,
            tuple(self._store_cell(slot, sight) for slot, sight in stores.items()),
            self._lost,
        )
        for (bucket, _), cell in self._cells.items():
            name = bucket if bucket in self.buckets or len(self.buckets) < BUCKETS_MAX else OTHER
            counts = self.buckets.setdefault(name, [0, 0])
            counts[0] += cell.successes
            counts[1] += cell.failures
        self._cells, self._buckets, self._canary = {}, set(), None
        self._canary_sent = False
        self._covered_s = self._index_away_s = 0.0
        self._stores_before, self._stores_away_s = dict(stores), {}
        self._lost = 0
        return minute

    def _store_cell(self, slot: str, sight: StoreSight) -> StoreCell:
        before = self._stores_before.get(slot) or StoreSight(sight.state)
        if before.reads > sight.reads or before.writes > sight.writes:
            before = StoreSight(sight.state)  # another store moved in, which counts from nothing
        return StoreCell(
            slot,
            sight.reads - before.reads,
            sight.read_errors - before.read_errors,
            sight.reads_slow - before.reads_slow,
            sight.writes - before.writes,
            sight.write_errors - before.write_errors,
            sight.writes_slow - before.writes_slow,
            min(MINUTE_MS, round(self._stores_away_s.get(slot, 0.0) * 1000)),
        )


AWAY_DAYS_MAX = 400


def split_away(from_s: float, until_s: float, why: str, uncertain_s: float) -> list[Record]:
    """Time away as records, one a day (UTC), the last `AWAY_DAYS_MAX` of them; none where it is none."""
    day_ms = DAY_MINUTES * MINUTE_MS
    from_ms, until_ms = int(from_s * 1000), int(until_s * 1000)
    start, continues = max(from_ms, until_ms - AWAY_DAYS_MAX * day_ms), False
    parts: list[Record] = []
    while start < until_ms:
        end = min(until_ms, (start // day_ms + 1) * day_ms)
        parts.append(Away(start, end, why, 0 if continues else int(uncertain_s * 1000), continues))
        start, continues = end, True
    return parts


def away_since(beat: Beat | None, boot: bytes, wall: float) -> list[Record]:
    """What a node that serves from now on has to say of the time since the last sign of life. Nothing, when
    there was none, or when the clock has gone back since: then nobody knows how long it was."""
    if beat is None:
        return []
    if beat.stopped:
        return split_away(beat.wall_ms / 1000, wall, "stopped", 0.0)
    why, uncertain_s = ("crashed", BEAT_S) if beat.boot == boot else ("rebooted", BEAT_S + SYNC_S)
    return split_away(beat.wall_ms / 1000, wall, why, uncertain_s)


def vouched(ledger: Ledger, bucket: str, *, admitted: bool) -> str:
    """The bucket under which a request is counted: what is only claimed counts where the bucket is known."""
    return bucket if admitted or ledger.knows(bucket) else ""


def at_day(record: Record) -> int:
    """The day (since 1970 UTC) that a record belongs to."""
    match record:
        case Minute():
            return record.minute // DAY_MINUTES
        case Away():
            return record.from_ms // (DAY_MINUTES * MINUTE_MS)
        case StoreChange():
            return record.at_ms // (DAY_MINUTES * MINUTE_MS)
        case _:
            return record.start // DAY_MINUTES
