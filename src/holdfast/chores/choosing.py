"""Choosing the schemes of buckets again that were told what to survive, when stores have come or gone for
good.

A store that is away is still part of the house, so only those that a person adds or removes change anything.
What must hold: nothing is decided while that is still going on, or while a node that starts does not know
all others yet: the house has to be the same for `SETTLED_S`.
"""

from collections.abc import Awaitable, Callable, Hashable

from holdfast.base.clock import Clock
from holdfast.chores.chore import Progress

SETTLED_S = 60.0


class ChooseSchemes:
    """`house` tells one set of stores with their places from another; `choose` does it, and answers the
    buckets for which no scheme does what they were told, with why."""

    name = "choose"
    interval_s = 10.0

    def __init__(
        self, house: Callable[[], Hashable], choose: Callable[[], Awaitable[dict[str, str]]], clock: Clock
    ) -> None:
        self._house = house
        self._choose = choose
        self._clock = clock
        self._seen: Hashable = None
        self._since = 0.0
        self._done = False
        self.failed: dict[str, str] = {}

    def took_over(self) -> None:
        """Another node may have done it for a house that is none any more."""
        self._seen = None

    def progress(self) -> Progress:
        """Which buckets could not be helped."""
        name = next(iter(sorted(self.failed)), "")
        detail = f"bucket {name}: {self.failed[name]}" if name else ""
        return Progress(0, None, "buckets", detail)

    async def step(self) -> bool:
        """Look whether the house is another one; never anything to go on with at once."""
        house, now = self._house(), self._clock.monotonic()
        if house != self._seen:
            self._seen, self._since, self._done = house, now, False
        if not self._done and now - self._since >= SETTLED_S:
            self.failed = await self._choose()
            self._done = True
        return False
