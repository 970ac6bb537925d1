"""The tables, and what the installation must promise before it is trusted with them.

    holdfast.meta      one row: format, incarnation, revision, oldest revision of the feed; state, other and
                       moved_to while it is being copied here, or once it was moved (`index/copying.py`)
    holdfast.rows      key, value, revision
    holdfast.changes   the feed: revision, batch, msgpack of [[[key, value], ...], [deleted key, ...]]
    holdfast.leases    name, token, when it expires (by the server's clock)

Every commit locks the row of `meta` first, so that commits have one order, which is that of their
revisions, and whoever gets the lock sees the end of every commit before. What must hold: an installation
that may lose what it acknowledged is refused, unless the operator says that its provider sees to that.
"""

import asyncpg
from msgspec import Struct

from holdfast.base.errors import Fenced, InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.copying import Kind, Moved, moved_hint, not_finished

FORMAT = 1

TABLES = """
CREATE SCHEMA IF NOT EXISTS holdfast;
CREATE TABLE IF NOT EXISTS holdfast.meta (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    format integer NOT NULL,
    incarnation text NOT NULL,
    revision bigint NOT NULL,
    oldest bigint NOT NULL,
    state text NOT NULL DEFAULT 'open',
    other text NOT NULL DEFAULT '',
    moved_to text NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS holdfast.rows (
    key bytea PRIMARY KEY,
    value bytea NOT NULL,
    revision bigint NOT NULL
);
CREATE TABLE IF NOT EXISTS holdfast.changes (
    revision bigint PRIMARY KEY,
    batch uuid NOT NULL,
    body bytea NOT NULL
);
CREATE TABLE IF NOT EXISTS holdfast.leases (
    name text PRIMARY KEY,
    token bigint NOT NULL,
    expires timestamptz NOT NULL
);
"""

_MAKING = 0x686F6C6466617374
"""Advisory lock of whoever makes the tables: two nodes may start at once."""

META = "incarnation, revision, oldest, state, other, moved_to"
"""The columns that `read_meta` takes."""

_SETTINGS = ("fsync", "full_page_writes", "synchronous_commit", "synchronous_standby_names")


class Meta(Struct, frozen=True):
    """The row of `meta`."""

    incarnation: str
    revision: int
    oldest: int


class Standby(Struct, frozen=True):
    """A server that follows the one that takes commits. `synchronous` when commits wait for it."""

    name: str
    state: str
    synchronous: bool


async def prepare(connection: asyncpg.Connection, randomness: Randomness) -> Meta:
    """Make what is not there; answers what is. Raises InvalidInput for a format that is not ours."""
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MAKING)
        if not await is_there(connection):
            await connection.execute(TABLES)
            await connection.execute(
                "INSERT INTO holdfast.meta (format, incarnation, revision, oldest) VALUES ($1, $2, 0, 0)",
                FORMAT,
                randomness.token(16).hex(),
            )
        found = await connection.fetchrow(f"SELECT format, {META} FROM holdfast.meta")  # noqa: S608
    if found is None:
        raise InvalidInput(
            "The schema `holdfast` of this database has tables and no row in `meta`.",
            hint="It was emptied by hand: drop the schema to begin anew, or restore the database.",
        )
    if found["format"] != FORMAT:
        raise InvalidInput(
            f"The schema `holdfast` has format {found['format']}, this Holdfast knows {FORMAT}.",
            hint="Use the version that made it, or a newer one.",
        )
    check_not_moved(found)
    if found["state"] == Kind.FILLING.value:
        raise not_finished(found["other"])
    return Meta(found["incarnation"], found["revision"], found["oldest"])


async def is_there(connection: asyncpg.Connection) -> bool:
    """Whether the tables are there."""
    return bool(await connection.fetchval("SELECT to_regclass('holdfast.meta') IS NOT NULL"))


def check_not_moved(row: asyncpg.Record) -> None:
    """Raises Fenced when the truth is elsewhere."""
    if row["state"] == Kind.MOVED.value:
        raise Fenced(
            f"The index was moved to {row['moved_to']} ({row['other']}), which is the truth now.",
            hint=moved_hint(Moved(row["other"], row["moved_to"])),
        )


async def check_durability(connection: asyncpg.Connection) -> None:
    """Raises InvalidInput where a commit that was acknowledged could be lost by a crash or a failover."""
    found = await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY($1)", _SETTINGS)
    settings = {row["name"]: row["setting"] for row in found}
    for name in ("fsync", "full_page_writes"):
        if settings[name] != "on":
            raise InvalidInput(
                f"PostgreSQL runs with {name} = {settings[name]}: a power cut may lose acknowledged commits.",
                hint=f"Set {name} = on.",
            )
    standbys = await read_standbys(connection)
    if settings["synchronous_commit"] not in ("on", "remote_apply"):
        raise InvalidInput(
            f"PostgreSQL runs with synchronous_commit = {settings['synchronous_commit']}: "
            "a failover may lose what was acknowledged.",
            hint="Set it to on for the role that Holdfast uses.",
        )
    if standbys and not settings["synchronous_standby_names"]:
        names = ", ".join(standby.name for standby in standbys)
        raise InvalidInput(
            f"The standbys of this PostgreSQL ({names}) follow without being waited for: "
            "promoting one may lose what was acknowledged.",
            hint="Set synchronous_standby_names, or say `managed = true` where the provider sees to it.",
        )


async def read_standbys(connection: asyncpg.Connection) -> list[Standby]:
    """Who follows; needs no privilege, but without `pg_monitor` it may see less."""
    found = await connection.fetch(
        "SELECT application_name, state, sync_state FROM pg_stat_replication ORDER BY application_name"
    )
    return [
        Standby(
            row["application_name"] or "standby",
            row["state"] or "?",
            row["sync_state"] in ("sync", "quorum"),
        )
        for row in found
    ]


def read_meta(row: asyncpg.Record | None, known: str) -> Meta:
    """The row of `meta`. Raises Fenced when the index is not `known`, the one that was opened."""
    if row is None:
        raise Unavailable("The tables of the index are empty.", hint="Were they restored or dropped by hand?")
    check_not_moved(row)
    meta = Meta(row["incarnation"], row["revision"], row["oldest"])
    if meta.incarnation != known:
        raise Fenced(
            f"The index is {meta.incarnation} now, this node knows {known}: it was recovered or copied.",
            hint="Start the node anew.",
        )
    return meta
