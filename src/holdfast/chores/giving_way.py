"""The clock of chores: its `sleep(0)`, by which they give way between two pieces of work, rests for as long
as the throttle says.

So whatever a chore calls, down to reading one stripe of a pack, is cut into small pieces of work with rests
between them, and knows nothing of it. A piece is what the task did since its last rest; waiting for a disk
is work, too, because the disk is what clients wait for. What must hold: outside of a chore this is the clock
that it was made of.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.chores.throttle import Throttle

REST_MAX_S = 5.0


class Tally(Struct):
    """Time at work of one chore."""

    worked_s: float = 0.0


class _Piece(Struct):
    """A piece of work. `task` is whose it is: tasks that it begins inherit it, and rest for themselves, but
    their work is counted as part of it."""

    began: float
    tally: Tally
    urgent: bool
    pressure: float
    task: asyncio.Task[object] | None


_piece: ContextVar[_Piece | None] = ContextVar("piece of work", default=None)


class GivingWay:
    """A Clock. `under_way` says how many requests of clients are."""

    def __init__(self, clock: Clock, throttle: Throttle, under_way: Callable[[], int]) -> None:
        self._clock = clock
        self._under_way = under_way
        self.throttle = throttle

    def monotonic(self) -> float:
        """As the clock's."""
        return self._clock.monotonic()

    def aging(self) -> float:
        """As the clock's."""
        return self._clock.aging()

    def wall(self) -> float:
        """As the clock's."""
        return self._clock.wall()

    async def sleep(self, seconds: float) -> None:
        """As the clock's; in a chore, 0 stands for as long as the throttle says."""
        piece = _piece.get()
        if piece is None:
            await self._clock.sleep(seconds)
            return
        if piece.task is not asyncio.current_task():
            worked_s = self._clock.monotonic() - piece.began
            await self._clock.sleep(seconds or self._rest_s(worked_s, piece))
            began = self._clock.monotonic()
            _piece.set(_Piece(began, piece.tally, piece.urgent, piece.pressure, piece.task))
            return
        now = self._clock.monotonic()
        worked_s = now - piece.began
        piece.tally.worked_s += worked_s
        self.throttle.end(now)
        try:
            await self._clock.sleep(seconds or self._rest_s(worked_s, piece))
        finally:
            self.throttle.begin()
            piece.began = self._clock.monotonic()

    @contextmanager
    def work(self, tally: Tally, *, urgent: bool = False, pressure: float = 0.0) -> Iterator[None]:
        """What is done within is a chore's work."""
        piece = _Piece(self._clock.monotonic(), tally, urgent, pressure, asyncio.current_task())
        self.throttle.enter(pressure)
        token = _piece.set(piece)
        try:
            yield
        finally:
            now = self._clock.monotonic()
            self.throttle.leave(now, pressure)
            tally.worked_s += now - piece.began
            _piece.reset(token)

    @property
    def is_idle(self) -> bool:
        """Whether no client is there, so that more may be done at once."""
        now = self._clock.monotonic()
        self.throttle.clients(self._under_way(), now)
        return self.throttle.is_idle(now)

    def _rest_s(self, worked_s: float, piece: _Piece) -> float:
        now = self._clock.monotonic()
        self.throttle.clients(self._under_way(), now)
        rest_s = self.throttle.rest_s(worked_s, now, urgent=piece.urgent, pressure=piece.pressure)
        return min(rest_s, REST_MAX_S)
