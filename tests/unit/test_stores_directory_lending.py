"""What direct reads lend is nobody else's while one view of it is left, and is lent again after that."""

import ctypes
import random
import threading

import pytest

from holdfast.stores.directory import lending
from holdfast.stores.directory.lending import ALIGNMENT, KEPT_MAX, READ_BYTES_MAX, lend


def address(view: memoryview) -> int:
    return int(ctypes.addressof(ctypes.c_char.from_buffer(view)))


@pytest.mark.parametrize("size", [1, ALIGNMENT, ALIGNMENT + 1, READ_BYTES_MAX, READ_BYTES_MAX + 1])
def test_it_is_aligned_and_as_large_as_a_direct_read_of_so_much_takes(size: int) -> None:
    view = lend(size)
    assert size <= len(view) < size + ALIGNMENT
    assert len(view) % ALIGNMENT == 0
    assert address(view) % ALIGNMENT == 0
    assert (view.format, view.readonly) == ("B", False)


def test_a_slice_of_a_slice_keeps_it_from_others() -> None:
    whole = lend(READ_BYTES_MAX)
    whole[5000:5004] = b"mine"
    mine = memoryview(whole[4096:8192])[904:908]
    begin = address(whole)
    del whole
    others = [lend(READ_BYTES_MAX) for _ in range(2 * KEPT_MAX)]
    for other in others:
        other[:] = bytes(len(other))
    assert bytes(mine) == b"mine"
    assert begin not in {address(other) for other in others}


def test_it_is_lent_again_when_the_last_view_is_gone() -> None:
    first = lend(100)
    begin, part = address(first), first[10:20]
    del first
    assert address(lend(100)) != begin
    del part
    assert begin in {address(view) for view in [lend(100) for _ in range(KEPT_MAX)]}


def test_no_more_is_kept_than_was_said() -> None:
    views = [lend(100) for _ in range(KEPT_MAX + 10)]
    assert len(lending._lent) >= KEPT_MAX + 10
    views.clear()
    assert 0 < len(lending._free) <= KEPT_MAX


def test_threads_never_share_what_they_hold() -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        chance = random.Random(number)
        held: list[tuple[memoryview, bytes]] = []
        for _ in range(400):
            view = lend(chance.randrange(1, READ_BYTES_MAX))
            mark = chance.randbytes(min(len(view), 64))
            view[: len(mark)] = mark
            held.append((view[: len(mark)], mark))
            del view
            if len(held) > 5:
                kept, was = held.pop(chance.randrange(len(held)))
                if bytes(kept) != was:
                    wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
