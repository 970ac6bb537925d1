"""What shall be survived: the loss of so many domains of a level together. Pure.

`region`, `zone:1`, `host:2`, as people write it. It is survived when as many shards are left as a read needs,
whichever of these domains go, so when the fullest of them go.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from msgspec import Struct

from holdfast.base.errors import InvalidInput
from holdfast.base.ids import StoreId
from holdfast.topology.tree import Level, Topology

DOMAINS_MAX = 6

LEVELS_TO_CHOOSE = (Level.REGION, Level.ZONE, Level.HOST, Level.STORE)


class Survive(Struct, frozen=True, order=True):
    """The loss of any `domains` domains of a level, named by its word."""

    level: str
    domains: int = 1

    @property
    def name(self) -> str:
        """As a person writes it."""
        return self.level if self.domains == 1 else f"{self.level}:{self.domains}"


ANY_REGION = Survive(Level.REGION.value)


def parse_survive(text: str) -> Survive:
    """`region`, `zone`, `host` or `store`, with or without `:N`. Raises InvalidInput with what would be
    right."""
    level, colon, count = text.partition(":")
    known = {one.value for one in LEVELS_TO_CHOOSE}
    if level not in known or (
        colon and not (count.isascii() and count.isdigit() and 1 <= int(count) <= DOMAINS_MAX)
    ):
        raise InvalidInput(
            f"{text!r} is nothing that a bucket can survive.",
            hint=f"Say region, zone, host or store, with :N (1 to {DOMAINS_MAX}) for more than one of them.",
        )
    return Survive(level, int(count) if colon else 1)


def keeps(topology: Topology, required: Sequence[Survive], stores: Collection[StoreId], needed: int) -> bool:
    """Whether all of `required` may be lost, one at a time, with `needed` of the shards left that are at
    these stores."""
    for survive in required:
        held = Counter(topology.domain(store, Level(survive.level)) for store in stores)
        lost = sum(sorted(held.values(), reverse=True)[: survive.domains])
        if len(stores) - lost < needed:
            return False
    return True
