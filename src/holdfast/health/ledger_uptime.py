"""The uptime figure: availability, downtime, error budget and burn rates of a window, from what is on record.
Pure.

What must hold: nothing is ever rounded to the better side; time of which nothing is known is neither up nor
down, and how much there is of it is said; and no data is no figure, never 100 %.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from holdfast.health.ledger import USABLE
from holdfast.health.ledger_periods import (
    MinuteFacts,
    join,
    join_stores,
    store_stretch,
    stretch_in,
    view_of,
)
from holdfast.health.ledger_records import (
    ALL,
    DAY_MINUTES,
    MINUTE_MS,
    Away,
    Period,
    Segment,
    StoreChange,
    StoreStretch,
    Stretch,
)

MINUTE_S = 60
HOUR_S = 3600
DAY_S = 86_400

BURN_PAIRS = (
    (14.4, HOUR_S, 5 * MINUTE_S),
    (6.0, 6 * HOUR_S, 30 * MINUTE_S),
    (3.0, DAY_S, 2 * HOUR_S),
    (1.0, 3 * DAY_S, 6 * HOUR_S),
)
"""Burn rate, long window, short window (Google, The Site Reliability Workbook, chapter 5): spending 2 % of a
30-day budget in an hour, 5 % in six hours, 10 % in a day or in three."""

AWAYS_SHOWN = 10

_IN_SERVICE = frozenset({"healthy", "probation", "full"})


class History(Struct, frozen=True):
    """What is on record: minutes where they are still kept one by one, periods for the days before."""

    minutes: Mapping[int, MinuteFacts]
    periods: Sequence[Period] = ()
    changes: Sequence[StoreChange] = ()
    aways: Sequence[Away] = ()
    damaged: int = 0
    lost: int = 0


def buckets_in(history: History) -> set[str]:
    """All of which a request is on record."""
    found = {bucket for facts in history.minutes.values() for bucket, _ in facts.cells}
    found |= {view.bucket for period in history.periods for view in period.views}
    return found - {ALL, ""}


class Interruption(Struct, frozen=True):
    """When nothing was served. `wall` is seconds since 1970 UTC."""

    wall: float
    seconds: float


class AwayTime(Struct, frozen=True):
    """A time in which the node did not serve; it may have begun up to `uncertain_s` later than said."""

    wall: float
    seconds: float
    why: str
    uncertain_s: float


class Burn(Struct, frozen=True):
    """How fast the error budget goes: 1.0 spends it in exactly the window of the objective. None: no data.
    `fires` when both windows burn faster than `limit`."""

    limit: float
    long_s: int
    short_s: int
    long_rate: float | None
    short_rate: float | None
    fires: bool


class Budget(Struct, frozen=True):
    """What the objective allows in a whole window, what was spent, and which share of it is left (negative
    when more was spent than there was; None without data)."""

    allowed_s: float
    spent_s: float
    left_percent: float | None


class Uptime(Struct, frozen=True, kw_only=True):
    """The figure and all that stands behind it. Requests count those of the view; `canary_*` the node's
    own."""

    bucket: str
    operation: str
    store: str
    window_s: int
    until_wall: float
    objective_percent: float
    availability_percent: float | None
    nines: float | None
    known_percent: float
    known_s: float
    downtime_s: float
    away_s: float
    index_away_s: float
    longest: Interruption | None
    budget: Budget
    burn: tuple[Burn, ...]
    attempts: int
    successes: int
    failures: int
    neither: int
    slow: int
    canary_successes: int
    canary_failures: int
    away: tuple[AwayTime, ...]
    away_count: int
    store_faults: int
    detect_mean_s: float | None
    repair_mean_s: float | None
    damaged_records: int
    lost_records: int


class _Sum(Struct):
    """What the windows are computed from: a stretch of requests, or one of a store."""

    known_ms: int = 0
    unavailable_ms: int = 0


_Since = Callable[[int], _Sum]
"""The sums from a moment on, in ms."""


def uptime(
    history: History,
    now_ms: int,
    window_s: int,
    objective_percent: float,
    *,
    bucket: str = ALL,
    operation: str = ALL,
) -> Uptime:
    """The figure of a view."""
    total = _view_total(history, now_ms - window_s * 1000, now_ms, bucket, operation)
    return _figure(
        history,
        now_ms,
        window_s,
        objective_percent,
        total,
        lambda start: _sum(_view_total(history, start, now_ms, bucket, operation)),
        bucket=bucket,
        operation=operation,
    )


def store_uptime(history: History, now_ms: int, window_s: int, objective_percent: float, slot: str) -> Uptime:
    """The figure of a store: its calls, and the time it could not be used."""
    total = _store_total(history, now_ms - window_s * 1000, now_ms, slot)
    # Changes are on record at once, minutes when they are over: neither says more than the other.
    known_ms = min(now_ms, (max(history.minutes) + 1) * MINUTE_MS) if history.minutes else now_ms
    down = _longest(_down_spans(history.changes, slot, now_ms - window_s * 1000, known_ms))
    if down is not None and down.length_ms > total.unavailable_ms:
        end_ms = down.start_ms + total.unavailable_ms
        down = Segment(down.start_ms, end_ms) if total.unavailable_ms else None
    as_stretch = Stretch(
        known_ms=total.known_ms,
        away_ms=total.away_ms,
        unavailable_ms=total.unavailable_ms,
        successes=total.reads + total.writes - total.read_errors - total.write_errors,
        failures=total.read_errors + total.write_errors,
        slow=total.reads_slow + total.writes_slow,
        longest=down,
    )
    return _figure(
        history,
        now_ms,
        window_s,
        objective_percent,
        as_stretch,
        lambda start: _sum(_store_total(history, start, now_ms, slot)),
        store=slot,
    )


def _sum(stretch: Stretch | StoreStretch) -> _Sum:
    return _Sum(stretch.known_ms, stretch.unavailable_ms)


def _view_total(history: History, start_ms: int, end_ms: int, bucket: str, operation: str) -> Stretch:
    total = Stretch()
    for part in _parts(history, start_ms, end_ms):
        if isinstance(part, Period):
            total = join(total, stretch_in(part, bucket, operation))
        else:
            total = join(total, view_of(part, bucket, operation))
    return total


def _store_total(history: History, start_ms: int, end_ms: int, slot: str) -> StoreStretch:
    total = StoreStretch(slot)
    for part in _parts(history, start_ms, end_ms):
        if isinstance(part, Period):
            for stretch in part.stores:
                if stretch.slot == slot:
                    total = join_stores(total, stretch)
        else:
            total = join_stores(total, store_stretch(slot, part.stores.get(slot), part))
    return total


def _parts(history: History, start_ms: int, end_ms: int) -> Iterable[Period | MinuteFacts]:
    """What begins in the window, in order. A day that is there minute by minute is taken so."""
    days = {minute // DAY_MINUTES for minute in history.minutes}
    parts: list[tuple[int, Period | MinuteFacts]] = [
        (period.start, period)
        for period in history.periods
        if period.start // DAY_MINUTES not in days and start_ms <= period.start * MINUTE_MS < end_ms
    ]
    parts += [
        (minute, facts)
        for minute, facts in history.minutes.items()
        if start_ms <= minute * MINUTE_MS < end_ms
    ]
    parts.sort(key=lambda part: part[0])
    return (part for _, part in parts)


def _figure(
    history: History,
    now_ms: int,
    window_s: int,
    objective_percent: float,
    total: Stretch,
    since: _Since,
    *,
    bucket: str = ALL,
    operation: str = ALL,
    store: str = "",
) -> Uptime:
    start_ms = now_ms - window_s * 1000
    allowed_share = 1 - objective_percent / 100
    allowed_s = allowed_share * window_s
    spent_s = total.unavailable_ms / 1000
    away = [] if store else _aways(history.aways, start_ms, now_ms)
    detected, repaired, faults = store_faults(history.changes, store, start_ms, now_ms)
    return Uptime(
        bucket=bucket,
        operation=operation,
        store=store,
        window_s=window_s,
        until_wall=now_ms / 1000,
        objective_percent=objective_percent,
        availability_percent=availability_percent(total.known_ms, total.unavailable_ms),
        nines=nines(total.known_ms, total.unavailable_ms),
        known_percent=math.floor(min(1.0, total.known_ms / (window_s * 1000)) * 10_000) / 100,
        known_s=total.known_ms / 1000,
        downtime_s=spent_s,
        away_s=total.away_ms / 1000,
        index_away_s=total.index_away_ms / 1000,
        longest=None
        if total.longest is None
        else Interruption(total.longest.start_ms / 1000, total.longest.length_ms / 1000),
        budget=Budget(
            math.floor(round(allowed_s * 1000, 6)) / 1000,
            spent_s,
            math.floor((1 - spent_s / allowed_s) * 10_000) / 100 if total.known_ms else None,
        ),
        burn=tuple(_burn(pair, allowed_share, since, now_ms) for pair in BURN_PAIRS),
        attempts=total.successes + total.failures,
        successes=total.successes,
        failures=total.failures,
        neither=total.neither,
        slow=total.slow,
        canary_successes=total.canary_successes,
        canary_failures=total.canary_failures,
        away=tuple(away[-AWAYS_SHOWN:]),
        away_count=len(away),
        store_faults=faults,
        detect_mean_s=_mean_s(detected),
        repair_mean_s=_mean_s(repaired),
        damaged_records=history.damaged,
        lost_records=history.lost,
    )


def availability_percent(known_ms: int, unavailable_ms: int) -> float | None:
    """Percent, cut off after four decimals, never rounded up; None without data."""
    if not known_ms:
        return None
    return (known_ms - unavailable_ms) * 1_000_000 // known_ms / 10_000


def nines(known_ms: int, unavailable_ms: int) -> float | None:
    """0.99 is 2, 0.999 is 3; cut off after two decimals. None without data, and without any downtime, since
    what was never interrupted has no number of nines yet."""
    if not known_ms or not unavailable_ms:
        return None
    return math.floor(-math.log10(unavailable_ms / known_ms) * 100) / 100


def _burn(pair: tuple[float, int, int], allowed_share: float, since: _Since, now_ms: int) -> Burn:
    limit, long_s, short_s = pair
    rates = [_rate(since(now_ms - window_s * 1000), allowed_share) for window_s in (long_s, short_s)]
    fires = all(rate is not None and rate > limit for rate in rates)
    return Burn(limit, long_s, short_s, rates[0], rates[1], fires)


def _rate(total: _Sum, allowed_share: float) -> float | None:
    if not total.known_ms:
        return None
    return math.ceil(total.unavailable_ms / total.known_ms / allowed_share * 100) / 100


def _aways(aways: Sequence[Away], start_ms: int, end_ms: int) -> list[AwayTime]:
    """Those in the window, put together again where midnight cut them."""
    found: list[AwayTime] = []
    for away in sorted(aways, key=lambda away: away.from_ms):
        if away.until_ms <= start_ms or away.from_ms >= end_ms:
            continue
        seconds = (min(away.until_ms, end_ms) - away.from_ms) / 1000
        last = found[-1] if found else None
        if away.continues and last is not None and last.why == away.why:
            found[-1] = AwayTime(last.wall, last.seconds + seconds, last.why, last.uncertain_s)
        else:
            found.append(AwayTime(away.from_ms / 1000, seconds, away.why, away.uncertain_ms / 1000))
    return found


def store_faults(
    changes: Sequence[StoreChange], slot: str, start_ms: int, end_ms: int
) -> tuple[list[int], list[int], int]:
    """How long each fault took to be noticed (from the first call that failed to the change of state, where
    that is known) and to be over (until the store was in service again), in ms, and how many began in the
    window. An empty `slot` means all stores."""
    detected: list[int] = []
    repaired: list[int] = []
    faults = 0
    out_since: dict[str, int] = {}
    for change in sorted(changes, key=lambda change: change.at_ms):
        if (slot and change.slot != slot) or change.at_ms >= end_ms:
            continue
        since = out_since.get(change.slot)
        if change.after in _IN_SERVICE:
            if since is not None:
                del out_since[change.slot]
                if since >= start_ms:
                    repaired.append(change.at_ms - since)
        elif since is None:
            out_since[change.slot] = change.at_ms
            if change.at_ms >= start_ms:
                faults += 1
                if change.before and change.unwell_ms:
                    detected.append(max(0, change.at_ms - change.unwell_ms))
    return detected, repaired, faults


def _mean_s(values: Sequence[int]) -> float | None:
    """Rounded up, to a millisecond."""
    return -(-sum(values) // len(values)) / 1000 if values else None


def _down_spans(changes: Sequence[StoreChange], slot: str, start_ms: int, end_ms: int) -> Iterable[Segment]:
    down_since: int | None = None
    for change in sorted(changes, key=lambda change: change.at_ms):
        if change.slot != slot or change.at_ms >= end_ms:
            continue
        if change.after not in USABLE:
            down_since = change.at_ms if down_since is None else down_since
        elif down_since is not None:
            if change.at_ms > start_ms:
                yield Segment(max(down_since, start_ms), change.at_ms)
            down_since = None
    if down_since is not None and end_ms > max(down_since, start_ms):
        yield Segment(max(down_since, start_ms), end_ms)


def _longest(spans: Iterable[Segment]) -> Segment | None:
    return max(spans, key=lambda span: span.length_ms, default=None)
