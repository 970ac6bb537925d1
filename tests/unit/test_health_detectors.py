"""The detectors alone: each finds what it is for, and nothing else."""

import random

import pytest

from holdfast.health.distance import (
    ASSUMED_S,
    KEPT_S,
    LATEST_MIN,
    WINDOW_FIRST_BYTES,
    YARDSTICK_MIN_S,
    Distance,
    allowed_s,
    nearness,
)
from holdfast.health.error_rate import ERRORS_MIN, HALF_LIFE_S, ErrorRate
from holdfast.health.fence import RUN_S, SLOW_FACTOR, SLOW_FLOOR_S, VOTES, Lately, SlowRun, upper_fence
from holdfast.health.phi import GAPS_KEPT, PHI_MAX, PhiAccrual

# Silence


def phi_of(gap_s: float, count: int = GAPS_KEPT) -> tuple[PhiAccrual, float]:
    """A detector of one who has answered `count` times after `gap_s` each, and the time by then."""
    phi, now = PhiAccrual(pause_s=0.2, spread_min_s=0.05), 0.0
    for _ in range(count):
        phi.asked(now)
        now += gap_s
        phi.answered(now)
    return phi, now


def test_who_was_asked_nothing_is_not_silent() -> None:
    phi, now = phi_of(0.001)
    assert phi.phi(now + 1e6) == 0.0
    assert phi.silent_s(now + 1e6) == 0.0


def test_suspicion_grows_with_silence_and_ends_with_an_answer() -> None:
    phi, now = phi_of(0.001)
    phi.asked(now)
    grown = [phi.phi(now + after) for after in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 60.0)]
    assert grown == sorted(grown)
    assert grown[0] < 0.1
    assert grown[4] > 8.0
    assert grown[-1] == PHI_MAX
    phi.answered(now + 60.0)
    assert phi.phi(now + 61.0) == 0.0


def test_what_is_ordinary_is_learnt_from_the_one_who_is_silent() -> None:
    quick, slow = phi_of(0.001), phi_of(0.5)
    for phi, now in (quick, slow):
        phi.asked(now)
    assert quick[0].phi(quick[1] + 0.6) > 8.0
    assert slow[0].phi(slow[1] + 0.6) < 1.0


def test_a_gap_begins_anew_with_each_answer_while_others_are_outstanding() -> None:
    phi, now = phi_of(0.001)
    for _ in range(3):
        phi.asked(now)
    phi.answered(now + 0.4)
    assert phi.silent_s(now + 0.5) == pytest.approx(0.1)
    phi.answered(now + 0.5)
    phi.answered(now + 0.5)
    assert phi.silent_s(now + 9.0) == 0.0


def test_silence_goes_on_past_a_deadline_but_not_when_the_question_is_withdrawn() -> None:
    phi, now = phi_of(0.001)
    phi.asked(now)
    phi.withdrawn()
    assert phi.silent_s(now + 1.0) == 0.0
    phi.asked(now)
    phi.unanswered()
    assert phi.silent_s(now + 1.0) == pytest.approx(1.0)
    phi.asked(now + 1.0)
    phi.withdrawn()
    assert phi.silent_s(now + 2.0) == pytest.approx(2.0)
    phi.heard(now + 2.0)
    assert phi.silent_s(now + 3.0) == 0.0


def test_who_listens_may_have_been_away_himself() -> None:
    phi, now = phi_of(0.001)
    phi.asked(now)
    phi.heard(now + 30.0)
    assert phi.silent_s(now + 30.1) == pytest.approx(0.1)


def test_heartbeats_are_answers_to_a_question_that_is_always_asked() -> None:
    phi, now, chance = PhiAccrual(pause_s=0.1, spread_min_s=0.05), 0.0, random.Random(1)
    phi.asked(now)
    for _ in range(500):
        now += 0.5 * chance.uniform(0.8, 1.2)
        assert phi.phi(now) < 8.0 or now < 2.0
        phi.answered(now)
        phi.asked(now)
    assert phi.phi(now + 0.6) < 1.0
    assert phi.phi(now + 2.0) > 8.0


def test_old_gaps_are_forgotten() -> None:
    phi, now = phi_of(5.0)
    for _ in range(GAPS_KEPT):
        phi.asked(now)
        now += 0.001
        phi.answered(now)
    phi.asked(now)
    assert phi.phi(now + 1.0) > 8.0


# Slowness


def test_a_fence_needs_peers() -> None:
    assert upper_fence([]) is None
    assert upper_fence([0.001]) is None
    assert upper_fence([0.001, 0.001]) is not None


def test_the_fence_is_near_when_peers_agree_and_moves_away_when_they_scatter() -> None:
    agree = upper_fence([0.010, 0.011, 0.009, 0.010, 0.010])
    scatter = upper_fence([0.002, 0.010, 0.005, 0.060, 0.040])
    assert agree is not None
    assert scatter is not None
    assert agree < 6 * 0.010
    assert scatter > 6 * 0.010


@pytest.mark.parametrize("slow", [[1.0], [1.0, 1.0]])
def test_slow_peers_do_not_hide_a_slow_store(slow: list[float]) -> None:
    fence = upper_fence([0.010] * 3 + slow)
    assert fence is not None
    if len(slow) == 1:
        assert fence < 0.2
    else:
        assert fence > 0.2, "two of five: who is slow is no longer clear"


def test_being_a_little_slower_or_slow_at_nothing_is_no_illness() -> None:
    fence = upper_fence([0.010] * 5)
    assert fence == pytest.approx(SLOW_FACTOR * 0.010)
    assert upper_fence([1e-6] * 5) == SLOW_FLOOR_S
    assert upper_fence([0.0] * 5) == SLOW_FLOOR_S


def test_in_doubt_a_store_is_judged_by_its_quicker_answer_and_its_peers_by_their_slower_one() -> None:
    lately = Lately()
    lately.add(1.0, 0.5)
    lately.add(2.0, 0.001)
    assert lately.typical(0.0, lenient=True) == 0.001
    assert lately.typical(0.0, lenient=False) == 0.5
    assert lately.typical(1.0, lenient=False) == 0.001, "only what ended after that"
    assert lately.typical(2.0, lenient=True) is None
    lately.clear()
    assert lately.typical(0.0, lenient=True) is None


def test_slowness_needs_several_looks_in_a_row_over_some_time() -> None:
    run = SlowRun()
    for look in range(VOTES):
        assert not run.proven(look * RUN_S)
        run.beyond(look * RUN_S)
    assert run.proven(VOTES * RUN_S)
    run.end()
    assert not run.proven(1e6)
    for _ in range(10 * VOTES):
        run.beyond(7.0)
    assert not run.proven(7.0 + RUN_S / 2), "many votes at once are one moment"


def test_latencies_that_differ_by_chance_alone_are_hardly_ever_beyond_the_fence() -> None:
    chance, beyond, looks = random.Random(5), 0, 20_000
    for _ in range(looks):
        own, *peers = (chance.lognormvariate(-5, 0.5) for _ in range(6))
        fence = upper_fence(peers)
        assert fence is not None
        beyond += own > fence
    assert beyond / looks < 0.001


# Error rate


def test_a_share_of_failures_is_too_high_only_with_enough_of_them() -> None:
    rate = ErrorRate()
    rate.failed(0.0)
    assert rate.share(0.0) == 1.0
    assert not rate.too_high(0.0)
    for _ in range(int(ERRORS_MIN) + 1):
        rate.failed(0.0)
    assert rate.too_high(0.0)
    for _ in range(1000):
        rate.succeeded(0.0)
    assert not rate.too_high(0.0)
    assert rate.is_clear(0.0)


def test_every_third_call_failing_is_found_and_every_hundredth_is_not() -> None:
    for every, found in ((3, True), (100, False)):
        rate = ErrorRate()
        now = 0.0
        for call in range(2000):
            now += 0.02
            (rate.failed if call % every == 0 else rate.succeeded)(now)
        assert rate.too_high(now) is found


def test_failures_fade_and_old_ones_weigh_less_from_the_start() -> None:
    rate = ErrorRate()
    for _ in range(8):
        rate.failed(0.0)
    assert rate.too_high(0.0)
    assert not rate.too_high(3 * HALF_LIFE_S)
    assert rate.is_clear(10 * HALF_LIFE_S)
    late = ErrorRate()
    for _ in range(8):
        late.failed(0.0, age_s=10 * HALF_LIFE_S)
    assert not late.too_high(0.0)
    late.clear()
    assert late.share(0.0) == 0.0


def test_the_way_is_the_least_of_the_pings_and_follows_a_shorter_one_at_once() -> None:
    distance = Distance()
    assert distance.trip_s == ASSUMED_S
    distance.told(0.090, 0.0)
    distance.told(0.080, 1.0)
    distance.told(0.120, 2.0)
    assert distance.trip_s == 0.080
    distance.told(0.030, 3.0)
    assert distance.trip_s == 0.030


def test_a_longer_way_is_believed_after_five_to_ten_minutes() -> None:
    distance = Distance()
    for second in range(100):
        distance.told(0.030, float(second))
    second = 100
    while distance.trip_s < 0.2:
        distance.told(0.200, float(second))
        second += 1
    assert KEPT_S <= second - 100 <= 2 * KEPT_S + 1
    distance.told(5.0, float(second))
    assert distance.trip_s == 0.200


def test_jitter_is_what_the_latest_pings_took_more_and_never_more_than_the_way() -> None:
    distance = Distance()
    for second in range(LATEST_MIN):
        assert distance.jitter_s >= distance.trip_s, "nothing is known yet"
        distance.told(0.080 + 0.001 * second, float(second))
    assert distance.jitter_s == pytest.approx(0.007)
    distance.told(0.5, 100.0)
    assert distance.jitter_s == distance.trip_s == 0.080
    assert distance.yardstick_s(0.090) == pytest.approx(0.010)
    assert distance.yardstick_s(0.010) == YARDSTICK_MIN_S


def test_a_call_may_take_what_the_way_explains() -> None:
    assert allowed_s(0.0, 1 << 20) == 0.0
    assert allowed_s(0.1, 0) == pytest.approx(0.2)
    assert allowed_s(0.1, 3 * WINDOW_FIRST_BYTES) == pytest.approx(0.4)
    assert nearness(0.0) == nearness(0.002) == 0
    assert nearness(0.030) < nearness(0.080) < nearness(0.200)
