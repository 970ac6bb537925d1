"""From minutes to longer times: what a minute was for a view, and how stretches of time add up. Pure.

A *view* is a bucket (or all) and an operation (or all). Of a minute it knows how many of its requests failed,
and so how much of the minute was unavailable: the time the node was away, and of the time it was there, the
share of failed requests (as AWS's own service level agreement does it, with one minute in place of five).

    requests in the minute        stands for the minute
    of the view itself            the view's own
    none, but of others           those of the whole node
    none at all                   the canary
    and no canary                 nothing: no data

What must hold: `join` is associative, and numbers only add up, so that a roll-up says exactly what its
minutes said; a share is rounded up to the unavailable side; whatever records say, a minute has no more than
60 s.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct
from msgspec.structs import replace

from holdfast.health.ledger_records import (
    ALL,
    DAY_MINUTES,
    MINUTE_MS,
    Away,
    Cell,
    Minute,
    Period,
    Record,
    Segment,
    StoreCell,
    StoreStretch,
    Stretch,
    View,
)

BRIDGE_MS = 120_000
"""Two bad moments further apart than this, with nothing at all between, are two interruptions."""

HOUR_MINUTES = 60

_Key = tuple[str, str]


class MinuteFacts(Struct, frozen=True):
    """All that is recorded of one minute: each cell once, times within bounds. `away` are spans in it."""

    minute: int
    covered_ms: int
    index_away_ms: int
    cells: dict[_Key, Cell]
    canary: Cell | None
    stores: dict[str, StoreCell]
    away: tuple[Segment, ...]

    @property
    def away_ms(self) -> int:
        return sum(span.length_ms for span in self.away)


def minutes_of(records: Iterable[Record], until_ms: int) -> dict[int, MinuteFacts]:
    """Every minute that `records` say something of, by its number. Nothing after `until_ms` counts."""
    seen: dict[int, list[Minute]] = defaultdict(list)
    spans: dict[int, list[Segment]] = defaultdict(list)
    for record in records:
        if isinstance(record, Minute):
            seen[record.minute].append(record)
        elif isinstance(record, Away):
            start, end = record.from_ms, min(record.until_ms, until_ms)
            while start < end:
                minute = start // MINUTE_MS
                stop = min(end, (minute + 1) * MINUTE_MS)
                spans[minute].append(Segment(start, stop))
                start = stop
    return {
        minute: _facts(minute, seen.get(minute, []), spans.get(minute, []))
        for minute in sorted(seen.keys() | spans.keys())
        if minute * MINUTE_MS < until_ms
    }


def _facts(minute: int, records: Sequence[Minute], spans: list[Segment]) -> MinuteFacts:
    cells: dict[_Key, Cell] = {}
    stores: dict[str, StoreCell] = {}
    canary: Cell | None = None
    for record in records:
        for cell in record.cells:
            _add_cell(cells, cell)
        if record.canary is not None:
            canary = record.canary if canary is None else _both(canary, record.canary)
        for store in record.stores:
            stores[store.slot] = _both_stores(stores[store.slot], store) if store.slot in stores else store
    covered = min(MINUTE_MS, sum(record.covered_ms for record in records))
    away = _without_overlaps(spans)
    if covered + sum(span.length_ms for span in away) > MINUTE_MS:
        # A clock that jumped makes time twice. What was seen running was running.
        away = _shortened(away, MINUTE_MS - covered)
    index_away = min(covered, sum(record.index_away_ms for record in records))
    return MinuteFacts(minute, covered, index_away, cells, canary, stores, tuple(away))


def _without_overlaps(spans: list[Segment]) -> list[Segment]:
    joined: list[Segment] = []
    for span in sorted(spans, key=lambda span: span.start_ms):
        if joined and span.start_ms <= joined[-1].end_ms:
            joined[-1] = Segment(joined[-1].start_ms, max(joined[-1].end_ms, span.end_ms))
        else:
            joined.append(span)
    return joined


def _shortened(spans: list[Segment], room_ms: int) -> list[Segment]:
    kept: list[Segment] = []
    for span in spans:
        length = min(span.length_ms, room_ms)
        if length > 0:
            kept.append(Segment(span.start_ms, span.start_ms + length))
            room_ms -= length
    return kept


def _add_cell(cells: dict[_Key, Cell], cell: Cell) -> None:
    key = (cell.bucket, cell.operation)
    cells[key] = _both(cells[key], cell) if key in cells else cell


def _both(one: Cell, other: Cell) -> Cell:
    return Cell(
        one.bucket,
        one.operation,
        one.successes + other.successes,
        one.failures + other.failures,
        one.neither + other.neither,
        one.slow + other.slow,
        one.waited_ms + other.waited_ms,
        one.bytes_in + other.bytes_in,
        one.bytes_out + other.bytes_out,
        one.good | other.good,
        one.bad | other.bad,
    )


def _both_stores(one: StoreCell, other: StoreCell) -> StoreCell:
    return StoreCell(
        one.slot,
        one.reads + other.reads,
        one.read_errors + other.read_errors,
        one.reads_slow + other.reads_slow,
        one.writes + other.writes,
        one.write_errors + other.write_errors,
        one.writes_slow + other.writes_slow,
        one.away_ms + other.away_ms,
    )


def view_of(facts: MinuteFacts, bucket: str = ALL, operation: str = ALL) -> Stretch:
    """What a minute was for one view."""
    total = _summed(cell for key, cell in facts.cells.items() if _is_in(key, bucket, operation))
    return _stretch(facts, total, (bucket, operation) == (ALL, ALL))


def views_of(facts: MinuteFacts) -> dict[_Key, Stretch]:
    """What a minute was for every view that had requests of its own, and for the whole node."""
    sums: dict[_Key, Cell] = {}
    for (bucket, operation), cell in facts.cells.items():
        for key in {(bucket, operation), (bucket, ALL), (ALL, operation), (ALL, ALL)}:
            sums[key] = _both(sums[key], cell) if key in sums else cell
    views = {key: _stretch(facts, cell, key == (ALL, ALL)) for key, cell in sums.items()}
    views.setdefault((ALL, ALL), _stretch(facts, None, whole_node=True))
    return views


def _is_in(key: _Key, bucket: str, operation: str) -> bool:
    return bucket in (ALL, key[0]) and operation in (ALL, key[1])


def _summed(cells: Iterable[Cell]) -> Cell | None:
    total: Cell | None = None
    for cell in cells:
        total = cell if total is None else _both(total, cell)
    return total


def _stretch(facts: MinuteFacts, own: Cell | None, whole_node: bool) -> Stretch:
    speaks = own
    if speaks is None or not speaks.successes + speaks.failures:
        speaks = _summed(facts.cells.values())
    if speaks is None or not speaks.successes + speaks.failures:
        speaks = facts.canary
    known = away = facts.away_ms
    unavailable = away
    good = bad = 0
    if speaks is not None and (attempts := speaks.successes + speaks.failures):
        covered = min(facts.covered_ms, MINUTE_MS - away)
        known += covered
        unavailable += -(-covered * speaks.failures // attempts)
        good, bad = speaks.good, speaks.bad
    left, right, longest, whole, blank = _interruptions(facts.minute * MINUTE_MS, good, bad, facts.away)
    canary = facts.canary if whole_node else None
    return Stretch(
        known,
        away,
        unavailable,
        facts.index_away_ms,
        own.successes if own else 0,
        own.failures if own else 0,
        own.neither if own else 0,
        own.slow if own else 0,
        own.waited_ms if own else 0,
        own.bytes_in if own else 0,
        own.bytes_out if own else 0,
        canary.successes if canary else 0,
        canary.failures if canary else 0,
        left,
        right,
        longest,
        whole,
        blank,
    )


def _interruptions(
    start_ms: int, good: int, bad: int, away: Sequence[Segment]
) -> tuple[Segment | None, Segment | None, Segment | None, bool, bool]:
    """Left, right, longest, whole, blank of a minute. A second in which something succeeded ends an
    interruption, whatever failed in it."""
    bad &= ~good
    if not bad and not away:
        return None, None, None, False, not good
    marks = [
        (start_ms + second * 1000, start_ms + (second + 1) * 1000, bool(good >> second & 1))
        for second in range(60)
        if (good | bad) >> second & 1
    ]
    marks += [(span.start_ms, span.end_ms, False) for span in away]
    marks.sort()
    runs: list[Segment] = []
    goods = 0
    first_good_before_first_run = False
    open_run = False
    for begin, end, is_good in marks:
        if is_good:
            goods += 1
            open_run = False
        elif open_run and begin - runs[-1].end_ms <= BRIDGE_MS:
            runs[-1] = Segment(runs[-1].start_ms, max(end, runs[-1].end_ms))
        else:
            first_good_before_first_run |= not runs and goods > 0
            runs.append(Segment(begin, end))
            open_run = True
    left = None if first_good_before_first_run or not runs else runs[0]
    right = runs[-1] if open_run else None
    longest = max(runs, key=lambda run: run.length_ms, default=None)
    whole = left is not None and right is not None and len(runs) == 1
    return left, right, longest, whole, False


def join(first: Stretch, second: Stretch) -> Stretch:
    """Two stretches of the same view, `first` before `second`, as one. Associative."""
    one, other = first.right, second.left
    joined = None
    if one is not None and other is not None and other.start_ms - one.end_ms <= BRIDGE_MS:
        joined = Segment(one.start_ms, max(one.end_ms, other.end_ms))
    left, right = first.left, second.right
    if joined is not None and first.whole:
        left = joined
    elif first.blank:
        left = second.left
    if joined is not None and second.whole:
        right = joined
    elif second.blank:
        right = first.right
    whole = (
        (first.blank and second.whole)
        or (second.blank and first.whole)
        or (joined is not None and first.whole and second.whole)
    )
    candidates = [run for run in (first.longest, second.longest, joined) if run is not None]
    return Stretch(
        first.known_ms + second.known_ms,
        first.away_ms + second.away_ms,
        first.unavailable_ms + second.unavailable_ms,
        first.index_away_ms + second.index_away_ms,
        first.successes + second.successes,
        first.failures + second.failures,
        first.neither + second.neither,
        first.slow + second.slow,
        first.waited_ms + second.waited_ms,
        first.bytes_in + second.bytes_in,
        first.bytes_out + second.bytes_out,
        first.canary_successes + second.canary_successes,
        first.canary_failures + second.canary_failures,
        left,
        right,
        max(candidates, key=lambda run: (run.length_ms, -run.start_ms), default=None),
        whole,
        first.blank and second.blank,
    )


def join_all(stretches: Iterable[Stretch]) -> Stretch:
    """All of them, in order."""
    total = Stretch()
    for stretch in stretches:
        total = join(total, stretch)
    return total


def store_stretch(slot: str, cell: StoreCell | None, facts: MinuteFacts) -> StoreStretch:
    """What a minute was for a store: the time it could not be used, and of the rest the share of calls that
    failed. Time in which the node was away says nothing of a store."""
    if cell is None:
        return StoreStretch(slot)
    covered = facts.covered_ms
    away = min(cell.away_ms, covered)
    calls, errors = cell.reads + cell.writes, cell.read_errors + cell.write_errors
    failed = -(-(covered - away) * min(errors, calls) // calls) if calls else 0
    return StoreStretch(
        slot,
        covered,
        away,
        away + failed,
        cell.reads,
        cell.read_errors,
        cell.reads_slow,
        cell.writes,
        cell.write_errors,
        cell.writes_slow,
    )


def join_stores(one: StoreStretch, other: StoreStretch) -> StoreStretch:
    """Two stretches of one store."""
    return StoreStretch(
        one.slot,
        one.known_ms + other.known_ms,
        one.away_ms + other.away_ms,
        one.unavailable_ms + other.unavailable_ms,
        one.reads + other.reads,
        one.read_errors + other.read_errors,
        one.reads_slow + other.reads_slow,
        one.writes + other.writes,
        one.write_errors + other.write_errors,
        one.writes_slow + other.writes_slow,
    )


def stretch_in(period: Period, bucket: str, operation: str) -> Stretch:
    """What a period was for a view; the whole node's availability where it had no requests of its own."""
    node: Stretch | None = None
    for view in period.views:
        if (view.bucket, view.operation) == (bucket, operation):
            return view.stretch
        if (view.bucket, view.operation) == (ALL, ALL):
            node = view.stretch
    return Stretch() if node is None else _without_counts(node)


def _without_counts(stretch: Stretch) -> Stretch:
    return replace(
        stretch,
        successes=0,
        failures=0,
        neither=0,
        slow=0,
        waited_ms=0,
        bytes_in=0,
        bytes_out=0,
        canary_successes=0,
        canary_failures=0,
    )


class RollingUp:
    """Rolls the minutes of one hour up, one at a time, so that whoever does it can pause between."""

    def __init__(self, start: int) -> None:
        self._start = start
        self._node = Stretch()
        self._views: dict[_Key, Stretch] = {}
        self._stores: dict[str, StoreStretch] = {}

    def add(self, facts: MinuteFacts) -> None:
        """The next minute, in order."""
        views = views_of(facts)
        node = views[ALL, ALL]
        silent = _without_counts(node)
        for key in self._views.keys() | views.keys():
            # A view that comes first now was as the node was until now, and is while it has no requests.
            before = self._views.get(key)
            if before is None:
                before = self._node if key == (ALL, ALL) else _without_counts(self._node)
            self._views[key] = join(before, views.get(key, silent))
        self._node = join(self._node, node)
        for slot, cell in facts.stores.items():
            stretch = store_stretch(slot, cell, facts)
            known = self._stores.get(slot)
            self._stores[slot] = stretch if known is None else join_stores(known, stretch)

    def period(self, minutes: int = HOUR_MINUTES) -> Period:
        """What came of it."""
        views = tuple(View(*key, stretch) for key, stretch in sorted(self._views.items()))
        return Period(self._start, minutes, views, tuple(self._stores.values()))


def merge_periods(periods: Sequence[Period]) -> Period:
    """Consecutive periods as one."""
    keys = {(view.bucket, view.operation) for period in periods for view in period.views}
    views = tuple(
        View(*key, join_all(stretch_in(period, *key) for period in periods)) for key in sorted(keys)
    )
    stores: dict[str, StoreStretch] = {}
    for period in periods:
        for stretch in period.stores:
            known = stores.get(stretch.slot)
            stores[stretch.slot] = stretch if known is None else join_stores(known, stretch)
    return Period(periods[0].start, sum(period.minutes for period in periods), views, tuple(stores.values()))


def hours_of(facts: Mapping[int, MinuteFacts]) -> Iterable[Period | None]:
    """The hours of the minutes of one day. Answers None after each minute, for pauses, and each hour once."""
    for start in sorted({minute // HOUR_MINUTES * HOUR_MINUTES for minute in facts}):
        rolling = RollingUp(start)
        for minute in range(start, start + HOUR_MINUTES):
            if minute in facts:
                rolling.add(facts[minute])
                yield None
        yield rolling.period()


assert DAY_MINUTES % HOUR_MINUTES == 0
