"""A place for a copy of the rows: how to reach it, again and again, and what is open there."""

import asyncio
from enum import Enum
from typing import Protocol

from msgspec import Struct

from holdfast.index.port import MemberStatus
from holdfast.index.sqlite.checkpoint import Base
from holdfast.index.sqlite.copy import CopyFailed, CopyFiles, CopyReader, CopyWriter
from holdfast.index.sqlite.runner import Runner


class CopyOverdue(CopyFailed):
    """The copy may be whole, but it does not answer in time."""


class CopyAccess(Protocol):
    """How to get at a place for a copy, again and again."""

    @property
    def name(self) -> str: ...

    @property
    def place(self) -> str:
        """Where it is, for a person."""
        ...

    def files(self) -> CopyFiles: ...

    def new_runner(self, purpose: str) -> Runner: ...


class CopyOptions(Struct, frozen=True, kw_only=True):
    """`kept`: how many copies are kept; None is f + 1 for a log of 2f + 1 members. `hedge_s`: a read that
    takes longer goes to another copy, too. `overdue_s`: applying that takes longer costs a copy its place.
    `retry_s`: how often one that failed is tried again. `linger_s`: how long the serving copy gathers
    records before it applies them, and `linger_others_s` the others. `apply_bytes` and
    `apply_others_bytes`: log bytes that end the gathering. A scan that waits ends it at once.
    `confirm_absence`: a second copy has to agree that a key is not there. `add_up_s`: how often the rows of
    an open copy are added up."""

    kept: int | None = None
    hedge_s: float = 0.1
    overdue_s: float = 10.0
    retry_s: float = 2.0
    linger_s: float = 0.25
    linger_others_s: float = 2.0
    apply_bytes: int = 1 << 20
    apply_others_bytes: int = 6 << 20
    confirm_absence: bool = True
    add_up_s: float = 3600.0


class CopyState(Enum):
    """Where a copy stands."""

    IDLE = "idle"
    BUILDING = "building"
    READY = "ready"
    FAILED = "failed"


class Copy:
    """One place and what is open there."""

    def __init__(self, access: CopyAccess) -> None:
        self.access = access
        self.state = CopyState.IDLE
        self.reason = ""
        self.base: Base | None = None
        self.reader: CopyReader | None = None
        self.reading: Runner | None = None
        self.writing: Runner | None = None
        self.writer: CopyWriter | None = None
        self.task: asyncio.Task[None] | None = None
        self.wake = asyncio.Event()
        self.hurry = False
        self.judged = False
        self.lingers_to: int | None = None
        self.slow_since: float | None = None
        self.renew = False
        self.promising = True
        """Whether a try may help: not used yet, written by another process, or not made anew yet."""
        self.added_up = 0.0
        self.bytes_seen = 0
        self.left: list[Runner] = []
        self.closing: list[asyncio.Future[None] | None] = []

    @property
    def applied(self) -> int:
        return self.base.sequence if self.base else 0

    def status(self, *, needed: bool) -> MemberStatus:
        """For people. Where others stand in for one that failed, its place is as good as one never used."""
        state = CopyState.IDLE if self.state is CopyState.FAILED and not needed else self.state
        return MemberStatus(f"copy {self.access.name}", state.value, self.reason or self.access.place)

    def let_go(self) -> None:
        """Close what is open, behind whatever hangs there."""
        self.closing = [future for future in self.closing if future is not None and not future.done()]
        if self.reading is not None:
            self.closing.append(self.reading.close(self.reader.close if self.reader else None))
            self.left.append(self.reading)
        if self.writing is not None:
            self.closing.append(self.writing.close(self.writer.close if self.writer else None))
            self.left.append(self.writing)
        self.reader = self.writer = self.reading = self.writing = None

    async def end(self) -> None:
        """Cancel what keeps it, and wait until that has let go."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)

    @property
    def hangs(self) -> bool:
        self.left = [runner for runner in self.left if runner.busy]
        return bool(self.left)
