"""An index in PostgreSQL as one end of a copy.

Frozen is a transaction that holds the lock of `meta`, which every commit takes: others wait, and are let go
when this process ends, however it ends. The move is made in that transaction. Moved and filling are states of
`meta`.
"""

from collections.abc import AsyncIterator, Callable

import asyncpg

from holdfast.base.errors import Busy, Fenced, InvalidInput, Unavailable
from holdfast.index.copying import PAGE_ROWS, Kind, Moved, Standing
from holdfast.index.port import Row
from holdfast.index.postgres.connections import connect, is_away
from holdfast.index.postgres.schema import FORMAT, TABLES, check_durability, is_there

CALL_TIMEOUT_S = 60.0

_READ = "SELECT format, incarnation, revision, state, other, moved_to FROM holdfast.meta"
_PAGE = "SELECT key, value, revision FROM holdfast.rows WHERE key > $1 ORDER BY key LIMIT $2"
_EMPTY = "TRUNCATE holdfast.rows, holdfast.changes, holdfast.leases, holdfast.meta"
_BEGIN = """
INSERT INTO holdfast.meta (format, incarnation, revision, oldest, state, other)
VALUES ($1, $2, $3, $3, 'filling', $4)
"""
_MOVE = "UPDATE holdfast.meta SET state = 'moved', other = $1, moved_to = $2"
_FINISH = """
UPDATE holdfast.meta SET state = 'open', other = ''
WHERE state = 'filling' AND ($1::text = '' OR incarnation = $1::text)
"""
_ALONE = "SELECT pg_try_advisory_lock($1)"
_ALONE_KEY = 0x686F6C6466617375
"""Held by the connection of whoever fills an index, so that no two do at once."""


class PostgresEnd:
    """An index in PostgreSQL, open or not. Made by `postgres_end`; both a source and a target."""

    def __init__(self, address: str, name: str, *, managed: bool) -> None:
        self.name = name
        self._address = address
        self._managed = managed
        self._connection: asyncpg.Connection | None = None
        self._freeze: asyncpg.transaction.Transaction | None = None
        self._filling = ""
        """The incarnation that this process fills."""

    async def _connect(self) -> asyncpg.Connection:
        if self._connection is not None and not self._connection.is_closed():
            return self._connection
        if self._freeze is not None:
            raise Fenced(f"{self.name} did not stay frozen: its server let go.", hint="Copy it again.")
        if self._filling:
            raise Unavailable(f"The server of {self.name} let go.", hint="Give the command again.")
        try:
            self._connection = await connect(self._address, CALL_TIMEOUT_S)
        except BaseException as error:
            if not is_away(error):
                raise
            raise Unavailable(f"PostgreSQL does not answer: {error}.", hint="Is it running?") from error
        return self._connection

    async def _meta(self) -> asyncpg.Record | None:
        connection = await self._connect()
        if not await is_there(connection):
            return None
        found = await connection.fetchrow(_READ)
        if found is not None and found["format"] != FORMAT:
            raise InvalidInput(f"The index in {self.name} has format {found['format']}, not {FORMAT}.")
        return found

    async def standing(self) -> Standing:
        """As `copying` says."""
        found = await self._meta()
        if found is None:
            return Standing(Kind.EMPTY)
        return Standing(Kind(found["state"]), found["incarnation"], found["other"], found["moved_to"])

    # As a source

    async def freeze(self) -> int:
        """As `copying` says."""
        connection = await self._connect()
        self._freeze = connection.transaction()
        await self._freeze.start()
        await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        found = await connection.fetchrow(f"{_READ} FOR UPDATE")
        if found is None:
            raise Unavailable(f"{self.name} was emptied meanwhile.")
        revision: int = found["revision"]
        return revision

    async def pages(self) -> AsyncIterator[list[Row]]:
        """As `copying` says."""
        after = b""
        while True:
            connection = await self._connect()
            found = await connection.fetch(_PAGE, after, PAGE_ROWS)
            if not found:
                return
            yield [Row(row["key"], row["value"], row["revision"]) for row in found]
            after = found[-1]["key"]

    async def move(self, moved: Moved) -> None:
        """As `copying` says."""
        connection = await self._connect()
        if self._freeze is None:
            raise Fenced(f"{self.name} is not frozen.")
        await connection.execute(_MOVE, moved.incarnation, moved.where)
        freeze, self._freeze = self._freeze, None
        try:
            await freeze.commit()
        except BaseException as error:
            if not is_away(error):
                raise
        # Where the answer was lost, the server tells what came of it.
        found = await self.standing()
        if (found.kind, found.other) != (Kind.MOVED, moved.incarnation):
            raise Fenced(f"{self.name} was not moved: its server let go.", hint="Copy it again.")

    # As a target

    async def fill(
        self, incarnation: str, source: str, revision: int, pages: Callable[[], AsyncIterator[list[Row]]]
    ) -> None:
        """As `copying` says."""
        connection = await self._connect()
        if not self._managed:
            await check_durability(connection)
        if not await connection.fetchval(_ALONE, _ALONE_KEY):
            raise Busy(f"Somebody else is filling {self.name}.", hint="Wait for that to end.")
        self._filling = incarnation
        async with connection.transaction():
            if not await is_there(connection):
                await connection.execute(TABLES)
            await connection.execute(_EMPTY)
            await connection.execute(_BEGIN, FORMAT, incarnation, revision + 1, source)
        async for page in pages():
            await connection.copy_records_to_table(
                "rows",
                schema_name="holdfast",
                columns=["key", "value", "revision"],
                records=[(row.key, row.value, revision + 1) for row in page],
            )

    async def filled_at(self) -> int:
        """The revision that the index is at, once it holds all rows: its feed can be followed from there."""
        found = await self._meta()
        if found is None:
            raise Unavailable(f"{self.name} was emptied meanwhile.")
        revision: int = found["revision"]
        return revision

    async def finish(self) -> None:
        """As `copying` says."""
        connection = await self._connect()
        await connection.execute(_FINISH, self._filling)
        found = await self.standing()
        if found.kind is not Kind.OPEN or self._filling not in ("", found.incarnation):
            raise Fenced(f"Somebody else writes into {self.name}.")

    async def close(self) -> None:
        """Let go; a source that was not moved thaws."""
        if self._connection is not None:
            self._connection.terminate()


def postgres_end(address: str, name: str, *, managed: bool = False) -> PostgresEnd:
    """The index at `address`, whatever state it is in."""
    return PostgresEnd(address, name, managed=managed)
