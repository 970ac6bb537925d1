"""Keeps the ledger's roll-ups in packs, too, so that they outlive the data folder.

Each day that is over becomes a pack `ledger-<name>-<yyyymmdd>` with its hours; each file of days becomes one
`ledger-<name>-<yyyy>-<yyyymmdd>`, named by the last day in it, about once a month, and takes the place of the
packs of its days. A data folder without any of it is given back what the packs have. What must hold: a name
stands for one content and is written once; a pack goes only after what takes its place was read back; where
packs of several ledgers lie and it is not known which is this one's, nothing is given back.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.randomness import Randomness
from holdfast.base.wording import counted
from holdfast.chores.chore import Progress
from holdfast.health.ledger_uptime import DAY_S
from holdfast.node.ledger_files import DAYS_YEARS, LedgerFiles
from holdfast.packs.named import NamedPacks
from holdfast.stores.directory.pool import Lane

PREFIX = "ledger-"
FIRST_S = 600.0
"""A node that has just started first says how long it was away."""
TEND_EVERY_S = 24 * 3600.0
YEAR_EVERY_DAYS = 30
TIMEOUT_S = 30.0
_STEPS = 10
_PAUSE_S = 0.05

T = TypeVar("T")

_NAME = re.compile(rf"{PREFIX}([0-9a-f]{{8}})-(?:([0-9]{{4}})-)?([0-9]{{8}})\Z")


class Archived(NamedTuple):
    """A pack of a ledger: of a day, or (`year` is not 0) of a year until that day."""

    ledger: str
    year: int
    day: int

    @property
    def name(self) -> str:
        """What the pack is called."""
        year = f"{self.year:04}-" if self.year else ""
        return f"{PREFIX}{self.ledger}-{year}{label_of(self.day)}"


def parse_archived(name: str) -> Archived | None:
    """What a pack's name says; None when it is none of a ledger."""
    found = _NAME.match(name)
    if found is None:
        return None
    try:
        moment = datetime.strptime(found[3], "%Y%m%d").replace(tzinfo=UTC)
    except ValueError:
        return None
    return Archived(found[1], int(found[2] or 0), int(moment.timestamp()) // DAY_S)


def label_of(day: int) -> str:
    """A day as it stands in names."""
    return f"{datetime.fromtimestamp(day * DAY_S, UTC):%Y%m%d}"


class Plan(NamedTuple):
    """What is to do: days and years to write, packs to remove."""

    days: list[int]
    years: list[int]
    remove: list[Archived]


def plan(days: Iterable[int], years: dict[int, int], there: Sequence[Archived], today: int) -> Plan:
    """What is to do about a ledger that has files of these `days` and `years` (with the last day in each)
    and these packs. Pure."""
    this_year = datetime.fromtimestamp(today * DAY_S, UTC).year
    until: dict[int, int] = {}
    for one in there:
        if one.year:
            until[one.year] = max(one.day, until.get(one.year, 0))
    days_there = {one.day for one in there if not one.year}
    stale = [
        year
        for year, last in sorted(years.items())
        if last - until.get(year, last - YEAR_EVERY_DAYS) >= (YEAR_EVERY_DAYS if year == this_year else 1)
    ]
    remove = [
        one
        for one in there
        if one.day < until.get(one.year or _year_of(one.day), -1) + (0 if one.year else 1)
        or _year_of(one.day) < this_year - DAYS_YEARS
    ]
    missing = [
        day for day in days if day < today and day not in days_there and day > until.get(_year_of(day), -1)
    ]
    return Plan(missing, stale, remove)


def _year_of(day: int) -> int:
    return datetime.fromtimestamp(day * DAY_S, UTC).year


class ArchiveLedger:
    """As a chore."""

    name = "ledger"
    interval_s = 600.0

    def __init__(
        self,
        files: LedgerFiles,
        packs: NamedPacks,
        clock: Clock,
        randomness: Randomness,
        tell: Callable[[str], None],
        *,
        first_s: float = FIRST_S,
    ) -> None:
        self._files = files
        self._packs = packs
        self._clock = clock
        self._randomness = randomness
        self._tell = tell
        self._not_before = clock.monotonic() + first_s
        self._lane = Lane("the ledger's archive", threads=1, waiting_max=2)
        self._ledger = ""
        self._tended: dict[str, float] = {}
        self.written = 0
        self.restored = 0

    def progress(self) -> Progress:
        """Packs written since the start."""
        detail = f"{counted(self.restored, 'part')} put back from packs" if self.restored else ""
        return Progress(self.written, None, "packs", detail)

    async def step(self) -> bool:
        """Write, remove or look after one pack; False when nothing is due."""
        now = self._clock.monotonic()
        if now < self._not_before:
            return False
        if not self._ledger:
            await self._find_name()
            return True
        ours = [one for one in await self._archived() if one.ledger == self._ledger]
        today = int(self._clock.wall()) // DAY_S
        days, years = await self._run(self._files.days), await self._run(self._files.years)
        todo = plan(days, years, ours, today)
        if todo.days:
            return await self._write_day(todo.days[0])
        if todo.years:
            year = todo.years[0]
            archived = Archived(self._ledger, year, years[year])
            await self._write(archived, await self._run(self._files.year, year))
            return True
        if todo.remove:
            await self._packs.remove(todo.remove[0].name)
            return True
        return await self._tend(ours, now)

    async def _tend(self, ours: Sequence[Archived], now: float) -> bool:
        names = [one.name for one in ours]
        self._tended = {name: self._tended.get(name, now) for name in names}
        due = [name for name in names if now - self._tended[name] >= TEND_EVERY_S]
        if not due:
            return False
        self._tended[due[0]] = now
        await self._packs.tend(due[0])
        return len(due) > 1

    async def _write_day(self, day: int) -> bool:
        steps, content = self._files.rolled(day), b""
        while True:
            found, more = await self._run(_advance, steps)
            content = found or content
            if not more:
                break
            await self._clock.sleep(_PAUSE_S)
        if not content:
            return False
        await self._write(Archived(self._ledger, 0, day), content)
        return True

    async def _write(self, archived: Archived, content: bytes) -> None:
        await self._packs.write(archived.name, [content])
        await self._packs.check(archived.name)
        self.written += 1

    async def _archived(self) -> list[Archived]:
        names = await self._packs.list(PREFIX)
        return [one for name in names if (one := parse_archived(name)) is not None]

    async def _find_name(self) -> None:
        """Know what this ledger is called; one that has lost its name and all its files asks the packs."""
        name = await self._run(self._files.name)
        if not name:
            there = await self._archived()
            known = {one.ledger for one in there}
            if len(known) == 1 and not await self._has_history():
                name = known.pop()
                await self._restore(there)
            else:
                name = self._randomness.token(4).hex()
            await self._run(self._files.take_name, name)
        self._ledger = name

    async def _has_history(self) -> bool:
        today = int(self._clock.wall()) // DAY_S
        days, years = await self._run(self._files.days), await self._run(self._files.years)
        return bool(years) or any(day < today for day in days)

    async def _restore(self, there: Sequence[Archived]) -> None:
        newest: dict[int, Archived] = {}
        for one in there:
            if one.year and one.day >= newest.get(one.year, one).day:
                newest[one.year] = one
        for one in [*newest.values(), *[one for one in there if not one.year]]:
            try:
                content = await self._packs.read(one.name)
            except HoldfastError as error:
                self._tell(f"a part of the old ledger cannot be read: {error}")
                continue
            kind, label = ("days", str(one.year)) if one.year else ("hours", label_of(one.day))
            await self._run(self._files.restore, kind, label, content)
            self.restored += 1
        if self.restored:
            self._tell(f"{counted(self.restored, 'part')} of the old ledger put back from packs")

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        return await self._lane.run(function, *arguments, timeout_s=TIMEOUT_S)

    def close(self) -> None:
        """Let go of the thread."""
        self._lane.close()


def _advance(steps: Iterator[bytes | None]) -> tuple[bytes | None, bool]:
    """A few steps, in a thread: what was found, and whether there are more."""
    for _ in range(_STEPS):
        try:
            found = next(steps)
        except StopIteration:
            return None, False
        if found is not None:
            return found, True
    return None, True
