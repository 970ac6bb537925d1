"""What the nodes of a cluster have said, for whoever removes what is dead: that nobody reads it, and nobody
brings it back.

What must hold: `look` is called after it is known what is to be removed. What it then finds speaks for all
nodes, those included that begin to read or write later, because they look things up after that.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from holdfast.base.clock import Clock
from holdfast.cluster.rows import BEATS, FENCES, BeatRow, all_of, name_of, rows_of
from holdfast.index.port import ABSENT, Expect, Index, Row, Transaction

SILENT_S = 10.0
"""A node whose beat has not changed for so long has no say: its readers look again, or break off."""

FENCED_S = 60.0
"""A node that was silent for so long is fenced when something waits for that."""

_ALL = 100_000
_NEVER = 1 << 62


class Others(Protocol):
    """What `packs` asks."""

    async def look(self) -> None:
        """Learn what is so now. Raises Unavailable."""
        ...

    def may_come_back(self, revision: int) -> bool:
        """Whether a pack that was buried at this revision may still be made somebody's."""
        ...

    @property
    def mark(self) -> int:
        """What to ask `may_come_back` later about what was there before the last look."""
        ...

    def is_read(self, revision: int) -> bool:
        """Whether a read may be under way of a pack that was buried at this revision."""
        ...


class _Nobody:
    """For an index that belongs to one process: that knows all by itself."""

    async def look(self) -> None:
        return

    def may_come_back(self, revision: int) -> bool:
        return False

    @property
    def mark(self) -> int:
        return 0

    def is_read(self, revision: int) -> bool:
        return False


NOBODY: Others = _Nobody()


class ClusterOthers:
    """`Others`, from the rows of all nodes."""

    def __init__(self, index: Index, clock: Clock) -> None:
        self._index = index
        self._clock = clock
        self._beats: dict[str, tuple[int, float]] = {}
        self._looked_at = clock.monotonic()
        self._oldest_fence = self._oldest_read = 0
        self.mark = 0

    def may_come_back(self, revision: int) -> bool:
        """See `Others.may_come_back`."""
        return self._oldest_fence <= revision

    def is_read(self, revision: int) -> bool:
        """See `Others.is_read`."""
        return self._oldest_read <= revision

    async def look(self) -> None:
        """See `Others.look`."""
        beats = rows_of(await self._index.scan(*all_of(BEATS), limit=_ALL), BeatRow)
        fences = [row for row in await self._index.scan(*all_of(FENCES), limit=_ALL) if isinstance(row, Row)]
        silent_s = self._silent_s(
            {
                **dict.fromkeys((name_of(row.key) for row in fences), ABSENT),
                **{name: revision for name, (_, revision) in beats.items()},
            }
        )
        heard = [beat.reading for name, (beat, _) in beats.items() if silent_s[name] < SILENT_S]
        self._oldest_read = min(heard, default=_NEVER)
        self._oldest_fence = min((row.revision for row in fences), default=_NEVER)
        self.mark = max((row.revision for row in fences), default=0)
        await self._fence([row for row in fences if silent_s[name_of(row.key)] >= FENCED_S])

    def _silent_s(self, beats: Mapping[str, int]) -> dict[str, float]:
        """For how long the beat of each node has been what it is, as far as we have looked."""
        now = self._clock.monotonic()
        if now - self._looked_at > SILENT_S:
            self._beats = {}  # who did not look holds that against nobody
        self._looked_at = now
        before, self._beats = self._beats, {}
        for name, revision in beats.items():
            last = before.get(name)
            self._beats[name] = last if last is not None and last[0] == revision else (revision, now)
        return {name: now - since for name, (_, since) in self._beats.items()}

    async def _fence(self, rows: Sequence[Row]) -> None:
        """End what nodes that are silent, or gone, have on their way: they will not do it themselves."""
        if rows:
            await self._index.commit(
                [Transaction((Expect(row.key, row.revision),), (), (row.key,)) for row in rows]
            )
