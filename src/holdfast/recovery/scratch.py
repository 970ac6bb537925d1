"""The rows of an index that is being made again, in a file of its own: however many, in little memory.

Nothing of it is durable or asked by anyone else; when recovery is interrupted it is thrown away and made
again. What must hold: rows keep the revisions that they had, because some things are ordered by them.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from holdfast.index.port import Row

_PAGE = 1000


class Scratch:
    """Rows by key. Synchronous: nobody is served meanwhile."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        if path is not None:
            path.unlink(missing_ok=True)
        self._connection = sqlite3.connect(":memory:" if path is None else str(path), isolation_level=None)
        run = self._connection.execute
        run("PRAGMA journal_mode = OFF")
        run("PRAGMA synchronous = OFF")
        run("CREATE TABLE rows (key BLOB PRIMARY KEY, revision INTEGER, value BLOB) WITHOUT ROWID")
        run("BEGIN")

    def clear(self) -> None:
        """Without any rows."""
        self._connection.execute("DELETE FROM rows")

    def put_rows(self, rows: Iterable[Row]) -> None:
        """Rows as they are."""
        self._connection.executemany(
            "INSERT OR REPLACE INTO rows VALUES (?, ?, ?)",
            ((key, revision, value) for key, value, revision in rows),
        )

    def apply(self, revision: int, puts: Iterable[tuple[bytes, bytes]], deletes: Iterable[bytes]) -> None:
        """One change."""
        self.put_rows(Row(key, value, revision) for key, value in puts)
        self._connection.executemany("DELETE FROM rows WHERE key = ?", ((key,) for key in deletes))

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The rows of `keys`, in that order."""
        found: list[Row | None] = []
        for key in keys:
            row = self._connection.execute(
                "SELECT key, value, revision FROM rows WHERE key = ?", (key,)
            ).fetchone()
            found.append(None if row is None else Row(*row))
        return found

    def scan(self, start: bytes, end: bytes | None = None) -> Iterator[Row]:
        """Rows with start <= key < end, in key order; they may change behind where it is."""
        while True:
            bound = "" if end is None else " AND key < ?"
            page = self._connection.execute(
                f"SELECT key, value, revision FROM rows WHERE key >= ?{bound} ORDER BY key LIMIT {_PAGE}",  # noqa: S608
                (start,) if end is None else (start, end),
            ).fetchall()
            for row in page:
                yield Row(*row)
            if len(page) < _PAGE:
                return
            start = page[-1][0] + b"\0"

    def count(self, prefix: bytes = b"", end: bytes | None = None) -> int:
        """How many rows there are from `prefix` on, up to `end`."""
        bound = "" if end is None else " AND key < ?"
        (count,) = self._connection.execute(
            f"SELECT count(*) FROM rows WHERE key >= ?{bound}",  # noqa: S608
            (prefix,) if end is None else (prefix, end),
        ).fetchone()
        return int(count)

    def close(self) -> None:
        """Throw it away."""
        self._connection.close()
        if self._path is not None:
            self._path.unlink(missing_ok=True)
