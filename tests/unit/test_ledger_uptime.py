"""The uptime figure: never better than it was, and no data is no figure."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.health.ledger_periods import MinuteFacts, hours_of, merge_periods, minutes_of, view_of
from holdfast.health.ledger_records import (
    DAY_MINUTES,
    MINUTE_MS,
    Away,
    Cell,
    Minute,
    Period,
    Record,
    StoreCell,
    StoreChange,
)
from holdfast.health.ledger_uptime import (
    BURN_PAIRS,
    DAY_S,
    HOUR_S,
    History,
    Uptime,
    availability_percent,
    nines,
    store_faults,
    store_uptime,
    uptime,
)
from tests.unit.test_ledger_periods import START, histories

NOW = (20_718 * DAY_MINUTES + 600) * MINUTE_MS
LAST = NOW // MINUTE_MS - 1


def minute(ago: int, successes: int, failures: int = 0, bucket: str = "b", **more: object) -> Minute:
    """The minute that ended `ago` minutes before the last one did."""
    good, bad = (1 if successes else 0), (1 << 30 if failures else 0)
    cell = Cell(bucket, "GetObject", successes, failures, good=good, bad=bad)
    return Minute(LAST - ago, MINUTE_MS, cells=(cell,), **more)  # type: ignore[arg-type]


def history(*records: Record) -> History:
    return History(
        minutes_of(records, NOW),
        changes=[record for record in records if isinstance(record, StoreChange)],
        aways=[record for record in records if isinstance(record, Away)],
    )


def figure(*records: Record, window_s: int = HOUR_S, objective: float = 99.9) -> Uptime:
    return uptime(history(*records), NOW, window_s, objective)


def test_no_data_is_no_figure() -> None:
    empty = figure()
    assert (empty.availability_percent, empty.nines, empty.known_percent) == (None, None, 0.0)
    assert empty.budget.left_percent is None
    assert [(burn.long_rate, burn.short_rate, burn.fires) for burn in empty.burn] == [(None, None, False)] * 4


def test_an_hour_with_one_bad_minute() -> None:
    found = figure(*[minute(ago, 10, 10 if ago == 30 else 0) for ago in range(60)])
    assert found.known_percent == 100.0
    assert found.downtime_s == 30.0
    assert found.availability_percent == 99.1666
    assert found.nines == 2.07
    assert (found.attempts, found.failures) == (610, 10)
    # One in a thousand of an hour is 3.6 s, and 30 were spent.
    assert (found.budget.allowed_s, found.budget.left_percent) == (3.6, -733.34)


@given(st.integers(1, 10**12), st.data())
def test_availability_and_nines_are_never_rounded_up(known_ms: int, data: st.DataObject) -> None:
    unavailable_ms = data.draw(st.integers(0, known_ms))
    share = (known_ms - unavailable_ms) / known_ms
    percent = availability_percent(known_ms, unavailable_ms)
    assert percent is not None
    assert percent <= 100 * share + 1e-9
    assert percent > 100 * share - 0.0001 - 1e-9
    if unavailable_ms:
        assert percent < 100.0
        found = nines(known_ms, unavailable_ms)
        assert found is not None
        assert 10**-found >= unavailable_ms / known_ms * (1 - 1e-12)


@pytest.mark.parametrize(("limit", "long_s", "short_s"), BURN_PAIRS)
def test_a_burn_rate_fires_when_both_windows_burn_and_only_then(
    limit: float, long_s: int, short_s: int
) -> None:
    objective = 99.0
    # Burning a fifth faster than the limit, everywhere; and the same with a good short window at the end.
    failures = math.ceil(limit * 1.2 * 10)
    long_minutes, short_minutes = long_s // 60, short_s // 60
    burning = [minute(ago, 1000 - failures, failures) for ago in range(long_minutes)]
    over = [minute(ago, 1000) for ago in range(short_minutes)] + burning[short_minutes:]

    def fires(records: list[Minute]) -> bool:
        found = uptime(history(*records), NOW, long_s, objective)
        return next(burn.fires for burn in found.burn if burn.limit == limit)

    assert fires(burning)
    assert not fires(over)


def test_what_is_before_the_window_does_not_count() -> None:
    found = figure(minute(60, 0, 10), minute(59, 10), minute(0, 10))
    assert (found.attempts, found.downtime_s) == (20, 0.0)


@settings(max_examples=50)
@given(histories(), st.integers(5, 250), st.integers(0, 250))
def test_a_window_is_the_sum_of_its_minutes_and_what_it_lacks_is_not_known(
    facts: dict[int, MinuteFacts], length: int, end: int
) -> None:
    now_ms = (START + end) * MINUTE_MS
    inside = [view_of(facts[minute]) for minute in facts if START + end - length <= minute < START + end]
    found = uptime(History(facts), now_ms, length * 60, 99.9)
    assert round(found.downtime_s * 1000) == sum(stretch.unavailable_ms for stretch in inside)
    assert round(found.known_s * 1000) == sum(stretch.known_ms for stretch in inside)
    assert found.attempts == sum(stretch.successes + stretch.failures for stretch in inside)
    assert (found.availability_percent is None) == (found.known_s == 0)
    assert found.known_percent <= 100.0 * found.known_s / (length * 60)


def test_days_that_were_rolled_up_count_as_their_minutes_did() -> None:
    old: list[Record] = [minute(DAY_MINUTES * 3 + ago, 9, 1 if ago % 7 == 0 else 0) for ago in range(300)]
    new: list[Record] = [minute(ago, 10) for ago in range(10)]
    days: dict[int, list[Record]] = {}
    for record in old:
        assert isinstance(record, Minute)
        days.setdefault(record.minute // DAY_MINUTES, []).append(record)
    hours: list[Period] = []
    whole: list[Period] = []
    for records in days.values():
        of_day = [period for period in hours_of(minutes_of(records, NOW)) if period is not None]
        hours += of_day
        whole.append(merge_periods(of_day))
    plain = uptime(history(*old, *new), NOW, 10 * DAY_S, 99.9)
    for periods in (hours, whole):
        rolled = uptime(History(minutes_of(new, NOW), periods), NOW, 10 * DAY_S, 99.9)
        assert rolled.downtime_s == plain.downtime_s > 0
        assert rolled.availability_percent == plain.availability_percent
        assert rolled.longest == plain.longest
        assert rolled.attempts == plain.attempts
    # A day that is there minute by minute, too, counts once.
    twice = uptime(History(minutes_of([*old, *new], NOW), [*hours, *whole]), NOW, 10 * DAY_S, 99.9)
    assert twice.downtime_s == plain.downtime_s


def test_times_away_are_listed_and_put_together_over_midnight() -> None:
    midnight = NOW // (DAY_MINUTES * MINUTE_MS) * DAY_MINUTES * MINUTE_MS
    found = figure(
        Away(midnight - 5000, midnight, "crashed", 2000),
        Away(midnight, midnight + 7000, "crashed", 0, True),
        Away(NOW - 60_000, NOW - 20_000, "stopped"),
        window_s=DAY_S,
    )
    assert [(away.seconds, away.why, away.uncertain_s) for away in found.away] == [
        (12.0, "crashed", 2.0),
        (40.0, "stopped", 0.0),
    ]
    assert found.away_s == found.downtime_s == 52.0
    assert found.availability_percent == 0.0
    assert found.longest is not None
    assert found.longest.seconds == 40.0


CHANGES = [
    StoreChange(NOW - 100_000, "disk1", "", "healthy"),
    StoreChange(NOW - 90_000, "disk1", "healthy", "suspect", "reads fail", NOW - 91_000),
    StoreChange(NOW - 85_000, "disk1", "suspect", "down", "reads fail"),
    StoreChange(NOW - 60_000, "disk1", "down", "probation"),
    StoreChange(NOW - 50_000, "disk2", "healthy", "down", "gone"),
]


def test_how_long_it_takes_to_notice_and_to_mend() -> None:
    assert store_faults(CHANGES, "", NOW - 200_000, NOW) == ([1000], [30_000], 2)
    assert store_faults(CHANGES, "disk2", NOW - 200_000, NOW) == ([], [], 1)
    assert store_faults(CHANGES, "disk1", NOW - 70_000, NOW) == ([], [], 0)


def test_the_figure_of_a_store() -> None:
    records = [
        minute(1, 1, stores=(StoreCell("disk1", reads=8, read_errors=2, away_ms=25_000),)),
        minute(0, 1, stores=(StoreCell("disk1", reads=8),)),
    ]
    found = store_uptime(history(*records, *CHANGES), NOW, HOUR_S, 99.0, "disk1")
    assert found.known_s == 120.0
    assert found.downtime_s == 25.0 + 35.0 * 2 / 8
    assert found.longest is not None
    assert found.longest.seconds == 25.0
    assert (found.attempts, found.failures, found.store_faults) == (16, 2, 1)
    assert (found.detect_mean_s, found.repair_mean_s) == (1.0, 30.0)
    unknown = store_uptime(history(*records), NOW, HOUR_S, 99.0, "disk9")
    assert unknown.availability_percent is None


def test_a_store_is_not_out_for_longer_than_there_is_data() -> None:
    """Changes are on record at once, the minutes that they lie in when these are over."""
    records = [minute(1, 1, stores=(StoreCell("disk2", away_ms=20_000),))]
    changes = [StoreChange(NOW - 80_000, "disk2", "healthy", "down", "gone")]
    found = store_uptime(history(*records, *changes), NOW, HOUR_S, 99.0, "disk2")
    assert found.longest is not None
    assert found.longest.seconds <= found.downtime_s == 20.0
    nothing = store_uptime(history(minute(2, 1), *changes), NOW, HOUR_S, 99.0, "disk2")
    assert nothing.downtime_s == 0.0
    assert nothing.longest is None
