"""Whose fault it is when shards disagree: the one that is wrong, or nobody, never one that is right."""

import random
from itertools import combinations

import pytest

from holdfast.packs import codec
from holdfast.packs.blaming import agree, blame
from holdfast.scheme import Scheme

UNIT = 4096


def units_of(scheme: Scheme, seed: int) -> dict[int, bytes]:
    data = random.Random(seed).randbytes(scheme.k * UNIT)
    units = {shard: data[shard * UNIT : (shard + 1) * UNIT] for shard in range(scheme.k)}
    return units | {scheme.k + n: bytes(unit) for n, unit in enumerate(codec.parity(scheme, data))}


@pytest.mark.parametrize("scheme", [Scheme(4, 2), Scheme(1, 2), Scheme(3, 3), Scheme(8, 3)])
def test_one_wrong_shard_is_found_and_no_other_blamed(scheme: Scheme) -> None:
    for wrong in range(scheme.n):
        units = units_of(scheme, wrong)
        assert agree(scheme, units, UNIT)
        units[wrong] = random.Random(99).randbytes(UNIT)
        assert not agree(scheme, units, UNIT)
        assert blame(scheme, units, UNIT) == {wrong}


def test_one_wrong_shard_is_found_with_others_missing() -> None:
    scheme = Scheme(4, 3)
    for missing, wrong in combinations(range(scheme.n), 2):
        units = units_of(scheme, wrong)
        del units[missing]
        units[wrong] = bytes(UNIT)
        assert blame(scheme, units, UNIT) == {wrong}


def test_two_wrong_parities_are_found_where_a_third_agrees() -> None:
    scheme = Scheme(4, 3)
    units = units_of(scheme, 1) | {4: bytes(UNIT), 6: bytes(UNIT)}
    assert blame(scheme, units, UNIT) == {4, 6}


@pytest.mark.parametrize("scheme", [Scheme(4, 1), Scheme(1, 1)])
def test_nobody_is_blamed_where_it_is_word_against_word(scheme: Scheme) -> None:
    for wrong in range(scheme.n):
        units = units_of(scheme, 1) | {wrong: bytes(UNIT)}
        assert blame(scheme, units, UNIT) is None


def test_two_wrong_shards_accuse_nobody_who_is_right() -> None:
    scheme = Scheme(4, 2)
    for pair in combinations(range(scheme.n), 2):
        units = units_of(scheme, 7)
        for number, shard in enumerate(pair):
            units[shard] = random.Random(number).randbytes(UNIT)
        assert blame(scheme, units, UNIT) in (None, frozenset(pair))
