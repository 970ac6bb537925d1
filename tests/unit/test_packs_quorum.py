"""When a write is durable enough, as scenarios without a world."""

import random

from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.ids import StoreId
from holdfast.packs.hedging import (
    HEDGE_BURST,
    HEDGE_SHARE,
    HedgeBudget,
    PlanState,
    ReadPlan,
    to_avoid,
    too_far,
)
from holdfast.packs.quorum import (
    PATIENCE_S,
    SPARE_AFTER_S,
    STRAGGLER_S,
    UNPROVEN_S,
    Attempt,
    Verdict,
    WriteRound,
)


def stores(count: int, start: int = 0) -> list[StoreId]:
    return [StoreId(f"s{number}") for number in range(start, start + count)]


def a_round(
    shards: int = 6, needed: int = 4, spares: int = 0, unhurried: frozenset[StoreId] = frozenset()
) -> tuple[WriteRound, list[Attempt]]:
    homes = dict(enumerate(stores(shards)))
    write = WriteRound(homes, needed, stores(spares, shards), unhurried, stores_min=3, now=0.0)
    return write, write.start()


def test_all_durable_is_acknowledged_at_once() -> None:
    write, attempts = a_round()
    for number, attempt in enumerate(attempts):
        assert write.verdict is None
        write.succeeded(attempt, number * 0.001)
    assert write.verdict is Verdict.ACKNOWLEDGE
    assert write.missing == ()


def test_a_straggler_is_given_up_after_its_deadline_at_the_floor() -> None:
    write, attempts = a_round()
    for attempt in attempts[:5]:
        write.succeeded(attempt, 0.002)
    write.at(STRAGGLER_S / 2)
    assert write.verdict is None
    write.at(STRAGGLER_S + 0.001)
    assert write.verdict is Verdict.ACKNOWLEDGE
    assert write.missing == (5,)


def test_when_everybody_is_slow_the_deadline_moves_out() -> None:
    write, attempts = a_round()
    for attempt in attempts[:5]:
        write.succeeded(attempt, 0.3)
    write.at(0.5)
    assert write.verdict is None
    write.at(0.61)
    assert write.verdict is Verdict.ACKNOWLEDGE


def test_a_far_store_is_late_only_when_the_way_does_not_explain_it() -> None:
    ways = {StoreId("s5"): 0.3}
    write = WriteRound(dict(enumerate(stores(6))), 4, [], frozenset(), stores_min=3, now=0.0, ways=ways)
    attempts = write.start()
    for attempt in attempts[:5]:
        write.succeeded(attempt, 0.002)
    write.at(0.3 + STRAGGLER_S - 0.001)
    assert write.verdict is None
    write.at(0.3 + STRAGGLER_S + 0.001)
    assert write.verdict is Verdict.ACKNOWLEDGE
    assert write.missing == (5,)


def test_a_near_straggler_below_the_floor_is_not_waited_for_as_long_as_a_far_one() -> None:
    ways = {StoreId("s5"): 0.3}
    write = WriteRound(dict(enumerate(stores(6))), 4, [], frozenset(), stores_min=3, now=0.0, ways=ways)
    attempts = write.start()
    for attempt in attempts[:3]:
        write.succeeded(attempt, 0.002)
    write.at(STRAGGLER_S + 0.001)
    assert write.verdict is Verdict.RETRY, "of six, four with the far one: below the floor"
    assert write.exclude == {attempts[3].store, attempts[4].store}


def test_while_the_floor_may_come_from_far_a_late_store_starts_nothing() -> None:
    ways = {StoreId("s5"): 0.3}
    write = WriteRound(dict(enumerate(stores(6))), 4, [], frozenset(), stores_min=3, now=0.0, ways=ways)
    attempts = write.start()
    for attempt in attempts[:4]:
        write.succeeded(attempt, 0.002)
    write.at(STRAGGLER_S + 0.001)
    assert write.verdict is None
    write.succeeded(attempts[5], 0.150)
    assert write.verdict is Verdict.ACKNOWLEDGE
    assert write.missing == (4,)


def test_spares_that_may_be_no_better_are_tried_after_a_while() -> None:
    homes = dict(enumerate(stores(2)))
    write = WriteRound(homes, 1, stores(3, 2), frozenset(), stores_min=2, now=0.0)
    first, late = write.start()
    write.succeeded(first, 0.002)
    (spare,) = write.at(SPARE_AFTER_S)
    write.at(STRAGGLER_S + 0.001)
    assert write.verdict is None
    while write.verdict is None:
        write.at(write.wake())
    assert write.wake() > UNPROVEN_S
    assert write.verdict is Verdict.RETRY
    assert write.exclude == {late.store, spare.store}


def test_k_durable_is_below_the_floor_and_is_written_again_without_the_slow() -> None:
    write, attempts = a_round()
    for attempt in attempts[:4]:
        write.succeeded(attempt, 0.002)
    write.at(STRAGGLER_S + 0.001)
    assert write.verdict is Verdict.RETRY
    assert write.exclude == {attempt.store for attempt in attempts[4:]}


def test_a_small_pack_of_which_all_redundancy_hangs_goes_to_spares() -> None:
    # Two blocks: two data shards and two of parity. Only m = 2 hang, and what is left is below the floor.
    write, attempts = a_round(shards=4, needed=2, spares=2)
    for attempt in attempts[:2]:
        write.succeeded(attempt, 0.002)
    assert write.wake() == SPARE_AFTER_S
    again = write.at(SPARE_AFTER_S)
    assert [attempt.shard for attempt in again] == [2, 3]
    write.succeeded(again[0], SPARE_AFTER_S + 0.002)
    write.at(2 * (SPARE_AFTER_S + 0.003))
    assert write.verdict is Verdict.ACKNOWLEDGE
    assert write.missing == (3,)


def test_a_failure_goes_to_a_spare_under_another_attempt() -> None:
    write, attempts = a_round(spares=1)
    (again,) = write.erred(attempts[2], 0.001)
    assert (again.shard, again.attempt) == (2, 1)
    assert again.store not in {attempt.store for attempt in attempts}
    for attempt in [*attempts[:2], *attempts[3:], again]:
        write.succeeded(attempt, 0.002)
    assert write.verdict is Verdict.ACKNOWLEDGE


def test_a_failure_without_spare_means_a_smaller_scheme() -> None:
    write, attempts = a_round()
    assert write.erred(attempts[0], 0.001) == []
    assert write.verdict is Verdict.RETRY
    assert write.exclude == {attempts[0].store}


def test_failures_that_leave_too_few_stores_are_final() -> None:
    write, attempts = a_round(shards=3, needed=1)
    write.erred(attempts[0], 0.001)
    assert write.verdict is Verdict.FAIL


def test_a_slow_shard_is_tried_on_a_spare_and_the_first_of_both_counts() -> None:
    write, attempts = a_round(spares=1)
    for attempt in attempts[:5]:
        write.succeeded(attempt, 0.002)
    (spare,) = write.at(SPARE_AFTER_S + 0.001)
    assert spare.shard == 5
    assert write.at(SPARE_AFTER_S + 0.002) == []
    write.succeeded(spare, 0.050)
    assert write.verdict is Verdict.ACKNOWLEDGE
    assert write.durable[5] == spare
    assert write.pending == (attempts[5],)


def test_a_store_that_sits_out_is_written_to_but_not_waited_for() -> None:
    write, attempts = a_round(unhurried=frozenset({StoreId("s5")}))
    for attempt in attempts[:5]:
        write.succeeded(attempt, 0.002)
    assert write.verdict is Verdict.ACKNOWLEDGE
    assert write.missing == (5,)


def test_when_nobody_answers_patience_ends() -> None:
    write, _ = a_round()
    write.at(PATIENCE_S - 0.1)
    assert write.verdict is None
    write.at(PATIENCE_S + 0.1)
    assert write.verdict is Verdict.FAIL


@given(st.integers(0, 10_000))
def test_every_round_ends_and_never_acknowledges_below_the_floor(seed: int) -> None:
    chance = random.Random(seed)
    shards = chance.randint(2, 9)
    needed = chance.randint(1, shards - 1)
    write, begun = a_round(shards, needed, spares=chance.randint(0, 3))
    pending = list(begun)
    now = 0.0
    while write.verdict is None:
        now = min(now + chance.choice((0.0, 0.01, 0.1)), write.wake()) if pending else write.wake()
        action = chance.random()
        if pending and action < 0.4:
            write.succeeded(pending.pop(chance.randrange(len(pending))), now)
        elif pending and action < 0.6:
            pending += write.erred(pending.pop(chance.randrange(len(pending))), now)
        else:
            now = write.wake()
            pending += write.at(now)
        assert now <= PATIENCE_S + 1
    if write.verdict is Verdict.ACKNOWLEDGE:
        assert len(write.durable) >= needed + 1


def test_a_healthy_read_asks_for_what_is_wanted_only() -> None:
    plan = ReadPlan(4, [2], range(6), (), ())
    assert plan.start() == [2]
    plan.arrive(2)
    assert plan.state is PlanState.DIRECT


def test_a_late_shard_is_raced_by_a_rebuild_and_may_still_win() -> None:
    plan = ReadPlan(4, [0], range(6), (), ())
    plan.start()
    more = plan.late(0)
    assert len(more) == 4
    assert 0 not in more
    for shard in more[:3]:
        plan.arrive(shard)
    assert plan.state is PlanState.READING
    plan.arrive(0)
    assert plan.state is PlanState.DIRECT


def test_virtual_shards_count_and_are_never_asked_for() -> None:
    plan = ReadPlan(4, [0], [0, 4, 5], [1, 2, 3], ())
    assert plan.start() == [0]
    assert plan.fail(0) == [4]
    plan.arrive(4)
    assert plan.state is PlanState.REBUILD


def test_avoided_stores_are_asked_when_nothing_else_is_left() -> None:
    plan = ReadPlan(4, [0], range(6), (), [0, 1])
    assert plan.start() == [2, 3, 4, 5]
    assert plan.fail(3) == [0]
    assert plan.fail(4) == [1]
    for shard in (0, 1, 2, 5):
        plan.arrive(shard)
    assert plan.state in (PlanState.DIRECT, PlanState.REBUILD)


def test_what_is_in_doubt_is_avoided_like_what_is_out_of_use_up_to_half_of_a_pack() -> None:
    assert to_avoid(range(6), [0], [0, 1, 2]) == {0, 1, 2}
    assert to_avoid(range(6), [], [1]) == {1}
    # When nearly everybody is in doubt, it is whoever doubts.
    assert to_avoid(range(6), [0], [0, 1, 2, 3]) == {0}
    assert to_avoid(range(2), [], [0]) == {0}
    assert to_avoid(range(2), [], [0, 1]) == set()
    assert to_avoid([1, 2], [0, 1], [0, 1]) == {1}


def test_with_more_avoided_than_can_be_lost_the_best_of_them_is_asked_and_nothing_twice() -> None:
    plan = ReadPlan(4, [0], [3, 4, 5, 2, 0, 1], (), [0, 1, 2])
    assert plan.start() == [3, 4, 5, 2]
    assert plan.late(2) == [0]
    assert plan.fail(2) == []


@given(st.integers(0, 10_000))
def test_every_read_ends_and_fails_only_when_fewer_than_k_are_right(seed: int) -> None:
    chance = random.Random(seed)
    k, m = chance.randint(1, 6), chance.randint(0, 4)
    there = chance.sample(range(k + m), chance.randint(0, k + m))
    right = {shard for shard in there if chance.random() < 0.7}
    avoid = [shard for shard in there if chance.random() < 0.3]
    wanted = chance.sample(range(k), chance.randint(1, k)) if k > 1 else [chance.choice(there or [0])]
    plan = ReadPlan(k, wanted, there, (), avoid)
    outstanding = set(plan.start())
    asked = set(outstanding)
    while plan.state is PlanState.READING:
        assert outstanding, "a plan that waits for nothing"
        shard = chance.choice(sorted(outstanding))
        if chance.random() < 0.3:
            more = plan.late(shard)
        else:
            outstanding.discard(shard)
            more = [] if shard in right else plan.fail(shard)
            if shard in right:
                plan.arrive(shard)
        assert not asked & set(more), "a shard asked for twice"
        asked |= set(more)
        outstanding |= set(more)
    if plan.state is PlanState.FAILED:
        assert len(right) < k
        assert not set(wanted) <= right


def test_hedges_stay_within_a_few_percent() -> None:
    budget = HedgeBudget()
    spent = 0
    for _ in range(10_000):
        budget.earn()
        spent += budget.spend()
    assert spent <= 10_000 * HEDGE_SHARE + HEDGE_BURST
    assert HEDGE_SHARE <= 0.05


def test_a_wanted_shard_is_too_far_when_enough_others_are_nearer() -> None:
    near, far = 0, 5
    assert too_far(2, [0], {0: far, 1: near, 2: near}, ()) == {0}
    assert too_far(2, [0], {0: far, 1: near, 2: far}, ()) == set(), "one of the others is as far"
    assert too_far(2, [0], {0: near, 1: near, 2: near}, ()) == set()
    assert too_far(2, [0], {0: far, 1: near, 2: near}, {1}) == set(), "who is avoided is nobody's help"
    assert too_far(2, [0, 1], {0: near, 1: near, 2: far}, ()) == set()
    assert too_far(1, [7], {1: near}, ()) == set(), "one without a place is lost, not far"
