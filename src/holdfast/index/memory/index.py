"""The index port over rows in memory, with faults on command.

It keeps every promise of the port, so that what is built on it can be simulated: commits may take a
delay by the injected clock, and a script of faults makes the next commits end as Unknown (applied, not
applied, or applied later) or raise Unavailable. A commit that was cancelled may still be applied, as
in every real engine.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from enum import Enum

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, Unavailable
from holdfast.index.leases import ProcessLeases
from holdfast.index.memory.rows import MemoryRows
from holdfast.index.port import (
    Change,
    IndexState,
    IndexStatus,
    Lease,
    MemberStatus,
    Outcome,
    Prefix,
    Row,
    Transaction,
    Unknown,
)
from holdfast.index.rules import check_all, check_scan

_CHANGES_AT_ONCE = 256


class Mishap(Enum):
    """How a commit goes wrong."""

    APPLIED = "unknown, and it was applied"
    NOT_APPLIED = "unknown, and it was not applied"
    APPLIED_LATER = "unknown, and it is decided and applied after `delay_s`"
    UNAVAILABLE = "raises Unavailable, nothing was applied"


class Fault(Struct, frozen=True):
    """What happens to one commit call."""

    mishap: Mishap
    delay_s: float = 0.0


class MemoryIndex:
    """The port over `rows` (new ones if none are given), whose earlier owner is fenced.

    `faults` is the script: each commit call takes the first fault from it; when it is empty, commits
    succeed. `commit_delay_s` is how long a commit takes; it is read at each commit. While `away`,
    every call raises Unavailable.
    """

    def __init__(self, clock: Clock, rows: MemoryRows | None = None, *, commit_delay_s: float = 0.0) -> None:
        self.rows = rows if rows is not None else MemoryRows()
        self.faults: deque[Fault] = deque()
        self.commit_delay_s = commit_delay_s
        self.away = False
        self._clock = clock
        self._owner = self.rows.open()
        self._closed = False
        self._leases = ProcessLeases(self, clock)
        self._tasks: set[asyncio.Task[list[Outcome]]] = set()
        self._waiting: set[asyncio.Future[None]] = set()

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        self._check()
        return [self.rows.get(key) for key in keys]

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, delimiter: bytes = b"", skip: int = 0
    ) -> list[Row | Prefix]:
        self._check()
        check_scan(limit, skip)
        return self.rows.scan(start, end, limit, delimiter, skip)

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        self._check()
        check_all(transactions)
        fault = self.faults.popleft() if self.faults else None
        if fault is not None:
            return await self._go_wrong(fault, transactions)
        if self.commit_delay_s <= 0:
            return self._apply(transactions)
        return await asyncio.shield(self._later(self.commit_delay_s, transactions))

    async def _go_wrong(self, fault: Fault, transactions: Sequence[Transaction]) -> list[Outcome]:
        if fault.mishap is Mishap.APPLIED_LATER:
            self._later(fault.delay_s, transactions)
            return [Unknown("fault: may be applied later")] * len(transactions)
        if fault.delay_s > 0:
            await self._clock.sleep(fault.delay_s)
            self._check()
        if fault.mishap is Mishap.UNAVAILABLE:
            raise Unavailable("The index is away.", hint="This is a scripted fault.")
        if fault.mishap is Mishap.APPLIED:
            self._apply(transactions)
        return [Unknown(f"fault: {fault.mishap.value}")] * len(transactions)

    def _later(self, delay_s: float, transactions: Sequence[Transaction]) -> asyncio.Task[list[Outcome]]:
        task = asyncio.get_running_loop().create_task(self._apply_after(delay_s, transactions))
        self._tasks.add(task)
        task.add_done_callback(self._finished)
        return task

    def _finished(self, task: asyncio.Task[list[Outcome]]) -> None:
        self._tasks.discard(task)
        # Nobody may be waiting any more for a commit that met a fence; its error is then nobody's.
        if not task.cancelled():
            task.exception()

    async def _apply_after(self, delay_s: float, transactions: Sequence[Transaction]) -> list[Outcome]:
        try:
            await self._clock.sleep(delay_s)
        except asyncio.CancelledError:
            return [Unknown("The index was closed.")] * len(transactions)
        if error := self._error():
            # It was under way when the index went: the caller cannot know that it was not applied.
            return [Unknown(str(error))] * len(transactions)
        return self._apply(transactions)

    def _apply(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        outcomes = self.rows.apply(transactions)
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()
        return outcomes

    async def changes(self, after: int) -> AsyncIterator[Change]:
        while True:
            self._check()
            batch = self.rows.changes(after, _CHANGES_AT_ONCE)
            for change in batch:
                yield change
                after = change.revision
            if not batch:
                future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiting.add(future)
                try:
                    await future
                finally:
                    self._waiting.discard(future)

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        return await self._leases.acquire(name, holder, ttl_s=ttl_s)

    async def release(self, lease: Lease) -> None:
        await self._leases.release(lease)

    def status(self) -> IndexStatus:
        state = IndexState.SERVING
        if error := self._error():
            state = IndexState.FENCED if isinstance(error, Fenced) else IndexState.UNAVAILABLE
        member = MemberStatus("memory", "current" if state is IndexState.SERVING else "out")
        return IndexStatus(state, "memory", self.rows.incarnation, self.rows.revision, (member,), 0)

    async def close(self) -> None:
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _check(self) -> None:
        if error := self._error():
            raise error

    def _error(self) -> HoldfastError | None:
        if self._closed:
            return Unavailable("The index is closed.")
        if self._owner != self.rows.owner:
            return Fenced("Another process has taken over the index.", hint="Stop this one.")
        if self.away:
            return Unavailable("The index is away.", hint="This is a scripted fault.")
        return None
