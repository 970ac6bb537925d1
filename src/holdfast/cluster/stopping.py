"""Who has the word to stop: one node at a time.

Whether a node can be taken down is judged by what there would be without it, with all others there. Two that
are judged at the same moment could both be taken down, and with both gone a promise would break. So who is
about to stop a node claims the word for it, in a row that all nodes share, and nobody else gets it as long as
that row holds: until its node is back as another process, is a member no more, or has been as it was for
`CLAIM_S` of the asking node's own clock. Who only asks changes nothing. What must hold: of two claims that
are made at once, the index takes one; and nobody gets the word on what was seen of that node before it was
another process, nor because that was not seen yet.
"""

import asyncio
from collections.abc import Mapping

from holdfast.base.clock import Clock
from holdfast.base.errors import Unavailable
from holdfast.cluster.members import Member
from holdfast.cluster.rows import FORMAT, STOPPING_ROW, NodeRow, StoppingRow, decode, encode, node_row
from holdfast.index.port import ABSENT, Committed, Expect, Index, Row, Transaction

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
        self._claiming = asyncio.Lock()

    async def holder(self, members: Mapping[str, Member]) -> str:
        """The name of another node that has the word, and may be about to stop; empty when there is none.
        `members` are what this node judged by. Raises Unavailable."""
        (row,) = await self._index.get([STOPPING_ROW])
        return await self._other(row, members)

    async def claim(self, members: Mapping[str, Member]) -> str:
        """Take the word for this node, or have it for longer; or the name of the node that has it. Raises
        Unavailable."""
        async with self._claiming:  # two that claim it for this node are not rivals
            (row,) = await self._index.get([STOPPING_ROW])
            if other := await self._other(row, members):
                return other
            revision = ABSENT if row is None else row.revision
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

    async def _other(self, row: Row | None, members: Mapping[str, Member]) -> str:
        """Who has the word by what the row says, if it is not this node."""
        if row is None:
            return ""
        now = self._clock.monotonic()
        if self._seen[0] != row.revision:
            self._seen = (row.revision, now)
        found = decode(StoppingRow, row.value)
        if found.node == self._name or now - self._seen[1] >= CLAIM_S:
            return ""
        judged_by = members.get(found.node)
        same = judged_by is not None and judged_by.row.boot == found.boot
        return found.node if same or await self._is_same(found) else ""

    async def _is_same(self, claim: StoppingRow) -> bool:
        """Whether that node is still the process that was told so, by its row: what this one has seen of it
        may be older."""
        (row,) = await self._index.get([node_row(claim.node)])
        return row is not None and decode(NodeRow, row.value).boot == claim.boot
