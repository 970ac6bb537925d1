"""The files of the ledger: `ledger/` in the data folder. See docs/formats-ledger.md.

    minutes-YYYYMMDD    a day (UTC), minute by minute; appended to
    hours-YYYYMMDD      a day rolled up into hours, written once
    days-YYYY           days rolled up, written anew with each
    beat                the last sign of life
    name                what this ledger is called among the packs of all

Blocks, so it belongs into a thread. What must hold: a day is in one kind of file only, or the finer one
counts, so that a crash between two steps of rolling up counts nothing twice and loses nothing; what cannot be
read costs itself only, and is told; there is a bound to what all of it takes.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from msgspec import Struct

from holdfast.base.errors import Unavailable
from holdfast.health.ledger import at_day
from holdfast.health.ledger_periods import hours_of, merge_periods, minutes_of
from holdfast.health.ledger_records import (
    BEAT_BYTES,
    BEAT_SLOTS,
    DAY_MINUTES,
    MINUTE_MS,
    Away,
    Beat,
    Minute,
    Period,
    Record,
    StoreChange,
    decode_beats,
    decode_frames,
    encode_beat,
    encode_frames,
)
from holdfast.health.ledger_uptime import History

FOLDER = "ledger"
MINUTES_DAYS = 8
"""Days kept minute by minute: more than the longest window of a burn rate."""
MINUTES_BYTES_MAX = 64 << 20
"""When there is more, the oldest days are rolled up before their time."""
DAY_BYTES_MAX = 32 << 20
HOURS_DAYS = 100
DAYS_YEARS = 5
ROWS_KEPT_MAX = 1000
"""Changes of stores, and times away, that a rolled-up day keeps one by one."""

_DAY_MS = DAY_MINUTES * MINUTE_MS


class Loaded(Struct, frozen=True):
    """What the files say. `unreadable` are sentences about files that could not be read."""

    history: History
    unreadable: tuple[str, ...]


class LedgerFiles:
    """The ledger of one data folder."""

    def __init__(self, data: Path, minutes_bytes_max: int = MINUTES_BYTES_MAX) -> None:
        self.folder = data / FOLDER
        self._minutes_bytes_max = minutes_bytes_max

    def prepare(self) -> None:
        """Make the folder, and its name durable, as what is in it will be. Raises OSError."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(self.folder.parent)
        for left in self.folder.glob(".*.new"):
            left.unlink(missing_ok=True)

    def append(self, records: Sequence[Record]) -> None:
        """Add records to the files of their days; durable when it returns. Raises OSError, Unavailable."""
        by_day: dict[int, list[Record]] = {}
        for record in records:
            by_day.setdefault(at_day(record), []).append(record)
        for day, of_day in by_day.items():
            path = self._path("minutes", day)
            if not path.exists() and self._path("hours", day).exists():
                raise Unavailable(f"{_date(day):%Y-%m-%d} is rolled up already: is the clock right?")
            data = encode_frames(of_day)
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(descriptor).st_size
                if size + len(data) > DAY_BYTES_MAX:
                    raise Unavailable(f"{path} is as large as a day may be.")
                if os.write(descriptor, data) < len(data):
                    os.ftruncate(descriptor, size)
                    raise Unavailable(f"There is no room for {path}.")
                os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            if not size:
                _sync_folder(self.folder)

    def beat(self, beat: Beat, *, sync: bool) -> None:
        """Leave a sign of life. Raises OSError."""
        descriptor = os.open(self.folder / "beat", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(descriptor, encode_beat(beat), beat.sequence % BEAT_SLOTS * BEAT_BYTES)
            if sync:
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)

    def last_beat(self) -> Beat | None:
        """The last sign of life; None when there is none."""
        with contextlib.suppress(OSError):
            return decode_beats((self.folder / "beat").read_bytes())
        return None

    def load(self, start_ms: int, until_ms: int, more: Sequence[Record] = ()) -> Loaded:
        """Everything about the days from `start_ms` to `until_ms`, and `more` that is not in files yet."""
        first, last = start_ms // _DAY_MS, until_ms // _DAY_MS
        unreadable: list[str] = []
        damaged = 0
        records: list[Record] = [*more]
        done: set[int] = set()
        for kind in ("minutes", "hours"):
            for day in self._days(kind):
                if day in done or not first <= day <= last:
                    continue
                found, wrong = self._read(self._path(kind, day), unreadable)
                done.add(day)
                damaged += wrong
                records += found
        for path in self._year_files():
            found, wrong = self._read(path, unreadable)
            damaged += wrong
            records += [
                record for record in found if first <= (day := at_day(record)) <= last and day not in done
            ]
        history = History(
            minutes_of(_only_minutes(records), until_ms),
            [record for record in records if isinstance(record, Period)],
            [record for record in records if isinstance(record, StoreChange)],
            [record for record in records if isinstance(record, Away)],
            damaged,
            sum(record.lost_before for record in records if isinstance(record, Minute)),
        )
        return Loaded(history, tuple(unreadable))

    def roll_up(self, today: int) -> Iterator[None]:
        """Make the files smaller: old minutes into hours, old hours into days, and the oldest go. In small
        steps, between which the caller may pause. Raises OSError."""
        for day in self._due(today):
            yield from self._roll_minutes(day)
        for day in self._days("hours"):
            if day < today - HOURS_DAYS:
                self._roll_hours(day)
                yield
        year = _date(today).year
        for path in self._year_files():
            if int(path.name.removeprefix("days-")) < year - DAYS_YEARS:
                path.unlink(missing_ok=True)
                yield

    def _due(self, today: int) -> list[int]:
        """Days whose minutes are old enough, or too much."""
        days = self._days("minutes")
        sizes = {day: self._path("minutes", day).stat().st_size for day in days}
        due = []
        total = sum(sizes.values())
        for day in days:
            if day < today - MINUTES_DAYS or (day < today - 1 and total > self._minutes_bytes_max):
                due.append(day)
                total -= sizes[day]
        return due

    def _roll_minutes(self, day: int) -> Iterator[None]:
        for rolled in self.rolled(day):
            if rolled is not None:
                self._replace(self._path("hours", day), rolled)
                self._path("minutes", day).unlink(missing_ok=True)
            yield

    def rolled(self, day: int) -> Iterator[bytes | None]:
        """The content of the file of hours of a day that is over, made from its minutes if need be. Answers
        None between small steps, and the content once; nothing when it cannot be read now."""
        unreadable: list[str] = []
        minutes = self._path("minutes", day)
        if not minutes.exists():
            with contextlib.suppress(OSError):
                yield self._path("hours", day).read_bytes()
            return
        records, _ = self._read(minutes, unreadable)
        if unreadable:
            return  # it stays as it is; perhaps it can be read another time
        hours: list[Record] = []
        for period in hours_of(minutes_of(_only_minutes(records), (day + 1) * _DAY_MS)):
            if period is not None:
                hours.append(period)
            yield None
        yield encode_frames([*hours, *_rows_to_keep(records)])

    def _roll_hours(self, day: int) -> None:
        path = self._path("hours", day)
        unreadable: list[str] = []
        records, _ = self._read(path, unreadable)
        hours = sorted(
            (record for record in records if isinstance(record, Period)), key=lambda period: period.start
        )
        year = self.folder / f"days-{_date(day).year}"
        before = self._read(year, unreadable)[0] if year.exists() else []
        if unreadable:
            return
        kept = [record for record in before if at_day(record) != day]
        if hours:
            kept.append(merge_periods(hours))
        self._replace(year, encode_frames([*kept, *_rows_to_keep(records)]))
        path.unlink(missing_ok=True)

    def days(self) -> list[int]:
        """The days that have a file of their own, in order."""
        return sorted({*self._days("minutes"), *self._days("hours")})

    def years(self) -> dict[int, int]:
        """The years that have a file, and the last day in each."""
        found = {}
        for path in self._year_files():
            records, _ = self._read(path, [])
            if records:
                found[int(path.name.removeprefix("days-"))] = max(map(at_day, records))
        return found

    def year(self, year: int) -> bytes:
        """The content of the file of a year. Raises OSError."""
        return (self.folder / f"days-{year}").read_bytes()

    def restore(self, kind: str, label: str, data: bytes) -> None:
        """Put a file back that is not there any more (`kind` is hours or days). Raises OSError."""
        path = self.folder / f"{kind}-{label}"
        if not path.exists():
            self._replace(path, data)

    def name(self) -> str:
        """What this ledger is called among others; empty when it has no name yet."""
        with contextlib.suppress(OSError):
            return (self.folder / "name").read_text().strip()
        return ""

    def take_name(self, name: str) -> None:
        """Be called so from now on. Raises OSError."""
        self._replace(self.folder / "name", name.encode())

    def _replace(self, path: Path, data: bytes) -> None:
        temporary = path.with_name(f".{path.name}.new")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(self.folder)

    def _read(self, path: Path, unreadable: list[str]) -> tuple[list[Record], int]:
        try:
            found = decode_frames(path.read_bytes())
        except OSError as error:
            unreadable.append(f"{path} cannot be read ({error.strerror}).")
            return [], 0
        return found.records, found.damaged

    def _path(self, kind: str, day: int) -> Path:
        return self.folder / f"{kind}-{_date(day):%Y%m%d}"

    def _days(self, kind: str) -> list[int]:
        """The days that have a file of this kind, in order."""
        days = []
        for path in self.folder.glob(f"{kind}-????????"):
            with contextlib.suppress(ValueError):
                moment = datetime.strptime(path.name, f"{kind}-%Y%m%d").replace(tzinfo=UTC)
                days.append(int(moment.timestamp()) // 86_400)
        return sorted(days)

    def _year_files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("days-????") if path.name[5:].isdigit())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _date(day: int) -> datetime:
    return datetime.fromtimestamp(day * 86_400, UTC)


def _only_minutes(records: Iterable[Record]) -> list[Record]:
    """What makes minutes: of a day that is rolled up, times away are in its periods already."""
    days = {at_day(record) for record in records if isinstance(record, Period)}
    return [
        record
        for record in records
        if isinstance(record, Minute) or (isinstance(record, Away) and at_day(record) not in days)
    ]


def _rows_to_keep(records: Iterable[Record]) -> list[Record]:
    kept: list[Record] = [record for record in records if isinstance(record, Away | StoreChange)]
    return kept[:ROWS_KEPT_MAX]
