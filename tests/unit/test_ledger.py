"""The ledger's live side: what counts as what, minute by minute, whatever the clocks do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.health.ledger import (
    BEAT_S,
    BUCKETS_MAX,
    CELLS_MAX,
    GAVE_UP_S,
    SYNC_S,
    Ledger,
    StoreSight,
    Verdict,
    away_since,
    judge,
    split_away,
)
from holdfast.health.ledger_records import OTHER, Away, Beat, Cell, Minute, Record, StoreChange

START = 1_790_000_040.0  # the first second of a minute
assert START % 60 == 0


def count(ledger: Ledger, bucket: str, operation: str, verdict: Verdict = Verdict.SUCCESS) -> None:
    ledger.count(bucket, operation, verdict, False, 0.01, 1, 2)


class World:
    """A ledger, and the time it lives in."""

    def __init__(self) -> None:
        self.now, self.wall = 100.0, START
        self.ledger = Ledger(self.now, self.wall)
        self.records: list[Record] = []
        self.canaries = 0
        self.stores: dict[str, StoreSight] = {}

    def pass_s(self, seconds: float, *, step: float = 1.0, serving: bool = True) -> None:
        while seconds > 1e-9:
            self.now += min(step, seconds)
            self.wall += min(step, seconds)
            seconds -= step
            due = self.ledger.tick(self.now, self.wall, serving=serving, stores=self.stores)
            self.records += due.records
            self.canaries += due.canary

    @property
    def minutes(self) -> list[Minute]:
        return [record for record in self.records if isinstance(record, Minute)]


@pytest.mark.parametrize(
    ("status", "code", "complete", "gone", "waited_s", "verdict"),
    [
        (200, "", True, False, 0.1, Verdict.SUCCESS),
        (404, "NoSuchKey", True, False, 0.1, Verdict.SUCCESS),
        (412, "PreconditionFailed", True, False, 0.1, Verdict.SUCCESS),
        (501, "NotImplemented", True, False, 0.1, Verdict.SUCCESS),
        (500, "InternalError", True, False, 0.1, Verdict.FAILURE),
        (503, "SlowDown", True, False, 0.1, Verdict.FAILURE),
        (507, "InsufficientStorage", True, False, 0.1, Verdict.FAILURE),
        (200, "", False, False, 0.1, Verdict.FAILURE),
        (200, "ServiceUnavailable", True, False, 0.1, Verdict.FAILURE),
        (400, "IncompleteBody", True, False, 0.0, Verdict.NEITHER),
        (400, "RequestTimeout", True, False, 0.0, Verdict.NEITHER),
        (200, "", False, True, 0.1, Verdict.NEITHER),
        (0, "", False, True, GAVE_UP_S, Verdict.FAILURE),
    ],
)
def test_what_an_answer_counts_as(
    status: int, code: str, complete: bool, gone: bool, waited_s: float, verdict: Verdict
) -> None:
    assert judge(status, code, complete=complete, gone=gone, waited_s=waited_s) is verdict


def test_a_request_refused_for_its_time_is_ours_when_our_clock_jumped() -> None:
    def verdict(clock_is_off: bool) -> Verdict:
        return judge(
            403,
            "RequestTimeTooSkewed",
            complete=True,
            gone=False,
            waited_s=0.0,
            clock_is_off=clock_is_off,
        )

    assert verdict(False) is Verdict.SUCCESS
    assert verdict(True) is Verdict.FAILURE


def test_a_clock_is_off_until_it_comes_back() -> None:
    world = World()
    world.pass_s(10)
    world.wall -= 3600
    world.pass_s(10)
    assert world.ledger.clock_is_off
    world.wall += 3600
    world.pass_s(10)
    assert not world.ledger.clock_is_off
    assert world.ledger.clock_jumps == 2


def test_a_minute_is_kept_when_it_is_over() -> None:
    world = World()
    world.pass_s(10)
    count(world.ledger, "photos", "GetObject")
    count(world.ledger, "photos", "GetObject", Verdict.FAILURE)
    count(world.ledger, "photos", "PutObject", Verdict.NEITHER)
    world.pass_s(49)
    assert world.minutes == []
    world.pass_s(1)
    (minute,) = world.minutes
    assert (minute.minute, minute.covered_ms, minute.index_away_ms) == (START // 60, 60_000, 0)
    assert minute.cells == (
        Cell("photos", "GetObject", 1, 1, 0, 0, 20, 2, 4, 1 << 10, 1 << 10),
        Cell("photos", "PutObject", 0, 0, 1, 0, 10, 1, 2),
    )


def test_time_without_an_index_is_told() -> None:
    world = World()
    world.pass_s(20)
    world.pass_s(15, serving=False)
    world.pass_s(25)
    assert world.minutes[0].index_away_ms == 15_000


def test_a_minute_without_requests_gets_one_canary_and_one_with_them_none() -> None:
    world = World()
    world.pass_s(60)
    assert world.canaries == 1
    world.pass_s(5)
    count(world.ledger, "photos", "GetObject")
    world.pass_s(55)
    assert world.canaries == 1
    count(world.ledger, "photos", "GetObject", Verdict.NEITHER)  # says nothing of the node
    world.pass_s(60)
    assert world.canaries == 2
    world.ledger.canary(ok=False, waited_s=2.0)
    world.pass_s(60)
    canary = world.minutes[-1].canary
    assert canary is not None
    assert (canary.successes, canary.failures) == (0, 1)


def test_memory_is_bounded_whatever_clients_ask_for() -> None:
    world = World()
    for bucket in range(3 * BUCKETS_MAX):
        for operation in range(20):
            count(world.ledger, f"bucket-{bucket}", f"Operation{operation}")
    world.pass_s(60)
    cells = world.minutes[0].cells
    assert len(cells) <= CELLS_MAX + 20
    assert len({cell.bucket for cell in cells}) <= BUCKETS_MAX + 1
    assert sum(cell.successes for cell in cells) == 3 * BUCKETS_MAX * 20
    assert {cell.bucket for cell in cells} > {OTHER}


def test_stores_are_counted_by_difference_and_their_time_away_is_kept() -> None:
    world = World()
    world.stores = {"disk1": StoreSight("healthy", reads=5, writes=2)}
    world.pass_s(60)
    world.stores = {"disk1": StoreSight("down", world.now - 0.5, "gone", world.now - 1.5, 9, 3, 1, 2)}
    world.pass_s(30)
    world.stores = {"disk1": StoreSight("probation", world.now, "", None, 10, 3, 1, 2)}
    world.pass_s(30)
    first, second = (minute.stores[0] for minute in world.minutes)
    assert (first.reads, first.writes, first.away_ms) == (5, 2, 0)
    assert (second.reads, second.read_errors, second.writes, second.away_ms) == (5, 3, 0, 30_000)
    changes = [record for record in world.records if isinstance(record, StoreChange)]
    assert [(change.before, change.after) for change in changes] == [
        ("", "healthy"),
        ("healthy", "down"),
        ("down", "probation"),
    ]
    assert changes[1].at_ms - changes[1].unwell_ms == 1000


def test_a_loop_that_stood_still_was_away() -> None:
    world = World()
    world.pass_s(10)
    world.pass_s(12, step=12)
    world.pass_s(38)
    (away,) = [record for record in world.records if isinstance(record, Away)]
    assert (away.from_ms, away.until_ms) == ((START + 10) * 1000, (START + 22) * 1000)
    assert away.why == "stalled"
    assert world.minutes[0].covered_ms == 48_000


@given(st.lists(st.tuples(st.floats(-90_000, 90_000), st.floats(0, 200)), max_size=6))
def test_no_jump_of_the_wall_clock_makes_time_negative_or_counts_it_twice(
    jumps: list[tuple[float, float]],
) -> None:
    world = World()
    passed = 0.0
    for jump, seconds in jumps:
        world.wall = max(0.0, world.wall + jump)
        count(world.ledger, "photos", "GetObject")
        world.pass_s(seconds)
        passed += seconds
    minutes = [*world.minutes, world.ledger.finish()]
    assert all(0 <= minute.covered_ms <= 60_000 for minute in minutes)
    assert sum(minute.covered_ms for minute in minutes) <= passed * 1000 + len(minutes)
    assert sum(cell.successes for minute in minutes for cell in minute.cells) == len(jumps)


def test_time_away_is_told_apart_by_how_it_began() -> None:
    boot, other = bytes(16), bytes([1] * 16)
    wall = START + 100

    def why(beat: Beat, boot_now: bytes) -> tuple[str, int, int]:
        (away,) = away_since(beat, boot_now, wall)
        assert isinstance(away, Away)
        return away.why, away.until_ms - away.from_ms, away.uncertain_ms

    at = int(START * 1000)
    assert why(Beat(at, True, boot, 1), boot) == ("stopped", 100_000, 0)
    assert why(Beat(at, False, boot, 1), boot) == ("crashed", 100_000, int(BEAT_S * 1000))
    assert why(Beat(at, False, other, 1), boot) == ("rebooted", 100_000, int((BEAT_S + SYNC_S) * 1000))
    assert away_since(None, boot, wall) == []
    assert away_since(Beat(int((wall + 5) * 1000), False, boot, 1), boot, wall) == []


def test_time_away_is_cut_at_midnight() -> None:
    day = 86_400
    midnight = START // day * day + day
    parts = split_away(midnight - 10, midnight + day + 5, "stopped", 2.0)
    assert [(part.from_ms, part.until_ms, part.continues) for part in parts if isinstance(part, Away)] == [
        ((midnight - 10) * 1000, midnight * 1000, False),
        (midnight * 1000, (midnight + day) * 1000, True),
        ((midnight + day) * 1000, (midnight + day + 5) * 1000, True),
    ]
