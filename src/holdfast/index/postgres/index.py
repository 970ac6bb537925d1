"""The index port over PostgreSQL.

Commits of all callers are gathered into batches by one writer, each batch one transaction of the
database; what arrives while one is under way joins the next, so that a busy node pays for few of them.
Reads go side by side over a few connections, to the server that takes commits, and so see everything
that was acknowledged. A server that fails over makes calls wait, up to the patience.

What must hold: a commit is answered as Unknown only when the database could not be asked within the
patience what became of it; and of two commits that were given in order by one caller, the second is never
decided before the first.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import asyncpg
from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.port import (
    Change,
    IndexState,
    IndexStatus,
    Lease,
    MemberStatus,
    Outcome,
    Prefix,
    Row,
    Transaction,
    Unknown,
)
from holdfast.index.postgres import scanning
from holdfast.index.postgres.committing import Attempt, decode_change
from holdfast.index.postgres.connections import Connections
from holdfast.index.postgres.leasing import PostgresLeases
from holdfast.index.postgres.schema import (
    META,
    Meta,
    Standby,
    check_durability,
    prepare,
    read_meta,
    read_standbys,
)
from holdfast.index.rules import check_all, check_scan, past_prefix, rolled_up

_CHANGES_AT_ONCE = 256
_GET = "SELECT key, value, revision FROM holdfast.rows WHERE key = ANY($1::bytea[])"
_FEED = """
SELECT meta.revision AS newest, meta.oldest, change.revision, change.body
FROM holdfast.meta LEFT JOIN LATERAL (
    SELECT revision, body FROM holdfast.changes WHERE revision > $1 ORDER BY revision LIMIT $2
) AS change ON true
ORDER BY change.revision
"""
_META = f"SELECT {META} FROM holdfast.meta"  # noqa: S608
_TRIM = """
WITH gone AS (DELETE FROM holdfast.changes WHERE revision <= $1)
UPDATE holdfast.meta SET oldest = $1 WHERE oldest < $1
"""


class PostgresOptions(Struct, frozen=True, kw_only=True):
    """`managed`: the provider sees to it that a failover loses nothing. `changes_kept` is how many changes
    the feed reaches back, at least; `patience_s` is how long a call waits for a server that is away,
    `call_timeout_s` after how long without an answer a server counts as that."""

    managed: bool = False
    patience_s: float = 30.0
    call_timeout_s: float = 5.0
    readers: int = 8
    batch_transactions: int = 256
    batch_bytes: int = 4 << 20
    changes_kept: int = 1_000_000
    look_every_s: float = 0.2
    status_every_s: float = 1.0


class _Waiting(Struct):
    transactions: Sequence[Transaction]
    size: int
    outcomes: asyncio.Future[list[Outcome]]


class PostgresIndex:
    """Made by `open_postgres`."""

    def __init__(
        self,
        connections: Connections,
        meta: Meta,
        clock: Clock,
        randomness: Randomness,
        options: PostgresOptions,
    ) -> None:
        self._connections = connections
        self._incarnation = meta.incarnation
        self._revision = meta.revision
        self._trimmed = meta.oldest
        self._clock = clock
        self._randomness = randomness
        self._options = options
        self._queue: deque[_Waiting] = deque()
        self._arrived = asyncio.Event()
        self._committed = asyncio.Event()
        self._standbys: list[Standby] = []
        self._state = IndexState.SERVING
        self._fence: Fenced | None = None
        self._closed = False
        self._leases = PostgresLeases(connections, meta.incarnation)
        self._tasks = [
            asyncio.create_task(self._write_batches(), name="holdfast index writer"),
            asyncio.create_task(self._watch(), name="holdfast index watch"),
        ]

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """As the port says."""
        self._check()
        if not keys:
            return []
        found = await self._connections.use(lambda connection: connection.fetch(_GET, list(set(keys))))
        rows = {row["key"]: Row(row["key"], row["value"], row["revision"]) for row in found}
        return [rows.get(key) for key in keys]

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, delimiter: bytes = b"", skip: int = 0
    ) -> list[Row | Prefix]:
        """As the port says."""
        self._check()
        check_scan(limit, skip)
        if delimiter and not scanning.can_walk(delimiter):
            return await self._scan_by_steps(start, end, limit, delimiter, skip)
        if delimiter:
            query = scanning.WALK
            arguments: tuple[object, ...] = scanning.walk_arguments(start, end, limit, delimiter, skip)
        else:
            query, arguments = scanning.PLAIN, (start, end, limit)
        found = await self._connections.use(lambda connection: connection.fetch(query, *arguments))
        return [scanning.item(row["key"], row["value"], row["revision"]) for row in found]

    async def _scan_by_steps(
        self, start: bytes, end: bytes, limit: int, delimiter: bytes, skip: int
    ) -> list[Row | Prefix]:
        """One query an item, in one moment of the database: for delimiters that end in FF."""

        async def walk(connection: asyncpg.Connection) -> list[Row | Prefix]:
            items: list[Row | Prefix] = []
            after: bytes | None = start
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                while after is not None and len(items) < limit:
                    found = await connection.fetchrow(scanning.PLAIN, after, end, 1)
                    if found is None:
                        break
                    prefix = rolled_up(found["key"], delimiter, skip)
                    items.append(prefix or Row(found["key"], found["value"], found["revision"]))
                    after = past_prefix(prefix.key) if prefix else found["key"] + b"\0"
            return items

        return await self._connections.use(walk)

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        """As the port says."""
        self._check()
        size = sum(check_all(transactions))
        if not transactions:
            return []
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(transactions, size, future))
        self._arrived.set()
        return await future

    async def changes(self, after: int) -> AsyncIterator[Change]:
        """As the port says."""
        while True:
            self._check()
            self._committed.clear()
            found = await self._connections.use(
                lambda connection, after=after: connection.fetch(_FEED, after, _CHANGES_AT_ONCE)  # type: ignore[misc]
            )
            _check_reach(found[0]["newest"], found[0]["oldest"], after)
            for row in found:
                if row["revision"] is not None:
                    after = row["revision"]
                    yield decode_change(after, row["body"])
            if found[0]["revision"] is None:
                await self._something_new()

    async def _something_new(self) -> None:
        """Wait for a commit of this node, or long enough for one of another to be looked for."""
        try:
            async with asyncio.timeout(self._options.look_every_s):
                await self._committed.wait()
        except TimeoutError:
            return

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        """As the port says."""
        self._check()
        if not name or not holder or ttl_s <= 0:
            raise InvalidInput("A lease needs a name, a holder and a time above 0 s.")
        return await self._leases.acquire(name, holder, ttl_s, self._new_identity)

    async def release(self, lease: Lease) -> None:
        """As the port says."""
        self._check()
        await self._leases.release(lease, self._new_identity)

    def status(self) -> IndexStatus:
        """As the port says."""
        state = IndexState.UNAVAILABLE if self._closed else self._state
        server = MemberStatus(
            "server", "current" if state is IndexState.SERVING else "out", self._connections.last_error
        )
        standbys = [
            MemberStatus(
                standby.name,
                "current" if standby.synchronous else "behind",
                f"{standby.state}, {'waited for' if standby.synchronous else 'not waited for'}",
            )
            for standby in self._standbys
        ]
        survivable = min(1, sum(standby.synchronous for standby in self._standbys))
        return IndexStatus(
            state, "postgres", self._incarnation, self._revision, (server, *standbys), survivable
        )

    async def close(self) -> None:
        """As the port says."""
        self._closed = True
        self._committed.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._connections.close()
        while self._queue:
            _fail(self._queue.popleft(), Unavailable("The index is closed."))

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("The index is closed.")
        if self._fence is not None:
            raise self._fence

    def _new_identity(self) -> UUID:
        return UUID(bytes=self._randomness.token(16))

    # The writer

    async def _write_batches(self) -> None:
        while True:
            await self._arrived.wait()
            taken = self._take()
            if not self._queue:
                self._arrived.clear()
            if not taken:
                continue
            try:
                await self._write(taken)
            except asyncio.CancelledError:
                # Closed in the middle: it may be there or not.
                _answer(taken, [Unknown("The index was closed.")] * _count(taken))
                raise
            except HoldfastError as error:
                if isinstance(error, Fenced):
                    self._fence, self._state = error, IndexState.FENCED
                for waiting in taken:
                    _fail(waiting, error)
            except Exception as error:
                # Our own mistake, or an answer of the database that nobody foresaw: the writer goes on.
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "a commit to PostgreSQL failed", "exception": error}
                )
                _answer(taken, [Unknown(f"{type(error).__name__}: {error}")] * _count(taken))

    def _take(self) -> list[_Waiting]:
        """What goes into the next batch: calls in their order, whole."""
        taken: list[_Waiting] = []
        count = size = 0
        while self._queue:
            following = self._queue[0]
            count += len(following.transactions)
            size += following.size
            if taken and (count > self._options.batch_transactions or size > self._options.batch_bytes):
                break
            taken.append(self._queue.popleft())
        return taken

    async def _write(self, taken: list[_Waiting]) -> None:
        transactions = [transaction for waiting in taken for transaction in waiting.transactions]
        identity = self._new_identity()
        sent: list[Attempt] = []

        async def once(connection: asyncpg.Connection) -> list[Outcome]:
            if sent and await sent[-1].was_committed(connection):
                batch = sent[-1].batch
                assert batch is not None
                return batch.outcomes
            attempt = Attempt(transactions, identity, self._incarnation)
            try:
                return await attempt.run(connection)
            finally:
                if attempt.first is not None:
                    sent.append(attempt)
                elif sent:
                    sent.clear()  # it was asked about, and never came

        try:
            outcomes = await self._connections.use(once)
        except Unavailable as error:
            if not sent:
                raise
            outcomes = [Unknown(str(error)) for _ in transactions]
        self._learn(outcomes)
        _answer(taken, outcomes)

    def _learn(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if not isinstance(outcome, Unknown):
                self._revision = max(self._revision, getattr(outcome, "revision", 0))
        self._committed.set()

    # The watch

    async def _watch(self) -> None:
        """Learn of others' commits and of the standbys, and keep the feed from growing for ever."""
        while True:
            try:
                await self._connections.use(self._look)
                self._state = IndexState.SERVING
            except Fenced as error:
                self._fence, self._state = error, IndexState.FENCED
                return
            except HoldfastError:
                self._state = IndexState.UNAVAILABLE  # the reason is in `last_error`
            await self._clock.sleep(self._options.status_every_s)

    async def _look(self, connection: asyncpg.Connection) -> None:
        meta = read_meta(await connection.fetchrow(_META), self._incarnation)
        self._revision = max(self._revision, meta.revision)
        self._standbys = await read_standbys(connection)
        keep_after = meta.revision - self._options.changes_kept
        if keep_after > meta.oldest + self._options.changes_kept // 10:
            await connection.execute(_TRIM, keep_after)


def _check_reach(newest: int, oldest: int, after: int) -> None:
    if after > newest:
        raise InvalidInput(f"The index is at revision {newest}, before {after}.")
    if after < oldest:
        raise InvalidInput(
            f"The change feed reaches back to revision {oldest + 1}, not to {after + 1}.",
            hint="Compare and copy instead.",
        )


def _count(taken: Sequence[_Waiting]) -> int:
    return sum(len(waiting.transactions) for waiting in taken)


def _answer(taken: Sequence[_Waiting], outcomes: Sequence[Outcome]) -> None:
    at = 0
    for waiting in taken:
        count = len(waiting.transactions)
        if not waiting.outcomes.done():
            waiting.outcomes.set_result(list(outcomes[at : at + count]))
        at += count


def _fail(waiting: _Waiting, error: HoldfastError) -> None:
    if not waiting.outcomes.done():
        waiting.outcomes.set_exception(error)


async def open_postgres(
    address: str, *, clock: Clock, randomness: Randomness, options: PostgresOptions | None = None
) -> PostgresIndex:
    """The index in the database that `address` names, made if it is not there.

    Raises InvalidInput (address, role, a server that may lose commits, another format), Unavailable.
    """
    options = options or PostgresOptions()
    connections = Connections(
        address,
        clock,
        count=options.readers + 1,
        patience_s=options.patience_s,
        call_timeout_s=options.call_timeout_s,
    )

    async def look(connection: asyncpg.Connection) -> Meta:
        if not options.managed:
            await check_durability(connection)
        return await prepare(connection, randomness)

    try:
        meta = await connections.use(look)
    except BaseException:
        connections.close()
        raise
    return PostgresIndex(connections, meta, clock, randomness, options)
