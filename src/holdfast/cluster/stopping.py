"""Who was told that it may stop: one node at a time.

Whether a node can be taken down is judged by what there would be without it, with all others there. Two that
are asked at the same moment would both hear yes, and with both gone a promise would break. So who says yes
writes so into a row that all nodes share, and nobody else says yes as long as that row holds: until its node
is back as another process, is a member no more, or has been as it was for `CLAIM_S` of the asking node's own
clock. What must hold: of two answers that are given at once, the index takes one; and nobody is told so on
what was seen of that node before it was another process, nor because that was not seen yet.
"""

from collections.abc import Mapping

from holdfast.base.clock import Clock
from holdfast.base.errors import Unavailable
from holdfast.cluster.members import Member
from holdfast.cluster.rows import FORMAT, STOPPING_ROW, NodeRow, StoppingRow, decode, encode, node_row
from holdfast.index.port import ABSENT, Committed, Expect, Index, Transaction

CLAIM_S = 30.0


class Stopping:
    """The claim of one node: its `name`, and the `boot` of this process."""

    def __init__(self, index: Index, clock: Clock, name: str, boot: str) -> None:
        self._index = index
        self._clock = clock
        self._name = name
        self._boot = boot
        self._seen = (ABSENT, 0.0)
        self._count = 0

    async def claim(self, members: Mapping[str, Member]) -> str:
        """The name of the node that was told so before, and may be about to stop; empty when it is this
        one's turn now. `members` are what this node judged by. Raises Unavailable."""
        judged_by = {name: member.row.boot for name, member in members.items()}
        (row,) = await self._index.get([STOPPING_ROW])
        revision = ABSENT
        if row is not None:
            revision, now = row.revision, self._clock.monotonic()
            if self._seen[0] != revision:
                self._seen = (revision, now)
            found = decode(StoppingRow, row.value)
            holds = found.node != self._name and now - self._seen[1] < CLAIM_S
            if holds and (judged_by.get(found.node) == found.boot or await self._is_same(found)):
                return found.node
        self._count += 1
        mine = encode(StoppingRow(FORMAT, self._name, self._boot, self._count))
        (outcome,) = await self._index.commit(
            [Transaction((Expect(STOPPING_ROW, revision),), ((STOPPING_ROW, mine),))]
        )
        if isinstance(outcome, Committed):
            return ""
        (now_there,) = await self._index.get([STOPPING_ROW])
        taken = decode(StoppingRow, now_there.value) if now_there is not None else None
        if taken is not None and taken.node != self._name:
            return taken.node
        if taken is not None and (taken.boot, taken.count) == (self._boot, self._count):
            return ""  # it was committed, and the answer was lost
        raise Unavailable("Whether it is this node's turn to stop stayed unknown.", hint="Ask again.")

    async def _is_same(self, claim: StoppingRow) -> bool:
        """Whether that node is still the process that was told so, by its row: what this one has seen of it
        may be older."""
        (row,) = await self._index.get([node_row(claim.node)])
        return row is not None and decode(NodeRow, row.value).boot == claim.boot
