"""The pure parts of the index in etcd: plans, messages, the feed's grouping, what members are worth."""

from collections import deque
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.base.errors import Damaged, Fenced, InvalidInput
from holdfast.index.deciding import decide_batch
from holdfast.index.etcd import planning, wire
from holdfast.index.etcd.address import Address, parse_address
from holdfast.index.etcd.feed import Grouping
from holdfast.index.etcd.keeping import Sample, compact_to, fullness, judge_members
from holdfast.index.etcd.members import EtcdMember, address_of, command_line
from holdfast.index.etcd.planning import Item, Plan, make_plan
from holdfast.index.etcd.schema import (
    Keys,
    Known,
    Meta,
    Revisions,
    decode_row,
    encode_frame,
    encode_meta,
    encode_row,
)
from holdfast.index.port import ABSENT, PRESENT, Change, Committed, Conflict, Expect, Outcome, Transaction
from holdfast.index.rules import holds

KEYS = Keys("test")
REVISIONS = Revisions(base=1000)
KNOWN = Known(Meta(1, "this"), 1)

names = st.sampled_from([b"a", b"b", b"c", b"d"])


@st.composite
def transactions(draw: st.DrawFn, known: list[int]) -> Transaction:
    """Expectations that hold now and then, and changes."""
    revisions = st.sampled_from([ABSENT, PRESENT, 1, *known])
    expects = draw(st.dictionaries(names, revisions, max_size=2))
    changed = draw(st.dictionaries(names, st.booleans(), max_size=2))
    return Transaction(
        tuple(Expect(key, revision) for key, revision in expects.items()),
        tuple((key, b"v") for key, put in changed.items() if put),
        tuple(key for key, put in changed.items() if not put),
    )


class Store:
    """What etcd does with a plan: all of it or nothing."""

    def __init__(self, rows: dict[bytes, int]) -> None:
        self.rows = rows
        self.modified = 10

    def apply(self, plan: Plan) -> bool:
        if not all(holds(expect, self.rows.get(expect.key, ABSENT)) for expect in plan.expects):
            return False
        self.modified += 1
        for key, stored, _ in plan.puts:
            assert key not in plan.deletes
            self.rows[key] = decode_row(key, stored, self.modified, REVISIONS).revision
        for key in plan.deletes:
            self.rows.pop(key, None)
        return True

    def decide(self, items: list[Item]) -> list[Outcome]:
        """As a lane does it."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(items):
            left = items[len(outcomes) :]
            final: dict[int, Conflict] = {}
            at_most = None
            for _ in range(2 * len(items) + 2):
                plan = make_plan(left[:at_most], final, KEYS, REVISIONS)
                if not plan.count or self.apply(plan):
                    break
                found = planning.conflicts(
                    left, final, {expect.key: self.rows.get(expect.key, ABSENT) for expect in plan.expects}
                )
                final.update(found)
                doubted = [
                    at
                    for at, one in enumerate(plan.outcomes)
                    if isinstance(one, Conflict) and at not in final
                ]
                at_most = None if found else max(1, min(doubted, default=len(plan.outcomes)))
            else:
                raise AssertionError("it never ends")
            outcomes.extend(
                one if isinstance(one, Conflict) else Committed(REVISIONS.port(self.modified, one))
                for one in plan.outcomes
            )
        return outcomes


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_plans_decide_as_one_after_the_other_does(data: st.DataObject) -> None:
    rows = {
        key: REVISIONS.port(modified, place)
        for key, (modified, place) in data.draw(
            st.dictionaries(names, st.tuples(st.integers(1, 9), st.integers(0, 2)))
        ).items()
    }
    asked = data.draw(st.lists(transactions(sorted(rows.values())), min_size=1, max_size=8))
    simple = decide_batch(asked, rows, 10_000)
    store = Store(dict(rows))
    outcomes = store.decide([Item(transaction) for transaction in asked])
    assert [type(one) for one in outcomes] == [type(one) for one in simple.outcomes]
    revisions = [one.revision for one in outcomes if isinstance(one, Committed)]
    assert revisions == sorted(set(revisions))
    left = (set(rows) | set(simple.puts)) - simple.deletes
    assert set(store.rows) == left


def test_a_plan_stays_within_what_etcd_allows() -> None:
    small = [
        Item(
            Transaction(
                (Expect(b"bucket", 2000), Expect(b"k%d" % n, ABSENT)),
                ((b"k%d" % n, b"v"), (b"w%d" % n, b"v")),
            )
        )
        for n in range(100)
    ]
    plan = make_plan(small, {}, KEYS, REVISIONS)
    assert plan.count == planning.COMPARES_MAX // 2
    assert len(planning.compares(plan, KEYS, REVISIONS)) <= planning.COMPARES_MAX
    assert len(planning.changes(plan, KEYS)) <= planning.COMPARES_MAX
    wide = Item(Transaction(tuple(Expect(b"%d" % n, ABSENT) for n in range(200)), ((b"x", b""),)))
    assert make_plan([wide], {}, KEYS, REVISIONS).gated
    assert not make_plan([small[0], wide], {}, KEYS, REVISIONS).gated
    many = Item(Transaction((Expect(b"a", 2000),), (), tuple(b"%d" % n for n in range(5000))))
    plan = make_plan([many, small[0]], {}, KEYS, REVISIONS)
    assert (plan.count, plan.gated) == (1, False)


@pytest.mark.parametrize("count", [1, 127, 128, 400, 4000, 20_000])
def test_steps_are_nested_so_that_no_path_is_longer_than_allowed(count: int) -> None:
    ops = [wire.put_op(b"%d" % n, b"") for n in range(count)]

    def walk(request: wire.Message, budget: int) -> list[bytes]:
        steps = request.messages(2)
        assert len(steps) <= budget
        found = []
        for step in steps:
            found.extend(
                [step.message(2).blob(1)] if 2 in step.blobs else walk(step.message(4), budget - len(steps))
            )
        return found

    request = wire.Message(wire.txn_request((), planning.nested(ops, 2)))
    assert walk(request, planning.OPS_MAX - 2) == [b"%d" % n for n in range(count)]


def test_what_a_row_says_is_checked() -> None:
    stored = encode_row(b"key", b"value", 3)
    assert decode_row(b"key", stored, 7, REVISIONS).revision == 1000 + 7 * 128 + 3
    for wrong in (
        (b"yek", stored),
        (b"key", stored[:-1] + b"f"),
        (b"key", b"\x04" + stored[1:]),
        (b"key", b"\xff" + stored[1:]),
        (b"key", stored[:4]),
        (b"key", b""),
    ):
        with pytest.raises(Damaged):
            decode_row(*wrong, 7, REVISIONS)


@given(st.binary(max_size=60))
def test_whatever_is_answered_is_read_or_refused(data: bytes) -> None:
    for read in (wire.txned, wire.watched, wire.member_list, wire.server_status):
        try:
            read(data)
        except Damaged:
            continue


@given(st.integers(0, (1 << 64) - 1), st.binary(max_size=300))
def test_numbers_and_bytes_come_back(number: int, blob: bytes) -> None:
    message = wire.Message(wire._number(3, number) + wire._blob(300, blob))
    assert (message.number(3), message.blob(300)) == (number, blob)
    for cut in range(1, min(len(blob), 5)):
        with pytest.raises(Damaged):
            wire.Message(wire._blob(300, blob)[:-cut])


def test_a_row_is_read_whatever_else_a_newer_etcd_says_of_it() -> None:
    said = wire._blob(1, b"key") + wire._number(2, 5) + wire._number(3, 700) + wire._number(4, 3)
    said += wire._blob(5, b"v" * 300) + wire._number(6, -7)
    expected = wire.KeyValue(b"key", b"v" * 300, 5, 700, -7)
    assert wire.key_value(said) == wire.key_value(said + wire._blob(9, b"more")) == expected
    with pytest.raises(Damaged):
        wire.key_value(said[:200])


def lane(modified: int, count: int, puts: int, deletes: tuple[tuple[int, bytes], ...] | None) -> wire.Event:
    return wire.Event(KEYS.lane("x"), encode_frame(planning.Frame(1, count, puts, deletes)), modified)


def row(key: bytes, value: bytes | None, modified: int, place: int = 0) -> wire.Event:
    return wire.Event(KEYS.row(key), None if value is None else encode_row(key, value, place), modified)


def test_events_become_whole_commits_in_order() -> None:
    revisions = Revisions(0)
    grouping = Grouping(KEYS, KNOWN)
    first = [lane(5, 3, 2, ((1, b"gone"), (2, b"never"))), row(b"a", b"1", 5, 0), row(b"b", b"2", 5, 1)]
    assert grouping.add(first[:2]) == []
    assert grouping.add([first[2], row(b"gone", None, 5), lane(6, 1, 0, None), row(b"x", None, 6)]) == [
        Change(revisions.port(5, 0), ((b"a", b"1"),), ()),
        Change(revisions.port(5, 1), ((b"b", b"2"),), (b"gone",)),
        Change(revisions.port(5, 2), (), (b"never",)),
        Change(revisions.port(6, 0), (), (b"x",)),
    ]
    assert grouping.add([row(b"lease/x", None, 7)]) == [Change(revisions.port(7), (), (b"lease/x",))]
    assert grouping.add([wire.Event(KEYS.gate, b"x", 8), wire.Event(KEYS.gate, None, 9)]) == []
    assert grouping.add([wire.Event(KEYS.lane("x"), None, 10)]) == []
    with pytest.raises(Fenced):
        grouping.add([wire.Event(KEYS.meta, encode_meta(Meta(1, "other")), 11)])


def test_a_commit_in_part_is_never_told() -> None:
    grouping = Grouping(KEYS, KNOWN)
    with pytest.raises(Damaged):
        grouping.add([lane(5, 1, 2, ()), row(b"a", b"1", 5), lane(6, 1, 0, ())])
    with pytest.raises(Damaged):
        Grouping(KEYS, KNOWN).add([row(b"a", b"1", 5), row(b"a", b"1", 6)])


def test_the_past_is_kept_for_a_while_and_not_without_end() -> None:
    samples = deque([Sample(0, 100), Sample(60, 200), Sample(120, 300)])
    assert compact_to(samples, 3599, 400, 3600, 1000) == 0
    assert compact_to(samples, 3661, 400, 3600, 1000) == 200
    assert compact_to(samples, 130, 5000, 3600, 1000) == 4000


def status(member: int, leader: int, applied: int = 100, errors: tuple[str, ...] = ()) -> wire.ServerStatus:
    return wire.ServerStatus(member, "3.4.23", 10 << 20, 9 << 20, leader, applied, errors)


def test_no_more_is_promised_than_members_showed() -> None:
    members = [wire.Member(n, f"m{n}", (), False) for n in (1, 2, 3)]
    cases: list[tuple[list[wire.ServerStatus], int, list[str]]] = [
        ([status(1, 1), status(2, 1), status(3, 1)], 1, ["current"] * 3),
        ([status(1, 1), status(2, 1)], 0, ["current", "current", "absent"]),
        ([status(1, 1), status(2, 1), status(3, 0)], 0, ["current", "current", "out"]),
        ([status(1, 1, 99_999), status(2, 1, 99_990), status(3, 1, 5)], 0, ["current", "current", "behind"]),
        ([status(1, 0), status(2, 0), status(3, 0)], 0, ["out"] * 3),
    ]
    for answers, losses, states in cases:
        shown, survivable = judge_members(members, answers, 1 << 30)
        assert (survivable, [member.state for member in shown]) == (losses, states)
    learner = [*members, wire.Member(4, "m4", (), True)]
    assert judge_members(learner, [*cases[0][0], status(4, 1)], 1 << 30)[1] == 1


def test_a_quota_that_is_nearly_used_up_is_told() -> None:
    assert fullness([], 20 << 20) == ""
    assert fullness([status(1, 1)], 20 << 20) == ""
    assert "used 83 % of its quota of 12 MiB" in fullness([status(1, 1), status(2, 1)], 12 << 20)


def test_addresses() -> None:
    assert parse_address("etcd://a,b:1,[::1]:2379") == Address(("a:2379", "b:1", "[::1]:2379"))
    assert parse_address("etcd://me:p%40ss@a/site-1") == Address(("a:2379",), "me", "p@ss", "site-1")
    assert "p@ss" not in repr(parse_address("etcd://me:p%40ss@a"))
    for wrong in (
        "a:1",
        "etcd://",
        "etcd://a:0",
        "etcd://a:70000",
        "etcd://a,",
        "etcd://a/x/y",
        "etcd://a/x y",
    ):
        with pytest.raises(InvalidInput):
            parse_address(wrong)


def test_a_member_is_started_as_its_peers_expect_it() -> None:
    members = tuple(
        EtcdMember(f"m{n}", Path("data") / str(n), 2379 + 10 * n, 2380 + 10 * n) for n in range(3)
    )
    line = command_line(members[1], members)
    assert (
        "--initial-cluster=m0=http://127.0.0.1:2380,m1=http://127.0.0.1:2390,m2=http://127.0.0.1:2400" in line
    )
    assert "--listen-client-urls=http://127.0.0.1:2389" in line
    assert address_of(members) == "etcd://127.0.0.1:2379,127.0.0.1:2389,127.0.0.1:2399"
