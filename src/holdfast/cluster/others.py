"""What the nodes of a cluster have said, for whoever removes what is dead: that nobody reads it, and nobody
brings it back.

What must hold: `look` is called after it is known what is to be removed. What it then finds speaks for all
nodes, those included that begin to read or write later, because they look things up after that.
"""

from collections.abc import Mapping
from typing import NamedTuple, Protocol

from holdfast.base.clock import Clock
from holdfast.cluster.rows import BEATS, FENCES, BeatRow, all_of, name_of, rows_of
from holdfast.index.port import ABSENT, Expect, Index, Row, Transaction

SILENT_S = 10.0
"""A node whose beat has not changed for so long has no say: its readers look again, or break off."""

FENCED_S = 60.0
"""A node that was silent for so long is fenced when something waits for that."""

LOOK_PATIENCE_S = 10.0
"""A look that comes later than this after the one before tells nothing of what was between."""

assert LOOK_PATIENCE_S <= SILENT_S < FENCED_S

_ALL = 100_000
_NEVER = 1 << 62


class Said(NamedTuple):
    """What all nodes had said at one look. `oldest_fence` and `newest_fence` are revisions of fences that
    were there, `oldest_read` that by which a read of a node that beats went."""

    oldest_fence: int
    newest_fence: int
    oldest_read: int

    def may_come_back(self, revision: int) -> bool:
        """Whether a pack that was buried at this revision may still be made somebody's; or, with a
        `newest_fence` of an earlier look, whether somebody who could enter a shard then still can."""
        return self.oldest_fence <= revision

    def is_read(self, revision: int) -> bool:
        """Whether a read may be under way of a pack that was buried at this revision."""
        return self.oldest_read <= revision


class Others(Protocol):
    """What `packs` asks."""

    async def look(self) -> Said:
        """What is so now. Raises Unavailable."""
        ...


class _Nobody:
    """For an index that belongs to one process: that knows all by itself."""

    async def look(self) -> Said:
        return Said(_NEVER, 0, _NEVER)


NOBODY: Others = _Nobody()


class ClusterOthers:
    """`Others`, from the rows of all nodes."""

    def __init__(self, index: Index, clock: Clock) -> None:
        self._index = index
        self._clock = clock
        self._beats: dict[str, tuple[int, float]] = {}
        self._looked_at = clock.monotonic()

    async def look(self) -> Said:
        """See `Others.look`. Takes away the fences of nodes that have been silent, or gone, for long."""
        beats = rows_of(await self._index.scan(*all_of(BEATS), limit=_ALL), BeatRow)
        fences = [row for row in await self._index.scan(*all_of(FENCES), limit=_ALL) if isinstance(row, Row)]
        silent_s = self._silent_s(
            {
                **dict.fromkeys((name_of(row.key) for row in fences), ABSENT),
                **{name: revision for name, (_, revision) in beats.items()},
            }
        )
        heard = [beat.reading for name, (beat, _) in beats.items() if silent_s[name] < SILENT_S]
        if ended := [row for row in fences if silent_s[name_of(row.key)] >= FENCED_S]:
            # They will not do it themselves.
            await self._index.commit(
                [Transaction((Expect(row.key, row.revision),), (), (row.key,)) for row in ended]
            )
        return Said(
            min((row.revision for row in fences), default=_NEVER),
            max((row.revision for row in fences), default=0),
            min(heard, default=_NEVER),
        )

    def _silent_s(self, beats: Mapping[str, int]) -> dict[str, float]:
        """For how long the beat of each node has been what it is, as far as we have looked."""
        now = self._clock.monotonic()
        if now - self._looked_at > LOOK_PATIENCE_S:
            self._beats = {}  # who did not look holds that against nobody
        self._looked_at = now
        before, self._beats = self._beats, {}
        for name, revision in beats.items():
            last = before.get(name)
            self._beats[name] = last if last is not None and last[0] == revision else (revision, now)
        return {name: now - since for name, (_, since) in self._beats.items()}
