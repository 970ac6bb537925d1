"""One hop for many gets: to the serving copy, and to another one when that fails or is overdue.

What must hold: an absence is answered only when a second copy, if there is one that answers, says so, too;
and no batch is waited for beyond its deadline, because all gets after it wait behind it.
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from holdfast.index.port import Row
from holdfast.index.sqlite.copy_place import Copy, CopyOptions


class Get:
    """One call of `get` that waits."""

    __slots__ = ("future", "keys")

    def __init__(self, keys: Sequence[bytes], future: "asyncio.Future[list[Row | None]]") -> None:
        self.keys = keys
        self.future = future


class TheCopies(Protocol):
    """What a batch needs to know of the copies and tells them."""

    options: CopyOptions
    serving: Copy | None

    def ready(self) -> list[Copy]: ...

    def overdue(self, copy: Copy) -> None: ...

    def discard(self, copy: Copy, reason: str) -> None: ...

    def stall(self, batch: list[Get]) -> None: ...

    def finish(self, batch: list[Get], found: dict[bytes, Row | None]) -> None: ...


class Batch:
    """One hop for many gets: to the serving copy, to another one when that fails or is overdue."""

    def __init__(self, copies: TheCopies, gets: list[Get], keys: list[bytes], deadline: float) -> None:
        self._copies = copies
        self.deadline = deadline
        self._gets = gets
        self._keys = keys
        self._asked: list[Copy] = []
        self._outstanding = 0
        self._timer: asyncio.TimerHandle | None = None
        self._found: dict[bytes, Row | None] | None = None
        self._absent: list[bytes] = []
        self._over = False

    def ask(self) -> None:
        """Ask the next copy that has not been asked, if there is one."""
        copies = self._copies
        ready = [copy for copy in copies.ready() if copy not in self._asked]
        if not ready:
            if not self._outstanding:
                self._give_up()
            else:
                # One that becomes ready later is asked then.
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(copies.options.hedge_s, self._late, None)
            return
        ready.sort(key=lambda copy: (copy.slow_since is not None, copy is not copies.serving))
        copy = ready[0]
        assert copy.reader is not None
        assert copy.reading is not None
        self._asked.append(copy)
        self._outstanding += 1
        keys = self._keys if self._found is None else self._absent
        future = copy.reading.submit(partial(copy.reader.get, keys))
        future.add_done_callback(lambda done: self._answered(copy, keys, done))
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(copies.options.hedge_s, self._late, copy)

    def _late(self, copy: Copy | None) -> None:
        self._timer = None
        if self._over:
            return
        if copy is not None:
            self._copies.overdue(copy)
        if self._found is not None:
            # The second opinion on what is absent does not come: better one than none.
            self._end(self._found)
            return
        self.ask()

    def _answered(self, copy: Copy, keys: list[bytes], future: "asyncio.Future[list[Row | None]]") -> None:
        self._outstanding -= 1
        copy.slow_since = None
        if self._over:
            if not future.cancelled():
                future.exception()
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if future.cancelled() or (error := future.exception()) is not None:
            self._copies.discard(copy, "cancelled" if future.cancelled() else str(error))
            if self._found is not None:
                self._second_opinion()
            else:
                self.ask()
            return
        rows = dict(zip(keys, future.result(), strict=True))
        if self._found is None:
            self._found = rows
            self._first = copy
            self._absent = [key for key, row in rows.items() if row is None]
            self._second_opinion()
            return
        # One that was asked first and is late was asked for more than for an opinion on what is absent.
        present = {key: row for key in self._absent if (row := rows[key]) is not None}
        if present:
            self._copies.discard(self._first, f"row {next(iter(present))!r} was missing")
        self._end({**self._found, **present})

    def _second_opinion(self) -> None:
        copies = self._copies
        assert self._found is not None
        others = [copy for copy in copies.ready() if copy not in self._asked and copy.slow_since is None]
        if self._absent and others and copies.options.confirm_absence:
            self.ask()
        else:
            self._end(self._found)

    def abandon(self) -> list[Get]:
        """Wait no more; the gets that have no answer."""
        self._stop()
        return self._gets

    def _give_up(self) -> None:
        self._stop()
        self._copies.stall(self._gets)

    def _end(self, found: dict[bytes, Row | None]) -> None:
        self._stop()
        self._copies.finish(self._gets, found)

    def _stop(self) -> None:
        self._over = True
        if self._timer is not None:
            self._timer.cancel()
