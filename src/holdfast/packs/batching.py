"""Group commit: small pieces that arrive while packs are being written share the next one.

A piece that finds nothing being written goes at once, alone if need be; no timer holds it. Under load, as
many pieces as arrived during a write travel together: disks that sync one thing at a time carry more in few
large packs than in many small ones. Another write begins beside the first when a full batch is waiting,
or when the first takes much longer than writes have taken of late, so that a slow one does not stop all. A
write counts until its commit has ended, too: syncs of log and shards side by side slow each other where
they share a device, and fewer, larger packs cost less of everything. A piece that fails
(its own fault) fails alone; a pack that cannot be written fails all that were in it, none of them visible.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from holdfast.base.clock import Clock
from holdfast.base.errors import Busy
from holdfast.packs.layout import BLOCK_BYTES
from holdfast.packs.model import Appended, Piece

BATCH_BYTES_MAX = 2 << 20
BATCH_PIECES_MAX = 256
WRITES_IN_FLIGHT_MAX = 4
LATE_FACTOR = 3.0
LATE_MIN_S = 0.005
WAITING_BYTES_MAX = 64 << 20
"""Beyond this, whoever comes is turned away: the stores are slower than the clients."""

WriteBatch = Callable[[Sequence[Piece]], Awaitable[Sequence[Appended | Exception]]]
"""Writes a pack of pieces and commits them; one answer each."""


def aligned(offset: int, length: int) -> int:
    """Where a piece that could begin at `offset` begins, so that reading it touches no more blocks than
    it must, unless that would waste more than an eighth of it."""
    padding = -offset % BLOCK_BYTES
    fewest = -(-length // BLOCK_BYTES)
    touched = (offset % BLOCK_BYTES + length + BLOCK_BYTES - 1) // BLOCK_BYTES
    return offset + padding if touched > fewest and padding * 8 <= length else offset


class Batcher:
    """The pack that is filling, for one scheme."""

    def __init__(self, write: WriteBatch, clock: Clock) -> None:
        self._write = write
        self._clock = clock
        self._filling: list[tuple[Piece, asyncio.Future[Appended]]] = []
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing = 0
        self._usual_s = LATE_MIN_S
        self._begun = False
        self._timer: asyncio.TimerHandle | None = None

    async def append(self, piece: Piece) -> Appended:
        """Hand in a piece; returns when its pack and transaction are decided."""
        if self._bytes + len(piece.data) > WAITING_BYTES_MAX:
            raise Busy("More small writes are waiting than there is memory for.", hint="Slow down.")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Appended] = loop.create_future()
        self._filling.append((piece, future))
        self._bytes += len(piece.data)
        if not self._begun and (self._writing == 0 or self._is_full):
            # Not at once: what else is ready in this turn of the loop comes along.
            self._begun = True
            loop.call_soon(self._begin)
        return await future

    @property
    def _is_full(self) -> bool:
        return self._bytes >= BATCH_BYTES_MAX or len(self._filling) >= BATCH_PIECES_MAX

    def _begin(self, late: bool = False) -> None:
        self._begun = False
        while self._filling and self._writing < WRITES_IN_FLIGHT_MAX:
            if self._writing and not self._is_full and not late:
                break
            late = False
            size = count = 0
            for piece, _ in self._filling:
                if count and (size + len(piece.data) > BATCH_BYTES_MAX or count == BATCH_PIECES_MAX):
                    break
                size += len(piece.data)
                count += 1
            batch, self._filling = self._filling[:count], self._filling[count:]
            self._bytes -= size
            self._writing += 1
            task = asyncio.create_task(self._flush(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._watch()

    def _watch(self) -> None:
        """While a write is under way, see to it that a late one does not stop those behind it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if 0 < self._writing < WRITES_IN_FLIGHT_MAX:
            wait_s = max(LATE_MIN_S, LATE_FACTOR * self._usual_s)
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._begin, True)

    def _ended(self, seconds: float) -> None:
        self._writing -= 1
        self._usual_s += (seconds - self._usual_s) / 8
        self._begin()

    async def _flush(self, batch: list[tuple[Piece, asyncio.Future[Appended]]]) -> None:
        batch = [(piece, future) for piece, future in batch if not future.done()]
        began = self._clock.monotonic()
        try:
            results = await self._write([piece for piece, _ in batch]) if batch else ()
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(_copy(error))
            if not isinstance(error, Exception):
                raise
            return
        finally:
            self._ended(self._clock.monotonic() - began)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)


def _copy(error: BaseException) -> BaseException:
    """The same error for many waiters: each raises its own, or tracebacks would grow in one."""
    if isinstance(error, Exception) and hasattr(error, "message"):
        copy = type(error).__new__(type(error))
        copy.__dict__.update(error.__dict__)
        copy.args = error.args
        copy.__cause__ = error
        return copy
    return error if isinstance(error, Exception) else asyncio.CancelledError()
