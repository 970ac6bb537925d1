"""Keeps the ledger: looks at the world each second, writes what is due, leaves signs of life.

The loop never waits for the ledger's disk: records go to threads of their own, those that cannot be written
in time are dropped and counted, and the next one that is kept says how many. What must hold: a node that has
not begun to serve, or has stopped, leaves no sign of life; the last one of a stop that was asked for says so;
and nothing that happens to the ledger fails a request.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.health.accounting import Histogram
from holdfast.health.ledger import BEAT_S, SYNC_S, TICK_S, Ledger, StoreSight, away_since
from holdfast.health.ledger_records import Beat, Minute, Record
from holdfast.node.ledger_files import LedgerFiles
from holdfast.stores.directory.pool import Lane

WRITE_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 3.0
PENDING_MAX = 240
"""Records that wait for a slow disk; beyond, the oldest are dropped."""
ROLL_FIRST_S = 120.0
ROLL_EVERY_S = 3600.0
ROLL_STEPS = 10
ROLL_PAUSE_S = 0.05
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DAY_S = 86_400


class LedgerKeeper:
    """The ledger of a running node. `serving` says whether the index is, `sights` how each store is; `canary`
    answers who sends one and returns how long it took, None for nobody. `tell` takes a sentence for the
    events."""

    def __init__(
        self,
        data: Path,
        clock: Clock,
        tell: Callable[[str], None],
        *,
        serving: Callable[[], bool],
        sights: Callable[[], Mapping[str, StoreSight]],
        canary: Callable[[], Callable[[], Awaitable[float]] | None],
    ) -> None:
        self.ledger = Ledger(clock.monotonic(), clock.wall())
        self.files = LedgerFiles(data)
        self.lag = Histogram()
        self.records_written = 0
        self.records_lost = 0
        self.canaries = [0, 0]
        """Failed ones, and those that came back."""
        self._clock = clock
        self._tell = tell
        self._serving = serving
        self._sights = sights
        self._canary = canary
        self._lane = Lane("ledger", threads=2, waiting_max=4)
        self._pending: list[Record] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing: asyncio.Task[None] | None = None
        self._beating: asyncio.Task[None] | None = None
        self._ticker: asyncio.Task[None] | None = None
        self._boot = bytes(16)
        self._beats = 0
        self._synced = float("-inf")
        self._stopped_wall = 0.0
        self._in_trouble = False

    async def serve(self) -> None:
        """The node takes requests from now on."""
        last = None
        try:
            self._boot, last = await self._lane.run(_open, self.files, timeout_s=WRITE_TIMEOUT_S)
        except (HoldfastError, OSError) as error:
            self._trouble(error)
        self.ledger.begin(self._clock.monotonic(), self._clock.wall())
        self._beats = last.sequence + 1 if last is not None else 0
        self._keep(away_since(last, self._boot, self._clock.wall()))
        self._beat()
        self._ticker = self._start(self._watch())
        self._start(self._keep_rolling())

    def draining(self) -> None:
        """The node takes no more requests."""
        if self._ticker is not None and not self._stopped_wall:
            self._tick()
            self._stopped_wall = self._clock.wall()
            self._ticker.cancel()

    async def close(self) -> None:
        """Write what is left, say that the stop was asked for, and let go."""
        served = self._ticker is not None
        self.draining()
        for task in self._tasks - {self._writing, self._beating}:
            task.cancel()
        if served:
            self._keep([self.ledger.finish()])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_TIMEOUT_S):
                    while self._tasks:
                        await asyncio.gather(*self._tasks, return_exceptions=True)
                    await self._write_beat(stopped=True)
        self._lane.close()

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            message = "a task of the ledger failed"
            task.get_loop().call_exception_handler({"message": message, "exception": error, "task": task})

    async def _watch(self) -> None:
        beat_at = self._clock.monotonic() + BEAT_S
        while True:
            asleep = self._clock.monotonic()
            await self._clock.sleep(TICK_S)
            now = self._clock.monotonic()
            self.lag.add(max(0.0, now - asleep - TICK_S))
            try:
                self._tick()
            except Exception as error:
                # Ours; but without signs of life the next start would take us for dead until then.
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a look of the ledger failed", "exception": error}
                )
            if now >= beat_at:
                beat_at = now + BEAT_S - TICK_S / 2
                self._beat()

    def _tick(self) -> None:
        clock = self._clock
        due = self.ledger.tick(
            clock.monotonic(), clock.wall(), serving=self._serving(), stores=self._sights()
        )
        self._keep(due.records)
        if due.canary and (canary := self._canary()) is not None:
            self._start(self._send(canary))

    async def _send(self, canary: Callable[[], Awaitable[float]]) -> None:
        took_s, ok = 0.0, True
        try:
            took_s = await canary()
        except HoldfastError as error:
            ok = False
            self._tell(f"the canary did not come back: {error}")
        self.canaries[ok] += 1
        self.ledger.canary(ok, took_s)

    # Writing

    def _keep(self, records: tuple[Record, ...] | list[Record]) -> None:
        self._pending += records
        while len(self._pending) > PENDING_MAX:
            self._lost(self._pending[:1])
            del self._pending[:1]
        if self._pending and self._writing is None:
            self._writing = self._start(self._write())

    async def _write(self) -> None:
        try:
            while self._pending:
                records, self._pending = self._pending, []
                try:
                    await self._lane.run(self.files.append, records, timeout_s=WRITE_TIMEOUT_S)
                except (HoldfastError, OSError) as error:
                    # Not tried again: it may have been written, or may yet be.
                    self._lost(records)
                    self._trouble(error)
                else:
                    self.records_written += len(records)
                    self._well()
        finally:
            self._writing = None

    def _lost(self, records: list[Record]) -> None:
        self.records_lost += len(records)
        self.ledger.lost(sum(isinstance(record, Minute) for record in records))

    def _trouble(self, error: Exception) -> None:
        if not self._in_trouble:
            self._in_trouble = True
            self._tell(f"the ledger cannot be written, and misses what happens meanwhile: {error}")

    def _well(self) -> None:
        if self._in_trouble:
            self._in_trouble = False
            self._tell("the ledger is written again")

    def _beat(self) -> None:
        if self._beating is None:
            self._beating = self._start(self._write_beat(stopped=False))

    async def _write_beat(self, *, stopped: bool) -> None:
        now = self._clock.monotonic()
        sync = stopped or now - self._synced >= SYNC_S
        wall = self._stopped_wall if stopped else self._clock.wall()
        beat = Beat(int(wall * 1000), stopped, self._boot, self._beats)
        self._beats += 1
        try:
            await self._lane.run(_leave_beat, self.files, beat, sync, timeout_s=WRITE_TIMEOUT_S)
        except (HoldfastError, OSError) as error:
            self._trouble(error)
        else:
            if sync:
                self._synced = now
        finally:
            self._beating = None

    # Rolling up

    async def _keep_rolling(self) -> None:
        await self._clock.sleep(ROLL_FIRST_S)
        while True:
            try:
                await self._roll_up()
            except (HoldfastError, OSError) as error:
                self._tell(f"old parts of the ledger cannot be rolled up: {error}")
            await self._clock.sleep(ROLL_EVERY_S)

    async def _roll_up(self) -> None:
        steps = self.files.roll_up(int(self._clock.wall()) // _DAY_S)
        while await self._lane.run(_advance, steps, timeout_s=WRITE_TIMEOUT_S):
            await self._clock.sleep(ROLL_PAUSE_S)


def _advance(steps: Iterator[None]) -> bool:
    """A few steps, in a thread; False at the end."""
    return all(next(steps, steps) is None for _ in range(ROLL_STEPS))


def _leave_beat(files: LedgerFiles, beat: Beat, sync: bool) -> None:
    files.beat(beat, sync=sync)


def _open(files: LedgerFiles) -> tuple[bytes, Beat | None]:
    files.prepare()
    return _boot_id(), files.last_beat()


def _boot_id() -> bytes:
    """Which run of the machine this is; zeros where the kernel does not say."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))[:16].ljust(16, b"\0")
    except (OSError, ValueError):
        return bytes(16)
