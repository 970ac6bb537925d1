"""Runs chores: one task each, one unit of work at a time, resting for clients' sake, under a lease.

What must hold: no chore ever ends because of an error, neither the world's nor our own; an error stays
visible until a unit has ended well, and is remembered after that; a pause survives a restart, because it is
a row of the index; and a chore whose lease another node holds does nothing here.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Bug, HoldfastError, InvalidInput, Unavailable
from holdfast.chores.chore import Chore, ChoreState, ChoreStatus, HasPressure, HasProgress, HasUrgency
from holdfast.chores.giving_way import GivingWay, Tally
from holdfast.chores.lease import ChoreLease
from holdfast.chores.rate import Rate
from holdfast.chores.sharing import NEEDS_OTHERS, HandsOver, TakesOver, lease_of
from holdfast.chores.throttle import Throttle
from holdfast.index.port import Committed, Expect, Index, Transaction

RETRY_S = 1.0
"""Between two tries to take a lease, or to learn from the index which chores are paused."""

SETTINGS_S = 10.0
"""Between two looks at what was said of chores at other nodes."""

_SETTINGS = b"chore/"
_FORMAT = 1

ChoreObserver = Callable[[str, HoldfastError], None]
"""Told of a unit that failed: the chore's name and the error."""


class _Setting(Struct, frozen=True, array_like=True):
    """`chore/<name>`: what was said about a chore."""

    format: int
    paused: bool


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Setting)


class ChoreRunner:
    """Runs chores until it is closed. Without an index there are no leases, and pauses end with the process.
    `shared` says that other nodes use the same index (`holdfast.chores.sharing`), `reaches_others` whether
    this one can work with their stores now. Chores that take a clock should be given `giving_way`."""

    def __init__(
        self,
        chores: Sequence[Chore],
        clock: Clock,
        observer: ChoreObserver,
        *,
        index: Index | None = None,
        holder: str = "",
        shared: bool = False,
        giving_way: GivingWay | None = None,
        reaches_others: Callable[[], bool] = lambda: True,
    ) -> None:
        assert len({chore.name for chore in chores}) == len(chores), "names are used twice"
        self._clock = clock
        self._observer = observer
        self._index = index
        self._giving_way = giving_way or GivingWay(clock, Throttle(clock.monotonic()), lambda: 0)
        self._shared = shared
        names = {chore.name: lease_of(chore.name, shared=shared) for chore in chores}
        self._leases: dict[str | None, ChoreLease] = {}
        if index is not None:
            for name in names.values():
                if name is not None and name not in self._leases:
                    able = reaches_others if name in NEEDS_OTHERS else lambda: True
                    self._leases[name] = ChoreLease(name, holder, index, clock, able)
        self._slots = {chore.name: _Slot(chore, self._leases.get(names[chore.name])) for chore in chores}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin."""
        self._tasks = {
            name: asyncio.create_task(self._run(slot), name=f"chore {name}")
            for name, slot in self._slots.items()
        }

    async def close(self) -> None:
        """Stop where they are: every unit may be cut at any point."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def holds(self, name: str) -> bool:
        """Whether a chore is ours; it is taken if it is free. Raises the index's errors."""
        slot = self._slots.get(name)
        if slot is None or (slot.lease is not None and not await slot.lease.hold()):
            return False
        slot.here()
        return True

    async def let_go(self) -> None:
        """Once it is closed: others may have all chores at once. Raises the index's errors."""
        await asyncio.gather(*[lease.let_go() for lease in self._leases.values()])

    def stop(self, names: Iterable[str], why: str) -> None:
        """End some chores for as long as this process lives, in the middle of a unit, too; no `resume` lets
        them go on."""
        for name in names:
            self._slots[name].stopped = why
            if name in self._tasks:
                self._tasks[name].cancel()

    # What is asked and said

    def status(self) -> list[ChoreStatus]:
        """All chores, in the order given."""
        now = self._clock.monotonic()
        rests = self._giving_way.throttle.factor(now)
        return [slot.status(now, rests) for slot in self._slots.values()]

    async def pause(self, name: str) -> None:
        """Let a chore rest until `resume`, over restarts, too. Raises InvalidInput, Unavailable."""
        await self._set(name, paused=True)

    async def resume(self, name: str) -> None:
        """Let it go on, at once. Raises InvalidInput, Unavailable."""
        await self._set(name, paused=False)

    def wake(self, name: str) -> None:
        """There may be something to do for a chore: look now, not when its interval is over."""
        self._slots[name].woken.set()

    def is_here(self, name: str) -> bool:
        """Whether a chore is done here, as far as is known."""
        if name not in self._slots:
            return False
        lease = self._slots[name].lease
        return lease is None or lease.token > 0

    def fence(self, name: str) -> tuple[Expect, ...]:
        """Expectations that only hold while the lease of a chore is ours. Raises Fenced when it is not."""
        lease = self._slots[name].lease
        return () if lease is None else lease.fence()

    async def _set(self, name: str, *, paused: bool) -> None:
        slot = self._slots.get(name)
        if slot is None:
            raise InvalidInput(f"There is no chore {name!r};", hint=f"known are {', '.join(self._slots)}.")
        if self._index is not None:
            row = (_SETTINGS + name.encode(), _encoder.encode(_Setting(_FORMAT, paused)))
            (outcome,) = await self._index.commit([Transaction((), (row,))])
            if not isinstance(outcome, Committed):
                raise Unavailable(f"Whether {name} is paused could not be written down.", hint="Try again.")
        slot.set_paused(paused)

    # The work

    async def _run(self, slot: "_Slot") -> None:
        await self._learn_settings(slot)
        while True:
            await self._wait_until_it_may(slot)
            slot.woken.clear()
            worked = await self._unit(slot)
            if worked:
                continue
            try:
                # A chore that is paused while it waits is told by its state at once.
                async with asyncio.timeout(slot.wait_s):
                    await slot.woken.wait()
            except TimeoutError:
                pass

    async def _unit(self, slot: "_Slot") -> bool:
        """One unit, and the rest that it takes to make up for it. Whether there was anything to do."""
        try:
            if slot.lease is not None and not await slot.lease.hold():
                slot.elsewhere(slot.lease.left_to_others)
                return False
            slot.here()
            urgent = slot.urgency is not None and slot.urgency.is_urgent
            pressure = slot.pressing.pressure if slot.pressing is not None else 0.0
            with self._giving_way.work(slot.tally, urgent=urgent, pressure=pressure):
                slot.step_began()
                worked = await slot.chore.step()
                slot.step_ended(self._clock.monotonic(), worked=worked)
                if worked:
                    await self._giving_way.sleep(0)
            return worked
        except Exception as error:
            ours = _ours(error)
            slot.failed(ours, self._clock.monotonic())
            self._observer(slot.chore.name, ours)
            return False

    async def _wait_until_it_may(self, slot: "_Slot") -> None:
        """Where other nodes share the index, what was said at one of them counts here, too, soon."""
        while self._shared:
            if self._clock.monotonic() - slot.asked_at >= SETTINGS_S:
                await self._learn_settings(slot)
            if slot.may_run.is_set():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(SETTINGS_S):
                    await slot.may_run.wait()
        await slot.may_run.wait()

    async def _learn_settings(self, slot: "_Slot") -> None:
        """Whether it was paused before this process began. Nothing is done before that is known."""
        while self._index is not None:
            key = _SETTINGS + slot.chore.name.encode()
            try:
                (row,) = await self._index.get([key])
            except HoldfastError as error:
                slot.failed(error, self._clock.monotonic())
                await self._clock.sleep(RETRY_S)
                continue
            slot.asked_at = self._clock.monotonic()
            paused = row is not None and _decoder.decode(row.value).paused
            if paused is slot.may_run.is_set():
                slot.set_paused(paused)
            return


class _Slot:
    """One chore and what is known of it."""

    def __init__(self, chore: Chore, lease: ChoreLease | None) -> None:
        self.chore = chore
        # Asked once: whether a chore has them is slow to find out, and does not change.
        self.progress = chore if isinstance(chore, HasProgress) else None
        self.urgency = chore if isinstance(chore, HasUrgency) else None
        self.pressing = chore if isinstance(chore, HasPressure) else None
        self.lease = lease
        self.tally = Tally()
        self.may_run = asyncio.Event()
        self.may_run.set()
        self.woken = asyncio.Event()
        self.stopped = ""
        self.asked_at = 0.0
        self._token = 0
        self._state = ChoreState.IDLE
        self._why = ""
        self._rate = Rate()
        self._units = 0
        self._errors = 0
        self._last_error = ""
        self._last_error_at = 0.0

    @property
    def wait_s(self) -> float:
        """How long to wait now that there is nothing to do."""
        return RETRY_S if self._state is ChoreState.ELSEWHERE else self.chore.interval_s

    def set_paused(self, paused: bool) -> None:
        """It rests once its unit is done, or goes on at once."""
        if paused:
            self.may_run.clear()
        else:
            self.may_run.set()
            self.woken.set()

    def here(self) -> None:
        """The lease is ours."""
        if self.lease is not None and self.lease.token != self._token:
            self._token = self.lease.token
            if isinstance(self.chore, TakesOver):
                self.chore.took_over()

    def elsewhere(self, left_to_others: bool) -> None:
        """The lease is somebody else's, or should be."""
        if self._state is not ChoreState.ELSEWHERE and isinstance(self.chore, HandsOver):
            self.chore.handed_over()
        self._token = 0
        why = "it is for a node that reaches the others" if left_to_others else "another node holds its lease"
        self.become(ChoreState.ELSEWHERE, why)

    def become(self, state: ChoreState, why: str = "") -> None:
        self._state, self._why = state, why

    def step_began(self) -> None:
        if self._state is not ChoreState.FAILED:
            self.become(ChoreState.WORKING)

    def step_ended(self, now: float, *, worked: bool) -> None:
        self._units += worked
        self.become(ChoreState.WORKING if worked else ChoreState.IDLE)
        if self.progress is not None:
            self._rate.sample(self.progress.progress().done, now)

    def failed(self, error: HoldfastError, now: float) -> None:
        self.become(ChoreState.FAILED, str(error))
        self._errors += 1
        self._last_error, self._last_error_at = str(error), now

    def status(self, now: float, rests: float) -> ChoreStatus:
        progress = self.progress.progress() if self.progress is not None else None
        why = f"by `holdfast chores pause {self.chore.name}`" if not self.may_run.is_set() else ""
        why = self.stopped or why
        return ChoreStatus(
            name=self.chore.name,
            state=ChoreState.PAUSED if why else self._state,
            why=why or self._why,
            units_done=self._units,
            worked_s=self.tally.worked_s,
            rests=rests,
            progress=progress,
            rate=self._rate.per_s(now) if progress else None,
            left_s=self._rate.left_s(progress.total, now) if progress else None,
            errors=self._errors,
            last_error=self._last_error,
            last_error_s_ago=now - self._last_error_at if self._errors else None,
        )


def _ours(error: Exception) -> HoldfastError:
    """The error for the observer. A mistake of ours goes to the loop's handler, too, with its traceback."""
    if isinstance(error, HoldfastError) and not isinstance(error, Bug):
        return error
    asyncio.get_running_loop().call_exception_handler({"message": "a chore failed", "exception": error})
    if isinstance(error, Bug):
        return error
    bug = Bug(f"{type(error).__name__}: {error}", hint="Please report it.")
    bug.__cause__ = error
    return bug
