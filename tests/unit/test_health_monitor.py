"""Stores are judged by what they do: the ill rest, the well return, noise ejects nobody."""

import random

from holdfast.base.ids import StoreId
from holdfast.health import StoreHealth, StoreState
from holdfast.health.monitor import FAILURES_DOWN, FAILURES_SUSPECT, HEDGE_MAX_S, PROBATION_S, REST_MAX_S
from holdfast.stores.measured import Operation
from holdfast.stores.port import ShardMissing, StoreFailed, StoreFull

STORES = [StoreId(f"s{number}") for number in range(6)]
A, B, C = STORES[:3]


def health() -> StoreHealth:
    return StoreHealth(STORES, 2, 0.0)


def get(subject: StoreHealth, store: StoreId, seconds: float, now: float = 0.0) -> None:
    subject.observed(store, Operation.GET, seconds, 4096, None, now)


def fail(subject: StoreHealth, store: StoreId, times: int = 1, now: float = 0.0) -> None:
    for _ in range(times):
        subject.observed(store, Operation.GET, 0.001, 0, StoreFailed("EIO"), now)


def test_failures_in_a_row_make_suspect_then_down_and_a_success_mends_suspicion() -> None:
    subject = health()
    fail(subject, A, FAILURES_SUSPECT)
    assert subject.state(A) is StoreState.SUSPECT
    get(subject, A, 0.001)
    assert subject.state(A) is StoreState.HEALTHY
    fail(subject, A, FAILURES_DOWN)
    assert subject.state(A) is StoreState.DOWN
    assert not subject.writable(A)


def test_a_store_that_is_down_is_probed_and_returns_over_probation() -> None:
    subject = health()
    fail(subject, A, FAILURES_DOWN)
    assert subject.tick(1.0) == [A]
    subject.probed(A, StoreFailed("still"), 1.1)
    assert subject.tick(2.0) == [A]
    subject.probed(A, None, 2.1)
    assert subject.state(A) is StoreState.PROBATION
    subject.tick(2.1 + PROBATION_S)
    assert subject.state(A) is StoreState.HEALTHY
    assert [event.after for event in subject.take_events()] == [
        StoreState.SUSPECT,
        StoreState.DOWN,
        StoreState.PROBATION,
        StoreState.HEALTHY,
    ]


def test_what_is_not_the_stores_fault_does_not_count() -> None:
    subject = health()
    for _ in range(50):
        subject.observed(A, Operation.GET, 0.001, 0, ShardMissing("gone"), 0.0)
        subject.observed(A, Operation.PUT, 0.001, 0, StoreFull("full"), 0.0)
    assert subject.state(A) is StoreState.HEALTHY


def test_no_more_than_m_are_kept_from_reads_for_being_slow_or_suspect() -> None:
    subject = health()
    for store in STORES:
        fail(subject, store, FAILURES_SUSPECT)
    assert sum(not subject.readable(store) for store in STORES) == 2


def test_a_store_twenty_times_slower_sits_out_within_two_looks_and_comes_back() -> None:
    subject = health()
    for now in (1.0, 2.0):
        for store in STORES:
            for _ in range(40):
                get(subject, store, 0.020 if store == A else 0.001, now)
        subject.tick(now)
    assert subject.state(A) is StoreState.SITTING_OUT
    assert subject.writable(A)
    assert not subject.waited_for(A)
    subject.tick(13.0)
    assert subject.state(A) is StoreState.PROBATION


def test_noise_on_all_stores_ejects_nobody() -> None:
    for seed in range(200):
        chance = random.Random(seed)
        subject = health()
        for second in range(20):
            burst = 10.0 if chance.random() < 0.3 else 1.0
            for _ in range(60):
                get(subject, chance.choice(STORES), burst * chance.lognormvariate(-7, 1), float(second))
            subject.tick(float(second))
        assert all(subject.state(store) is StoreState.HEALTHY for store in STORES), seed


def test_a_hedge_starts_after_the_stores_own_tail_within_bounds() -> None:
    subject = health()
    for number in range(200):
        get(subject, A, 0.010 if number % 50 == 0 else 0.004)
        get(subject, B, 3.0)
    subject.tick(1.0)
    assert 0.004 < subject.hedge_after_s(A) <= 0.03
    assert subject.hedge_after_s(B) <= HEDGE_MAX_S


def test_a_full_store_is_left_alone_for_a_while_only() -> None:
    subject = health()
    subject.full(C, 0.0)
    assert subject.is_full(C)
    subject.tick(10.0)
    assert not subject.is_full(C)
    assert subject.readable(C)


def test_late_successes_do_not_clear_a_store_and_a_relapse_sends_it_out() -> None:
    subject = health()
    for _ in range(FAILURES_SUSPECT):
        subject.overdue(A, 1.0)
        get(subject, A, 0.3, 1.0)
    assert subject.state(A) is StoreState.SUSPECT
    subject.probed(A, None, 2.0)
    assert subject.state(A) is StoreState.HEALTHY
    for _ in range(FAILURES_SUSPECT):
        subject.overdue(A, 2.5)
    assert subject.state(A) is StoreState.SITTING_OUT


def test_reads_that_work_do_not_hide_that_writes_fail() -> None:
    subject = health()
    for number in range(FAILURES_SUSPECT):
        assert subject.waited_for(A), number
        subject.observed(A, Operation.PUT, 0.001, 0, StoreFailed("EIO"), 1.0)
        get(subject, A, 0.0001, 1.0)
    assert not subject.writable(A)
    get(subject, A, 0.0001, 1.0)
    assert subject.state(A) is StoreState.SUSPECT
    subject.observed(A, Operation.PUT, 0.001, 4096, None, 1.1)
    assert subject.state(A) is StoreState.HEALTHY


def sit_out(subject: StoreHealth, now: float) -> float:
    """Make A slow from `now` until it sits out, and fast again; answers when that began."""
    while subject.state(A) is not StoreState.SITTING_OUT:
        for store in STORES:
            for _ in range(40):
                get(subject, store, 0.020 if store == A else 0.001, now)
        subject.tick(now)
        now += 1.0
    return now


def rest(subject: StoreHealth, now: float) -> float:
    """How long A sits out."""
    began = now
    while subject.state(A) is StoreState.SITTING_OUT:
        now += 1.0
        subject.tick(now)
    return now - began


def test_the_rest_grows_with_each_relapse_and_is_forgiven_after_long_health() -> None:
    subject = health()
    now, rests = 0.0, []
    for _ in range(3):
        now = sit_out(subject, now)
        rests.append(rest(subject, now))
        now += rests[-1]
    assert rests[0] < rests[1] < rests[2]
    for second in range(int(2 * REST_MAX_S)):
        for store in STORES:
            get(subject, store, 0.001, now + second)
        subject.tick(now + second)
    now += 2 * REST_MAX_S
    for store in STORES:
        for _ in range(300):
            get(subject, store, 0.001, now)
    assert subject.state(A) is StoreState.HEALTHY
    now = sit_out(subject, now)
    assert rest(subject, now) == rests[0]
