"""Giving packs the scheme that their buckets want, after a bucket's scheme was changed.

Whoever changes a bucket's scheme, and whoever makes a version in another scheme than its bucket has (a write
that had begun before), leaves a mark in the same transaction. While there are marks, this walks all packs and
gives each the promise that `holdfast.objects.rescheming` decides on, by the same rewrite that repairs use; a
pack that can't have it now has it on record as a debt. A walk that found nothing to do takes the marks away,
each only if it is the one that was there when the walk began. So nothing is forgotten, whenever a crash
comes: the next start finds the marks and walks again, and what was done is not done twice.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId
from holdfast.base.wording import counted
from holdfast.chores.chore import Chore, HasPressure, HasProgress, Progress
from holdfast.chores.sharing import TakesOver
from holdfast.index.port import Expect, Index, Row, Transaction, prefix_end
from holdfast.objects.rescheming import Decision
from holdfast.packs.model import debt_row, pack_row
from holdfast.packs.rewrite_plan import Reason, Target
from holdfast.packs.rewriting import Rewriter, Rewritten
from holdfast.packs.rows import decode_row, promised_scheme
from holdfast.scheme import Scheme

PAGE = 200
REST_S = 30.0
"""After a walk in which something failed."""

_PACKS = b"pack/"


class Decides(Protocol):
    """What the chore asks of objects: `holdfast.objects.rescheming.Rescheming`."""

    async def marks(self) -> dict[bytes, int]: ...

    async def schemes(self) -> dict[str, Scheme]: ...

    async def decide(self, pack: PackId, now: Scheme) -> Decision: ...

    async def divide(self, pack: PackId, leaving: Mapping[Scheme, frozenset[str]]) -> bool: ...


class Rescheme:
    """See above. `active` until it is known that there are no marks."""

    name = "rescheme"
    interval_s = 2.0

    def __init__(
        self,
        index: Index,
        rewriter: Rewriter,
        decides: Decides,
        packs_total: Callable[[], int],
        clock: Clock,
        others_mix: Callable[[], bool] = lambda: False,
    ) -> None:
        self._others_mix = others_mix
        self._index = index
        self._rewriter = rewriter
        self._decides = decides
        self._packs_total = packs_total
        self._clock = clock
        self._marks: dict[bytes, int] = {}
        self._schemes: dict[str, Scheme] = {}
        self._next = _PACKS
        self._page: list[Row] = []
        self._walking = False
        self._again = 0.0
        self._looked = self._changed = self._failed = 0
        self.active = True
        self.rewritten = 0
        self.last_error = ""

    @property
    def in_the_way(self) -> bool:
        """Whether others must not mix packs now: not while it rests because of packs that failed. What they
        make meanwhile the next walk sees, and only a walk without failures takes marks away."""
        return self.active and (self._walking or self._clock.monotonic() >= self._again)

    def took_over(self) -> None:
        """Another node may have walked meanwhile: begin with the marks that there are."""
        self.active, self._walking, self._page = True, False, []

    def progress(self) -> Progress:
        """Of the walk that is under way."""
        if not self.active:
            return Progress(0, None, "packs")
        detail = (
            f"{counted(self._failed, 'pack')} could not be changed: {self.last_error}" if self._failed else ""
        )
        return Progress(self._looked, max(self._looked, self._packs_total()), "packs", detail)

    async def step(self) -> bool:
        """Look at one pack; False when there is nothing to do now."""
        if not self._walking and not await self._begin():
            return False
        if not self._page:
            found = await self._index.scan(self._next, prefix_end(_PACKS), limit=PAGE)
            self._page = [row for row in found if isinstance(row, Row)]
            if not self._page:
                return await self._end()
        row = self._page.pop(0)
        self._next = row.key + b"\0"
        self._looked += 1
        try:
            changed = await self._look(PackId(bytes.fromhex(row.key.removeprefix(_PACKS).decode())))
            self._changed += changed
            self.rewritten += changed
        except HoldfastError as error:
            self._failed, self.last_error = self._failed + 1, str(error)
        return True

    async def _begin(self) -> bool:
        if self._clock.monotonic() < self._again:
            return False
        self._marks = await self._decides.marks()
        self.active = bool(self._marks)
        if not self._marks or self._others_mix():
            return False  # what is being moved now would be committed behind the walk
        self._schemes = await self._decides.schemes()
        self._walking, self._next, self._page = True, _PACKS, []
        self._looked = self._changed = self._failed = 0
        return True

    async def _end(self) -> bool:
        """Whether another walk should begin at once."""
        self._walking = False
        if self._failed:
            self._again = self._clock.monotonic() + REST_S
            return False
        if self._changed:
            return True
        await self._index.commit(
            [Transaction((Expect(key, at),), (), (key,)) for key, at in self._marks.items()]
        )
        self.active = bool(await self._decides.marks())
        return self.active

    async def _look(self, pack: PackId) -> bool:
        """Whether the pack was changed."""
        promised = await self._promised(pack)
        if promised is None or set(self._schemes.values()) == {promised}:
            return False
        decision = await self._decides.decide(pack, promised)
        changed = False
        if decision.promised != promised:
            outcome = await self._rewriter.rewrite(pack, Reason.SCHEME, Target(promised=decision.promised))
            # What is not possible now is on record as owed from here on.
            changed = outcome in (Rewritten.DONE, Rewritten.OVERTAKEN)
            if outcome is Rewritten.NOT_POSSIBLE_NOW:
                changed = await self._promised(pack) == decision.promised
                if not changed:
                    self._failed += 1
                    self.last_error = "there are too few stores that can be written"
        if decision.leaving:
            await self._decides.divide(pack, decision.leaving)
            changed = True
        return changed

    async def _promised(self, pack: PackId) -> Scheme | None:
        """None if the pack is gone. Row and debt at once, not the row of the page: what is paid in between
        would look like a promise that never was."""
        row, debt = await self._index.get([pack_row(pack), debt_row(pack)])
        return None if row is None else promised_scheme(decode_row(row.value), debt)


class Waiting:
    """A chore that waits while another one is at work."""

    def __init__(self, chore: Chore, busy: Callable[[], bool]) -> None:
        self._chore = chore
        # Asked once: whether a chore has them is slow to find out, and does not change.
        self._progress = chore if isinstance(chore, HasProgress) else None
        self._pressing = chore if isinstance(chore, HasPressure) else None
        self._busy = busy
        self.name = chore.name
        self.at_work = False

    @property
    def interval_s(self) -> float:
        """As the chore's, which may change."""
        return self._chore.interval_s

    def took_over(self) -> None:
        """As the chore's."""
        if isinstance(self._chore, TakesOver):
            self._chore.took_over()

    def progress(self) -> Progress:
        """As the chore's."""
        return self._progress.progress() if self._progress is not None else Progress()

    @property
    def pressure(self) -> float:
        """As the chore's."""
        return self._pressing.pressure if self._pressing is not None else 0.0

    async def step(self) -> bool:
        """As the chore's, unless it waits."""
        if self._busy():
            return False
        self.at_work = True
        try:
            return await self._chore.step()
        finally:
            self.at_work = False
