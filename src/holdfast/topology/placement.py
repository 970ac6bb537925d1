"""Where the shards of a pack go, and what the result survives. Pure.

Greedy from the widest level down: each shard goes to the store whose region holds the fewest shards so
far, among those the zone with the fewest, and so on to the device. That is as even as the stores
allow at every level (a domain lies behind its siblings only when it has no store left to give), which
`check` states independently. Between equals the caller's order decides, which is where free space,
health and chance come in. No store ever holds two shards of a pack.

A level is survived `t` times when any `t` of its domains may be lost together and enough shards
remain: the sum of the `t` fullest domains is at most the number of redundant shards.
"""

from collections import Counter
from collections.abc import Sequence

from holdfast.base.ids import StoreId
from holdfast.topology.tree import LEVELS, Domain, Level, Topology

_SPREAD = len(LEVELS) - 1
"""Levels that shards are spread over: all but the last, because no store holds two."""

_SPREAD_LEVELS = tuple(level for level in LEVELS if level is not Level.STORE)


def place(
    topology: Topology, count: int, candidates: Sequence[StoreId], taken: Sequence[StoreId] = ()
) -> list[StoreId]:
    """Choose stores for `count` shards out of `candidates`, best liked first.

    `taken` already hold shards of the same pack: they are not chosen again and their domains count as
    filled. Returns fewer than `count` when there are not enough candidates.
    """
    filled: Counter[Domain] = Counter()

    def fill(store: StoreId) -> None:
        filled.update(topology.path(store)[:_SPREAD])

    for store in taken:
        fill(store)
    left = {store: topology.path(store)[:_SPREAD] for store in candidates}
    for store in taken:
        left.pop(store, None)
    chosen: list[StoreId] = []
    while left and len(chosen) < count:
        best = min(left, key=lambda store: [filled[domain] for domain in left[store]])
        del left[best]
        fill(best)
        chosen.append(best)
    return chosen


def survived(topology: Topology, stores: Sequence[StoreId], needed: int) -> dict[Level, int]:
    """How many domains of each level may be lost with at least `needed` of the shards left, given the
    store of each durable shard. Narrowest level first, as people ask it."""
    spare = len(stores) - needed
    result: dict[Level, int] = {}
    paths = [topology.path(store) for store in stores]
    for number in reversed(range(len(LEVELS))):
        fullest = sorted(Counter(path[number] for path in paths).values(), reverse=True)
        lost = domains = 0
        for held in fullest:
            lost += held
            if lost > spare:
                break
            domains += 1
        result[LEVELS[number]] = domains
    return result


def check(
    topology: Topology, count: int, candidates: Sequence[StoreId], chosen: Sequence[StoreId]
) -> list[str]:
    """What is wrong with a placement; an empty list says nothing is.

    The law: distinct candidates, as many as asked or all there are, and inside every domain no child
    holds two shards more than a sibling that still had a store to give.
    """
    wrong = []
    if len(set(chosen)) != len(chosen):
        wrong.append("a store holds two shards")
    if not set(chosen) <= set(candidates):
        wrong.append("a shard lies outside the candidates")
    if len(chosen) != min(count, len(set(candidates))):
        wrong.append(f"{len(chosen)} stores chosen of {count} asked, {len(set(candidates))} there")
    for level in _SPREAD_LEVELS:
        held = Counter(topology.domain(store, level) for store in chosen)
        room = Counter(topology.domain(store, level) for store in set(candidates))
        for full in held:
            wrong += [
                f"{level.value} {'/'.join(full)} holds {held[full]}, {other[-1]} {held[other]}"
                for other in room
                if full[:-1] == other[:-1] and held[other] + 1 < held[full] and held[other] < room[other]
            ]
    return wrong
