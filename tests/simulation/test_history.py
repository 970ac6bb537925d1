"""The checker finds what must not be, and accepts what may."""

import random

import pytest

from tests.simulation.history import (
    ANYTHING,
    NOTHING,
    SOMETHING,
    Impossible,
    Need,
    Op,
    Sort,
    State,
    check,
    holds,
)

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


def explained(ops: list[Op], state: State = None, done: frozenset[int] = frozenset()) -> bool:
    """The dumb one: tries every order (Wing and Gong 1993)."""
    left = [op for op in ops if op.number not in done]
    if all(op.optional for op in left):
        return True
    first = min((op.ended for op in left if op.ended is not None), default=1 << 30)
    for op in left:
        if op.began > first:
            continue
        if holds(op.need, state, ETAGS) and explained(
            ops, op.leaves if op.writes else state, done | {op.number}
        ):
            return True
        if op.optional and explained(ops, state, done | {op.number}):
            return True
    return False


def by_chance(chance: random.Random) -> list[Op]:
    """Six requests of several clients, their answers by chance."""
    needs = [ANYTHING, ANYTHING, NOTHING, SOMETHING, *(Need(Sort.ETAG, name.upper()) for name in "ab")]
    ops = []
    for number in range(1, 7):
        began = chance.randrange(20)
        optional = chance.random() < 0.4
        ended = None if optional and chance.random() < 0.6 else began + chance.randrange(1, 12)
        if optional or chance.random() < 0.5:
            leaves = chance.choice(["a", "b", "c", "d", None])
            ops.append(Op(number, "write", 2 * began, None, chance.choice(needs), True, leaves, optional))
        else:
            need = chance.choice([NOTHING, SOMETHING, *(Need(Sort.TOKEN, name) for name in "abcd")])
            ops.append(Op(number, "read", 2 * began, None, need))
        ops[-1] = ops[-1]._replace(ended=None if ended is None else 2 * ended + 1)
    return ops


def test_it_says_what_trying_every_order_says() -> None:
    chance = random.Random("orders")
    said = {True: 0, False: 0}
    for _ in range(2000):
        ops = by_chance(chance)
        try:
            check(ops, ETAGS)
            accepted = True
        except Impossible:
            accepted = False
        assert accepted == explained(ops), ops
        said[accepted] += 1
    assert min(said.values()) > 200


def test_many_writes_in_doubt_are_judged_all_the_same() -> None:
    """Two to the power of sixty subsets would take for ever."""
    doubts = [put(number, "c", number, None) for number in range(1, 61)]
    ops = [*doubts, put(61, "a", 61, 62), get(62, "a", 63, 64), get(63, "c", 65, 66), get(64, "c", 67, 68)]
    check(ops, ETAGS)
    with pytest.raises(Impossible):
        check([*ops, get(65, "a", 69, 70)], ETAGS)
