"""Looking after fences, this node's and those of nodes that do not do so any more: what they are for is in
`holdfast.cluster.fences`."""

from holdfast.cluster.fences import OwnFences
from holdfast.cluster.others import Others
from holdfast.index.port import Index, prefix_end


class TendFences:
    """Replaces fences that graves wait for, notices that somebody has fenced this node, and listens whether
    the others beat."""

    name = "fences"
    interval_s = 2.0

    def __init__(self, fences: OwnFences, others: Others) -> None:
        self._fences = fences
        self._others = others

    async def step(self) -> bool:
        """One look."""
        await self._fences.tend()
        await self._others.look()
        return False


async def graves_wait(index: Index) -> bool:
    """Whether there is any grave: each waits for fences that are older to go."""
    return bool(await index.scan(b"buried/", prefix_end(b"buried/"), limit=1))
