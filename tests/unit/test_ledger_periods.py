"""Stretches of time add up: a roll-up says exactly what its minutes said, and no order of adding matters."""

import math
from functools import reduce

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.health.ledger_periods import (
    BRIDGE_MS,
    MinuteFacts,
    hours_of,
    join,
    join_all,
    join_stores,
    merge_periods,
    minutes_of,
    store_stretch,
    stretch_in,
    view_of,
    views_of,
)
from holdfast.health.ledger_records import (
    ALL,
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
)

START = 20_718 * 1440  # the first minute of a day

BUCKETS = ("", "docs", "photos")
OPERATIONS = ("GetObject", "ListObjectsV2", "PutObject")
VIEWS = [(bucket, operation) for bucket in (ALL, *BUCKETS) for operation in (ALL, *OPERATIONS)]

masks = st.integers(0, (1 << 60) - 1) | st.just(0)
counts = st.integers(0, 5)


@st.composite
def cells(draw: st.DrawFn, bucket: str, operation: str) -> Cell:
    successes, failures = draw(counts), draw(counts)
    return Cell(
        bucket,
        operation,
        successes,
        failures,
        draw(counts),
        good=draw(masks) if successes else 0,
        bad=draw(masks) if failures else 0,
    )


@st.composite
def minutes(draw: st.DrawFn, minute: int) -> list[Record]:
    """What may be recorded of one minute: nothing, once, twice; with and without time away."""
    records: list[Record] = []
    for _ in range(draw(st.integers(0, 2))):
        keys = draw(st.sets(st.tuples(st.sampled_from(BUCKETS), st.sampled_from(OPERATIONS)), max_size=3))
        records.append(
            Minute(
                minute,
                draw(st.integers(0, MINUTE_MS)),
                draw(st.integers(0, MINUTE_MS)),
                tuple(draw(cells(*key)) for key in sorted(keys)),
                draw(st.none() | cells("", "Canary")),
                (StoreCell("disk1", draw(counts), away_ms=draw(st.integers(0, MINUTE_MS))),),
            )
        )
    if draw(st.booleans()):
        start = minute * MINUTE_MS + draw(st.integers(0, MINUTE_MS - 1))
        records.append(Away(start, start + draw(st.integers(1, 3 * MINUTE_MS)), "crashed"))
    return records


@st.composite
def histories(draw: st.DrawFn, most: int = 200) -> dict[int, MinuteFacts]:
    numbers = draw(st.sets(st.integers(START, START + most), max_size=8))
    records = [record for number in sorted(numbers) for record in draw(minutes(number))]
    return minutes_of(records, (START + 10 * most) * MINUTE_MS)


def rolled(facts: dict[int, MinuteFacts]) -> list[Period]:
    return [period for period in hours_of(facts) if period is not None]


@settings(max_examples=40)
@given(histories())
def test_a_minute_is_never_longer_than_a_minute(facts: dict[int, MinuteFacts]) -> None:
    for minute in facts.values():
        for stretch in views_of(minute).values():
            assert 0 <= stretch.away_ms <= stretch.unavailable_ms <= stretch.known_ms <= MINUTE_MS


@settings(max_examples=40)
@given(histories())
def test_a_view_is_the_same_alone_and_among_all(facts: dict[int, MinuteFacts]) -> None:
    for minute in facts.values():
        together = views_of(minute)
        for key, stretch in together.items():
            assert view_of(minute, *key) == stretch


@settings(max_examples=25)
@given(histories())
def test_hours_and_days_say_what_their_minutes_said(facts: dict[int, MinuteFacts]) -> None:
    hours = rolled(facts)
    for bucket, operation in VIEWS:
        of_minutes = join_all(view_of(minute, bucket, operation) for minute in facts.values())
        assert join_all(stretch_in(hour, bucket, operation) for hour in hours) == of_minutes
        if hours:
            assert stretch_in(merge_periods(hours), bucket, operation) == of_minutes
    if hours:
        of_store = reduce(
            join_stores,
            [store_stretch("disk1", minute.stores.get("disk1"), minute) for minute in facts.values()],
            StoreStretch("disk1"),
        )
        of_hours = [store for hour in hours for store in hour.stores]
        assert reduce(join_stores, of_hours, StoreStretch("disk1")) == of_store


@settings(max_examples=50)
@given(histories(), st.data())
def test_it_does_not_matter_in_which_order_stretches_are_added(
    facts: dict[int, MinuteFacts], data: st.DataObject
) -> None:
    stretches = [view_of(minute) for minute in facts.values()]
    in_order = join_all(stretches)
    while len(stretches) > 1:
        at = data.draw(st.integers(0, len(stretches) - 2))
        stretches[at : at + 2] = [join(stretches[at], stretches[at + 1])]
    assert [in_order] == [join(Stretch(), stretch) for stretch in stretches or [Stretch()]]


def facts_of(*records: Record, until: int = START + 1000) -> dict[int, MinuteFacts]:
    return minutes_of(records, until * MINUTE_MS)


def slow_and_sure(facts: dict[int, MinuteFacts]) -> float:
    """The longest interruption of the whole node, found by walking every second. In seconds."""
    marks: list[tuple[int, int, bool]] = []
    for minute in facts.values():
        speaks = view_cell(minute)
        start = minute.minute * MINUTE_MS
        for second in range(60):
            if speaks[0] >> second & 1:
                marks.append((start + second * 1000, start + second * 1000 + 1000, True))
            elif speaks[1] >> second & 1:
                marks.append((start + second * 1000, start + second * 1000 + 1000, False))
        marks += [(span.start_ms, span.end_ms, False) for span in minute.away]
    longest = 0
    begun: int | None = None
    end = 0
    for mark in sorted(marks):
        if mark[2]:
            begun = None
            continue
        if begun is None or mark[0] - end > BRIDGE_MS:
            begun, end = mark[0], mark[1]
        end = max(end, mark[1])
        longest = max(longest, end - begun)
    return longest / 1000


def view_cell(minute: MinuteFacts) -> tuple[int, int]:
    attempts = sum(cell.successes + cell.failures for cell in minute.cells.values())
    speaking = list(minute.cells.values())
    if not attempts:
        speaking = (
            [minute.canary] if minute.canary and minute.canary.successes + minute.canary.failures else []
        )
    good = bad = 0
    for cell in speaking:
        good, bad = good | cell.good, bad | cell.bad
    return good, bad


@settings(max_examples=50)
@given(histories(most=12))
def test_the_longest_interruption_is_what_a_walk_over_every_second_finds(
    facts: dict[int, MinuteFacts],
) -> None:
    longest = join_all(view_of(minute) for minute in facts.values()).longest
    found = longest.length_ms / 1000 if longest is not None else 0
    assert math.isclose(found, slow_and_sure(facts))


def test_an_interruption_goes_on_over_silence_and_minutes_until_something_succeeds() -> None:
    facts = facts_of(
        Minute(START, MINUTE_MS, cells=(Cell("b", "GetObject", 1, 1, good=1 << 10, bad=1 << 50),)),
        Minute(START + 1, MINUTE_MS, cells=(Cell("b", "GetObject", 0, 1, bad=1 << 59),)),
        Minute(START + 2, MINUTE_MS, cells=(Cell("b", "GetObject", 1, 1, good=1 << 20, bad=1 << 5),)),
    )
    longest = join_all(view_of(minute) for minute in facts.values()).longest
    start = (START * 60 + 50) * 1000
    assert longest == Segment(start, start + 76_000)


def test_one_success_in_a_second_ends_an_interruption() -> None:
    both = Cell("b", "GetObject", 1, 9, good=1 << 10, bad=1 << 10)
    facts = facts_of(Minute(START, MINUTE_MS, cells=(both,)))
    stretch = view_of(facts[START])
    assert stretch.longest is None
    assert stretch.unavailable_ms == 54_000


def test_the_share_of_failures_is_rounded_up() -> None:
    facts = facts_of(Minute(START, 10_000, cells=(Cell("b", "GetObject", 2, 1),)))
    assert view_of(facts[START]).unavailable_ms == 3334


def test_a_minute_without_requests_is_what_the_canary_says_and_without_one_unknown() -> None:
    facts = facts_of(
        Minute(START, MINUTE_MS, canary=Cell("", "Canary", 1, 0, good=1)),
        Minute(START + 1, MINUTE_MS, canary=Cell("", "Canary", 0, 1, bad=1)),
        Minute(START + 2, MINUTE_MS),
    )
    assert [(view_of(m).known_ms, view_of(m).unavailable_ms) for m in facts.values()] == [
        (MINUTE_MS, 0),
        (MINUTE_MS, MINUTE_MS),
        (0, 0),
    ]


def test_requests_outrank_the_canary_and_others_stand_in_for_a_silent_bucket() -> None:
    facts = facts_of(
        Minute(
            START,
            MINUTE_MS,
            cells=(Cell("docs", "GetObject", 1, 1), Cell("photos", "GetObject", 3, 0)),
            canary=Cell("", "Canary", 0, 5),
        )
    )
    minute = facts[START]
    assert view_of(minute).unavailable_ms == 12_000
    assert view_of(minute, "photos").unavailable_ms == 0
    assert view_of(minute, "docs").unavailable_ms == 30_000
    silent = view_of(minute, "music")
    assert (silent.unavailable_ms, silent.successes, silent.failures) == (12_000, 0, 0)


def test_time_away_is_unavailable_and_joins_what_is_on_both_sides() -> None:
    start = START * MINUTE_MS
    facts = facts_of(
        Minute(START, 20_000, cells=(Cell("b", "GetObject", 20, good=(1 << 20) - 1),)),
        Away(start + 20_000, start + 100_000, "crashed"),
        Minute(START + 1, 20_000, cells=(Cell("b", "GetObject", 20, good=((1 << 20) - 1) << 40),)),
    )
    total = join_all(view_of(minute) for minute in facts.values())
    assert (total.known_ms, total.away_ms, total.unavailable_ms) == (120_000, 80_000, 80_000)
    assert total.longest == Segment(start + 20_000, start + 100_000)


def test_what_was_seen_running_was_not_away() -> None:
    start = START * MINUTE_MS
    facts = facts_of(
        Minute(START, 50_000, cells=(Cell("b", "GetObject", 1, good=1),)),
        Away(start, start + 60_000, "crashed"),
    )
    assert view_of(facts[START]).away_ms == 10_000
