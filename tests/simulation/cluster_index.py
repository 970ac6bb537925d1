"""An index on the network that behaves as etcd does: one truth, any number of clients, and answers that get
lost.

`IndexService` is the truth and its leases; `IndexClient` is one process's way to it. What must hold, so that
what is found is the product's and not the simulation's: each transaction is decided at once and in one order;
a commit without an answer may have been decided, may be decided later, also after its client has died, or
never; a read answers with what was there at some moment between question and answer; a lease is never granted
twice at a time.
"""

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from holdfast.base.clock import Clock
from holdfast.base.errors import InvalidInput, Unavailable
from holdfast.base.randomness import SeededRandomness
from holdfast.index.memory import MemoryRows
from holdfast.index.port import (
    Change,
    Committed,
    IndexState,
    IndexStatus,
    Lease,
    MemberStatus,
    Outcome,
    Prefix,
    Row,
    Transaction,
    Unknown,
    lease_row,
)
from holdfast.index.rules import check_all, check_scan
from tests.simulation.cluster_network import INDEX, Network
from tests.simulation.trace import Trace

T = TypeVar("T")

PATIENCE_S = 2.0
"""How long a client waits for an answer."""

LATE_S = 40.0
"""How long a commit may be on its way. No promise of the product depends on how long it is."""

FEED_POLL_S = 0.02
_FEED_AT_ONCE = 256


class _Granted(NamedTuple):
    holder: str
    token: int
    until: float


class IndexService:
    """The truth. `electing` is while it has no leader; `late` is how likely a commit is to be held up on its
    way, `lossy` how likely its answer is to be lost."""

    def __init__(self, rows: MemoryRows, clock: Clock, randomness: SeededRandomness, trace: Trace) -> None:
        self.rows = rows
        self.electing = False
        self.late = 0.0
        self.lossy = 0.0
        self.landed_late = 0
        self.held = 0
        self.hold_packs: list[float] = []
        """How long the next commits that make packs are held up."""
        self._clock = clock
        self._chance = randomness
        self._trace = trace
        self._leases: dict[str, _Granted] = {}
        self._under_way: set[asyncio.Task[Any]] = set()
        self._context = contextvars.copy_context()

    def strikes(self, likely: float) -> bool:
        """Whether something happens that is so likely."""
        return likely > 0 and self._chance.fraction() < likely

    def send(self, work: Callable[[], Any]) -> asyncio.Task[Any]:
        """Do something on behalf of a client, whatever becomes of it."""
        task = asyncio.get_running_loop().create_task(work(), context=self._context)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)
        return task

    async def decide(
        self, who: str, network: Network, transactions: Sequence[Transaction]
    ) -> list[Outcome] | None:
        """Decide a commit that was sent by `who`; None when it never arrives."""
        if not await network.carry(who, INDEX):
            return None
        held_s = 0.0
        if self.hold_packs and any(key.startswith(b"pack/") for one in transactions for key, _ in one.puts):
            held_s = self.hold_packs.pop(0)
        elif self.strikes(self.late):
            held_s = LATE_S * self._chance.fraction()
        elif self.strikes(self.late / 2):
            return None
        if held_s:
            self.held += 1
            try:
                await self._clock.sleep(held_s)
            finally:
                self.held -= 1
        while self.electing:
            if self.strikes(0.3):
                return None
            await self._clock.sleep(0.05 + 0.1 * self._chance.fraction())
        outcomes = self.rows.apply(transactions)
        if held_s > PATIENCE_S:
            self.landed_late += any(isinstance(one, Committed) for one in outcomes)
            self._trace.note("landed late", who, " ".join(type(one).__name__ for one in outcomes))
        if self.strikes(self.lossy) or not await network.carry(INDEX, who):
            return None
        return outcomes

    def grant(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        """The lease, if it is free or expired, or the holder's."""
        now = self._clock.monotonic()
        key = lease_row(name)
        held = self._leases.get(name)
        if held is not None and held.until > now:
            if held.holder != holder:
                return None
            self._leases[name] = held._replace(until=now + ttl_s)
            return Lease(name, holder, held.token)
        (outcome,) = self.rows.apply([Transaction((), ((key, holder.encode()),))])
        assert isinstance(outcome, Committed)
        self._leases[name] = _Granted(holder, outcome.revision, now + ttl_s)
        return Lease(name, holder, outcome.revision)

    def take_back(self, lease: Lease) -> None:
        """It is free again, if it has not moved on."""
        held = self._leases.get(lease.name)
        if held is not None and held.token == lease.token:
            del self._leases[lease.name]
            self.rows.apply([Transaction((), (), (lease_row(lease.name),))])


class IndexClient:
    """The port, for one process of node `who`."""

    def __init__(self, service: IndexService, network: Network, who: str, clock: Clock) -> None:
        self._service = service
        self._network = network
        self._who = who
        self._clock = clock
        self._seen = 0
        self._closed = False
        self.commits = self.reads = 0

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        rows = self._service.rows
        return await self._read(lambda: [rows.get(key) for key in keys])

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, delimiter: bytes = b"", skip: int = 0
    ) -> list[Row | Prefix]:
        check_scan(limit, skip)
        return await self._read(lambda: self._service.rows.scan(start, end, limit, delimiter, skip))

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        self._check()
        check_all(transactions)
        self.commits += 1
        transactions = list(transactions)
        task = self._service.send(lambda: self._service.decide(self._who, self._network, transactions))
        outcomes = await self._wait(task)
        if outcomes is None:
            return [Unknown("no answer from the index")] * len(transactions)
        self._see(max((one.revision for one in outcomes if isinstance(one, Committed)), default=0))
        return outcomes

    async def changes(self, after: int) -> AsyncIterator[Change]:
        while True:
            batch = await self._read(lambda at=after: self._service.rows.changes(at, _FEED_AT_ONCE))
            for change in batch:
                yield change
                after = change.revision
            if not batch:
                await self._clock.sleep(FEED_POLL_S)

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        if not name or not holder or ttl_s <= 0:
            raise InvalidInput("A lease needs a name, a holder and a time above 0 s.")
        return await self._read(lambda: self._service.grant(name, holder, ttl_s))

    async def release(self, lease: Lease) -> None:
        await self._read(lambda: self._service.take_back(lease))

    def status(self) -> IndexStatus:
        member = MemberStatus("etcd", "current")
        return IndexStatus(
            IndexState.SERVING, "etcd", self._service.rows.incarnation, self._seen, (member,), 1
        )

    async def close(self) -> None:
        self._closed = True

    async def _read(self, read: Callable[[], T]) -> T:
        """Something that is answered at once, by a leader, if the question and the answer arrive."""
        self._check()
        self.reads += 1
        found = await self._wait(self._service.send(lambda: self._answer(read)))
        if found is None:
            raise Unavailable("The index did not answer in time.", hint="Try again.")
        (result, revision) = found
        self._see(revision)
        return result

    async def _answer(self, read: Callable[[], T]) -> tuple[T, int] | None:
        service = self._service
        if not await self._network.carry(self._who, INDEX):
            return None
        while service.electing:
            await self._clock.sleep(0.05)
        result, revision = read(), service.rows.revision
        return (result, revision) if await self._network.carry(INDEX, self._who) else None

    async def _wait(self, task: asyncio.Task[T]) -> T | None:
        """What came of it, if that is known in time."""
        done, _ = await asyncio.wait([task], timeout=PATIENCE_S)
        return task.result() if done else None

    def _see(self, revision: int) -> None:
        self._seen = max(self._seen, revision)

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("The index is closed.")
