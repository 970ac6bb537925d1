"""One lane: a series of transactions of etcd, one at a time, each applied once.

    send      compare meta, gate, lane and what is expected; put lane, change rows
    held      committed: the lane's row has a new revision
    not held  etcd answers meta, gate, lane and the rows: fenced, or wait for the gate, or it was us with a
              copy of what we sent before, or who cannot commit is known; the rest is sent anew
    unknown   nobody answered within the patience, and somebody may have heard

A transaction that is too large to be compared (etcd compares at most 128) is done behind the *gate*: a row
that every commit expects absent. Whoever puts it reads in peace, and commits expecting only the gate to be
theirs still. Others take the gate away when it stands for longer than its owner asked for, so that nobody's
death holds anybody up: the owner then conflicts and tries again, with more patience.

What must hold: nothing is answered while a copy of what was sent may still be applied with another outcome.
"""

from collections.abc import Sequence

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Bug, Fenced, HoldfastError
from holdfast.index.copying import Kind, Moved, moved_hint
from holdfast.index.etcd import planning, wire
from holdfast.index.etcd.connections import Connections, Unanswered
from holdfast.index.etcd.planning import Item, Plan
from holdfast.index.etcd.schema import (
    Gate,
    Keys,
    Known,
    Meta,
    Revisions,
    decode_frame,
    decode_gate,
    decode_meta,
    decode_row,
    encode_frame,
    encode_gate,
)
from holdfast.index.port import ABSENT, Committed, Conflict, Outcome, lease_row

GATE_PATIENCE_S = 0.2
GATE_PATIENCE_MAX_S = 2.0
GATE_PAUSE_S = 0.01
READ_AT_ONCE = 100


class _Answer(Struct):
    """A transaction of etcd that was answered. `rows` are revisions of the port of what was compared."""

    succeeded: bool
    revision: int
    lane: wire.KeyValue | None = None
    gate: wire.KeyValue | None = None
    rows: dict[bytes, int] | None = None


class _Series(Struct):
    """What is known while the first transactions of a series are being decided. `settled`: the lane has
    moved, so that what was sent before and not answered will never be applied."""

    final: dict[int, Conflict]
    sent: dict[int, Plan]
    doubtful: bool = False
    settled: bool = False
    at_most: int | None = None


class Lane:
    """Made with a name that nobody used before. Used by one caller at a time."""

    def __init__(
        self,
        name: str,
        connections: Connections,
        keys: Keys,
        known: Known,
        clock: Clock,
    ) -> None:
        self.name = name
        self.broken = False
        self._key = keys.lane(name)
        self._connections = connections
        self._keys = keys
        self._known = known
        self._revisions = Revisions(known.meta.base)
        self._clock = clock
        self._modified = 0
        self._attempt = 0
        self._gate_patience_s = GATE_PATIENCE_S

    async def decide(self, items: Sequence[Item]) -> list[Outcome]:
        """The outcomes of the first of `items`, as many as went together.

        Raises Unanswered (not doubtful: nothing of them was committed), Fenced, InvalidInput, Damaged.
        """
        series = _Series({}, {})
        try:
            return await self._decide(items, series)
        except Unanswered as error:
            error.doubtful = series.doubtful
            raise
        except HoldfastError as error:
            if series.doubtful:
                raise Unanswered(str(error), doubtful=True) from error
            raise
        except BaseException:
            series.doubtful = True
            raise
        finally:
            self.broken = self.broken or (series.doubtful and not series.settled)

    async def _decide(self, items: Sequence[Item], series: _Series) -> list[Outcome]:
        deadline = self._clock.monotonic() + self._connections.patience_s
        while True:
            plan = planning.make_plan(items[: series.at_most], series.final, self._keys, self._revisions)
            if not plan.count and not series.doubtful:
                return _outcomes(plan, 0, self._revisions)
            if plan.gated:
                return await self._behind_the_gate(items[0], series, plan, deadline)
            answer = await self._send(plan, series, self._compares(plan), deadline)
            done = self._done(answer, plan, series)
            if done is not None:
                return done
            if answer.gate is not None:
                await self.wait_for_gate(answer.gate, deadline)
                continue
            assert answer.rows is not None
            found = planning.conflicts(items, series.final, answer.rows)
            series.final.update(found)
            # Where nobody is to blame, what hangs on others of the series may be in the way: they go first.
            series.at_most = None if found else max(1, _first_conflict(plan, series.final))
            self._check(deadline)

    def _check(self, deadline: float) -> None:
        if self._clock.monotonic() > deadline:
            raise Unanswered(
                f"Others were in the way for {self._connections.patience_s:g} s on end.",
                hint="Is the index being copied? Ask again.",
                doubtful=False,
            )

    def _compares(self, plan: Plan) -> list[bytes]:
        return [
            wire.compare_created(self._keys.gate, wire.Is.EQUAL, 0),
            *planning.compares(plan, self._keys, self._revisions),
        ]

    async def _send(
        self,
        plan: Plan,
        series: _Series,
        compares: Sequence[bytes],
        deadline: float,
        also: Sequence[bytes] = (),
    ) -> _Answer:
        self._attempt += 1
        attempt = self._attempt
        series.sent[attempt] = plan
        frame = encode_frame(planning.frame(plan, attempt))
        rows = [] if plan.gated else list({expect.key: None for expect in plan.expects})
        request = wire.txn_request(
            [
                wire.compare_modified(self._keys.meta, wire.Is.EQUAL, self._known.modified),
                wire.compare_modified(self._key, wire.Is.EQUAL, self._modified),
                *compares,
            ],
            [
                wire.put_op(self._key, frame),
                *also,
                *planning.nested(planning.changes(plan, self._keys), 1 + len(also)),
            ],
            [
                *(self._get(key) for key in (self._keys.meta, self._key, self._keys.gate)),
                *(self._get(self._keys.row(key)) for key in rows),
            ],
        )

        def read(data: bytes) -> _Answer:
            answer = wire.txned(data)
            if answer.succeeded:
                return _Answer(True, answer.revision)
            check_meta(answer.ranged(0), self._known)
            found = {}
            for at, key in enumerate(rows, 3):
                kvs = answer.ranged(at)
                found[key] = (
                    decode_row(key, kvs[0].value, kvs[0].modified, self._revisions).revision
                    if kvs
                    else ABSENT
                )
            lane, gate = answer.ranged(1), answer.ranged(2)
            return _Answer(False, 0, lane[0] if lane else None, gate[0] if gate else None, found)

        left_s = max(0.0, deadline - self._clock.monotonic())
        try:
            answer, doubtful = await self._connections.call(wire.TXN, request, read, patience_s=left_s)
        except Unanswered as error:
            series.doubtful = series.doubtful or error.doubtful
            raise
        series.doubtful = series.doubtful or doubtful
        return answer

    def _get(self, key: bytes) -> bytes:
        return wire.range_op(wire.range_request(key))

    def _done(self, answer: _Answer, plan: Plan, series: _Series) -> list[Outcome] | None:
        """The outcomes, when the lane has moved."""
        if answer.succeeded:
            self._modified = answer.revision
            series.settled = True
            return _outcomes(plan, answer.revision, self._revisions)
        now = answer.lane.modified if answer.lane is not None else 0
        if now == self._modified:
            return None
        if answer.lane is None:
            # Taken away as one that nobody uses. What was sent before that may have been applied first.
            self._modified = 0
            if not series.doubtful:
                return None
            raise Unanswered("The lane of this commit was taken away.", doubtful=True)
        sent = series.sent.get(decode_frame(answer.lane.value).attempt)
        if sent is None:
            raise Bug(f"Somebody else commits on lane {self.name}.")
        self._modified = now
        series.settled = True
        return _outcomes(sent, now, self._revisions)

    # The gate

    async def wait_for_gate(self, gate: wire.KeyValue, deadline: float) -> None:
        """Until it is gone, or taken away because it has stood for too long."""
        patience_s = min(decode_gate(gate.value).patience_s, GATE_PATIENCE_MAX_S)
        until = self._clock.monotonic() + patience_s
        request = wire.range_request(self._keys.gate)
        while True:
            await self._clock.sleep(GATE_PAUSE_S)
            found, _ = await self._connections.call(wire.RANGE, request, _ranged)
            if not found or found[0].modified != gate.modified:
                return
            now = self._clock.monotonic()
            if patience_s and (now > until or now > deadline):
                await self._open_gate(gate.modified)
                return
            self._check(deadline)

    async def _open_gate(self, modified: int) -> None:
        """Take away the gate that was put at that revision, if it is there still."""
        request = wire.txn_request(
            [wire.compare_modified(self._keys.gate, wire.Is.EQUAL, modified)],
            [wire.delete_op(self._keys.gate)],
        )
        await self._connections.call(wire.TXN, request, wire.txned)

    async def put_gate(self, gate: Gate, lease: int = 0) -> tuple[int, wire.KeyValue | None]:
        """The revision at which it is ours, or 0 and whose it is."""
        request = wire.txn_request(
            [
                wire.compare_modified(self._keys.meta, wire.Is.EQUAL, self._known.modified),
                wire.compare_created(self._keys.gate, wire.Is.EQUAL, 0),
            ],
            [wire.put_op(self._keys.gate, encode_gate(gate), lease)],
            [self._get(self._keys.meta), self._get(self._keys.gate)],
        )

        def read(data: bytes) -> tuple[int, wire.KeyValue | None]:
            answer = wire.txned(data)
            if answer.succeeded:
                return answer.revision, None
            check_meta(answer.ranged(0), self._known)
            (found,) = answer.ranged(1) or (None,)
            if found is not None and decode_gate(found.value).owner == gate.owner:
                return found.modified, None
            return 0, found

        answer, _ = await self._connections.call(wire.TXN, request, read)
        return answer

    async def _behind_the_gate(
        self, item: Item, series: _Series, plan: Plan, deadline: float
    ) -> list[Outcome]:
        self._gate_patience_s = GATE_PATIENCE_S
        while True:
            mine, other = await self.put_gate(Gate(f"{self.name}/{self._attempt}", self._gate_patience_s))
            if not mine:
                if other is not None:
                    await self.wait_for_gate(other, deadline)
                self._check(deadline)
                continue
            found = await self._rows({expect.key for expect in plan.expects})
            conflict = planning.conflicts([item], {}, found)
            if conflict and not series.doubtful:
                await self._open_gate(mine)
                return list(conflict.values())
            if conflict:
                plan = planning.make_plan([item], conflict, self._keys, self._revisions)
            # A lease that runs out takes its row away without asking.
            leases = [expect for expect in plan.expects if expect.key.startswith(lease_row(""))]
            compares = planning.compares(
                Plan([], leases[: planning.NESTING_COMPARES_MAX // 3], [], [], (), 0),
                self._keys,
                self._revisions,
            )
            guard = [wire.compare_modified(self._keys.gate, wire.Is.EQUAL, mine), *compares]
            answer = await self._send(plan, series, guard, deadline, [wire.delete_op(self._keys.gate)])
            done = self._done(answer, plan, series)
            if done is not None:
                return done
            if answer.gate is not None and answer.gate.modified == mine:
                await self._open_gate(mine)
            self._gate_patience_s = min(2 * self._gate_patience_s, GATE_PATIENCE_MAX_S)
            self._check(deadline)

    async def _rows(self, keys: set[bytes]) -> dict[bytes, int]:
        """Revisions of the port, ABSENT for what is not there. Behind the gate nothing changes."""
        found: dict[bytes, int] = {}
        wanted = sorted(keys)
        for at in range(0, len(wanted), READ_AT_ONCE):
            some = wanted[at : at + READ_AT_ONCE]
            request = wire.txn_request((), [self._get(self._keys.row(key)) for key in some])

            def read(data: bytes, some: list[bytes] = some) -> dict[bytes, int]:
                answer = wire.txned(data)
                rows = {}
                for place, key in enumerate(some):
                    kvs = answer.ranged(place)
                    rows[key] = (
                        decode_row(key, kvs[0].value, kvs[0].modified, self._revisions).revision
                        if kvs
                        else ABSENT
                    )
                return rows

            answer, _ = await self._connections.call(wire.TXN, request, read)
            found.update(answer)
        return found


def check_meta(found: Sequence[wire.KeyValue], known: Known) -> None:
    """Raises Fenced when the index is not the one that was opened."""
    if found and found[0].modified == known.modified:
        return
    now = decode_meta(found[0].value) if found else None
    if now is not None:
        check_not_moved(now)
    raise Fenced(
        f"The index is {now.incarnation if now is not None else 'gone'} now, this node knows "
        f"{known.meta.incarnation}: it was recovered or copied.",
        hint="Start the node anew.",
    )


def check_not_moved(meta: Meta) -> None:
    """Raises Fenced when the truth is elsewhere."""
    if meta.state == Kind.MOVED.value:
        raise Fenced(
            f"The index was moved to {meta.where} ({meta.other}), which is the truth now.",
            hint=moved_hint(Moved(meta.other, meta.where)),
        )


def _ranged(data: bytes) -> list[wire.KeyValue]:
    return wire.ranged(wire.Message(data)).found


def _outcomes(plan: Plan, modified: int, revisions: Revisions) -> list[Outcome]:
    return [
        one if isinstance(one, Conflict) else Committed(revisions.port(modified, one))
        for one in plan.outcomes
    ]


def _first_conflict(plan: Plan, final: dict[int, Conflict]) -> int:
    """The first that conflicts because of one before it."""
    for at, outcome in enumerate(plan.outcomes):
        if isinstance(outcome, Conflict) and at not in final:
            return at
    return len(plan.outcomes)
