"""Which chores go together, now that several nodes could do them.

Some chores of one node know of each other without the index: Sweep asks the journal what recovery knows,
Compact is told by Collect what is dead, Rescheme waits for Compact. Those share one lease, so that wherever
one is done, all are. Others are about what a node itself has: its stores, its fences, its own count of all
packs; of those each node does its own, without a lease. All the rest has a lease each, so that the work is
spread.

What must hold: a chore that is not named here finds all that it goes by in the index.
"""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

KEEPING = "keeping"
REPAIR = "repair"

TOGETHER: Mapping[str, str] = {
    **dict.fromkeys(
        ("journal", "snapshot", "upkeep", "collect", "sweep", "compact", "rescheme"),
        KEEPING,
    ),
    **dict.fromkeys(("repair", "replaced", "absent", "rebalance", "spread"), REPAIR),
}
"""The lease of chores that share one."""

NEEDS_OTHERS = frozenset({REPAIR, "scrub", "debts", "drain"})
"""Leases of chores that get nowhere at a node that does not reach the others: it leaves them to one that
does. The journal's is none of them: what is committed is to be on some stores, whoever they are."""

OF_EACH_NODE = frozenset({"housekeeping", "census", "ledger", "fences", "findings"})


@runtime_checkable
class TakesOver(Protocol):
    """A chore that remembers what another node may have changed, or done, while it held the lease."""

    def took_over(self) -> None:
        """The lease is ours, and was somebody else's, or nobody's, before: forget what may be out of date."""
        ...


@runtime_checkable
class HandsOver(Protocol):
    """A chore that others wait for as long as something is left for it to do."""

    def handed_over(self) -> None:
        """The lease is somebody else's: nothing is left to do here."""
        ...


def lease_of(chore: str, *, shared: bool) -> str | None:
    """The name of a chore's lease, None where it needs none; `shared` says whether there are other nodes."""
    if not shared:
        return chore
    return None if chore in OF_EACH_NODE else TOGETHER.get(chore, chore)
