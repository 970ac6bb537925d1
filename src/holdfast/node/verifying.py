"""Verifying on request: reads everything in the background and hands out what was found, batch by batch.

A request cannot stay open for as long as reading all stores takes, so a verification is a job: started by
one request, followed by others. What must hold: a job that nobody asks about any more ends; what is
found waits in a bounded queue, and reading waits with it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.node.verification import (
    Broken,
    Line,
    PackFinding,
    PackState,
    Progress,
    Started,
    Summary,
    encode_line,
)
from holdfast.packs.verifying import PackHealth, PackReport, ShardFault
from holdfast.s3.face import AdminAnswer, AdminRequest

JOBS_MAX = 2
LINES_MAX = 1000
BATCH_S = 1.0
FORGOTTEN_S = 60.0

Reports = Callable[[], AsyncIterator[PackReport]]
SlotName = Callable[[StoreId], str]

_STATES = {
    PackHealth.WHOLE: PackState.WHOLE,
    PackHealth.DEGRADED: PackState.DEGRADED,
    PackHealth.LOST: PackState.LOST,
}


class Verifications:
    """All verifications under way. `packs_total` is for progress only and may be off."""

    def __init__(
        self,
        reports: Reports,
        packs_total: Callable[[], int],
        slot_name: SlotName,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        self._reports = reports
        self._packs_total = packs_total
        self._slot_name = slot_name
        self._clock = clock
        self._randomness = randomness
        self._jobs: dict[str, _Job] = {}

    async def answer(self, request: AdminRequest) -> AdminAnswer:
        """`POST` starts one, `GET` with its `job` answers what came since."""
        for name, job in list(self._jobs.items()):
            if job.forgotten:
                await self._end(name)
        if request.method == "POST":
            if len(self._jobs) >= JOBS_MAX:
                return _refusal(503, f"{JOBS_MAX} verifications are under way; wait for one to end.")
            name = self._randomness.token(8).hex()
            self._jobs[name] = _Job(self._read_all())
            return _lines([Started(name)])
        name = request.query.get("job", "")
        if name not in self._jobs:
            return _refusal(404, "There is no such verification; POST starts one.")
        lines = await self._jobs[name].batch()
        if any(isinstance(line, Summary | Broken) for line in lines):
            await self._end(name)
        return _lines(lines)

    async def close(self) -> None:
        """Stop all."""
        for name in list(self._jobs):
            await self._end(name)

    async def _end(self, name: str) -> None:
        if (job := self._jobs.pop(name, None)) is not None:
            await job.close()

    async def _read_all(self) -> AsyncIterator[Line]:
        started = told = self._clock.monotonic()
        counts = dict.fromkeys(PackHealth, 0)
        packs = shards = bytes_read = 0
        try:
            async for report in self._reports():
                packs += 1
                shards += report.scheme.n
                bytes_read += report.bytes_read
                counts[report.state] += 1
                if report.state is not PackHealth.WHOLE:
                    yield self._finding(report)
                now = self._clock.monotonic()
                if now - told >= BATCH_S:
                    told = now
                    yield Progress(packs, max(packs, self._packs_total()), bytes_read)
        except HoldfastError as error:
            yield Broken(str(error))
            return
        yield Summary(
            packs=packs,
            whole=counts[PackHealth.WHOLE],
            degraded=counts[PackHealth.DEGRADED],
            lost=counts[PackHealth.LOST],
            shards=shards,
            bytes_read=bytes_read,
            seconds=self._clock.monotonic() - started,
        )

    def _finding(self, report: PackReport) -> PackFinding:
        return PackFinding(
            report.pack.hex(),
            _STATES[report.state],
            report.scheme.name,
            tuple(self._fault(fault) for fault in report.faults),
        )

    def _fault(self, fault: ShardFault) -> str:
        where = f" at {self._slot_name(fault.store)}" if fault.store is not None else ""
        return f"shard {fault.shard}{where}: {fault.fault}"


class _Job:
    """One verification and what it has found since somebody asked."""

    def __init__(self, lines: AsyncIterator[Line]) -> None:
        self._queue: asyncio.Queue[Line] = asyncio.Queue(LINES_MAX)
        self._task = asyncio.create_task(self._fill(lines))
        self._timer = self._wait_for_interest()

    @property
    def forgotten(self) -> bool:
        """Whether nobody asked for so long that it was ended."""
        return self._task.cancelled()

    def _wait_for_interest(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(FORGOTTEN_S, self._task.cancel)

    async def _fill(self, lines: AsyncIterator[Line]) -> None:
        async for line in lines:
            await self._queue.put(line)

    async def batch(self) -> list[Line]:
        """The lines that came, waiting a little when there are none. Raises what the task ended with."""
        self._timer.cancel()
        self._timer = self._wait_for_interest()
        if self._queue.empty():
            waiting = asyncio.ensure_future(self._queue.get())
            await asyncio.wait({waiting, self._task}, timeout=BATCH_S, return_when=asyncio.FIRST_COMPLETED)
            if not waiting.done():
                waiting.cancel()
                if self._task.done():
                    self._task.result()
                return []
            lines = [waiting.result()]
        else:
            lines = []
        while not self._queue.empty():
            lines.append(self._queue.get_nowait())
        return lines

    async def close(self) -> None:
        self._timer.cancel()
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def _lines(lines: list[Line]) -> AdminAnswer:
    return AdminAnswer(200, b"".join(encode_line(line) for line in lines), "application/x-ndjson")


def _refusal(status: int, reason: str) -> AdminAnswer:
    return AdminAnswer(status, reason.encode(), "text/plain; charset=utf-8")
