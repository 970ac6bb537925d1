"""Stores are judged by what they do: the ill rest, the well return, and never too many are out of use."""

import random

import pytest

from holdfast.base.ids import StoreId
from holdfast.health import StoreHealth, StoreState
from holdfast.health.comparing import LOOK_S
from holdfast.health.damping import FORGIVEN_AFTER_S, REST_FIRST_S
from holdfast.health.monitor import (
    FAILURES_DOWN,
    FAILURES_SUSPECT,
    HEDGE_MAX_S,
    PROBATION_S,
    PROBE_ALWAYS_S,
    PROBE_IDLE_S,
    PROBE_SELDOM_S,
)
from holdfast.health.transitions import TRANSITIONS, USE, Evidence, Guard, find
from holdfast.stores.measured import Operation
from holdfast.stores.port import ShardMissing, StoreFailed, StoreFull, StoreOverdue

STORES = [StoreId(f"s{number}") for number in range(6)]
A, B, C = STORES[:3]


class Ward:
    """Stores under observation, without any: `look` lets time pass, and answers the probes of those that are
    well."""

    def __init__(self, cap: int = 2) -> None:
        self.health = StoreHealth(STORES, cap, 0.0)
        self.now = 0.0
        self.broken: set[StoreId] = set()
        self.slow: dict[StoreId, float] = {}

    def state(self, store: StoreId) -> StoreState:
        return self.health.state(store)

    def get(self, store: StoreId, seconds: float = 0.001) -> None:
        self.health.observed(store, Operation.GET, seconds, 4096, None, self.now)

    def put(self, store: StoreId, seconds: float = 0.001) -> None:
        self.health.observed(store, Operation.PUT, seconds, 4096, None, self.now)

    def fail(self, store: StoreId, times: int = 1, operation: Operation = Operation.GET) -> None:
        for _ in range(times):
            self.health.observed(store, operation, 0.001, 0, StoreFailed("EIO"), self.now)

    def look(self, seconds: float = LOOK_S) -> None:
        """Look until `seconds` have passed."""
        until = self.now + seconds
        while self.now < until - 1e-9:
            self.now += LOOK_S
            for store in self.health.tick(self.now):
                took = self.slow.get(store, 0.001)
                error = StoreFailed("EIO") if store in self.broken else None
                self.now += 1e-6
                self.health._records[store].probe_began = self.now - took
                self.health.probed(store, error, self.now)

    def changes(self) -> list[StoreState]:
        return [event.after for event in self.health.take_events()]


def test_failures_in_a_row_make_suspect_then_down_and_good_answers_mend_suspicion() -> None:
    ward = Ward()
    ward.fail(A, FAILURES_SUSPECT)
    assert ward.state(A) is StoreState.SUSPECT
    assert not ward.health.writable(A)
    ward.look(10.0)
    assert ward.state(A) is StoreState.HEALTHY
    ward.fail(A, FAILURES_DOWN)
    assert ward.state(A) is StoreState.DOWN
    assert not ward.health.writable(A)


def test_a_store_that_is_down_is_probed_and_returns_over_probation() -> None:
    ward = Ward()
    ward.broken.add(A)
    ward.fail(A, FAILURES_DOWN)
    ward.look(3.0)
    assert ward.state(A) is StoreState.DOWN
    ward.broken.clear()
    ward.look(1.0)
    assert ward.state(A) is StoreState.PROBATION
    ward.look(PROBATION_S + LOOK_S)
    assert ward.state(A) is StoreState.HEALTHY
    assert ward.changes() == [
        StoreState.SUSPECT,
        StoreState.DOWN,
        StoreState.PROBATION,
        StoreState.HEALTHY,
    ]


def test_probes_that_fail_bring_a_store_down_within_a_second() -> None:
    ward = Ward()
    ward.broken.add(A)
    ward.look(PROBE_IDLE_S + 1.0)
    assert ward.state(A) is StoreState.DOWN


def test_what_is_not_the_stores_fault_does_not_count() -> None:
    ward = Ward()
    for _ in range(50):
        ward.health.observed(A, Operation.GET, 0.001, 0, ShardMissing("gone"), 0.0)
        ward.health.observed(A, Operation.PUT, 0.001, 0, StoreFull("full"), 0.0)
        ward.health.observed(A, Operation.PUT, 0.001, 0, None, 0.0)
    assert ward.state(A) is StoreState.HEALTHY


def test_no_more_than_m_are_taken_out_of_use_and_all_that_fail_are_named() -> None:
    ward = Ward()
    for store in STORES:
        ward.fail(store, FAILURES_DOWN)
    assert [ward.state(store) for store in STORES] == [StoreState.DOWN] * 2 + [StoreState.SUSPECT] * 4
    assert [store for store in STORES if not ward.health.readable(store)] == [A, B]
    assert [store for store in STORES if not ward.health.writable(store)] == [A, B]


def test_the_cap_follows_the_schemes_in_use() -> None:
    ward = Ward(cap=2)
    for store in (A, B):
        ward.fail(store, FAILURES_SUSPECT)
    assert not ward.health.readable(B)
    ward.health.ejections_max = 1
    assert not ward.health.readable(A), "who came first stays out"
    assert ward.health.readable(B)
    ward.health.ejections_max = 2
    assert not ward.health.readable(B)


def test_a_store_that_is_known_to_be_gone_is_out_of_use_whatever_the_others_are() -> None:
    ward = Ward(cap=1)
    for store in (A, B, C):
        ward.health.vanished(store, 0.0, "unplugged")
    assert [ward.health.readable(store) for store in STORES[:4]] == [False, False, False, True]
    ward.fail(STORES[3], FAILURES_DOWN)
    assert ward.health.readable(STORES[3]), "the cap is reached, so it is asked all the same"


def test_a_store_twenty_times_slower_sits_out_and_comes_back_when_it_is_quick_again() -> None:
    ward = Ward()
    ward.look(3.0)
    ward.slow[A] = 0.020
    ward.look(2.0)
    assert ward.state(A) is StoreState.SITTING_OUT
    assert ward.health.reason(A) == "probe takes 20.0 ms, peers at most 5.0 ms"
    assert ward.health.writable(A)
    assert not ward.health.waited_for(A)
    ward.look(REST_FIRST_S + 5.0)
    assert ward.state(A) is StoreState.SITTING_OUT, "it is still slow"
    del ward.slow[A]
    ward.look(4 * REST_FIRST_S)
    assert ward.state(A) is StoreState.HEALTHY


def test_noise_on_all_stores_ejects_nobody() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        ward = Ward()
        for _ in range(80):
            burst = 10.0 if chance.random() < 0.3 else 1.0
            for _ in range(15):
                ward.get(chance.choice(STORES), burst * chance.lognormvariate(-7, 1))
                ward.now += LOOK_S / 20
            ward.look()
        assert all(ward.state(store) is StoreState.HEALTHY for store in STORES), seed


def busy(ward: Ward, rounds: int, latency: "dict[StoreId, float]", stores: "list[StoreId]") -> None:
    """Reads of 1 ms, or as long as `latency` says, of all stores that are preferred, with looks between."""
    for _ in range(rounds):
        ward.now += LOOK_S / 20
        for store in stores:
            if ward.health.preferred(store):
                ward.get(store, latency.get(store, 0.001))
        ward.look()


def test_more_slow_stores_than_may_sit_out_are_asked_after_the_others() -> None:
    """Three of six at once: none can be told from its peers by a majority, and m = 2 could sit out."""
    ward = Ward(cap=2)
    busy(ward, 4, {}, STORES)
    ward.slow = dict.fromkeys(STORES[:3], 0.040)
    busy(ward, 12, ward.slow, STORES)
    assert [store for store in STORES if ward.health.preferred(store)] == STORES[3:]
    assert sum(ward.health.readable(store) for store in STORES) >= 4, "no more than m are out of use"
    ward.slow = {}
    ward.look(30.0)
    assert all(ward.health.preferred(store) for store in STORES)


def test_of_two_stores_the_quicker_one_is_preferred_though_none_ever_sits_out() -> None:
    ward = Ward(cap=1)
    for store in STORES[2:]:
        ward.health.forget(store)
    ward.slow = {A: 0.050}
    busy(ward, 12, ward.slow, STORES[:2])
    assert (ward.health.preferred(A), ward.health.preferred(B)) == (False, True)
    assert ward.health.readable(A)
    ward.slow = {}
    busy(ward, 40, {}, STORES[:2])
    assert ward.health.preferred(A)


def test_suspects_that_are_kept_in_use_are_asked_after_the_others() -> None:
    ward = Ward(cap=1)
    for store in (A, B, C):
        ward.fail(store, FAILURES_SUSPECT)
    assert [store for store in STORES if not ward.health.readable(store)] == [A]
    assert [store for store in STORES if not ward.health.preferred(store)] == [A, B, C]


def test_noise_on_all_stores_hardly_changes_whom_reads_prefer() -> None:
    doubted = looks = 0
    for seed in range(20):
        chance = random.Random(seed)
        ward = Ward()
        for _ in range(80):
            burst = 10.0 if chance.random() < 0.3 else 1.0
            for _ in range(15):
                ward.get(chance.choice(STORES), burst * chance.lognormvariate(-7, 1))
                ward.now += LOOK_S / 20
            ward.look()
            doubted += sum(not ward.health.preferred(store) for store in STORES)
            looks += len(STORES)
    assert doubted < 0.01 * looks


def test_a_process_that_slept_does_not_blame_the_stores() -> None:
    ward = Ward()
    ward.look(2.0)
    for store in STORES:
        ward.health.began(store, Operation.PUT, ward.now)
    ward.now += 30.0
    ward.look()
    assert all(ward.state(store) is StoreState.HEALTHY for store in STORES)


def test_a_call_that_hung_before_the_store_was_heard_of_again_is_no_new_failure() -> None:
    ward = Ward()
    ward.now = 20.0
    ward.put(A)
    for _ in range(FAILURES_DOWN):
        ward.health.observed(A, Operation.PUT, 10.0, 0, StoreOverdue("10 s"), ward.now)
    assert ward.state(A) is StoreState.HEALTHY
    ward.now = 40.0
    for _ in range(FAILURES_DOWN):
        ward.health.observed(A, Operation.PUT, 10.0, 0, StoreOverdue("10 s"), ward.now)
    assert ward.state(A) is StoreState.DOWN


def test_a_hedge_starts_after_the_stores_own_tail_within_bounds() -> None:
    ward = Ward()
    for number in range(200):
        ward.get(A, 0.010 if number % 50 == 0 else 0.004)
        ward.get(B, 3.0)
    ward.look()
    assert 0.004 < ward.health.hedge_after_s(A) <= 0.03
    assert ward.health.hedge_after_s(B) <= HEDGE_MAX_S


def test_a_full_store_is_left_alone_for_a_while_only() -> None:
    ward = Ward()
    ward.health.full(C, 0.0)
    assert ward.health.is_full(C)
    ward.look(5.0)
    assert not ward.health.is_full(C)
    assert ward.health.readable(C)


def test_late_successes_do_not_clear_a_store_and_a_relapse_sends_it_out() -> None:
    ward = Ward()
    for _ in range(FAILURES_SUSPECT):
        ward.health.overdue(A, ward.now)
        ward.get(A, 0.3)
    assert ward.state(A) is StoreState.SUSPECT
    ward.look(1.0)
    assert ward.state(A) is StoreState.HEALTHY
    for _ in range(FAILURES_SUSPECT):
        ward.health.overdue(A, ward.now)
    assert ward.state(A) is StoreState.SITTING_OUT


def test_reads_that_work_do_not_hide_that_writes_fail() -> None:
    ward = Ward()
    for number in range(FAILURES_SUSPECT):
        assert ward.health.waited_for(A), number
        ward.fail(A, 1, Operation.PUT)
        ward.get(A)
    assert not ward.health.writable(A)
    ward.get(A)
    assert ward.state(A) is StoreState.SUSPECT


def test_reads_from_memory_do_not_hide_that_the_medium_hangs() -> None:
    ward = Ward()
    ward.look(1.0)
    ward.health.began(A, Operation.GET, ward.now)
    for _ in range(12):
        ward.health.began(A, Operation.GET, ward.now)
        ward.get(A, 0.00001)
        ward.look()
    assert ward.state(A) is StoreState.HEALTHY, "its probes are answered"
    subject = StoreHealth(STORES, 2, 0.0)
    subject.began(A, Operation.GET, 0.0)
    for look in range(1, 9):
        now = look * LOOK_S
        subject.began(A, Operation.GET, now)
        subject.observed(A, Operation.GET, 0.00001, 1, None, now)
        for store in subject.tick(now):
            if store != A:
                subject.probed(store, None, now)
    assert subject.state(A) is StoreState.DOWN


def fall(ward: Ward) -> float:
    """Fail, recover at once, and tell how long it took until it was used again."""
    ward.fail(A, FAILURES_DOWN)
    assert ward.state(A) is StoreState.DOWN
    began = ward.now
    while ward.state(A) is not StoreState.HEALTHY:
        ward.look()
    return ward.now - began


def test_the_rest_grows_with_each_fall_and_is_forgiven_after_long_health() -> None:
    ward = Ward()
    rests = [fall(ward) for _ in range(6)]
    assert rests == sorted(rests)
    assert rests[0] < PROBATION_S + 2.0
    assert rests[5] > rests[0] + 8.0
    ward.look(8 * FORGIVEN_AFTER_S)
    assert fall(ward) == pytest.approx(rests[0], abs=1.0)


def test_a_damped_store_is_used_at_once_when_too_many_others_are_away() -> None:
    ward = Ward()
    for _ in range(8):
        fall(ward)
    ward.fail(A, FAILURES_DOWN)
    ward.look(5.0)
    assert ward.state(A) is StoreState.DOWN, "damped"
    for store in (B, C):
        ward.health.vanished(store, ward.now, "unplugged")
    ward.look(1.0)
    assert ward.state(A) is StoreState.PROBATION


def test_an_idle_store_is_probed_about_once_a_second_and_a_busy_one_now_and_then() -> None:
    subject = StoreHealth(STORES, 2, 0.0)
    probes = dict.fromkeys(STORES, 0)
    looks = int(4 * PROBE_ALWAYS_S / LOOK_S)
    for look in range(1, looks + 1):
        now = look * LOOK_S
        subject.observed(A, Operation.PUT, 0.001, 4096, None, now)
        for store in subject.tick(now):
            probes[store] += 1
            subject.probed(store, None, now)
    assert 4 <= probes[A] <= 5
    assert 4 * PROBE_ALWAYS_S * 0.9 <= probes[B] <= 4 * PROBE_ALWAYS_S / PROBE_IDLE_S


def test_one_probe_at_a_time_and_none_of_a_store_that_is_gone() -> None:
    subject = StoreHealth(STORES, 2, 0.0)
    assert A in subject.tick(1.0)
    for look in range(8):
        assert A not in subject.tick(1.25 + look * LOOK_S)
    subject.vanished(B, 4.0, "unplugged")
    subject.probed(B, None, 4.0)
    assert B not in subject.tick(5.0)


# The table


def test_every_state_but_healthy_has_a_way_out_and_health_is_reached_from_all() -> None:
    reached, frontier = {StoreState.HEALTHY}, {StoreState.HEALTHY}
    while frontier:
        frontier = {
            before
            for line in TRANSITIONS
            for before in line.before
            if line.after in reached and line.evidence in (Evidence.PROBED, Evidence.TIME)
        } - reached
        reached |= frontier
    assert reached == set(StoreState)
    assert set(USE) == set(StoreState)


def test_only_who_is_gone_is_taken_down_without_room() -> None:
    def refuse_room(guard: Guard) -> bool:
        return guard is not Guard.ROOM

    for state in StoreState:
        for evidence in Evidence:
            line = find(state, evidence, refuse_room)
            if line is not None and line.after in (StoreState.DOWN, StoreState.SITTING_OUT):
                assert evidence is Evidence.GONE


def test_no_line_of_the_table_is_hidden_by_one_before_it() -> None:
    for number, line in enumerate(TRANSITIONS):
        for state in line.before:
            before = [
                other
                for other in TRANSITIONS[:number]
                if other.evidence is line.evidence and state in other.before
            ]
            assert all(set(other.guards) - set(line.guards) for other in before), line


def test_a_store_whose_probes_cost_money_is_probed_seldom_unless_it_is_in_doubt() -> None:
    ward = Ward()
    probed: list[StoreId] = []
    ward.health.probe_seldom(A)
    tick = ward.health.tick

    def counted(now: float) -> list[StoreId]:
        found = tick(now)
        probed.extend(found)
        return found

    ward.health.tick = counted  # type: ignore[method-assign]
    ward.look(10 * PROBE_SELDOM_S)
    assert 9 <= probed.count(A) <= 11
    assert probed.count(B) > 100
    ward.broken.add(B)
    probed.clear()
    ward.look(2 * PROBE_SELDOM_S)
    assert probed.count(A) <= 3, "what is wrong with others is no reason"
    ward.broken = {A}
    ward.fail(A, FAILURES_SUSPECT)
    probed.clear()
    ward.look(30)
    assert ward.state(A) in (StoreState.SUSPECT, StoreState.DOWN)
    assert 6 <= probed.count(A) <= 31
    ward.broken = set()
    ward.look(3 * PROBE_SELDOM_S)
    assert ward.state(A) is StoreState.HEALTHY
