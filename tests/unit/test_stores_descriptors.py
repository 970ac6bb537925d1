"""A descriptor is closed when its last user is gone, and never before."""

import os
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.stores.directory.descriptors import Descriptor, Descriptors
from tests.kit.stores import WatchedFiles


def watched() -> WatchedFiles:
    return WatchedFiles(lambda call, arguments: None)


def opened(files: WatchedFiles) -> Descriptor:
    return Descriptor(files, files.open("/dev/null", os.O_RDONLY))


def keep(cache: Descriptors, key: str, descriptor: Descriptor) -> None:
    cache.keep(key, cache.ticket(key), descriptor)


def test_the_cache_may_drop_what_a_reader_still_uses() -> None:
    files, cache = watched(), Descriptors(1)
    keep(cache, "a", opened(files))
    used = cache.find("a")
    assert used is not None
    cache.forget("a")
    assert files.open_now == {used.number}
    assert os.read(used.number, 1) == b""
    del used
    assert files.open_now == set()


def test_the_longest_unused_goes_first() -> None:
    files, cache = watched(), Descriptors(2)
    keep(cache, "a", opened(files))
    keep(cache, "b", opened(files))
    assert cache.find("a") is not None
    keep(cache, "c", opened(files))
    assert [key for key in "abc" if cache.find(key)] == ["a", "c"]
    assert len(files.open_now) == 2


def test_what_was_forgotten_while_it_was_opened_is_not_kept() -> None:
    files, cache = watched(), Descriptors(2)
    ticket = cache.ticket("a")
    cache.forget("a")
    later = cache.ticket("a")
    cache.keep("a", ticket, opened(files))
    assert cache.find("a") is None
    assert files.open_now == set()
    cache.keep("a", later, opened(files))
    assert cache.find("a") is not None


def test_shrinking_to_nothing_drops_even_what_was_just_used() -> None:
    files, cache = watched(), Descriptors(5)
    for key in "abc":
        keep(cache, key, opened(files))
        cache.find(key)
    cache.shrink(0)
    assert len(cache) == 0
    assert files.open_now == set()


@settings(max_examples=50, deadline=None)
@given(
    limit=st.integers(1, 4),
    steps=st.lists(st.tuples(st.sampled_from(["keep", "find", "forget", "shrink"]), st.integers(0, 6))),
)
def test_as_many_descriptors_are_open_as_are_kept_and_never_too_many(
    limit: int, steps: list[tuple[str, int]]
) -> None:
    files, cache = watched(), Descriptors(limit)
    for step, number in steps:
        match step:
            case "keep":
                keep(cache, str(number), opened(files))
                assert cache.find(str(number)) is not None
            case "find":
                cache.find(str(number))
            case "forget":
                cache.forget(str(number))
                assert cache.find(str(number)) is None
            case _:
                cache.shrink(number)
                assert len(cache) <= number
        assert len(files.open_now) == len(cache) <= limit


def test_closing_twice_closes_once(tmp_path: Path) -> None:
    files = watched()
    descriptor = opened(files)
    descriptor.close()
    other = os.open(tmp_path, os.O_RDONLY)  # may have the number that became free
    descriptor.close()
    del descriptor
    os.fstat(other)
    os.close(other)
