"""The checker finds what must not be, and accepts what may."""

import pytest

from tests.simulation.history import NOTHING, SOMETHING, Impossible, Need, Op, Sort, check

ETAGS = {name: frozenset({name.upper()}) for name in "abcd"}


def put(number: int, token: str, began: int, ended: int | None, need: Need | None = None) -> Op:
    return Op(number, "put", began, ended, need or Need(Sort.ANYTHING), True, token, ended is None)


def delete(number: int, began: int, ended: int | None) -> Op:
    return Op(number, "delete", began, ended, writes=True, optional=ended is None)


def get(number: int, token: str | None, began: int, ended: int) -> Op:
    return Op(number, "get", began, ended, Need(Sort.TOKEN, token) if token else NOTHING)


FINE = {
    "one after the other": [put(1, "a", 1, 2), get(2, "a", 3, 4), delete(3, 5, 6), get(4, None, 7, 8)],
    "either of two at once": [put(1, "a", 1, 4), put(2, "b", 2, 3), get(3, "a", 5, 6)],
    "a read beside a write sees old or new": [put(1, "a", 1, 2), put(2, "b", 3, 6), get(3, "a", 4, 5)],
    "a write without an answer may come": [put(1, "a", 1, 2), put(2, "b", 3, None), get(3, "b", 4, 5)],
    "a write without an answer may not come": [put(1, "a", 1, 2), put(2, "b", 3, None), get(3, "a", 4, 5)],
    "a write without an answer may come late": [
        put(1, "a", 1, None),
        put(2, "b", 2, 3),
        get(3, "b", 4, 5),
        get(4, "a", 6, 7),
    ],
    "a create that was refused found something": [
        put(1, "a", 1, 4),
        Op(2, "create", 2, 3, SOMETHING),
    ],
    "a listing knows the etag alone": [put(1, "a", 1, 2), Op(2, "list", 3, 4, Need(Sort.ETAG, "A"))],
    "reads in any order beside two writes": [
        put(1, "a", 1, 10),
        put(2, "b", 2, 11),
        get(3, "b", 3, 4),
        get(4, "a", 5, 6),
        get(5, "a", 12, 13),
    ],
}

WRONG = {
    "a lost write": [put(1, "a", 1, 2), get(2, None, 3, 4)],
    "an old value after a new one": [put(1, "a", 1, 2), put(2, "b", 3, 4), get(3, "a", 5, 6)],
    "a value that was never written": [put(1, "a", 1, 2), get(2, "d", 3, 4)],
    "a deletion undone": [put(1, "a", 1, 2), delete(2, 3, 4), get(3, "a", 5, 6)],
    "a write that happens twice": [
        put(1, "a", 1, None),
        get(2, "a", 2, 3),
        put(3, "b", 4, 5),
        get(4, "b", 6, 7),
        get(5, "a", 8, 9),
    ],
    "two creates of one key": [put(1, "a", 1, 4, NOTHING), put(2, "b", 2, 3, NOTHING)],
    "a create over something": [put(1, "a", 1, 2), put(2, "b", 3, 4, NOTHING)],
    "a write after the crash that ended it": [
        Op(1, "put", 1, 2, writes=True, leaves="a", optional=True),
        get(2, None, 3, 4),
        get(3, "a", 5, 6),
    ],
    "a listing with what is not there": [
        put(1, "a", 1, 2),
        put(2, "b", 3, 4),
        Op(3, "list", 5, 6, Need(Sort.ETAG, "A")),
    ],
    "reads that disagree": [
        put(1, "a", 1, 20),
        put(2, "b", 2, 21),
        get(3, "b", 3, 4),
        get(4, "a", 5, 6),
        get(5, "b", 7, 8),
    ],
}


@pytest.mark.parametrize("ops", FINE.values(), ids=FINE.keys())
def test_what_may_be_is_accepted(ops: list[Op]) -> None:
    check(ops, ETAGS)


@pytest.mark.parametrize("ops", WRONG.values(), ids=WRONG.keys())
def test_what_must_not_be_is_found(ops: list[Op]) -> None:
    with pytest.raises(Impossible):
        check(ops, ETAGS)
