"""Counts who is taken for faulty while a drill goes on in which nobody is: false ejections.

By balancers: how often Envoy's passive checks left a node out, by its own count, and how many nodes one
balancer left out at the same time, as often as it can be asked. By nodes: how often a store was taken for
down or for one to sit out, by their events.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from holdfast.balance.admin import Admin
from holdfast.balance.bootstrap import Files
from holdfast.balance.nodes_cluster import CLUSTER
from holdfast.balance.settings import DIRECTORY_DEFAULT
from holdfast.balance.status import read_status
from holdfast.base.errors import Unavailable
from holdfast.health import StoreState
from holdfast.health.events import Event
from tests.kit.balancer import BalancerProcess
from tests.kit.drill import Ask

LOOK_EVERY_S = 0.1
OUT = (StoreState.DOWN.value, StoreState.SITTING_OUT.value)
_COUNTED = f"cluster.{CLUSTER}.outlier_detection.ejections_enforced_total"


class _Page(msgspec.Struct):
    events: list[Event]


class Ejections:
    """A context manager; `count` and `at_once` are right once it is left. `ask` is any node."""

    def __init__(self, balancers: Sequence[BalancerProcess], ask: Ask) -> None:
        self._folders = [balancer.home / DIRECTORY_DEFAULT for balancer in balancers]
        self._ask = ask
        self._watching: asyncio.Task[None] | None = None
        self._before = 0
        self._event = 0
        self.nodes_left_out = 0
        self.stores_out: list[str] = []
        self.at_once = 0

    async def __aenter__(self) -> "Ejections":
        self._before = await asyncio.to_thread(self._left_out_so_far)
        newest = await self._events("last=1")
        self._event = newest[-1].number if newest else 0
        self._watching = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._watching is not None
        self._watching.cancel()
        await asyncio.gather(self._watching, return_exceptions=True)
        self.nodes_left_out = await asyncio.to_thread(self._left_out_so_far) - self._before
        after = self._event
        while found := await self._events(f"after={after}"):
            after = found[-1].number
            self.stores_out += [event.text for event in found if event.after in OUT and event.subject]

    @property
    def count(self) -> int:
        """All together."""
        return self.nodes_left_out + len(self.stores_out)

    async def _events(self, query: str) -> list[Event]:
        answer = await self._ask("GET", f"/-/events?{query}")
        assert answer.status == 200, answer.body
        return msgspec.json.decode(answer.body, type=_Page).events

    def _left_out_so_far(self) -> int:
        return sum(Admin(Files(folder).admin).number(_COUNTED) for folder in self._folders)

    async def _watch(self) -> None:
        while True:
            for folder in self._folders:
                with suppress(Unavailable):
                    seen = await asyncio.to_thread(read_status, folder, tls=False)
                    out = sum(node.state == "left out" for node in seen.nodes)
                    self.at_once = max(self.at_once, out)
            await asyncio.sleep(LOOK_EVERY_S)
