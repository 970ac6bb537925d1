"""What a rewrite of one pack has to do, decided from its row, what is wrong with it and what is wanted. Pure.

One operation serves heal, debt, drain, rebalance and change of scheme. In this order, the first that applies:

    ANEW       all of the pack in another scheme: the promised one differs, and the one that fits the
               stores now is nearer to it (another m, more of the k that was promised, or less of a k that
               is more than was promised); or shards have no home to go to, and the target allows a
               smaller k, which gives the pack its m again
    REPLACE    shards that are lost get new homes, and shards that lie where they should not (`leave`, or
               `moves`) are moved; with fewer homes than shards, lost ones first, data before redundancy
    NOT_NOW    whether a shard is lost could not be seen, or the stores do not allow what is wanted
    FORGIVE    nothing is missing any more: the debt goes from the record
    OWE        what is promised goes on record, to be paid when the stores allow it
    NOTHING    all is as it should be

What must hold: a plan never leaves a pack with less than it had; no store gets two shards; nothing goes
to a store that is to be left.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from msgspec import Struct

from holdfast.base.ids import StoreId
from holdfast.packs.layout import real_shards
from holdfast.packs.model import PackRow
from holdfast.packs.promising import Required
from holdfast.packs.spread import fitting_scheme
from holdfast.scheme import Scheme
from holdfast.topology import Topology, place


class Reason(Enum):
    """Why a pack is rewritten."""

    HEAL = "heal"
    DEBT = "debt"
    SCHEME = "scheme"
    DRAIN = "drain"
    REBALANCE = "rebalance"


class Target(Struct, frozen=True):
    """What a rewrite should come to, beyond a pack that has what it was promised.

    `bad` are shards that somebody found missing or wrong (each is looked at again first), `gone` are stores
    that have been away for so long that what they hold counts as lost, `promised` is a new promise, `leave`
    are stores that must not keep shards, `moves` says which shard should go where. `shrink` allows a smaller
    k, with the debt on record, where shards would have no home otherwise. `condemned` are shards that are
    right in themselves, but were found not to belong to the others: they are never read from.
    """

    bad: tuple[int, ...] = ()
    gone: frozenset[StoreId] = frozenset()
    promised: Scheme | None = None
    leave: frozenset[StoreId] = frozenset()
    moves: tuple[tuple[int, StoreId], ...] = ()
    shrink: bool = False
    condemned: tuple[int, ...] = ()


class Step(Enum):
    """See the table above."""

    ANEW = "anew"
    REPLACE = "replace"
    NOT_NOW = "not-now"
    FORGIVE = "forgive"
    OWE = "owe"
    NOTHING = "nothing"


class Plan(Struct, frozen=True):
    """`scheme` is that of the pack afterwards, `promised` what it is owed, `homes` the new store of each
    shard that is written; `copied` are those of them whose shard is there to be copied."""

    step: Step
    scheme: Scheme
    promised: Scheme
    homes: Mapping[int, StoreId] = {}
    copied: frozenset[int] = frozenset()


def plan_rewrite(
    row: PackRow,
    lost: frozenset[int],
    target: Target,
    owed: Scheme | None,
    candidates: Sequence[StoreId],
    topology: Topology,
    *,
    in_doubt: bool = False,
    told: Callable[[Scheme], Required] = lambda _: (),
) -> Plan:
    """What to do with a pack. `lost` are shards without a place or that were seen to be bad; `owed` is what
    a debt on record promises; `candidates` are stores that can be written, best first; `in_doubt` says
    that a shard could not be looked at; `told` what packs of a scheme have to survive."""
    promised = target.promised or owed or row.scheme
    usable = [store for store in candidates if store not in target.leave]
    fitting = fitting_scheme(promised, row.stored_bytes, usable, topology, told(promised))
    homes = _new_homes(row, lost, target, usable, topology)
    homeless = _homeless(row, lost, target) - homes.keys()
    if fitting is not None and (
        _is_nearer(fitting, row.scheme, promised) or (homeless and target.shrink and fitting.k < row.scheme.k)
    ):
        shards = real_shards(fitting, row.stored_bytes)
        chosen = place(topology, len(shards), usable)
        return Plan(Step.ANEW, fitting, promised, dict(zip(shards, chosen, strict=True)))
    if homes:
        return Plan(Step.REPLACE, row.scheme, promised, homes, frozenset(homes) - lost)
    if in_doubt or homeless:
        step = Step.NOT_NOW
    elif row.scheme == promised:
        step = Step.NOTHING if owed is None else Step.FORGIVE
    else:
        step = Step.NOT_NOW if owed == promised else Step.OWE
    return Plan(step, row.scheme, promised)


def _is_nearer(fitting: Scheme, now: Scheme, promised: Scheme) -> bool:
    """Whether `fitting`, which keeps the promised m, serves the promise better than what the pack has."""
    if now == promised:
        return False
    return fitting.m != now.m or fitting.k > now.k or now.k > promised.k


def _homeless(row: PackRow, lost: frozenset[int], target: Target) -> frozenset[int]:
    """Shards that must be somewhere else than they are, data first as `sorted` has them."""
    return lost | {place_.shard for place_ in row.places if place_.store in target.leave}


def _new_homes(
    row: PackRow, lost: frozenset[int], target: Target, usable: Sequence[StoreId], topology: Topology
) -> dict[int, StoreId]:
    """The new store of each shard that is to be written, as far as there are stores."""
    at = {place_.shard: place_.store for place_ in row.places}
    leaving = _homeless(row, lost, target) - lost
    if not lost and not leaving:
        return _wanted_moves(at, target, usable)
    going = [*sorted(lost), *sorted(leaving)]
    kept = [store for shard, store in at.items() if shard not in going]
    free = [store for store in usable if store not in kept]
    homes = dict(zip(going, place(topology, len(going), free, taken=kept), strict=False))
    while clash := _clash(homes, {shard: at[shard] for shard in going if shard in at}):
        shard, staying = clash
        homes[staying] = homes.pop(shard)
    return homes


def _clash(homes: Mapping[int, StoreId], now: Mapping[int, StoreId]) -> tuple[int, int] | None:
    """A shard whose new home holds another one that stays, for lack of homes: that one is mended instead."""
    staying = {store: shard for shard, store in now.items() if shard not in homes}
    return next(((shard, staying[to]) for shard, to in homes.items() if to in staying), None)


def _wanted_moves(at: Mapping[int, StoreId], target: Target, usable: Sequence[StoreId]) -> dict[int, StoreId]:
    """The moves that are still possible: shards move, and stores fill, between planning and doing."""
    homes: dict[int, StoreId] = {}
    for shard, store in target.moves:
        if shard in at and store in usable and store not in at.values() and store not in homes.values():
            homes[shard] = store
    return homes
