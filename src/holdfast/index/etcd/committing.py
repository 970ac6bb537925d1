"""Commits of all callers, gathered and spread over a few lanes.

A lane that is free takes what waits; so a single commit goes at once, and a busy node puts many into one
transaction of etcd while the lanes before are under way. What must hold: the transactions of one call are
decided in their order; a call is answered with Unavailable only when nothing of it can ever be committed.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from msgspec import Struct

from holdfast.base.errors import Fenced, HoldfastError, Unavailable
from holdfast.index.etcd.connections import Unanswered
from holdfast.index.etcd.lane import Lane
from holdfast.index.etcd.planning import Item
from holdfast.index.etcd.schema import PLACES
from holdfast.index.port import Committed, Outcome, Unknown


class _Waiting(Struct):
    items: Sequence[Item]
    size: int
    future: asyncio.Future[list[Outcome]]
    outcomes: list[Outcome]


class Committer:
    """`batch_bytes` bounds what one lane takes at once; `tell` hears of each revision that was committed and
    of the error that fences."""

    def __init__(
        self,
        new_lane: Callable[[], Lane],
        *,
        lanes: int,
        batch_bytes: int,
        tell: Callable[[int | Fenced], None],
    ) -> None:
        self._new_lane = new_lane
        self._free: list[Lane] = [new_lane() for _ in range(lanes)]
        self._batch_bytes = batch_bytes
        self._tell = tell
        self._queue: deque[_Waiting] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def commit(self, items: Sequence[Item], size: int) -> list[Outcome]:
        """The outcomes of all. Cancelling it leaves them unknown."""
        if self._closed:
            raise Unavailable("The index is closed.")
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(items, size, future, []))
        self._begin()
        return await future

    def _begin(self) -> None:
        while self._queue and self._free and not self._closed:
            task = asyncio.create_task(
                self._run(self._free.pop(), self._take()), name="holdfast index commit"
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[_Waiting]:
        """Calls in their order, whole; at least one."""
        taken: list[_Waiting] = []
        count = size = 0
        while self._queue:
            following = self._queue[0]
            count += len(following.items)
            size += following.size
            if taken and (count > PLACES or size > self._batch_bytes):
                break
            taken.append(self._queue.popleft())
        return taken

    async def _run(self, lane: Lane, taken: list[_Waiting]) -> None:
        try:
            await self._decide(lane, taken)
        except Unanswered as error:
            _give_up(taken, error, error.doubtful)
        except HoldfastError as error:
            if isinstance(error, Fenced):
                self._tell(error)
            _give_up(taken, error, doubtful=False)
        except asyncio.CancelledError:
            _give_up(taken, Unavailable("The index was closed."), doubtful=True)
            raise
        except Exception as error:
            # Our own mistake: what was sent may be there; the other lanes go on.
            lane.broken = True
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a commit to etcd failed", "exception": error}
            )
            _give_up(taken, Unavailable(f"{type(error).__name__}: {error}"), doubtful=True)
        finally:
            self._free.append(self._new_lane() if lane.broken else lane)
            self._begin()

    async def _decide(self, lane: Lane, taken: list[_Waiting]) -> None:
        waiting = deque(taken)
        items = [item for call in taken for item in call.items]
        at = 0
        while at < len(items):
            outcomes = await lane.decide(items[at : at + PLACES])
            at += len(outcomes)
            for outcome in outcomes:
                if isinstance(outcome, Committed):
                    self._tell(outcome.revision)
                call = waiting[0]
                call.outcomes.append(outcome)
                if len(call.outcomes) == len(call.items):
                    waiting.popleft()
                    if not call.future.done():
                        call.future.set_result(call.outcomes)

    async def close(self) -> None:
        """Fail what waits, and what is under way with Unknown."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._queue:
            call = self._queue.popleft()
            if not call.future.done():
                call.future.set_exception(Unavailable("The index is closed."))


def _give_up(taken: Sequence[_Waiting], error: HoldfastError, doubtful: bool) -> None:
    """Answer whoever was not answered yet."""
    for call in taken:
        if call.future.done():
            continue
        if doubtful or any(isinstance(outcome, Committed) for outcome in call.outcomes):
            left = len(call.items) - len(call.outcomes)
            call.future.set_result([*call.outcomes, *([Unknown(str(error))] * left)])
        else:
            call.future.set_exception(error)
