"""All rows of a copy, read step by step in the thread of a runner: to add them up, or as a checkpoint.

What must hold: nobody waits for a step longer than is said; and what was opened for it is closed in that same
thread, behind whatever hangs there, also when whoever wanted it gave up while it was being opened.
"""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import TypeVar

from holdfast.index.sqlite import checkpoint as ckpt
from holdfast.index.sqlite.checkpoint import Base
from holdfast.index.sqlite.copy import CopyDump, CopyFiles
from holdfast.index.sqlite.copy_place import CopyOverdue
from holdfast.index.sqlite.runner import Runner

_T = TypeVar("_T")


async def timely(future: "asyncio.Future[_T]", overdue_s: float) -> "_T":
    """What a call answers. Raises CopyOverdue when it does not, and what it raises."""
    try:
        async with asyncio.timeout(overdue_s):
            return await future
    except TimeoutError:
        raise CopyOverdue(f"no answer for {overdue_s:g} s") from None


class Dumping:
    """One dump, in the thread of `runner`."""

    def __init__(self, files: CopyFiles, runner: Runner, overdue_s: float) -> None:
        self._files = files
        self._runner = runner
        self._overdue_s = overdue_s
        self._dump: CopyDump | None = None

    async def add_up(self) -> None:
        """Whether all rows are there, and none in an older state. Raises CopyFailed."""
        await timely(self._runner.submit(self._open), self._overdue_s)
        while await timely(self._runner.submit(self._opened().add_up), self._overdue_s):
            pass

    async def blocks(self) -> AsyncGenerator[tuple[Base, bytes], None]:
        """(base, raw block) of a checkpoint of the rows at one moment, its end last. A copy that has lost
        rows gives no end. Raises CopyFailed."""
        base = await timely(self._runner.submit(self._open), self._overdue_s)
        number = count = 0
        while True:
            rows, raw = await timely(self._runner.submit(partial(self._block, base, number)), self._overdue_s)
            if not rows:
                break
            yield base, raw
            number, count = number + 1, count + rows
        while await timely(self._runner.submit(self._opened().add_up), self._overdue_s):
            pass
        yield base, ckpt.pack_end(base, number, count)

    def close(self) -> None:
        """To be called by the runner, after all else: what is there by then is closed."""
        if self._dump is not None:
            self._dump.close()

    def _open(self) -> Base:
        self._dump = CopyDump(self._files)
        return self._dump.base()

    def _opened(self) -> CopyDump:
        assert self._dump is not None
        return self._dump

    def _block(self, base: Base, number: int) -> tuple[int, bytes]:
        rows = self._opened().rows(ckpt.BLOCK_BYTES)
        return len(rows), ckpt.pack_block(base, number, rows) if rows else b""
