"""A hung call costs its store a thread, and nobody else anything."""

import asyncio
import gc
import itertools
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future

import pytest

from holdfast.stores.directory.pool import Lane
from holdfast.stores.port import StoreBusy, StoreFailed, StoreOverdue

T = 60.0


class Hung:
    """Calls that stay in the kernel until they are let go."""

    def __init__(self) -> None:
        self.let_go = threading.Event()
        self.entered = threading.Semaphore(0)

    def call(self) -> str:
        self.entered.release()
        assert self.let_go.wait(T)
        return "late"


async def hang(lane: Lane, call: Callable[[], str]) -> None:
    """Hold one more thread of a lane with a call that is given up. On a busy machine a thread may come to it
    when it is too late, and then it never runs."""
    held, patience_s = lane.overdue, 0.02
    while lane.overdue == held:
        with pytest.raises(StoreOverdue):
            await lane.run(call, timeout_s=patience_s)
        patience_s *= 2


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """A thread will make it true; nobody is told when."""
    async with asyncio.timeout(T):
        for _ in itertools.count():
            if condition():
                return
            await asyncio.sleep(0.001)


async def test_results_and_errors_come_back() -> None:
    lane = Lane("test", threads=2, waiting_max=10)
    assert await lane.run(lambda a, b: a + b, 1, 2, timeout_s=T) == 3
    with pytest.raises(ZeroDivisionError):
        await lane.run(lambda: 1 // 0, timeout_s=T)
    lane.close()


async def test_an_overdue_call_is_answered_while_its_thread_stays_occupied() -> None:
    lane, hung = Lane("test", threads=1, waiting_max=10), Hung()
    await hang(lane, hung.call)
    assert lane.overdue == 1
    # No thread is left: refused at once, instead of waiting for nothing.
    with pytest.raises(StoreBusy, match="overdue"):
        await lane.run(lambda: 1, timeout_s=T)
    hung.let_go.set()
    await until(lambda: lane.overdue == 0)
    assert await lane.run(lambda: "back", timeout_s=T) == "back"
    lane.close()


async def test_one_hung_call_leaves_the_other_threads_free() -> None:
    lane, hung = Lane("test", threads=2, waiting_max=10), Hung()
    await hang(lane, hung.call)
    assert await asyncio.gather(*(lane.run(lambda: 1, timeout_s=T) for _ in range(10))) == [1] * 10
    hung.let_go.set()
    lane.close()


async def test_too_many_waiting_calls_are_refused_at_once() -> None:
    lane, hung = Lane("test", threads=1, waiting_max=2), Hung()
    calls = [asyncio.ensure_future(lane.run(hung.call, timeout_s=T)) for _ in range(3)]
    await settled()
    with pytest.raises(StoreBusy):
        await lane.run(lambda: 1, timeout_s=T)
    hung.let_go.set()
    assert await asyncio.gather(*calls) == ["late"] * 3
    lane.close()


async def test_a_call_that_was_overdue_before_its_turn_never_runs() -> None:
    lane, hung, ran = Lane("test", threads=1, waiting_max=5), Hung(), []
    first = asyncio.ensure_future(lane.run(hung.call, timeout_s=T))
    await settled()
    with pytest.raises(StoreOverdue):
        await lane.run(ran.append, "overdue", timeout_s=0.01)
    cancelled = asyncio.ensure_future(lane.run(ran.append, "cancelled", timeout_s=T))
    await settled()
    cancelled.cancel()
    await asyncio.wait([cancelled])
    assert lane.overdue == 0
    hung.let_go.set()
    await first
    await lane.run(ran.append, "last", timeout_s=T)
    assert ran == ["last"]
    lane.close()


async def test_places_of_calls_that_gave_up_waiting_are_free_again() -> None:
    lane, hung = Lane("test", threads=1, waiting_max=1), Hung()
    first = asyncio.ensure_future(lane.run(hung.call, timeout_s=T))
    await settled()
    for _ in range(5):
        with pytest.raises(StoreOverdue):
            await lane.run(lambda: 1, timeout_s=0.001)
    hung.let_go.set()
    await first
    lane.close()


async def test_a_call_that_was_cancelled_while_running_is_no_sign_of_a_hang() -> None:
    lane, hung = Lane("test", threads=1, waiting_max=1), Hung()
    call = asyncio.ensure_future(lane.run(hung.call, timeout_s=T))
    await asyncio.to_thread(hung.entered.acquire)
    call.cancel()
    await asyncio.wait([call])
    waiting = asyncio.ensure_future(lane.run(lambda: "next", timeout_s=T))
    await settled()
    hung.let_go.set()
    assert await waiting == "next"
    lane.close()


async def test_close_refuses_what_waits_and_what_comes_but_not_what_runs() -> None:
    lane, hung = Lane("test", threads=1, waiting_max=5), Hung()
    running = asyncio.ensure_future(lane.run(hung.call, timeout_s=T))
    await settled()
    waiting = asyncio.ensure_future(lane.run(lambda: 1, timeout_s=T))
    await asyncio.to_thread(hung.entered.acquire)
    lane.close()
    with pytest.raises(StoreFailed):
        await waiting
    with pytest.raises(StoreFailed):
        await lane.run(lambda: 1, timeout_s=T)
    hung.let_go.set()
    assert await running == "late"


async def test_threads_end_with_the_lane() -> None:
    before = threading.active_count()
    lane = Lane("ending", threads=3, waiting_max=10)
    await asyncio.gather(*(lane.run(lambda: 1, timeout_s=T) for _ in range(10)))
    lane.close()
    await until(lambda: all(thread.name != "holdfast ending" for thread in threading.enumerate()))
    assert threading.active_count() <= before + 1


def test_a_loop_that_was_closed_meanwhile_is_no_error() -> None:
    lane, hung, ended = Lane("test", threads=1, waiting_max=5), Hung(), Future[str]()

    def call() -> str:
        late = hung.call()
        ended.set_result("ended")
        return late

    asyncio.run(hang(lane, call))
    hung.let_go.set()
    assert ended.result(T) == "ended"

    async def again() -> int:
        await until(lambda: lane.overdue == 0)
        return await lane.run(lambda: 5, timeout_s=T)

    assert asyncio.run(again()) == 5
    lane.close()


async def test_nothing_holds_on_to_a_failed_calls_memory() -> None:
    class Buffer:
        pass

    def fail(buffer: Buffer) -> None:
        raise OSError("no")

    lane, buffer = Lane("test", threads=1, waiting_max=5), Buffer()
    kept = weakref.ref(buffer)
    gc.disable()
    try:
        with pytest.raises(OSError, match="no"):
            await lane.run(fail, buffer, timeout_s=T)
        del buffer
        await lane.run(lambda: 1, timeout_s=T)
        await settled()
        assert kept() is None
    finally:
        gc.enable()
    lane.close()


def test_process_exit_does_not_wait_for_a_hung_call() -> None:
    program = """
import asyncio, threading
from holdfast.stores.directory.pool import Lane
from holdfast.stores.port import StoreOverdue
async def main():
    try:
        await Lane("x", threads=1, waiting_max=1).run(threading.Event().wait, timeout_s=0.05)
    except StoreOverdue:
        print("overdue")
asyncio.run(main())
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "overdue\n", "")
