"""How soon a change of the members is known everywhere: by every node, and by the Envoy of every balancer.

Asked is what each of them says of itself, one after the other and without a pause, so that what is measured
is at most one round of questions too long. It is held only where nothing else should run
(`HOLDFAST_THOROUGH`).
"""

import os
from collections.abc import Callable, Collection, Iterable, Sequence

from holdfast.base.clock import SystemClock
from holdfast.health import StoreState
from holdfast.node.status import Status
from holdfast.stores.port import Attachment
from tests.kit.balancer import BalancerProcess
from tests.kit.cluster import ClusterNode
from tests.kit.outcome import Outcome, show
from tests.kit.process import wait_until

WITHIN_S = 1.0
GONE = "gone"
AWAY = "away"
"""Said of a node by another that uses none of its stores."""
_UNUSED = {StoreState.DOWN.value, *(one.value for one in Attachment if one is not Attachment.READY)}
THOROUGH = bool(os.environ.get("HOLDFAST_THOROUGH"))


def seen_by_node(status: Status, name: str) -> str:
    """The word for a member."""
    state = next((node.state for node in status.nodes if node.name == name), GONE)
    stores = [store.state for store in status.stores if store.slot.startswith(f"{name}/")]
    return AWAY if state in ("ready", "silent") and stores and set(stores) <= _UNUSED else state


def seen_by_balancer(balancer: BalancerProcess) -> dict[str, str]:
    """The word for each node that it knows."""
    return {node["name"]: node["state"] for node in balancer.status()["nodes"]}


class Known:
    """Measures one change after the other. `balancers` are asked each time."""

    def __init__(self, balancers: Sequence[BalancerProcess]) -> None:
        self._balancers = balancers
        self._clock = SystemClock()
        self.outcomes: list[Outcome] = []

    def until(
        self,
        what: str,
        change: Callable[[], object],
        name: str,
        nodes: Iterable[ClusterNode],
        *,
        to_nodes: Collection[str],
        to_balancers: str,
    ) -> None:
        """Change something about the node `name`, and wait until each of `nodes` has one of these words for
        it, and each balancer the other. Counted from when `change` returns."""
        asked = [(lambda node=node: seen_by_node(node.status(), name) in to_nodes) for node in nodes]
        asked += [
            (lambda one=one: seen_by_balancer(one).get(name, GONE) == to_balancers) for one in self._balancers
        ]
        change()
        began = self._clock.monotonic()

        def known() -> bool:
            asked[:] = [is_known for is_known in asked if not is_known()]
            return not asked

        wait_until(f"all to know that {what}", known, look_every_s=0.005)
        outcome = Outcome(f"known everywhere: {what}", detected_s=self._clock.monotonic() - began)
        self.outcomes.append(outcome)
        assert not THOROUGH or outcome.detected_s <= WITHIN_S, outcome.row()

    def show(self) -> None:
        """The table."""
        show(self.outcomes)
