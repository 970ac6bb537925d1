"""The copies of the rows: kept on f + 1 places, one answers, the others follow and take over.

With f + 1 copies the loss of any f stores, which the log survives, too, never stops reads. What must hold:

- a copy is only ever advanced by acknowledged records, and is asked only when it has reached the floor of
  `LiveRows`.
- a copy that errs, returns a row that does not verify, lacks a row that another one has, or is overdue is
  no longer asked; the same question goes to another one. It is made anew from the log in the background.
- a copy is asked only when its rows have been added up since it was opened, and a checkpoint is made
  only of rows that add up: as a checkpoint they would be what the rows are from then on.
- that a key is absent is believed when a second copy says so, too: a damaged tree of pages can hide a
  row, and no checksum of a row can tell.
- SQLite never runs on the event loop. All gets that wait are answered by one hop to a thread.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import TypeVar

from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, HoldfastError, Unavailable
from holdfast.index.port import MemberStatus, Prefix, Row
from holdfast.index.sqlite import checkpoint as ckpt
from holdfast.index.sqlite.checkpoint import Base, empty_base
from holdfast.index.sqlite.copy import CopyFailed, CopyReader, CopyTaken, CopyWriter, ScanStep
from holdfast.index.sqlite.copy_batch import Batch, Get
from holdfast.index.sqlite.copy_dumping import Dumping, timely
from holdfast.index.sqlite.copy_place import Copy, CopyAccess, CopyOptions, CopyOverdue, CopyState
from holdfast.index.sqlite.live import LiveRows
from holdfast.index.sqlite.log import Log
from holdfast.index.sqlite.runner import Runner, ended

_T = TypeVar("_T")

_BATCH_KEYS_MAX = 256
_CLOSE_S = 1.0
_APPLY_BYTES_MAX = 6 << 20
_JUDGE_S = 1.0
"""How long the start waits, once a copy can answer, for what the others say of the log."""


class LogLost(Damaged):
    """A copy of the rows stands at a record that was acknowledged and is not in the log."""


class Copies:
    """All copies of one index."""

    def __init__(
        self,
        accesses: Sequence[CopyAccess],
        log: Log,
        live: LiveRows,
        clock: Clock,
        options: CopyOptions,
        patience_s: float,
    ) -> None:
        self._copies = [Copy(access) for access in accesses]
        self._log = log
        self._live = live
        self._clock = clock
        self.options = options
        self._patience_s = patience_s
        self.serving: Copy | None = None
        self._gets: list[Get] = []
        self._stalled: list[tuple[float, list[Get]]] = []
        self._answering = False
        self._batch: Batch | None = None
        self._acked_bytes = 0
        self._closed = False
        self._lost: LogLost | None = None
        self._tending: asyncio.Task[None] | None = None
        self._adding_up: asyncio.Task[None] | None = None
        self._events: set[asyncio.Future[None]] = set()

    # Life

    async def start(self, timeout_s: float) -> None:
        """Open or build copies; returns when one can answer. Raises Unavailable, LogLost."""
        self._begin_wanted()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self.ready():
                    if all(copy.task is None for copy in self._copies) and not self._begin_again():
                        break
                    await self._event()
        with suppress(TimeoutError):
            async with asyncio.timeout(_JUDGE_S):
                while any(copy.task is not None and not copy.judged for copy in self._copies):
                    await self._event()
        if self._lost is not None:
            # Unless it is another process whose copy it is.
            await self._log.refresh(_JUDGE_S)
            raise self._lost
        if not self.ready():
            raise Unavailable("No copy of the index can be read.", hint=self._reasons())
        self._tending = asyncio.get_running_loop().create_task(self._tend())

    def _begin_wanted(self) -> None:
        """Have as many copies as are wanted on the way: first where there was one, then elsewhere."""
        active = [copy for copy in self._copies if copy.state in (CopyState.READY, CopyState.BUILDING)]
        resting = [c for c in self._copies if c not in active and c.task is None and not c.hangs]
        resting.sort(key=lambda copy: copy.state is CopyState.FAILED)
        self._begin(resting[: max(0, (self.options.kept or 1) - len(active))])

    def _begin_again(self) -> bool:
        """For the start, when all that were begun have ended: whether there is a place left to try."""
        again = [copy for copy in self._copies if copy.promising and self._lost is None]
        again.sort(key=lambda copy: copy.state is CopyState.FAILED)
        self._begin(again[: self.options.kept or 1])
        return bool(again)

    def _begin(self, copies: Sequence[Copy]) -> None:
        for copy in copies:
            copy.state, copy.reason = CopyState.BUILDING, "being opened"
            copy.task = asyncio.get_running_loop().create_task(self._keep(copy))

    async def _tend(self) -> None:
        while True:
            await self._clock.sleep(self.options.retry_s)
            overdue = self._clock.monotonic() - self.options.overdue_s
            for copy in self.ready():
                if copy.slow_since is not None and copy.slow_since < overdue and copy.task is not None:
                    self._fail(copy, "reads hang")
                    copy.task.cancel()
            self._begin_wanted()
            if self._adding_up is None or self._adding_up.done():
                self._adding_up = asyncio.get_running_loop().create_task(self._add_up_oldest())

    async def _add_up_oldest(self) -> None:
        """Look after a copy that has not been added up for long: what spoils its pages while it is open shows
        in what it answers only when a row does not verify."""
        due = self._clock.monotonic() - self.options.add_up_s
        copy = min(self.ready(), key=lambda copy: copy.added_up, default=None)
        if copy is None or copy.added_up > due:
            return
        copy.added_up = self._clock.monotonic()
        runner = copy.access.new_runner("check")
        try:
            await self._add_up(copy, runner)
        except CopyOverdue:
            pass  # it may only be slow; reads that hang are noticed by themselves
        except CopyFailed as error:
            self.discard(copy, str(error))
        finally:
            runner.close(None)

    async def _keep(self, copy: Copy) -> None:
        """The life of one copy: open, make anew if need be, follow the log until it fails."""
        try:
            await self._open(copy)
            await self._follow(copy)
        except (HoldfastError, OSError) as error:
            taken = isinstance(error, CopyTaken)
            spoiled = isinstance(error, CopyFailed) and not taken and not isinstance(error, CopyOverdue)
            copy.promising = taken or (spoiled and not copy.renew)
            copy.renew |= spoiled
            self._fail(copy, str(error))
        finally:
            copy.let_go()
            copy.base = copy.slow_since = None
            copy.task = None
            copy.judged = False
            if copy.state in (CopyState.READY, CopyState.BUILDING):
                self._fail(copy, "stopped")
            self._happened()

    async def _open(self, copy: Copy) -> None:
        files = copy.access.files()
        writer = copy.writer = CopyWriter(files)
        runner = copy.writing = copy.access.new_runner("write")
        copy.reading = copy.access.new_runner("read")
        base = None
        try:
            if not copy.renew:
                base = await self._timely(runner.submit(writer.open))
        except CopyOverdue:
            raise
        except CopyFailed:
            base = None
        log = self._log
        if base is not None:
            self._check_log(copy, base)
        copy.judged = True
        self._happened()
        # It may be of another index, or too far behind the log.
        fits = (
            base is not None
            and base.incarnation == log.incarnation
            and base.sequence <= log.acked
            and log.hash_at(base.sequence) == base.hash
        )
        if base is not None and fits:
            copy.reason = "being added up"
            try:
                await self._add_up(copy, copy.reading)
            except CopyOverdue:
                raise
            except CopyFailed:
                fits = False
        if base is None or not fits:
            base = await self._build(copy, runner, writer)
            await self._add_up(copy, copy.reading)
        copy.base, copy.renew = base, False
        copy.added_up = self._clock.monotonic()
        reader = copy.reader = CopyReader(files)
        await self._timely(copy.reading.submit(reader.open))

    def _check_log(self, copy: Copy, base: Base) -> None:
        """A copy is only ever advanced by acknowledged records: one that the log does not have was lost, in
        more members than it can lose. The copy is left as it is: nothing else proves it. Raises LogLost."""
        log = self._log
        if base.incarnation != log.incarnation:
            return
        if base.sequence > log.acked or log.hash_at(base.sequence) not in (None, base.hash):
            self._lost = LogLost(
                f"The log of the index has lost changes that were acknowledged: the copy in "
                f"{copy.access.place} holds record {base.sequence}, and the log does not.",
                hint="Bring back members of the index that hold it. To go on without, move the copy away.",
                place=copy.access.place,
                sequence=base.sequence,
            )
            raise self._lost

    async def _add_up(self, copy: Copy, runner: Runner) -> None:
        """Whether all rows are there, and none in an older state. Raises CopyFailed."""
        dumping = Dumping(copy.access.files(), runner, self.options.overdue_s)
        try:
            await dumping.add_up()
        finally:
            # In its own thread: what it runs may hang, or be about to open only now.
            runner.submit(dumping.close)

    async def _build(self, copy: Copy, runner: Runner, writer: CopyWriter) -> Base:
        """From a checkpoint of the log; what follows it is applied by `_follow`."""
        copy.reason = "being built"
        base = empty_base(self._log.incarnation)
        await self._timely(runner.submit(writer.renew))
        async for found, number, raw in self._log.checkpoint_blocks():
            if number == 0 and base.sequence:
                await self._timely(runner.submit(writer.renew))
            base = found

            def load(base: Base = found, number: int = number, raw: bytes = raw) -> None:
                if ckpt.parse_end(raw, base) is None:
                    rows = ckpt.parse_block(raw, base, number)
                    assert rows is not None, "blocks are verified before they are handed out"
                    writer.load(rows)

            await self._timely(runner.submit(load))
        await self._timely(runner.submit(partial(writer.settle, base)))
        return base

    async def _timely(self, future: "asyncio.Future[_T]") -> "_T":
        return await timely(future, self.options.overdue_s)

    async def _follow(self, copy: Copy) -> None:
        """Apply what is acknowledged, in batches, for ever."""
        while True:
            base, writer, runner = copy.base, copy.writer, copy.writing
            assert base is not None
            assert writer is not None
            assert runner is not None
            if base.sequence < self._log.acked:
                if copy.state is CopyState.READY and not copy.hurry:
                    await self._linger(copy)
                records = self._log.recent(base.sequence, _APPLY_BYTES_MAX)
                if records is None:
                    self._fell_behind(copy)
                    records = await self._log.read(base.sequence)
                copy.base = await self._timely(runner.submit(partial(writer.apply, base, records)))
                self._advanced(copy)
                continue
            self._advanced(copy)
            copy.hurry = False
            copy.wake.clear()
            if copy.base is not None and copy.base.sequence < self._log.acked:
                continue
            await copy.wake.wait()

    def _fell_behind(self, copy: Copy) -> None:
        """It lacks more than is kept in memory. Unless it is the only one, the floor does not wait for it,
        and it is not asked until it has caught up."""
        if copy.state is CopyState.READY and len(self.ready()) > 1:
            copy.state, copy.reason = CopyState.BUILDING, "catching up"
            if copy is self.serving:
                self.serving = self.ready()[0]
            self._raise_floor()

    async def _linger(self, copy: Copy) -> None:
        """Gather records, unless somebody waits for them: larger batches cost less a row."""
        assert copy.base is not None
        options = self.options
        serves = copy is self.serving
        end = self._clock.monotonic() + (options.linger_s if serves else options.linger_others_s)
        copy.lingers_to = copy.bytes_seen + (options.apply_bytes if serves else options.apply_others_bytes)
        while not copy.hurry and self._acked_bytes < copy.lingers_to:
            copy.wake.clear()
            try:
                async with asyncio.timeout(end - self._clock.monotonic()):
                    await copy.wake.wait()
            except TimeoutError:
                break
        copy.lingers_to = None
        copy.bytes_seen = self._acked_bytes

    def _advanced(self, copy: Copy) -> None:
        if copy.state is CopyState.BUILDING and copy.applied >= self._live.floor_to_come:
            copy.state, copy.reason = CopyState.READY, ""
            if self.serving is None:
                self.serving = copy
            self._resume()
        self._raise_floor()
        self._happened()

    def _raise_floor(self) -> None:
        ready = self.ready()
        if ready:
            self._live.raise_floor(min(copy.applied for copy in ready))

    def ready(self) -> list[Copy]:
        return [copy for copy in self._copies if copy.state is CopyState.READY]

    def _fail(self, copy: Copy, reason: str) -> None:
        """Ask it no more; `_keep` ends, and it is made anew."""
        copy.state, copy.reason = CopyState.FAILED, reason
        if copy is self.serving:
            self.serving = next(iter(self.ready()), None)
        self._raise_floor()
        self._happened()

    def discard(self, copy: Copy, reason: str) -> None:
        """It is wrong: end its life and throw its files away when it is opened next."""
        if copy.state is not CopyState.READY:
            return
        copy.renew = True
        self._fail(copy, reason)
        if copy.task is not None:
            copy.task.cancel()

    def add(self, access: CopyAccess) -> None:
        """One more place where a copy may lie."""
        self._copies.append(Copy(access))
        self._begin_wanted()

    async def remove(self, name: str) -> None:
        """Keep no copy there any more, once another one answers. Raises Unavailable."""
        for copy in [copy for copy in self._copies if copy.access.name == name]:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience_s):
                    while self.ready() == [copy]:
                        if all(other.task is None for other in self._copies if other is not copy):
                            self._begin([other for other in self._copies if other.task is None][:1])
                        await self._event()
            if self.ready() == [copy]:
                raise Unavailable("No other copy of the index can be made:", hint=self._reasons())
            self._copies.remove(copy)
            self._fail(copy, "removed")
            await copy.end()

    def acknowledged(self, log_bytes: int) -> None:
        """There is more to apply."""
        self._acked_bytes += log_bytes
        for copy in self._copies:
            # Who gathers is woken when there is enough.
            if copy.lingers_to is None or self._acked_bytes >= copy.lingers_to:
                copy.wake.set()

    def statuses(self) -> list[MemberStatus]:
        """Of each place."""
        enough = len(self.ready()) >= (self.options.kept or 1)
        return [copy.status(needed=not enough) for copy in self._copies]

    def _reasons(self) -> str:
        return "; ".join(f"{copy.access.place}: {copy.reason or copy.state.value}" for copy in self._copies)

    def _happened(self) -> None:
        for future in self._events:
            if not future.done():
                future.set_result(None)
        self._events.clear()

    async def _event(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events.add(future)
        try:
            await future
        finally:
            self._events.discard(future)

    async def close(self) -> None:
        """Let go of everything; never waits for a hung disk."""
        self._closed = True
        tasks = [copy.task for copy in self._copies if copy.task is not None]
        tasks += [task for task in (self._tending, self._adding_up) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for copy in self._copies:
            copy.let_go()
        await ended([future for copy in self._copies for future in copy.closing], _CLOSE_S)
        if self._batch is not None:
            self._refuse(self._batch.abandon(), "The index is closed.")
            self._batch = None
        for batch in (self._gets, *(batch for _, batch in self._stalled)):
            self._refuse(batch, "The index is closed.")
        self._gets, self._stalled = [], []
        self._happened()

    # Gets

    def get(self, keys: Sequence[bytes]) -> "asyncio.Future[list[Row | None]]":
        """The acknowledged rows of `keys`, of one moment. The future may fail with Unavailable."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Row | None]] = loop.create_future()
        self._gets.append(Get(keys, future))
        if not self._answering:
            self._answering = True
            # Whoever asks in the same turn of the loop joins.
            loop.call_soon(self._begin_batch)
        return future

    def _begin_batch(self) -> None:
        if not self._gets or self._closed:
            self._answering = False
            return
        acked = self._live.acked
        batch: list[Get] = []
        wanted: dict[bytes, None] = {}
        while self._gets and len(wanted) < _BATCH_KEYS_MAX:
            part, self._gets = self._gets[:_BATCH_KEYS_MAX], self._gets[_BATCH_KEYS_MAX:]
            for get in part:
                for key in get.keys:
                    if key not in acked:
                        wanted[key] = None
            batch += part
        self._live.hold()
        if not wanted:
            self.finish(batch, {})
            return
        self._batch = Batch(self, batch, list(wanted), self._clock.monotonic() + self._patience_s)
        self._batch.ask()

    def stall(self, batch: list[Get]) -> None:
        """No copy can answer: wait for one, up to the patience."""
        self._batch = None
        self._live.release()
        self._stalled.append((self._clock.monotonic() + self._patience_s, batch))
        self._begin_batch()

    def _resume(self) -> None:
        for _, batch in self._stalled:
            self._gets += batch
        self._stalled = []
        if self._gets and not self._answering:
            self._answering = True
            asyncio.get_running_loop().call_soon(self._begin_batch)

    def expire(self) -> None:
        """Refuse the gets that have waited for a copy for too long."""
        now = self._clock.monotonic()
        while self._stalled and self._stalled[0][0] <= now:
            self._refuse(self._stalled.pop(0)[1], "No copy of the index can be read.")
        if self._batch is not None and self._batch.deadline <= now:
            # All that were asked hang. Those behind it must not wait for them for ever.
            batch, self._batch = self._batch, None
            self._refuse(batch.abandon(), "No copy of the index answers.")
            self._live.release()
            self._begin_batch()

    def _refuse(self, batch: list[Get], message: str) -> None:
        for get in batch:
            if not get.future.done():
                get.future.set_exception(Unavailable(message, hint=self._reasons()))

    def finish(self, batch: list[Get], found: dict[bytes, Row | None]) -> None:
        """Judge what a copy said by the newest rows, all in one moment, and answer."""
        self._batch = None
        acked = self._live.acked
        for get in batch:
            if get.future.done():
                continue
            get.future.set_result(
                [entry.row if (entry := acked.get(key)) is not None else found[key] for key in get.keys]
            )
        self._live.release()
        self._begin_batch()

    # Scans and dumps

    async def scan(
        self, start: bytes, end: bytes, limit: int, delimiter: bytes, skip: int, patience_s: float
    ) -> list[Row | Prefix]:
        """As the port's `scan`. Raises Unavailable."""
        acked = self._log.acked
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    copy = await self._caught_up(acked)
                    step = await self._scan_in(copy, ScanStep(start, end, limit, delimiter, skip))
                    if step is not None:
                        return step.found
        except TimeoutError:
            raise Unavailable("No copy of the index answers.", hint=self._reasons()) from None

    async def _caught_up(self, sequence: int) -> Copy:
        """A copy that has applied everything up to `sequence`, the serving one first."""
        slow = False
        while True:
            ready = self.ready()
            if self.serving in ready:
                assert self.serving is not None
                ready = [self.serving, *(copy for copy in ready if copy is not self.serving)]
            for copy in ready:
                if copy.applied >= sequence:
                    return copy
            for copy in ready if slow else ready[:1]:
                copy.hurry = True
                copy.wake.set()
            try:
                async with asyncio.timeout(5 * self.options.hedge_s):
                    await self._event()
            except TimeoutError:
                slow = True
            if self._closed:
                raise Unavailable("The index is closed.")

    async def _scan_in(self, copy: Copy, step: ScanStep) -> ScanStep | None:
        """The finished scan, or None when this copy failed or is overdue."""
        slow_s = 5 * self.options.hedge_s
        while not step.done:
            reader, runner = copy.reader, copy.reading
            if reader is None or runner is None:
                return None
            future = runner.submit(partial(reader.scan, step))
            done, _ = await asyncio.wait([future], timeout=slow_s if len(self.ready()) > 1 else None)
            if not done:
                self.overdue(copy)
                future.add_done_callback(lambda _: self._answers_again(copy))
                return None
            try:
                step = future.result()
            except CopyFailed as error:
                self.discard(copy, str(error))
                return None
        return step

    def overdue(self, copy: Copy) -> None:
        """Ask another one first from now on, and this one not for an opinion, until it has answered."""
        if copy.slow_since is None:
            copy.slow_since = self._clock.monotonic()
        if copy is self.serving:
            others = [other for other in self.ready() if other is not copy]
            if others:
                self.serving = others[0]

    def _answers_again(self, copy: Copy) -> None:
        copy.slow_since = None

    async def dump(
        self, make_runner: Callable[[CopyAccess], Runner]
    ) -> AsyncGenerator[tuple[Base, bytes], None]:
        """(base, raw block) of a checkpoint of the rows at one moment, its end last, from a copy that does
        not serve if there is one. A copy that has lost rows gives no end. Raises Unavailable, CopyFailed."""
        ready = self.ready()
        if not ready:
            raise Unavailable("No copy of the index can be read.", hint=self._reasons())
        copy = next((copy for copy in ready if copy is not self.serving), ready[0])
        runner = make_runner(copy.access)
        dumping = Dumping(copy.access.files(), runner, self.options.overdue_s)
        try:
            async with aclosing(dumping.blocks()) as blocks:
                async for base, raw in blocks:
                    yield base, raw
        except CopyFailed as error:
            self.discard(copy, str(error))
            raise
        finally:
            runner.close(dumping.close)
