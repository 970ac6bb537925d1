"""Whether a node may be taken down: every promise that would break is a reason, and nothing else is."""

import pytest
from msgspec.structs import replace

from holdfast.base.ids import StoreId
from holdfast.cluster.rows import MemberStore
from holdfast.node.can_stop import StopView, may_stop, stores_to_write
from holdfast.node.census import Count
from holdfast.node.others import Remote
from holdfast.packs.model import PackRow, Place
from holdfast.scheme import Scheme
from holdfast.topology import Location, Topology

FINE = StopView(
    ready=2,
    silent=(),
    stores=4,
    stores_needed=3,
    packs_lost=0,
    packs_unreadable=0,
    index_serving=True,
    index_here=False,
)


def test_a_node_that_nobody_needs_may_stop() -> None:
    assert may_stop(FINE).can_stop
    assert may_stop(FINE).reasons == ()
    assert may_stop(replace(FINE, ready=1, silent=("n3",), stores=3)).can_stop


@pytest.mark.parametrize(
    ("view", "says"),
    [
        (replace(FINE, ready=0, silent=("n2",)), "No other node is ready to serve (n2 should be)."),
        (replace(FINE, ready=0), "No other node is ready to serve."),
        (replace(FINE, packs_lost=1), "1 pack could not be read"),
        (replace(FINE, packs_unreadable=7), "7 packs cannot be read even now"),
        (replace(FINE, stores=2), "needs 3 stores at least"),
        (replace(FINE, index_serving=False), "The index does not serve."),
        (replace(FINE, index_here=True), "The index lies on this node."),
    ],
)
def test_what_would_break_is_a_reason(view: StopView, says: str) -> None:
    answer = may_stop(view)
    assert not answer.can_stop
    assert len(answer.reasons) == 1
    assert says in answer.reasons[0]


def test_stores_that_are_up_and_take_nothing_are_not_counted_for_writes() -> None:
    """Of two nodes the one is being emptied: the other one's stores are all that there would be."""

    def other(name: str, *, takes_new: bool) -> Remote:
        row = MemberStore(name, StoreId(name), "r", "z", "h", "d", "ready", "", takes_new)
        return Remote("n2", row, 0.0)

    stores = [
        other("open", takes_new=True),
        other("emptied", takes_new=False),
        other("down", takes_new=True),
        other("away", takes_new=True),
    ]
    there = {StoreId("open"), StoreId("emptied"), StoreId("down")}
    assert stores_to_write(stores, there, lambda store: store != "down") == 1


STORES = [StoreId(f"s{number}") for number in range(6)]
TOPOLOGY = Topology(Location(store) for store in STORES)


def pack(scheme: Scheme, *stores: int) -> PackRow:
    places = tuple(Place(shard, STORES[store], 0) for shard, store in enumerate(stores))
    return PackRow(scheme, 4 << 20, 100, 4 << 20, places)


def test_packs_that_hang_on_the_stores_of_a_node_are_counted() -> None:
    rs = Scheme(4, 2)
    count = Count(TOPOLOGY, frozenset(STORES[:2]))
    there = frozenset(STORES)
    count.add(pack(rs, 0, 1, 2, 3, 4, 5), there)
    assert count.unreadable_without_own == 0
    count.add(pack(rs, 0, 1, 2, 3, 4), there)
    assert count.unreadable_without_own == 1
    count.add(pack(Scheme(1, 2), 0, 1, 2), there)
    assert count.unreadable_without_own == 1
    count.add(pack(Scheme(1, 1), 0, 1), there)
    assert count.unreadable_without_own == 2
    # What cannot be read anyway does not hang on this node.
    count.add(pack(rs, 0, 1, 2), there)
    assert (count.unreadable_without_own, count.unreadable) == (2, 1)
    # A store that is away counts for nothing.
    count.add(pack(rs, 0, 1, 2, 3, 4, 5), there - {STORES[5]})
    assert count.unreadable_without_own == 3
    assert count.redundancy_most == 2
