"""Placement spreads evenly at every level, and says truthfully what it survives."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.ids import StoreId
from holdfast.topology import Level, Location, Topology, check, place, survived


@st.composite
def topologies(draw: st.DrawFn) -> Topology:
    locations = []
    number = 0
    for region in range(draw(st.integers(1, 3))):
        for zone in range(draw(st.integers(1, 2))):
            for host in range(draw(st.integers(1, 2))):
                for device in range(draw(st.integers(1, 2))):
                    for _ in range(draw(st.integers(1, 2))):
                        locations.append(
                            Location(
                                StoreId(f"s{number}"), f"r{region}", f"z{zone}", f"h{host}", f"d{device}"
                            )
                        )
                        number += 1
    return Topology(locations)


@given(topologies(), st.integers(1, 22), st.randoms())
def test_no_sibling_is_left_behind_at_any_level(topology: Topology, count: int, shuffler: object) -> None:
    candidates = list(topology.stores)
    shuffler.shuffle(candidates)  # type: ignore[attr-defined]
    chosen = place(topology, count, candidates)
    assert check(topology, count, candidates, chosen) == []


def test_check_sees_what_is_wrong() -> None:
    topology = Topology(Location(StoreId(f"s{n}"), host=f"h{n // 3}", device=f"d{n}") for n in range(6))
    stores = topology.stores
    assert check(topology, 4, stores, [stores[0], stores[1], stores[2], stores[3]])
    assert check(topology, 2, stores, [stores[0], stores[0]])
    assert check(topology, 2, stores, [stores[0]])
    assert check(topology, 2, stores[:3], [stores[0], stores[5]])


@given(topologies(), st.integers(1, 10), st.integers(0, 6))
def test_what_is_said_to_survive_survives_every_way_of_losing_it(
    topology: Topology, count: int, needed: int
) -> None:
    chosen = place(topology, count, topology.stores)
    needed = min(needed, len(chosen))
    for level, losable in survived(topology, chosen, needed).items():
        domains = {topology.domain(store, level) for store in chosen}
        for more, enough in ((0, True), (1, False)):
            if losable + more > len(domains):
                continue
            results = []
            for lost in combinations(sorted(domains), losable + more):
                left = [store for store in chosen if topology.domain(store, level) not in lost]
                results.append(len(left) >= needed)
            # Exactly `losable` may always go; one more must go wrong for at least one choice.
            assert all(results) == enough


def test_directories_on_one_device_are_one_domain() -> None:
    topology = Topology(Location(StoreId(f"s{n}"), device="vda") for n in range(6))
    chosen = place(topology, 6, topology.stores)
    levels = survived(topology, chosen, 4)
    assert levels[Level.STORE] == 2
    assert levels[Level.DEVICE] == 0


def test_three_hosts_of_two_disks_survive_a_host_with_rs_4_2() -> None:
    topology = Topology(Location(StoreId(f"s{n}"), host=f"h{n // 2}", device=f"d{n}") for n in range(6))
    assert survived(topology, place(topology, 6, topology.stores), 4)[Level.HOST] == 1


def test_what_is_taken_counts_and_is_not_chosen_again() -> None:
    topology = Topology(Location(StoreId(f"s{n}"), host=f"h{n // 2}", device=f"d{n}") for n in range(6))
    s = topology.stores
    chosen = place(topology, 1, s, taken=[s[0], s[1], s[2]])
    assert chosen[0] in (s[4], s[5])
