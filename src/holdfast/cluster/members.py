"""Who is there: what an observer makes of the rows of nodes and their beats. Pure: rows in, changes out.

    alive     its beat changed within BEAT_PATIENCE_S of the observer's own clock, or it was just seen first
    silent    it did not
    (gone)    its row was taken away: it is not a member any more

What must hold: nobody's clock is compared with anybody else's; and an observer that did not look for a while,
because it or the index was away, holds that against nobody.
"""

from collections.abc import Mapping
from enum import Enum

from msgspec import Struct

from holdfast.cluster.rows import BeatRow, NodeRow

LOOK_EVERY_S = 0.5
BEAT_EVERY_S = 1.0
READY_S = 2.5
BEAT_PATIENCE_S = 3.5
LOOK_PATIENCE_S = 1.5
"""A look that comes later than this after the one before tells nothing of what was between."""

assert LOOK_EVERY_S <= BEAT_EVERY_S < READY_S < BEAT_PATIENCE_S
assert LOOK_EVERY_S < LOOK_PATIENCE_S < BEAT_PATIENCE_S


class Sight(Enum):
    """How a member seems."""

    ALIVE = "alive"
    SILENT = "silent"


class Member(Struct, frozen=True):
    """A member as last seen. `since` is when it became what it is, by the observer's clock; `beat` is None
    until it has written one."""

    name: str
    row: NodeRow
    revision: int
    beat: BeatRow | None
    sight: Sight
    since: float

    @property
    def is_alive(self) -> bool:
        return self.sight is Sight.ALIVE


class Changed(Struct, frozen=True):
    """Something about a member is another: `before` and `after` are None where there was, or is, no row. A
    change of the beat alone is none."""

    name: str
    before: Member | None
    after: Member | None


class Members:
    """All nodes as one of them sees them, itself included."""

    def __init__(self) -> None:
        self._members: dict[str, Member] = {}
        self._heard: dict[str, tuple[int, float]] = {}
        """The revision of the last beat, and when it was first seen."""
        self._looked: float | None = None

    @property
    def all(self) -> Mapping[str, Member]:
        """By name."""
        return self._members

    def look(
        self,
        nodes: Mapping[str, tuple[NodeRow, int]],
        beats: Mapping[str, tuple[BeatRow, int]],
        now: float,
    ) -> list[Changed]:
        """What has changed, given all rows as they were at `now`."""
        self._forgive(now)
        changes = []
        for name in self._members.keys() - nodes.keys():
            changes.append(Changed(name, self._members.pop(name), None))
            self._heard.pop(name, None)
        for name, (row, revision) in nodes.items():
            beat, beaten = beats.get(name, (None, 0))
            before = self._members.get(name)
            heard = self._heard.get(name)
            anew = before is None or before.row.boot != row.boot
            if heard is None or heard[0] != beaten or anew:
                heard = self._heard[name] = (beaten, now)
            sight = Sight.ALIVE if now - heard[1] <= BEAT_PATIENCE_S else Sight.SILENT
            since = before.since if before is not None and before.sight is sight else now
            after = Member(name, row, revision, beat, sight, since)
            self._members[name] = after
            if before is None or before.revision != revision or before.sight is not sight:
                changes.append(Changed(name, before, after))
        return changes

    def _forgive(self, now: float) -> None:
        """Nobody was silent in a time in which nobody looked."""
        if self._looked is not None and now - self._looked > LOOK_PATIENCE_S:
            missed = now - self._looked - LOOK_EVERY_S
            self._heard = {name: (beaten, at + missed) for name, (beaten, at) in self._heard.items()}
        self._looked = now


def is_ready(begun_at: float | None, now: float) -> bool:
    """Whether a node may be sent requests: the last beat of its own that was committed was begun lately. Both
    times are by a clock that runs while the machine is suspended."""
    return begun_at is not None and now - begun_at < READY_S
