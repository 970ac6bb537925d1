"""Which transactions of the port make one transaction of etcd, and what became of them. Pure.

etcd decides by comparing: all comparisons hold and everything is done, or one does not and nothing is. So
a plan assumes that each of its transactions commits, and compares what they expect of rows that none of
them has changed before; what they expect of rows that one before has changed is decided here. When the
comparisons fail, etcd answers the rows as they are, `conflicts` says who cannot commit, and the rest is
planned again.

What must hold: a key is changed once in a plan, so that its revision and its place name its value; each is
decided as if those before it had been done, exactly as `memory` does it; a transaction that conflicts
because of one before it in the plan does so only if the plan commits.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import Struct

from holdfast.index.etcd import wire
from holdfast.index.etcd.schema import (
    HEADER_BYTES,
    PLACES,
    Frame,
    Keys,
    Revisions,
    encode_row,
)
from holdfast.index.port import ABSENT, PRESENT, Conflict, Expect, Transaction
from holdfast.index.rules import holds

OPS_MAX = 128
"""etcd's own limit of comparisons, and of steps of a branch."""

COMPARES_MAX = OPS_MAX - 8
"""For what is expected of rows; the others guard meta, gate and lane. And for steps that change rows."""

NESTING_COMPARES_MAX = OPS_MAX // 2 - 8
"""A branch that holds transactions inside may use half of what etcd allows along a path."""

REQUEST_BYTES_MAX = (3 << 19) - (8 << 10)
"""etcd refuses more than 1.5 MiB; some of it is the envelope."""

FRAME_DELETES_BYTES_MAX = 64 << 10
_OP_BYTES = 24
"""Tags and lengths of a step or a comparison, at most."""


class Item(NamedTuple):
    """A transaction, and the lease of etcd that what it puts should go with (0: none)."""

    transaction: Transaction
    lease: int = 0


class Plan(Struct):
    """The first transactions of a series as one transaction of etcd. `outcomes` has one entry for each of
    them: its place, or how it conflicts. `gated`: it is one that is too large to be compared."""

    outcomes: list[int | Conflict]
    expects: list[Expect]
    puts: list[tuple[bytes, bytes, int]]
    deletes: list[bytes]
    frame_deletes: tuple[tuple[int, bytes], ...] | None
    count: int
    gated: bool = False


class _Budget:
    """What still fits into one transaction of etcd."""

    def __init__(self) -> None:
        self.compares = 0
        self.ops = 0
        self.bytes = 0
        self.frame = 0

    def takes(self, compares: int, ops: int, size: int, frame: int) -> bool:
        return (
            self.compares + compares <= COMPARES_MAX
            and self.ops + ops <= COMPARES_MAX
            and self.bytes + size <= REQUEST_BYTES_MAX
            and self.frame + frame <= FRAME_DELETES_BYTES_MAX
        )

    def take(self, compares: int, ops: int, size: int, frame: int) -> None:
        self.compares += compares
        self.ops += ops
        self.bytes += size
        self.frame += frame


def make_plan(items: Sequence[Item], final: Mapping[int, Conflict], keys: Keys, revisions: Revisions) -> Plan:
    """As many of `items` as go together, at least one. `final` are those that are decided already."""
    plan = Plan([], [], [], [], (), 0)
    budget = _Budget()
    external: dict[Expect, None] = {}
    changed: dict[bytes, bool] = {}
    deletes: list[tuple[int, bytes]] = []
    alone = False
    for at, item in enumerate(items):
        if at in final:
            plan.outcomes.append(final[at])
            continue
        transaction = item.transaction
        if any(key in changed for key, _ in transaction.puts) or any(
            key in changed for key in transaction.deletes
        ):
            break
        found = _expected(transaction, changed, external, revisions)
        if isinstance(found, Conflict):
            plan.outcomes.append(found)
            continue
        compares = sum(_compares(expect, revisions) for expect in found)
        size, frame = _size(transaction, found, keys)
        ops = len(transaction.puts) + len(transaction.deletes)
        place = plan.count
        if place == PLACES:
            break
        if not budget.takes(compares, ops, size, frame):
            if place:
                break
            alone = True
            few = COMPARES_MAX if ops <= COMPARES_MAX else NESTING_COMPARES_MAX
            plan.gated = compares > few or size > REQUEST_BYTES_MAX
        budget.take(compares, ops, size, frame)
        external.update(dict.fromkeys(found))
        for key, value in transaction.puts:
            plan.puts.append((key, encode_row(key, value, place), item.lease))
            changed[key] = True
        for key in transaction.deletes:
            deletes.append((place, key))
            changed[key] = False
        plan.outcomes.append(place)
        plan.count += 1
        if alone:
            break
    plan.expects = list(external)
    plan.deletes = [key for _, key in deletes]
    plan.frame_deletes = None if budget.frame > FRAME_DELETES_BYTES_MAX else tuple(deletes)
    return plan


def _expected(
    transaction: Transaction,
    changed: Mapping[bytes, bool],
    external: Mapping[Expect, None],
    revisions: Revisions,
) -> list[Expect] | Conflict:
    """What has to be compared for it that is not compared yet, or how it conflicts with those before it."""
    found: dict[Expect, None] = {}
    for expect in transaction.expects:
        if expect.key in changed:
            if expect.revision != (PRESENT if changed[expect.key] else ABSENT):
                return Conflict(expect.key)
        elif expect.revision > 0 and not revisions.etcd(expect.revision)[0]:
            return Conflict(expect.key)
        elif expect not in external:
            found[expect] = None
    return list(found)


def _compares(expect: Expect, revisions: Revisions) -> int:
    if expect.revision in (ABSENT, PRESENT):
        return 1
    return 2 if revisions.etcd(expect.revision)[1] == 0 else 3


def _size(transaction: Transaction, expects: Sequence[Expect], keys: Keys) -> tuple[int, int]:
    """Bytes at most in the request, and of deletes in the frame."""
    each = len(keys.rows) + _OP_BYTES
    size = frame = 0
    for key, value in transaction.puts:
        size += each + HEADER_BYTES + len(key) + len(value)
    for key in transaction.deletes:
        size += each + len(key)
        frame += len(key) + 8
    for expect in expects:
        size += (3 if expect.revision > 0 else 1) * (each + len(expect.key)) + each + len(expect.key)
    return size + min(frame, FRAME_DELETES_BYTES_MAX), frame


def conflicts(
    items: Sequence[Item], final: Mapping[int, Conflict], rows: Mapping[bytes, int]
) -> dict[int, Conflict]:
    """Who cannot commit, by the rows as they are: `rows` has a revision, or ABSENT, for each key that was
    compared. Only what does not hang on others of the series, so that it stays true whatever they do."""
    changed: set[bytes] = set()
    found: dict[int, Conflict] = {}
    for at, item in enumerate(items):
        if at in final:
            continue
        transaction = item.transaction
        for expect in transaction.expects:
            if expect.key in changed:
                continue
            if expect.key not in rows:
                return found
            if not holds(expect, rows[expect.key]):
                found[at] = Conflict(expect.key)
                break
        else:
            changed.update(key for key, _ in transaction.puts)
            changed.update(transaction.deletes)
    return found


def compares(plan: Plan, keys: Keys, revisions: Revisions) -> list[bytes]:
    """The comparisons of what a plan expects of rows."""
    made: list[bytes] = []
    for key, revision in plan.expects:
        row = keys.row(key)
        if revision == ABSENT:
            made.append(wire.compare_created(row, wire.Is.EQUAL, 0))
        elif revision == PRESENT:
            made.append(wire.compare_created(row, wire.Is.GREATER, 0))
        else:
            modified, place = revisions.etcd(revision)
            made.append(wire.compare_modified(row, wire.Is.EQUAL, modified))
            # The place is the first byte of the value, and more bytes follow it.
            if place:
                made.append(wire.compare_value(row, wire.Is.GREATER, bytes((place,))))
            made.append(wire.compare_value(row, wire.Is.LESS, bytes((place + 1,))))
    return made


def changes(plan: Plan, keys: Keys) -> list[bytes]:
    """The steps that change rows, in the order in which the feed shall tell them."""
    return [
        *(wire.put_op(keys.row(key), value, lease) for key, value, lease in plan.puts),
        *(wire.delete_op(keys.row(key)) for key in plan.deletes),
    ]


def frame(plan: Plan, attempt: int) -> Frame:
    """The value of the lane's row for a plan."""
    return Frame(attempt, plan.count, len(plan.puts), plan.frame_deletes)


def nested(ops: Sequence[bytes], fixed: int) -> list[bytes]:
    """`ops` as steps of a branch, beside `fixed` others, in transactions inside as far as there are too many.

    etcd allows 128 along any path: a branch of 64 may hold transactions of 64 each, and so on.
    """
    if len(ops) + fixed <= OPS_MAX:
        return list(ops)
    return _nest(ops, OPS_MAX // 2 - fixed, OPS_MAX // 2)


def _nest(ops: Sequence[bytes], width: int, inside: int) -> list[bytes]:
    """At most `width` transactions, each with at most `inside` steps along a path."""
    assert width > 0
    each = -(-len(ops) // width)
    chunks = [ops[at : at + each] for at in range(0, len(ops), each)]
    return [
        wire.txn_op(
            wire.txn_request((), chunk if each <= inside else _nest(chunk, inside // 2, inside - inside // 2))
        )
        for chunk in chunks
    ]
