"""A copy of the rows in SQLite: for reading only, and disposable.

Synchronous; one connection writes, one reads, each in a thread of its own. What must hold:

- it holds exactly the rows after one record of the log and knows which: both change in one SQLite
  transaction. With WAL and synchronous NORMAL a power cut may take it back to an earlier record, never
  to a mix.
- every row carries a checksum over key, value and revision (SQLite's own integrity check does not see a
  flipped bit in a value). A row that does not verify is never returned: the whole copy is given up.
- it knows what all its rows add up to, kept with every change. A page that was lost or went back to an
  older state takes rows away or brings old ones back that verify, each for itself; together they do
  not add up any more. They are added up when a copy is opened, for every checkpoint, and now and then.

Statements answer with one row that joins many: a thread gives the interpreter lock away at each step of
a statement and may wait long to get it back, so that 64 rows in one step are much faster than 64 steps.
"""

import sqlite3
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from holdfast.base.checksums import crc32c
from holdfast.base.errors import Damaged
from holdfast.index.port import Prefix, Row
from holdfast.index.rules import past_prefix, rolled_up
from holdfast.index.sqlite.checkpoint import Base, Sums, row_checksum, sums_of
from holdfast.index.sqlite.records import Record, changes_of, members_of

T = TypeVar("T")

_GET_CHUNK = 64
_PUT_CHUNK = 64
_SCAN_CHUNK_FIRST = 32
_SCAN_CHUNK_MAX = 512
_SCAN_STATEMENTS_MAX = 32
_COUNT_CHUNK = 20_000
_CACHE_KIB = 8 << 10
_WAL_PAGES = 4096
_SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    key BLOB PRIMARY KEY, revision INTEGER NOT NULL, checksum INTEGER NOT NULL, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS meta (id INTEGER PRIMARY KEY CHECK (id = 1), data BLOB NOT NULL);
"""


class CopyFailed(Damaged):
    """The copy cannot be used any more and has to be made anew."""


class CopyTaken(CopyFailed):
    """Another process has written the copy meanwhile: one that is fenced goes on until it notices, with what
    was acknowledged before. The copy is whole, stands at another record, and only has to be opened again."""


class CopyFiles(Protocol):
    """Where a copy lies. Everything raises CopyFailed."""

    def connect(self) -> sqlite3.Connection:
        """A connection of its own, in autocommit; the file is made if it is not there."""
        ...

    def witness(self) -> None:
        """Raises CopyFailed when the path leads to another file than the one that is connected."""
        ...

    def remove(self) -> None:
        """Throw the copy away."""
        ...


class DirectoryCopyFiles:
    """`copy.sqlite` in a directory, which is made when its parent is there."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = directory / "copy.sqlite"
        self._file: tuple[int, int] | None = None

    def connect(self) -> sqlite3.Connection:
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            connection = sqlite3.connect(
                self._path, timeout=1.0, isolation_level=None, check_same_thread=False
            )
            found = self._path.stat()
        except (OSError, sqlite3.Error) as error:
            raise CopyFailed(f"Cannot open {self._path}: {error}.") from error
        self._file = found.st_dev, found.st_ino
        return connection

    def witness(self) -> None:
        try:
            found = self._path.stat()
        except OSError as error:
            raise CopyFailed(f"{self._path} is gone: {error.strerror}.") from error
        if (found.st_dev, found.st_ino) != self._file:
            raise CopyFailed(f"{self._path} is another file now.")

    def remove(self) -> None:
        try:
            for suffix in ("", "-wal", "-shm", "-journal"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        except OSError as error:
            raise CopyFailed(f"Cannot remove {self._path}: {error.strerror}.") from error


def verified(key: bytes, value: bytes, revision: int, checksum: int) -> Row:
    """The row. Raises CopyFailed when it is not what was written."""
    if row_checksum(key, value, revision) != checksum:
        raise CopyFailed(f"Row {key!r} in a copy of the index does not verify.")
    return Row(key, value, revision)


def _wrapped(work: Callable[[], T]) -> T:
    try:
        return work()
    except (sqlite3.Error, ValueError, TypeError, OverflowError) as error:
        # A spoiled page can give a column another type or length than was written.
        raise CopyFailed(f"A copy of the index failed: {error}.") from error


def _configure(connection: sqlite3.Connection) -> None:
    for pragma in (
        "journal_mode = WAL",
        "synchronous = NORMAL",
        f"cache_size = -{_CACHE_KIB}",
        f"wal_autocheckpoint = {_WAL_PAGES}",
        "journal_size_limit = 67108864",
        "temp_store = MEMORY",
        "cell_size_check = ON",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()


class CopyWriter:
    """The writing side."""

    def __init__(self, files: CopyFiles) -> None:
        self._files = files
        self._connection: sqlite3.Connection | None = None

    def open(self) -> Base | None:
        """Open or make it; the base that it stands at, or None when it is new."""

        def work() -> Base | None:
            connection = self._connection = self._files.connect()
            _configure(connection)
            connection.executescript(_SCHEMA)
            return read_base(connection)

        return _wrapped(work)

    def renew(self) -> None:
        """Throw away what is there and begin with nothing."""
        self.close()
        self._files.remove()
        self.open()

    def load(self, rows: Sequence[Row]) -> None:
        """Rows of a checkpoint. Not usable before `settle`."""

        def work() -> None:
            assert self._connection is not None
            self._connection.execute("BEGIN IMMEDIATE")
            self._put(rows)
            self._connection.execute("COMMIT")

        _wrapped(work)

    def settle(self, base: Base) -> None:
        """All rows of the checkpoint at `base` are loaded."""

        def work() -> None:
            assert self._connection is not None
            _write_base(self._connection, base)

        _wrapped(work)

    def apply(self, base: Base, records: Sequence[Record]) -> Base:
        """Advance from `base` by records that follow it; the new base. Raises CopyFailed, and
        CopyTaken when the copy does not stand at `base` any more."""
        latest: dict[bytes, tuple[bytes, int] | None] = {}
        members, revision, hash_ = base.members, base.revision, base.hash
        for record in records:
            assert record.previous == hash_, "records follow the base without a gap"
            hash_ = record.hash
            for puts, deletes in changes_of(record):
                revision += 1
                for key, value in puts:
                    latest[key] = value, revision
                for key in deletes:
                    latest[key] = None
            members = members_of(record) or members
        last = records[-1]
        # In key order, neighbours share pages.
        keys = sorted(latest)
        rows = [Row(key, *found) for key in keys if (found := latest[key]) is not None]
        deleted = [key for key in keys if latest[key] is None]
        added = sums_of(rows)

        def work() -> Base:
            connection = self._connection
            assert connection is not None
            connection.execute("BEGIN IMMEDIATE")
            try:
                if read_base(connection) != base:
                    raise CopyTaken("A copy of the index is being written by another process.")
                sums = base.sums.minus(self._sums(keys)).plus(added)
                new = Base(base.incarnation, last.sequence, last.epoch, hash_, revision, members, sums)
                self._put(rows)
                self._delete(deleted)
                _write_base(connection, new)
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
            return new

        self._files.witness()
        return _wrapped(work)

    def _put(self, rows: Sequence[Row]) -> None:
        assert self._connection is not None
        for at in range(0, len(rows), _PUT_CHUNK):
            part = rows[at : at + _PUT_CHUNK]
            # Made piece by piece, so that a large batch does not hold the interpreter lock for long.
            items = [
                item
                for key, value, revision in part
                for item in (key, revision, row_checksum(key, value, revision), value)
            ]
            self._connection.execute(_put_statement(len(part)), items)

    def _delete(self, keys: Sequence[bytes]) -> None:
        assert self._connection is not None
        for at in range(0, len(keys), _PUT_CHUNK):
            part = keys[at : at + _PUT_CHUNK]
            marks = ",".join("?" * len(part))
            self._connection.execute(f"DELETE FROM rows WHERE key IN ({marks})", part)  # noqa: S608

    def _sums(self, keys: Sequence[bytes]) -> Sums:
        """Of the rows of `keys` that are there."""
        assert self._connection is not None
        sums = Sums()
        for at in range(0, len(keys), _PUT_CHUNK):
            part = keys[at : at + _PUT_CHUNK]
            marks = ",".join("?" * len(part))
            statement = f"SELECT {_SUMS} FROM rows WHERE key IN ({marks})"  # noqa: S608
            sums = sums.plus(Sums(*self._connection.execute(statement, part).fetchone()))
        return sums

    def close(self) -> None:
        """Let go."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()


_SUMS = "count(*), coalesce(sum(revision), 0), coalesce(sum(checksum), 0)"


@cache
def _put_statement(rows: int) -> str:
    marks = ",".join(["(?,?,?,?)"] * rows)
    return (
        f"INSERT INTO rows VALUES {marks} ON CONFLICT (key) DO UPDATE"  # noqa: S608
        " SET revision = excluded.revision, checksum = excluded.checksum, value = excluded.value"
    )


def read_base(connection: sqlite3.Connection) -> Base | None:
    """Where the copy stands, verified; None when it was never settled. Raises CopyFailed."""
    found = connection.execute("SELECT data FROM meta WHERE id = 1").fetchone()
    if found is None:
        return None
    raw = bytes(found[0])
    if len(raw) < 4 or crc32c(raw[4:]) != int.from_bytes(raw[:4], "little"):
        raise CopyFailed("A copy of the index does not know where it stands.")
    return msgspec.msgpack.decode(raw[4:], type=Base)


def _write_base(connection: sqlite3.Connection, base: Base) -> None:
    body = msgspec.msgpack.encode(base)
    raw = crc32c(body).to_bytes(4, "little") + body
    connection.execute(
        "INSERT INTO meta VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET data = excluded.data", (raw,)
    )


class ScanStep:
    """A scan that goes on in bounded steps: `found` grows until `done`."""

    def __init__(self, start: bytes, end: bytes, limit: int, delimiter: bytes, skip: int) -> None:
        self.found: list[Row | Prefix] = []
        self.done = start >= end
        self.start = start
        self.end = end
        self.limit = limit
        self.delimiter = delimiter
        self.skip = skip


class CopyReader:
    """The reading side."""

    def __init__(self, files: CopyFiles) -> None:
        self._files = files
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Connect to a copy that the writer has opened."""

        def work() -> None:
            self._connection = self._files.connect()
            _configure(self._connection)
            self._connection.execute("PRAGMA query_only = ON")

        _wrapped(work)

    def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The rows of `keys`, in that order. Raises CopyFailed."""
        return _wrapped(lambda: self._get(keys))

    def _get(self, keys: Sequence[bytes]) -> list[Row | None]:
        assert self._connection is not None
        rows: list[Row | None] = []
        for at in range(0, len(keys), _GET_CHUNK):
            part = list(keys[at : at + _GET_CHUNK])
            # Few distinct statements, so that each is prepared once.
            width = 1 << (len(part) - 1).bit_length()
            padded = part + part[:1] * (width - len(part))
            (raw,) = self._connection.execute(_get_statement(width), padded).fetchone()
            place = 0
            for key in part:
                if raw[place : place + 1] == b"-":
                    rows.append(None)
                    place += 1
                    continue
                revision, checksum, end = _parse_head(raw, place)
                rows.append(verified(key, raw[place + _HEAD_CHARS : end], revision, checksum))
                place = end
            if width == len(part) and place != len(raw):
                raise CopyFailed("A copy of the index answered with more than was asked for.")
        return rows

    def scan(self, step: ScanStep) -> ScanStep:
        """Carry a scan on for a bounded while. Raises CopyFailed."""
        return _wrapped(lambda: self._scan(step))

    def _scan(self, step: ScanStep) -> ScanStep:
        assert self._connection is not None
        chunk = _SCAN_CHUNK_FIRST if step.delimiter else min(step.limit, _SCAN_CHUNK_MAX)
        for _ in range(_SCAN_STATEMENTS_MAX):
            if step.done:
                break
            count, raw = self._connection.execute(_SCAN, (step.start, step.end, chunk)).fetchone()
            jumped = False
            place, key = 0, step.start
            for _ in range(count):
                begin = place + 4
                middle = begin + int(raw[place:begin], 16)
                key = raw[begin:middle]
                revision, checksum, place = _parse_head(raw, middle)
                prefix = rolled_up(key, step.delimiter, step.skip)
                step.found.append(
                    prefix or verified(key, raw[middle + _HEAD_CHARS : place], revision, checksum)
                )
                if len(step.found) == step.limit:
                    step.done = True
                    return step
                if prefix is not None:
                    beyond = past_prefix(prefix.key)
                    step.done = beyond is None or beyond >= step.end
                    step.start = beyond or step.end
                    jumped = True
                    break
            if not jumped:
                step.done = count < chunk
                step.start = key + b"\0"
                chunk = min(2 * chunk, _SCAN_CHUNK_MAX)
                if not step.delimiter:
                    # One statement of a plain scan is work enough for one step.
                    break
            else:
                chunk = _SCAN_CHUNK_FIRST
        return step

    def close(self) -> None:
        """Let go."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()


_HEAD_CHARS = 32
_ROW = "printf('%016x%08x%08x', revision, checksum & 0xffffffff, length(value)) || value"


def _parse_head(raw: bytes, at: int) -> tuple[int, int, int]:
    """Revision, checksum and the end of the row whose `_ROW` begins at `at`."""
    revision, checksum = int(raw[at : at + 16], 16), int(raw[at + 16 : at + 24], 16)
    return revision, checksum, at + _HEAD_CHARS + int(raw[at + 24 : at + _HEAD_CHARS], 16)


@cache
def _get_statement(width: int) -> str:
    marks = ",".join(["(?)"] * width)
    return (
        f"SELECT CAST(group_concat(coalesce({_ROW}, '-'), '') AS BLOB)"  # noqa: S608
        f" FROM (VALUES {marks}) AS wanted LEFT JOIN rows ON rows.key = wanted.column1"
    )


_SCAN = (
    f"SELECT count(*), CAST(group_concat(printf('%04x', length(key)) || key || {_ROW}, '') AS BLOB)"  # noqa: S608
    " FROM (SELECT key, revision, checksum, value FROM rows WHERE key >= ? AND key < ? ORDER BY key LIMIT ?)"
)


class CopyDump:
    """All rows of one moment, in key order, in bounded steps, and whether they add up."""

    def __init__(self, files: CopyFiles) -> None:
        self._connection = _wrapped(files.connect)
        self._base: Base | None = None
        self._after: bytes | None = b""
        self._walked = Sums()
        self._counted: int | None = -(1 << 63)
        self._in_table = Sums()
        self._in_keys = 0
        self._key: bytes | None = b""

    def base(self) -> Base:
        """Begin; where the moment stands in the log. Raises CopyFailed."""

        def work() -> Base:
            self._connection.execute("PRAGMA query_only = ON")
            self._connection.execute("BEGIN")
            self._base = read_base(self._connection)
            if self._base is None:
                raise CopyFailed("A copy of the index is not whole.")
            return self._base

        return _wrapped(work)

    def rows(self, bytes_max: int) -> list[Row]:
        """The next rows, about `bytes_max` bytes; none at the end. Raises CopyFailed, at the end, too, when
        they are not all."""

        def work() -> list[Row]:
            rows: list[Row] = []
            size = 0
            while self._after is not None and size < bytes_max:
                found = self._connection.execute(
                    "SELECT key, value, revision, checksum FROM rows WHERE key > ? ORDER BY key LIMIT 256",
                    (self._after,),
                ).fetchall()
                rows += [verified(*row) for row in found]
                size += sum(len(key) + len(value) for key, value, _, _ in found)
                self._after = found[-1][0] if len(found) == 256 else None
            self._walked = self._walked.plus(sums_of(rows))
            assert self._base is not None
            if not rows and self._walked != self._base.sums:
                raise CopyFailed(f"{self._base.sums.rows} rows should be there and {_differ(self._walked)}")
            return rows

        return _wrapped(work)

    def add_up(self) -> bool:
        """Add up some rows of the same moment; False when all were. Raises CopyFailed when they differ from
        what should be there.

        The table itself, then the keys by which rows are found: a damaged page can hide either."""

        def work() -> bool:
            base = self._base
            assert base is not None
            if self._counted is not None:
                *sums, last = self._connection.execute(
                    f"SELECT {_SUMS}, max(rowid) FROM (SELECT rowid, revision, checksum FROM rows"  # noqa: S608
                    " NOT INDEXED WHERE rowid > ? ORDER BY rowid LIMIT ?)",
                    (self._counted, _COUNT_CHUNK),
                ).fetchone()
                self._in_table = self._in_table.plus(Sums(*sums))
                self._counted = last if sums[0] == _COUNT_CHUNK else None
                if self._counted is None and self._in_table != base.sums:
                    raise CopyFailed(f"{base.sums.rows} rows should be there and {_differ(self._in_table)}")
                return True
            if self._key is not None:
                found, last = self._connection.execute(
                    "SELECT count(*), max(key) FROM"
                    " (SELECT key FROM rows WHERE key > ? ORDER BY key LIMIT ?)",
                    (self._key, _COUNT_CHUNK),
                ).fetchone()
                self._in_keys += found
                self._key = last if found == _COUNT_CHUNK else None
                if self._key is None and self._in_keys != base.sums.rows:
                    raise CopyFailed(f"{base.sums.rows} rows are there and {self._in_keys} are found")
                return True
            return False

        return _wrapped(work)

    def close(self) -> None:
        """End and let go."""
        self._connection.close()


def _differ(found: Sums) -> str:
    return f"{found.rows} are, or some of them are old"
