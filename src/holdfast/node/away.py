"""For how long each store of the installation has been away, as far as this node may judge.

What must hold: a node that is itself cut off from the others gives nobody's stores up. It reaches the index,
sees every other node beat there, and reaches none of them: were it to write again what they hold, the copies
that are well would be let go for others that all lie here.
"""

from holdfast.base.ids import StoreId
from holdfast.health import StoreHealth, StoreState
from holdfast.node.keeper import Keeper


def away_of(keeper: Keeper, health: StoreHealth, now: float) -> dict[StoreId, float]:
    """Seconds for which each store has been away, or been down where it is; those of other nodes not for
    longer than this node has been among them again."""
    away: dict[StoreId, float] = {}
    for held in keeper.held.values():
        if held.id is not None and held.store is None:
            away[held.id] = now - held.since
        elif held.id is not None and health.state(held.id) is StoreState.DOWN:
            away[held.id] = now - health.since(held.id)
    for other in keeper.others.values():
        if other.store is None:
            away[other.id] = now - max(other.since, keeper.cut_off_at)
        elif health.state(other.id) is StoreState.DOWN:
            away[other.id] = now - max(health.since(other.id), keeper.cut_off_at)
    return away


def is_cut_off(beating: int, unanswered: int) -> bool:
    """Whether a node that reaches all but `unanswered` of `beating` others, all of which the index shows
    alive, is on the smaller side of what came between: with itself, it has no majority of them."""
    return unanswered > 0 and 2 * (beating - unanswered + 1) <= beating + 1
