"""The periodic comparison of two sites that should be alike, while both go on.

It changes nothing. A page whose digest is the same needs no more; of any other both sites' rows are looked
at twice, ours each time once the standby has passed what the active had when its rows were read. What
differs both times, and was touched by nobody in between, is a divergence (`comparing.diverged`); what was
touched is looked at again."""

from collections.abc import Callable

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.index.port import Index
from holdfast.sites.comparing import PAGE, Look, diverged, their_rows
from holdfast.sites.digests import alike, all_rows, digest, groups
from holdfast.sites.rows import Checkpoint, span_after
from holdfast.sites.source import Source

WAIT_S = 0.2
LOOKS_MAX = 8


class Compared(Struct):
    """What came of it. `restless` are groups that were touched each time they were looked at."""

    rows: int = 0
    pages: int = 0
    diverged: list[bytes] = []
    restless: list[bytes] = []


class Comparison:
    """Compares what `index` has with `source`. `checkpoint` says how far the standby is."""

    def __init__(
        self,
        source: Source,
        index: Index,
        checkpoint: Callable[[], Checkpoint | None],
        clock: Clock,
        *,
        page: int = PAGE,
    ) -> None:
        self._source = source
        self._index = index
        self._checkpoint = checkpoint
        self._clock = clock
        self._page = page

    async def run(self) -> Compared:
        """All rows, once. Raises Unavailable when a site cannot answer; waits while the standby does not go
        on."""
        compared = Compared()
        at = b""
        while (span := span_after(at)) is not None:
            start, end = span
            there = await self._source.survey(start, end, self._page)
            ours = await all_rows(self._index, start, there.stop, self._page)
            compared.pages += 1
            compared.rows += there.rows
            if digest(ours) != there.digest:
                await self._look_twice(start, there.stop, compared)
            at = there.stop
        return compared

    async def _look_twice(self, start: bytes, stop: bytes, compared: Compared) -> None:
        first = await self._look(start, stop)
        found: set[bytes] = set()
        left = _different(first)
        for _ in range(LOOKS_MAX):
            if not left:
                break
            second = await self._look(start, stop)
            found |= set(diverged(first, second))
            left, first = _different(second) - found, second
        compared.restless += sorted(left)
        compared.diverged += sorted(found)

    async def _look(self, start: bytes, stop: bytes) -> Look:
        theirs = await their_rows(self._source, start, stop, self._page)
        revision = await self._source.revision()
        while (here := self._checkpoint()) is None or not here.is_whole or here.revision < revision:
            await self._clock.sleep(WAIT_S)
        return Look(groups(theirs), groups(await all_rows(self._index, start, stop, self._page)))


def _different(look: Look) -> set[bytes]:
    return {
        group
        for group in look.theirs.keys() | look.ours.keys()
        if list(alike(look.theirs.get(group, []))) != list(alike(look.ours.get(group, [])))
    }
