"""Notices when the index changes: whether it serves, and how its members are. Pure: statuses in, events out.

What must hold: a member that is behind for a moment, as each is now and then, is no event: a state is told
when three looks in a row have seen it. Whether the index takes commits is told at once. Copies of the rows
come and go with their stores and can be made again, so they are not told of.
"""

from typing import NamedTuple

from holdfast.index.port import IndexState, IndexStatus, MemberStatus
from holdfast.node.status import is_copy

LOOKS = 3
LOOK_EVERY_S = 1.0


class Changed(NamedTuple):
    """`subject` is a member, or the index as a whole when it is empty."""

    subject: str
    before: str
    after: str
    reason: str


class IndexWatch:
    """Remembers what was told."""

    def __init__(self) -> None:
        self._serving = IndexState.SERVING
        self._told: dict[str, str] = {}
        self._seen: dict[str, tuple[str, int]] = {}

    def look(self, status: IndexStatus) -> list[Changed]:
        """What has changed; call it every LOOK_EVERY_S."""
        changes = []
        if status.state is not self._serving:
            left = f"{status.losses_survivable} more of its members may be lost"
            why = left if status.state is IndexState.SERVING else "nothing can be read or written"
            changes.append(Changed("", self._serving.value, status.state.value, why))
            self._serving = status.state
        found = [self._look_at(member) for member in status.members if not is_copy(member)]
        return changes + [change for change in found if change is not None]

    def _look_at(self, member: MemberStatus) -> Changed | None:
        state, looks = self._seen.get(member.name, (member.state, 0))
        looks = looks + 1 if state == member.state else 1
        self._seen[member.name] = (member.state, looks)
        told = self._told.get(member.name, "current")
        if member.state == told or looks < LOOKS:
            return None
        self._told[member.name] = member.state
        return Changed(member.name, told, member.state, member.detail)
