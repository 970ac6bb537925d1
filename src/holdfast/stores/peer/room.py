"""Room that many share: so much of something at once, first come, first served.

Whoever takes must give back as much. What must hold: who waits is served in the order of coming, a large
wish is not overtaken for ever by small ones; who gives up waiting, or is out of time, leaves no trace.
"""

import asyncio
from collections import deque


class Room:
    """`total` of something, and at most `waiting_max` who wait for some of it."""

    def __init__(self, total: int, waiting_max: int) -> None:
        self._total = total
        self._free = total
        self._waiting_max = waiting_max
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken(self) -> int:
        """How much is out."""
        return self._total - self._free

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def take_now(self, amount: int = 1) -> bool:
        """Take it if it is there and nobody waits."""
        if self._waiting or amount > self._free:
            return False
        self._free -= amount
        return True

    async def take(self, amount: int, deadline: float) -> bool:
        """Take it, waiting until `deadline` (of the loop's clock) at most; False when too many wait already.
        Raises TimeoutError."""
        assert amount <= self._total, "more than there is"
        if self.take_now(amount):
            return True
        if len(self._waiting) >= self._waiting_max:
            return False
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        entry = (amount, turn)
        self._waiting.append(entry)
        timer = loop.call_at(deadline, _expire, turn)
        try:
            await turn
        except BaseException:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif turn.done() and not turn.cancelled() and turn.exception() is None:
                self._free += amount
            self._pass_on()
            raise
        finally:
            timer.cancel()
        return True

    def give(self, amount: int = 1) -> None:
        """Give back what was taken."""
        self._free += amount
        assert self._free <= self._total, "given back twice"
        if self._waiting:
            self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            amount, turn = self._waiting[0]
            if turn.done():
                self._waiting.popleft()
                continue
            if amount > self._free:
                return
            self._waiting.popleft()
            self._free -= amount
            turn.set_result(None)


def _expire(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(TimeoutError())
