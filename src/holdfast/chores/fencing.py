"""Looking after this node's fences: what they are for is in `holdfast.cluster.fences`."""

from holdfast.cluster.fences import OwnFences
from holdfast.index.port import Index, prefix_end


class TendFences:
    """Replaces fences that graves wait for, and notices that somebody has fenced this node."""

    name = "fences"
    interval_s = 2.0

    def __init__(self, fences: OwnFences) -> None:
        self._fences = fences

    async def step(self) -> bool:
        """One look."""
        await self._fences.tend()
        return False


async def graves_wait(index: Index) -> bool:
    """Whether there is any grave: each waits for fences that are older to go."""
    return bool(await index.scan(b"buried/", prefix_end(b"buried/"), limit=1))
