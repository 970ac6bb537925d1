"""Whether this node can be taken down for a while without anybody noticing. Pure.

What must hold: nothing is rounded in favour of stopping. What is asked about is this node alone, as things
are now. To ask changes nothing; who is about to stop the node claims the word for it besides, which one at a
time has (`holdfast.cluster.stopping`).
"""

from collections.abc import Callable, Container, Iterable

from msgspec import Struct

from holdfast.base.ids import StoreId
from holdfast.base.wording import counted
from holdfast.node.others import Remote

CAN_STOP_PATH = "/-/can-stop"
CLAIM_PATH = f"{CAN_STOP_PATH}/claim"
COUNT_FRESH_S = 15.0
"""A count of the packs that was begun longer ago is made anew."""


class StopView(Struct, frozen=True, kw_only=True):
    """What there would be without this node. `ready` are other nodes that serve, `silent` those that should
    and do not; `stores` those of others that can be written; `stores_needed` what a pack of the strongest
    promise in use needs at least. `packs_lost` can be read now and could not then; `packs_unreadable` cannot
    now."""

    ready: int
    silent: tuple[str, ...]
    stores: int
    stores_needed: int
    packs_lost: int
    packs_unreadable: int
    index_serving: bool
    index_here: bool


class CanStop(Struct, frozen=True):
    """The answer; `reasons` are sentences, none when it can."""

    can_stop: bool
    reasons: tuple[str, ...]


def stores_to_write(
    others: Iterable[Remote], there: Container[StoreId], is_up: Callable[[StoreId], bool]
) -> int:
    """How many stores of other nodes would take a write: one that is being emptied, or a spare that waits,
    is up and takes none."""
    return sum(other.row.takes_new and other.id in there and is_up(other.id) for other in others)


def has_the_word(node: str) -> str:
    """Why this node may not stop although nothing speaks against it."""
    return f"Node {node} has the word to stop: ask again when it is back, or in half a minute."


def may_stop(view: StopView) -> CanStop:
    """Whether stopping breaks a promise."""
    reasons = []
    if not view.ready:
        others = f" ({', '.join(view.silent)} should be)" if view.silent else ""
        reasons.append(f"No other node is ready to serve{others}.")
    if view.packs_lost:
        reasons.append(
            f"{counted(view.packs_lost, 'pack')} could not be read without the stores of this node."
        )
    if view.packs_unreadable:
        reasons.append(
            f"{counted(view.packs_unreadable, 'pack')} cannot be read even now: what this node has may be "
            "needed to make them again."
        )
    if view.stores < view.stores_needed:
        reasons.append(
            f"A write needs {view.stores_needed} stores at least, and of those of other nodes "
            f"{view.stores} can be written."
        )
    if view.index_here:
        reasons.append("The index lies on this node.")
    elif not view.index_serving:
        reasons.append("The index does not serve.")
    return CanStop(not reasons, tuple(reasons))
