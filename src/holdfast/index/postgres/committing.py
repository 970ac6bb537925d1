"""One batch of transactions as one transaction of PostgreSQL.

    lock     the row of `meta`: from here on nobody else decides
    read     the revisions of all keys that are expected
    decide   `decide_batch`, pure
    write    rows, deletions, feed and revision in one statement
    commit

What must hold: until `commit` was sent, a failure means that nothing will ever be committed. After it,
only the database knows, and is asked: whoever gets the lock of `meta` again finds the batch's first
change under its revision, or knows that it will never come.
"""

from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import asyncpg
import msgspec

from holdfast.index.deciding import Batch, decide_batch, expected_keys
from holdfast.index.port import Change, Outcome, Transaction
from holdfast.index.postgres.schema import META, read_meta

_LOCK = f"SELECT {META} FROM holdfast.meta FOR UPDATE"  # noqa: S608
_READ = "SELECT key, revision FROM holdfast.rows WHERE key = ANY($1::bytea[])"
_WRITE = """
WITH deleted AS (
    DELETE FROM holdfast.rows WHERE key = ANY($1::bytea[])
), put AS (
    INSERT INTO holdfast.rows (key, value, revision)
    SELECT * FROM unnest($2::bytea[], $3::bytea[], $4::bigint[])
    ON CONFLICT (key) DO UPDATE SET value = excluded.value, revision = excluded.revision
), told AS (
    INSERT INTO holdfast.changes (revision, batch, body)
    SELECT revision, $7::uuid, body FROM unnest($5::bigint[], $6::bytea[]) AS change (revision, body)
)
UPDATE holdfast.meta SET revision = $8
"""
_WHO = "SELECT batch FROM holdfast.changes WHERE revision = $1"

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[tuple[tuple[bytes, bytes], ...], tuple[bytes, ...]])


Beside = Callable[[asyncpg.Connection, Batch], Awaitable[None]]
"""What else belongs into the same transaction of the database, once it is decided that something commits."""


class Attempt:
    """One try to commit a batch; `first` is the revision of its first change once `commit` was sent."""

    def __init__(
        self,
        transactions: Sequence[Transaction],
        identity: UUID,
        incarnation: str,
        beside: Beside | None = None,
    ) -> None:
        self._beside = beside
        self._transactions = transactions
        self._identity = identity
        self._incarnation = incarnation
        self.batch: Batch | None = None
        self.first: int | None = None

    async def run(self, connection: asyncpg.Connection) -> list[Outcome]:
        """Decide and commit. Raises Fenced, and the driver's errors."""
        transaction = connection.transaction()
        await transaction.start()
        meta = read_meta(await connection.fetchrow(_LOCK), self._incarnation)
        keys = expected_keys(self._transactions)
        found = await connection.fetch(_READ, keys) if keys else []
        revisions = {row["key"]: row["revision"] for row in found}
        self.batch = batch = decide_batch(self._transactions, revisions, meta.revision)
        if not batch.changes:
            await transaction.rollback()
            return batch.outcomes
        await connection.execute(
            _WRITE,
            list(batch.deletes),
            list(batch.puts),
            [value for value, _ in batch.puts.values()],
            [revision for _, revision in batch.puts.values()],
            [change.revision for change in batch.changes],
            [encode_change(change) for change in batch.changes],
            self._identity,
            batch.revision,
        )
        if self._beside is not None:
            await self._beside(connection, batch)
        self.first = batch.changes[0].revision
        await transaction.commit()
        return batch.outcomes

    async def was_committed(self, connection: asyncpg.Connection) -> bool:
        """After `commit` was sent and not answered: whether it happened; it cannot happen later. Raises the
        driver's errors."""
        assert self.first is not None
        async with connection.transaction():
            read_meta(await connection.fetchrow(_LOCK), self._incarnation)
            return bool(await connection.fetchval(_WHO, self.first) == self._identity)


def encode_change(change: Change) -> bytes:
    """The body of a row of `changes`."""
    return _encoder.encode((change.puts, change.deletes))


def decode_change(revision: int, body: bytes) -> Change:
    """The other way."""
    puts, deletes = _decoder.decode(body)
    return Change(revision, puts, deletes)
