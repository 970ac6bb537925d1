"""Which shards to read, and when to read others as well: one read, as a state machine. Pure.

The wanted data units come first. As soon as one of them is missing, wrong, late or on a store that is
to be avoided, enough others are read for a rebuild, while the late one stays outstanding; whichever
is complete first wins: all wanted units, or any k. Stores to be avoided are asked only when nothing
else is left. What must hold: the plan ends, and it ends in FAILED only when every shard there is
has failed and fewer than k were right.

`HedgeBudget` keeps speculative reads to a few percent of all reads (Dean and Barroso, The Tail at Scale,
2013): each read earns a fraction of a hedge. Rebuilding after an error needs no budget.
"""

from collections.abc import Collection, Iterable, Mapping
from enum import Enum

HEDGE_SHARE = 0.04
HEDGE_BURST = 16.0
UNCONDITIONAL_S = 0.150
"""Nothing waits longer than this without a rebuild, budget or not."""


class HedgeBudget:
    """A bucket of hedges that reads fill and speculation empties."""

    def __init__(self) -> None:
        self._level = HEDGE_BURST
        self.reads = 0
        self.hedges = 0

    def earn(self) -> None:
        """A read began."""
        self.reads += 1
        self._level = min(HEDGE_BURST, self._level + HEDGE_SHARE)

    def spend(self) -> bool:
        """Take one hedge, if there is one."""
        if self._level < 1.0:
            return False
        self._level -= 1.0
        self.hedges += 1
        return True


def to_avoid(there: Collection[int], unreadable: Collection[int], doubted: Collection[int]) -> set[int]:
    """Which shards to read only when nothing else is left: those on stores that are out of use, and those on
    stores that are in doubt. But when that would be more than half of a pack, doubt says more of who doubts,
    and a rebuild costs more than a wait: then only the former. Pure."""
    avoid = {*unreadable, *doubted} & set(there)
    return avoid if 2 * len(avoid) <= len(there) else set(unreadable) & set(there)


def too_far(
    needed: int, wanted: Collection[int], nearness: Mapping[int, int], avoided: Collection[int]
) -> set[int]:
    """Which wanted shards are farther away than any of as many others as a rebuild needs: to have those is
    quicker. `nearness` grows with the distance. Pure."""
    others = sorted(far for shard, far in nearness.items() if shard not in wanted and shard not in avoided)
    if len(others) < needed:
        return set()
    return {shard for shard in wanted if nearness.get(shard, 0) > others[needed - 1]}


class PlanState(Enum):
    """How a read stands."""

    READING = "reading"
    DIRECT = "direct"
    REBUILD = "rebuild"
    FAILED = "failed"


class ReadPlan:
    """`wanted` shards of one range of blocks; `there` are the shards that have a place, best first;
    `virtual` ones are known to be zeros; `avoid` are on stores that are not the first choice."""

    def __init__(
        self,
        k: int,
        wanted: Iterable[int],
        there: Iterable[int],
        virtual: Iterable[int],
        avoid: Iterable[int],
    ) -> None:
        self._k = k
        self._virtual = frozenset(virtual)
        self._wanted = frozenset(wanted) - self._virtual
        avoided = frozenset(avoid)
        order = [shard for shard in there if shard not in self._virtual]
        self._left = [shard for shard in order if shard not in avoided and shard not in self._wanted]
        self._left += [shard for shard in order if shard in avoided]
        self._direct = [shard for shard in order if shard in self._wanted and shard not in avoided]
        self._outstanding: set[int] = set()
        self._overdue: set[int] = set()
        self._given_up = set(self._wanted - set(self._direct))
        self.arrived: set[int] = set()

    @property
    def state(self) -> PlanState:
        """Whether the bytes are there, and how to put them together."""
        if self._wanted <= self.arrived:
            return PlanState.DIRECT
        if len(self.arrived) + len(self._virtual) >= self._k:
            return PlanState.REBUILD
        if not self._outstanding and not self._left:
            return PlanState.FAILED
        return PlanState.READING

    def start(self) -> list[int]:
        """Shards to read first."""
        self._outstanding.update(self._direct)
        return self._direct + self._reinforce()

    def arrive(self, shard: int) -> None:
        """A shard's blocks came, and are right."""
        self._outstanding.discard(shard)
        self._overdue.discard(shard)
        self.arrived.add(shard)

    def fail(self, shard: int) -> list[int]:
        """A shard is missing or wrong, or its store failed. Answers shards to read as well."""
        self._outstanding.discard(shard)
        self._overdue.discard(shard)
        if shard in self._wanted:
            self._given_up.add(shard)
        return self._reinforce()

    def late(self, shard: int) -> list[int]:
        """A shard that is outstanding will not be waited for alone. Answers shards to read as well."""
        if shard not in self._outstanding or shard in self._overdue:
            return []
        self._overdue.add(shard)
        if shard in self._wanted:
            self._given_up.add(shard)
        return self._reinforce()

    def _reinforce(self) -> list[int]:
        """As many more shards as a rebuild needs, when a wanted one can't be counted on."""
        if not self._given_up or self.state is not PlanState.READING:
            return []
        coming = len(self._outstanding - self._overdue) + len(self.arrived) + len(self._virtual)
        more = self._left[: max(0, self._k - coming)]
        del self._left[: len(more)]
        self._outstanding.update(more)
        return more
