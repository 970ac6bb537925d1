"""What packs shall survive, and which scheme does it on the stores there are. Pure.

A scheme survives something on a topology when a full pack, laid over all of its stores, has shards enough
left whichever of the domains go. `choose_scheme` takes, of the schemes that do, one with which writes go
on, too, after the loss, if there is one; of those what takes least space; then the one with two redundant
shards, or near that; then the one with fewest shards. At most `DATA_PER_REDUNDANT` data shards go with each
redundant one: wider stripes save little, and a second loss comes before the first is mended.
"""

from collections import Counter
from collections.abc import Sequence

from holdfast.base.errors import InvalidInput
from holdfast.scheme import Scheme
from holdfast.scheme.scheme import K_MAX, M_MAX
from holdfast.topology import ANY_REGION, LEVELS, Level, Survive, Topology, keeps, place
from holdfast.topology.survive import DOMAINS_MAX

DATA_PER_REDUNDANT = 4

assert DOMAINS_MAX == M_MAX, "one redundant shard for each domain that may go"

_WIDEST_FIRST = {level.value: number for number, level in enumerate(LEVELS)}

Required = tuple[Survive, ...]


class Promises:
    """What buckets were told to survive, by their schemes: a pack is shared by the buckets of one scheme,
    so it keeps what any of them was told. Learned from the buckets' rows, each of which is read before
    anything is written; `bucket` is what tells one bucket from all others."""

    def __init__(self) -> None:
        self._buckets: dict[str, tuple[Scheme, Survive]] = {}
        self._schemes: dict[Scheme, Required] = {}

    def learn(self, bucket: str, scheme: Scheme, survive: Survive | None) -> None:
        """What a bucket's row says now."""
        told = None if survive is None else (scheme, survive)
        if self._buckets.get(bucket) == told:
            return
        if told is None:
            del self._buckets[bucket]
        else:
            self._buckets[bucket] = told
        every: dict[Scheme, set[Survive]] = {}
        for one, survives in self._buckets.values():
            every.setdefault(one, set()).add(survives)
        self._schemes = {one: tuple(sorted(survives)) for one, survives in every.items()}

    def of(self, scheme: Scheme) -> Required:
        """What packs of this scheme shall survive, beyond what their scheme promises."""
        return self._schemes.get(scheme, ())


def required(topology: Topology, promised: Scheme, told: Required = ()) -> Required:
    """What a full pack of this scheme must survive, widest first: what it was told to and a region, as far as
    that can be when all stores are well."""
    if not promised.m:
        return ()
    wanted = set(told)
    if topology.count(Level.REGION) > 1:
        wanted.add(ANY_REGION)
    return tuple(
        survive
        for survive in sorted(wanted, key=lambda one: (_WIDEST_FIRST[one.level], one.domains))
        if holds(topology, promised, survive)
    )


def holds(topology: Topology, scheme: Scheme, survive: Survive) -> bool:
    """Whether a full pack of this scheme, or what fits of it, survives that when all stores are well."""
    fitting = scheme.shrunk(len(topology.stores))
    if fitting is None or fitting.m < survive.domains:
        return False
    return keeps(topology, (survive,), place(topology, fitting.n, topology.stores), fitting.k)


def choose_scheme(topology: Topology, survive: Survive) -> Scheme:
    """The best scheme that survives that. Raises InvalidInput, with the stores that are missing."""
    level = Level(survive.level)
    domains = Counter(topology.domain(store, level) for store in topology.stores)
    if len(domains) <= survive.domains:
        raise _too_few(survive, sorted(domain[-1] for domain in domains))
    found = [
        scheme
        for m in range(survive.domains, M_MAX + 1)
        for k in range(1, min(K_MAX, DATA_PER_REDUNDANT * m, len(topology.stores) - m) + 1)
        if holds(topology, scheme := Scheme(k, m), survive)
    ]
    assert found, "one shard in each of so many domains survives it"
    fullest = {domain for domain, _ in domains.most_common(survive.domains)}
    left = sum(topology.domain(store, level) not in fullest for store in topology.stores)

    def price(scheme: Scheme) -> tuple[bool, float, int, int]:
        return left < scheme.m + 1, scheme.bytes_factor, abs(scheme.m - 2), scheme.n

    return min(found, key=price)


def _too_few(survive: Survive, there: Sequence[str]) -> InvalidInput:
    level, missing = survive.level, survive.domains + 1 - len(there)
    lost = f"{survive.domains} {level}s" if survive.domains > 1 else f"a {level}"
    names = f" ({', '.join(there)})" if there else ""
    more = f"{missing} more {level}s" if missing > 1 else f"one more {level}"
    label = "" if survive.level == Level.STORE.value else f"; `{level} = ...` says where a store is"
    return InvalidInput(
        f"To survive the loss of {lost} takes stores in {survive.domains + 1} of them, there "
        f"{'is' if len(there) == 1 else 'are'} {len(there)}{names}.",
        hint=f"Add at least one store in {more}{label}.",
    )
