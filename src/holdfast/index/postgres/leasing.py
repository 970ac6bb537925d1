"""Leases that several nodes may want: rows of the index, their expiry by the server's clock.

The row `lease/<name>` holds the holder, its revision is the token, as everywhere; when it runs out stands
in a table of its own, so that renewing touches no row and tells nobody. One clock, the server's, judges
all expiries, so that nodes need not agree about the time.
"""

from collections.abc import Callable
from uuid import UUID

import asyncpg

from holdfast.index.deciding import Batch
from holdfast.index.port import ABSENT, Committed, Expect, Lease, Transaction, lease_row
from holdfast.index.postgres.committing import Attempt
from holdfast.index.postgres.connections import Connections

_HELD = """
SELECT
    rows.value, rows.revision,
    coalesce(leases.token = rows.revision AND leases.expires > clock_timestamp(), false) AS live
FROM holdfast.rows LEFT JOIN holdfast.leases ON leases.name = $1
WHERE rows.key = $2
"""
_EXTEND = """
INSERT INTO holdfast.leases (name, token, expires)
VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3))
ON CONFLICT (name) DO UPDATE SET token = excluded.token, expires = excluded.expires
WHERE leases.token <= excluded.token
"""


class PostgresLeases:
    """The leases of one index."""

    def __init__(self, connections: Connections, incarnation: str) -> None:
        self._connections = connections
        self._incarnation = incarnation

    async def acquire(
        self, name: str, holder: str, ttl_s: float, new_identity: Callable[[], UUID]
    ) -> Lease | None:
        """As the port says. A try whose answer was lost is made again: the holder's own name is on the row
        then, so that it only renews."""
        key, wanted = lease_row(name), holder.encode()

        async def once(connection: asyncpg.Connection) -> Lease | None:
            # Row and expiry of one moment: whoever sees it run out expects the row as it was then.
            held = await connection.fetchrow(_HELD, name, key)
            if held is not None and held["live"]:
                if held["value"] != wanted:
                    return None
                await connection.execute(_EXTEND, name, held["revision"], ttl_s)
                return Lease(name, holder, held["revision"])
            revision = held["revision"] if held is not None else ABSENT
            take = Transaction((Expect(key, revision),), ((key, wanted),))
            attempt = Attempt([take], new_identity(), self._incarnation, extend)
            (outcome,) = await attempt.run(connection)
            return Lease(name, holder, outcome.revision) if isinstance(outcome, Committed) else None

        async def extend(connection: asyncpg.Connection, batch: Batch) -> None:
            await connection.execute(_EXTEND, name, batch.revision, ttl_s)

        return await self._connections.use(once)

    async def release(self, lease: Lease, new_identity: Callable[[], UUID]) -> None:
        """As the port says."""
        key = lease_row(lease.name)
        give_up = Transaction((Expect(key, lease.token),), (), (key,))

        async def once(connection: asyncpg.Connection) -> None:
            await Attempt([give_up], new_identity(), self._incarnation).run(connection)

        await self._connections.use(once)
