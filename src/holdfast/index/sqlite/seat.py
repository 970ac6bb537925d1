"""A member of the log as the process sees it: how to reach it, again and again, and what is in use of it.

What must hold: nothing waits for a member without a time limit, and a hung one never costs more than one
thread: it is only opened again when its last call has come back.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol, TypeVar

from msgspec import Struct

from holdfast.index.sqlite.folder import Folder, MemberFailed
from holdfast.index.sqlite.member import SEGMENT_BYTES, Member
from holdfast.index.sqlite.runner import Runner
from holdfast.index.sqlite.scan import Scan

T = TypeVar("T")


class MemberAccess(Protocol):
    """How to get at one member, again and again."""

    @property
    def name(self) -> str:
        """Who it is in the membership, for ever."""
        ...

    @property
    def place(self) -> str:
        """Where it is looked for, for a person."""
        ...

    def open_folder(self) -> Folder:
        """Called in the member's runner. Raises MemberFailed while it is not there."""
        ...

    def new_runner(self) -> Runner:
        """A runner of its own."""
        ...


class LogOptions(Struct, frozen=True, kw_only=True):
    """Times in seconds, sizes in bytes.

    `patience_s`: how long the start waits for a majority. `grace_s`: how much longer for the rest once there
    is one. `overdue_s`: an append that takes longer costs the member its place. `bulk_s`: the same for a scan
    or a piece of a copy. `reattach_s`: how often a member that is out is tried again. `tail_bytes`: how
    much of the newest log is kept in memory. `piece_bytes`: how much is sent or copied at once.
    """

    patience_s: float = 10.0
    grace_s: float = 2.0
    overdue_s: float = 2.0
    bulk_s: float = 30.0
    reattach_s: float = 2.0
    tail_bytes: int = 16 << 20
    piece_bytes: int = 4 << 20
    segment_bytes: int = SEGMENT_BYTES


class Seat:
    """One member as the log knows it: how to reach it and what is in use of it."""

    def __init__(self, access: MemberAccess) -> None:
        self.access = access
        self.runner: Runner | None = None
        self.member: Member | None = None
        self.task: asyncio.Task[None] | None = None
        self.trusted: int | None = None
        self.foreign = False
        self.log_bytes = 0
        self.checkpoint_bytes = 0
        self._left: Runner | None = None

    @property
    def name(self) -> str:
        return self.access.name

    def submit(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """In its runner."""
        assert self.runner is not None
        return self.runner.submit(call)

    async def ask(self, call: Callable[[], T], timeout_s: float) -> T:
        """In its runner, within `timeout_s`. Raises MemberFailed when that passes."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.submit(call)
        except TimeoutError:
            raise MemberFailed(
                f"{self.access.place} has not answered for {timeout_s:g} s.", place=self.access.place
            ) from None

    @property
    def hangs(self) -> bool:
        """Whether a call is still under way, here or in a runner that was left behind."""
        return any(runner is not None and runner.busy for runner in (self.runner, self._left))

    def let_go(self) -> asyncio.Future[None] | None:
        """Close what is open, behind whatever hangs there; the future, if there is one, tells when."""
        closing = None
        if self.runner is not None:
            closing = self.runner.close(self.member.close if self.member else None)
            self._left = self.runner
        self.runner = self.member = None
        return closing

    async def open(self, options: LogOptions) -> Scan:
        """Open and scan it afresh. Raises MemberFailed."""
        self.let_go()
        self.runner = self.access.new_runner()

        def work() -> tuple[Member, Scan]:
            folder = self.access.open_folder()
            try:
                member = Member(folder, options.segment_bytes)
                return member, member.scan()
            except BaseException:
                folder.close()
                raise

        self.member, scan = await self.ask(work, options.bulk_s)
        return scan
