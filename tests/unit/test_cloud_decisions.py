"""What the bucket's store decides without a bucket: what to read, when to ask again, what is used."""

from hypothesis import given
from hypothesis import strategies as st

from holdfast.stores.cloud.counting import Count
from holdfast.stores.cloud.retrying import Retries, RetryLimits
from holdfast.stores.cloud.spans import GAP_BYTES_MAX, STRETCH_BYTES_MAX, stretches
from holdfast.stores.port import Range

RANGES = st.lists(
    st.builds(Range, st.integers(0, 40 << 20), st.integers(1, 9 << 20) | st.integers(1, 5000)), max_size=40
)


@given(RANGES)
def test_every_range_lies_in_its_stretch(ranges: list[Range]) -> None:
    found, owners = stretches(ranges)
    assert len(owners) == len(ranges)
    assert set(owners) == set(range(len(found)))
    for (offset, length), owner in zip(ranges, owners, strict=True):
        assert found[owner].offset <= offset
        assert offset + length <= found[owner].offset + found[owner].length
    longest = max((length for _, length in ranges), default=0)
    assert all(length <= max(longest, STRETCH_BYTES_MAX) for _, length in found)
    assert found == sorted(found)


@given(RANGES)
def test_no_stretch_begins_or_ends_with_bytes_that_nobody_wants(ranges: list[Range]) -> None:
    found, _ = stretches(ranges)
    assert {offset for offset, _ in found} <= {offset for offset, _ in ranges}
    assert {sum(each) for each in found} <= {sum(each) for each in ranges}


def test_what_is_near_is_one_request_and_what_is_far_is_two() -> None:
    assert len(stretches([Range(0, 10), Range(10 + GAP_BYTES_MAX, 10)])[0]) == 1
    assert len(stretches([Range(0, 10), Range(11 + GAP_BYTES_MAX, 10)])[0]) == 2
    assert stretches([]) == ([], [])


@given(st.lists(st.booleans(), max_size=300), st.floats(0, 1, exclude_max=True))
def test_repeats_are_paid_from_successes(went_well: list[bool], chance: float) -> None:
    limits = RetryLimits(budget=5.0)
    retries = Retries(limits)
    repeats = 0
    for well in went_well:
        if well:
            retries.succeeded()
        elif retries.wait_s(1, 1e9, chance) is not None:
            repeats += 1
        assert 0 <= retries.left <= limits.budget
    assert repeats <= limits.budget + limits.earned * sum(went_well)


@given(st.integers(1, 20), st.floats(0, 10), st.floats(0, 1, exclude_max=True))
def test_no_wait_ends_behind_the_deadline(attempt: int, left_s: float, chance: float) -> None:
    limits = RetryLimits()
    retries = Retries(limits)
    wait_s = retries.wait_s(attempt, left_s, chance)
    if wait_s is None:
        assert retries.left == limits.budget
        assert attempt >= limits.attempts or chance * limits.first_s * 2 ** (attempt - 1) >= left_s
    else:
        assert 0 <= wait_s < left_s
        assert wait_s <= limits.most_s
        assert attempt < limits.attempts


def test_a_count_sees_what_was_there_and_what_was_put_while_it_ran() -> None:
    count = Count(again_s=100)
    count.put(5)
    assert count.used == 5
    assert count.is_due(0)
    count.page("b", 70)
    count.put(7)
    assert count.used == 70 + 5 + 7
    assert count.is_due(1)
    assert count.after == "b"
    count.page("", 0)
    # Only what was put before it began is certainly in it.
    assert count.used == 70 + 7
    assert not count.is_due(99)


def test_the_next_count_sees_what_was_deleted_and_is_never_less_before_it_is_through() -> None:
    count = Count(again_s=100)
    assert count.is_due(0)
    count.page("z", 1000)
    count.page("", 0)
    assert count.is_due(100)
    assert count.after == ""
    count.page("a", 10)
    assert count.used == 1000
    count.page("", 0)
    assert count.used == 10
