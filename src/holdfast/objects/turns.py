"""Taking turns at a hot key, and taking turns at memory.

Writers of one key do not know of each other until they conflict in the index. From then on, those of
this node go one after the other, so that each gets through; writers of other keys never wait. A key is
hot for as long as somebody holds or awaits its turn.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from holdfast.base.errors import Busy
from holdfast.objects.errors import TooBusy


class _Turn:
    __slots__ = ("lock", "users")

    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.users = 0


class Turns:
    """One queue for each hot key."""

    def __init__(self, patience_s: float) -> None:
        self._turns: dict[bytes, _Turn] = {}
        self._patience_s = patience_s

    def hot(self, key: bytes) -> bool:
        """Whether writers of `key` take turns at the moment."""
        return key in self._turns

    @asynccontextmanager
    async def take(self, key: bytes) -> AsyncIterator[None]:
        """Wait for the turn; raises Busy when it does not come."""
        turn = self._turns.get(key)
        if turn is None:
            turn = self._turns[key] = _Turn()
        turn.users += 1
        try:
            try:
                async with asyncio.timeout(self._patience_s):
                    await turn.lock.acquire()
            except TimeoutError:
                raise Busy("Too many writes of this key at once.", hint="Try again.") from None
            try:
                yield
            finally:
                turn.lock.release()
        finally:
            turn.users -= 1
            if not turn.users:
                del self._turns[key]


class ByteBudget:
    """Bytes of memory, handed out first come, first served.

    What must hold: what is out never exceeds the total; a share that was not given back is still out. Whoever
    holds some and could do without is asked (`asked`) when somebody begins to wait.
    """

    def __init__(self, total: int, patience_s: float) -> None:
        self._total = total
        self._free = total
        self._patience_s = patience_s
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.asked: dict[object, Callable[[], None]] = {}

    @property
    def free(self) -> int:
        """What nobody has."""
        return self._free

    def take_now(self, size: int) -> bool:
        """Take `size` bytes, unless somebody waits for them or they are not free."""
        assert 0 <= size <= self._total, "more than there will ever be"
        if self._waiting or size > self._free:
            return False
        self._free -= size
        return True

    async def take(self, size: int) -> None:
        """Wait for `size` bytes; raises TooBusy when they do not come free in time."""
        if self.take_now(size):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (size, future)
        self._waiting.append(entry)
        for ask in tuple(self.asked.values()):
            ask()
        try:
            async with asyncio.timeout(self._patience_s):
                await future
        except BaseException as error:
            if future.done() and not future.cancelled():
                self.give(size)
            else:
                if entry in self._waiting:
                    self._waiting.remove(entry)
                self._wake()
            if isinstance(error, TimeoutError):
                raise TooBusy(
                    "The node has as many large bodies under way as it has memory for.",
                    hint="Try again in a moment.",
                ) from None
            raise

    def give(self, size: int) -> None:
        """Give back."""
        self._free += size
        assert self._free <= self._total, "more came back than was out"
        self._wake()

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            size, future = self._waiting.popleft()
            if not future.done():
                self._free -= size
                future.set_result(None)
