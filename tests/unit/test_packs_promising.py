"""What a bucket is told to survive becomes a scheme that does it, or a sentence about what is missing."""

from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.errors import InvalidInput
from holdfast.base.ids import StoreId
from holdfast.packs.promising import DATA_PER_REDUNDANT, Promises, choose_scheme, required
from holdfast.packs.spread import fitting_scheme
from holdfast.scheme import Scheme
from holdfast.topology import ANY_REGION, Level, Location, Survive, Topology, parse_survive, place

LARGE = 1 << 24


def house(level: str, shape: Sequence[int]) -> Topology:
    """Domains of a level, with so many stores each."""
    labels = {"region": "region", "zone": "zone", "host": "host"}[level]
    return Topology(
        Location(StoreId(f"{chr(97 + domain)}{number}"), **{labels: chr(97 + domain)})
        for domain, stores in enumerate(shape)
        for number in range(stores)
    )


@pytest.mark.parametrize(
    ("shape", "survive", "scheme"),
    [
        ((1, 1), "1", "mirror-2"),
        ((2, 2), "1", "mirror-2"),
        ((1, 1, 1), "1", "rs-2-1"),
        ((2, 2, 2), "1", "rs-4-2"),
        ((3, 3, 3), "1", "rs-4-2"),
        ((1, 1, 1), "2", "mirror-3"),
        ((1, 1, 1, 1, 1), "2", "rs-3-2"),
        ((2, 2, 2, 2, 2), "2", "rs-3-2"),
        ((1,) * 6, "1", "rs-4-1"),
        ((4, 1, 1), "1", "rs-2-1"),
    ],
)
@pytest.mark.parametrize("level", ["region", "zone", "host"])
def test_the_scheme_that_is_chosen(level: str, shape: tuple[int, ...], survive: str, scheme: str) -> None:
    found = choose_scheme(house(level, shape), parse_survive(f"{level}:{survive}"))
    assert found.name == scheme


@given(
    st.sampled_from(["region", "zone", "host"]),
    st.lists(st.integers(1, 4), min_size=1, max_size=5),
    st.integers(1, 3),
    st.randoms(),
)
def test_what_is_chosen_survives_every_such_loss(
    level: str, shape: list[int], domains: int, chance: object
) -> None:
    topology, survive = house(level, shape), Survive(level, domains)
    if len(shape) <= domains:
        with pytest.raises(InvalidInput) as raised:
            choose_scheme(topology, survive)
        assert str(domains + 1) in str(raised.value)
        assert raised.value.hint
        return
    scheme = choose_scheme(topology, survive)
    assert scheme.k <= DATA_PER_REDUNDANT * scheme.m
    order = list(topology.stores)
    chance.shuffle(order)  # type: ignore[attr-defined]
    homes = place(topology, scheme.n, order)
    there = {topology.domain(store, Level(level)) for store in topology.stores}
    for lost in combinations(sorted(there), domains):
        left = [store for store in homes if topology.domain(store, Level(level)) not in lost]
        assert len(left) >= scheme.k


@pytest.mark.parametrize(
    "text", ["", "rack", "region:", "region:0", "region:7", "host:x", "host:1:1", "device"]
)
def test_what_nobody_can_survive_is_refused_with_what_would_be_right(text: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        parse_survive(text)
    assert raised.value.hint


def test_words_come_back_as_they_went() -> None:
    for text in ("region", "zone:2", "host", "store:6"):
        assert parse_survive(text).name == text
    assert parse_survive("region:1").name == "region"


def test_a_region_that_is_missing_is_named() -> None:
    with pytest.raises(InvalidInput) as raised:
        choose_scheme(house("region", (2, 1)), parse_survive("region:2"))
    assert "takes stores in 3 of them, there are 2 (a, b)" in str(raised.value)
    assert "one more region" in str(raised.value.hint)


def test_packs_keep_what_any_bucket_of_their_scheme_was_told() -> None:
    promises, scheme, other = Promises(), Scheme(4, 2), Scheme(1, 2)
    host, zone = Survive("host"), Survive("zone")
    promises.learn("one", scheme, host)
    promises.learn("two", scheme, zone)
    promises.learn("three", other, host)
    assert promises.of(scheme) == (host, zone)
    promises.learn("two", other, zone)
    assert promises.of(scheme) == (host,)
    assert promises.of(other) == (host, zone)
    promises.learn("one", scheme, None)
    promises.learn("never told", scheme, None)
    assert promises.of(scheme) == ()


def test_hosts_are_kept_only_when_somebody_said_so() -> None:
    topology, scheme = house("host", (2, 2, 2)), Scheme(4, 2)
    assert required(topology, scheme) == ()
    assert required(topology, scheme, (Survive("host"),)) == (Survive("host"),)
    assert required(topology, scheme, (Survive("host", 2),)) == (), "rs-4-2 cannot do that here"
    five = topology.stores[:5]
    assert fitting_scheme(scheme, LARGE, five, topology) == Scheme(3, 2)
    assert fitting_scheme(scheme, LARGE, five, topology, (Survive("host"),)) == Scheme(3, 2)
    wide = house("host", (3, 3, 3))
    two = [store for store in wide.stores if not store.startswith("c")]
    assert fitting_scheme(scheme, LARGE, two, wide) == scheme
    assert fitting_scheme(scheme, LARGE, two, wide, (Survive("host"),)) == Scheme(2, 2)


def test_what_is_wider_is_kept_before_what_is_narrower() -> None:
    topology = Topology(
        Location(StoreId(f"{region}{host}"), region=region, host=f"{region}{host}")
        for region in "abc"
        for host in range(2)
    )
    told = (Survive("host", 2), ANY_REGION)
    assert required(topology, Scheme(4, 2), told) == (ANY_REGION, Survive("host", 2))
