"""What a power cut takes, without a machine to cut off: a recording layer below all that a process does to
files, and the hand that takes back what was not synced.

`record` replaces the calls of `os` that change files by ones that first write down how to undo them; a sync
writes down that what came before it stays. `take_back`, called when the process is stopped or dead, undoes of
each file and each folder what was not synced: all of it, none, or a part that chance picks. Of one folder a
later change never stays without an earlier one, as in the journal of a file system; of one file any sectors
may stay. Folders and files go their own ways: a name may stay without its bytes, and bytes without a name.

That is harder than a real file system, where one sync takes much else along. What it does not see: files that
Python's own `open` writes are whole once they are synced and nothing before; and what SQLite does from C, so
that `take_back` leaves a copy of the rows as it is, or takes all of it.
"""

import json
import os
import random
import shutil
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

RECORD = "HOLDFAST_DRILL_RECORD"
"""The folder of the recording; it has to lie on the file system that is recorded."""

UNSYNCED = "HOLDFAST_DRILL_UNSYNCED"
"""With it, no sync does anything: what a drill must find out."""

_LOG = "changes"
_HEAD_BYTES = 8
_SECTOR_BYTES = 512
_COPY = "copy.sqlite"


class _Kind:
    NAME = "name"
    BYTES = "bytes"
    SYNCED = "synced"


class _Change(NamedTuple):
    """An entry of the log, which begins at `at`. `about` is the folder of a name, or the number of a file.
    What `name` stood for lies in the recording as `kept`; empty if that was nothing. Of a file, `old` was at
    `offset`, and `size` was its size. With `SYNCED`, all that is before `offset` in the log is durable."""

    kind: str
    about: str
    name: str = ""
    kept: str = ""
    offset: int = 0
    size: int = 0
    old: bytes = b""
    at: int = 0


def record(root: Path) -> None:
    """Record, if the environment says where, what this process does to files below `root` from now on."""
    if folder := os.environ.get(RECORD):
        _Recorder(root, Path(folder)).install()


def _number(status: os.stat_result) -> str:
    return f"{status.st_dev}-{status.st_ino}"


class _Recorder:
    """The calls of one process. What was unlinked is kept by a link of its own, so no inode comes again."""

    def __init__(self, root: Path, recording: Path) -> None:
        self._root = str(root)
        self._recording = recording
        self._lock = threading.RLock()
        self._real = {name: getattr(os, name) for name in (*_REPLACED, "pread")}
        self._log = os.open(recording / _LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._kept = 0
        self._unsynced = UNSYNCED in os.environ
        self._whole = {_number(path.lstat()) for path in root.rglob("*")}
        """Files that were there before, have been synced, or of which every write is seen."""

    def install(self) -> None:
        for name, wrapper in _REPLACED.items():
            setattr(os, name, wrapper.__get__(self))

    # What is written down

    def _note(self, change: _Change) -> None:
        fields = json.dumps([*change[:6], len(change.old)]).encode()
        self._real["write"](self._log, len(fields).to_bytes(_HEAD_BYTES, "big") + fields + change.old)

    def _path(self, descriptor: int) -> str:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink())

    def _is_ours(self, path: str) -> bool:
        return path == self._root or path.startswith(f"{self._root}/")

    def _place(self, path: Any, folder: int | None) -> str | None:
        """The full path that a call names; None when it is none of ours."""
        text = os.fsdecode(path)
        if not text.startswith("/"):
            text = f"{Path.cwd() if folder is None else self._path(folder)}/{text}"
        text = os.path.normpath(text)
        return text if self._is_ours(os.path.dirname(text)) else None  # noqa: PTH120

    def _will_change(self, place: str | None) -> None:
        """A name is about to be given, taken away or turned to something else."""
        if place is None:
            return
        kept = ""
        if os.path.lexists(place) and not os.path.isdir(place):  # noqa: PTH112
            self._kept += 1
            kept = f"{os.getpid()}-{self._kept}"
            self._real["link"](place, self._recording / kept)
        parent, name = os.path.split(place)
        self._note(_Change(_Kind.NAME, parent, name, kept))

    def _will_be_made(self, place: str | None) -> None:
        if place is not None and not os.path.lexists(place):
            self._will_change(place)

    def _will_write(self, descriptor: int, offset: int | None, length: int) -> None:
        """A range is about to be written; without an offset, at the end."""
        if not self._is_ours(self._path(descriptor)):
            return
        status = os.fstat(descriptor)
        offset = status.st_size if offset is None else offset
        old = b""
        if offset < status.st_size:
            with Path(f"/proc/self/fd/{descriptor}").open("rb") as file:
                file.seek(offset)
                old = file.read(length)
        self._whole.add(_number(status))
        self._note(_Change(_Kind.BYTES, _number(status), "", "", offset, status.st_size, old))

    # The calls

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT:
            with self._lock:
                self._will_be_made(self._place(path, dir_fd))
                return self._real["open"](path, flags, mode, dir_fd=dir_fd)
        return self._real["open"](path, flags, mode, dir_fd=dir_fd)

    def _write(self, descriptor: int, data: Any) -> int:
        with self._lock:
            self._will_write(descriptor, None, len(data))
            return self._real["write"](descriptor, data)

    def _pwrite(self, descriptor: int, data: Any, offset: int) -> int:
        with self._lock:
            self._will_write(descriptor, offset, len(data))
            return self._real["pwrite"](descriptor, data, offset)

    def _pwritev(self, descriptor: int, data: Any, offset: int, flags: int = 0) -> int:
        if self._unsynced or not flags & os.RWF_DSYNC:
            with self._lock:
                self._will_write(descriptor, offset, sum(memoryview(piece).nbytes for piece in data))
                return self._real["pwritev"](descriptor, data, offset, 0)
        written: int = self._real["pwritev"](descriptor, data, offset, flags)
        self._whole.add(_number(os.fstat(descriptor)))
        return written

    def _ftruncate(self, descriptor: int, length: int) -> None:
        with self._lock:
            self._will_write(descriptor, length, os.fstat(descriptor).st_size)
            self._real["ftruncate"](descriptor, length)

    def _fsync(self, descriptor: int) -> None:
        path = self._path(descriptor)
        if not self._is_ours(path):
            self._real["fsync"](descriptor)
            return
        with self._lock:
            status = os.fstat(descriptor)
            before = os.fstat(self._log).st_size
        if self._unsynced:
            return
        self._real["fsync"](descriptor)
        with self._lock:
            number = _number(status)
            self._whole.add(number)
            about = path if os.path.isdir(path) else number  # noqa: PTH112
            self._note(_Change(_Kind.SYNCED, about, offset=before))

    def _link(
        self,
        source: Any,
        target: Any,
        *,
        src_dir_fd: int | None = None,
        dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        with self._lock:
            self._will_be_made(self._place(target, dst_dir_fd))
            self._real["link"](
                source,
                target,
                src_dir_fd=src_dir_fd,
                dst_dir_fd=dst_dir_fd,
                follow_symlinks=follow_symlinks,
            )

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        with self._lock:
            if (place := self._place(path, dir_fd)) is not None and os.path.lexists(place):
                self._will_change(place)
            self._real["unlink"](path, dir_fd=dir_fd)

    def _rename(
        self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None
    ) -> None:
        with self._lock:
            old, new = self._place(source, src_dir_fd), self._place(target, dst_dir_fd)
            if old is not None and os.path.isfile(old):  # noqa: PTH113
                status = Path(old).stat()
                if _number(status) not in self._whole:
                    # Nobody has synced it: there may be a name, and nothing behind.
                    self._note(_Change(_Kind.BYTES, _number(status)))
                # The old name goes last and comes back first: there is never neither of them.
                self._will_change(new)
                self._will_change(old)
            self._real["rename"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        with self._lock:
            self._will_be_made(self._place(path, dir_fd))
            self._real["mkdir"](path, mode, dir_fd=dir_fd)


_REPLACED: dict[str, Callable[..., Any]] = {
    "open": _Recorder._open,
    "write": _Recorder._write,
    "pwrite": _Recorder._pwrite,
    "pwritev": _Recorder._pwritev,
    "ftruncate": _Recorder._ftruncate,
    "fsync": _Recorder._fsync,
    "fdatasync": _Recorder._fsync,
    "link": _Recorder._link,
    "unlink": _Recorder._unlink,
    "remove": _Recorder._unlink,
    "rename": _Recorder._rename,
    "replace": _Recorder._rename,
    "mkdir": _Recorder._mkdir,
}


class TakenBack(NamedTuple):
    """How many changes of names, and of bytes, were not synced and are no more."""

    names: int
    bytes: int


def take_back(root: Path, recording: Path, chance: random.Random) -> TakenBack:
    """Undo below `root` what the recording knows not to be synced; the recording begins anew."""
    undone = _chosen(list(_changes(recording / _LOG)), chance)
    paths = {
        _number(path.lstat()): path
        for folder in (root, recording)
        for path in folder.rglob("*")
        if path.is_file()
    }
    for change in undone:
        if change.kind == _Kind.BYTES and (path := paths.get(change.about)) is not None:
            _take_bytes(change, path, chance)
    for change in undone:
        if change.kind == _Kind.NAME:
            _take_name(change, recording)
    for copy in root.rglob(_COPY):
        if chance.random() < 0.5:
            for path in copy.parent.glob(f"{_COPY}*"):
                path.unlink()
    for path in recording.iterdir():
        path.unlink()
    names = sum(change.kind == _Kind.NAME for change in undone)
    return TakenBack(names, len(undone) - names)


def _changes(log: Path) -> Iterator[_Change]:
    raw = log.read_bytes()
    at = 0
    while at < len(raw):
        end = at + _HEAD_BYTES + int.from_bytes(raw[at : at + _HEAD_BYTES], "big")
        if end > len(raw):
            return  # it was being written down: nothing has come of it
        *fields, length = json.loads(raw[at + _HEAD_BYTES : end])
        if end + length > len(raw):
            return
        yield _Change(*fields, old=raw[end : end + length], at=at)
        at = end + length


def _chosen(changes: list[_Change], chance: random.Random) -> list[_Change]:
    """Of all that is not durable what is to be undone, the last first."""
    open_: dict[str, list[_Change]] = defaultdict(list)
    for change in changes:
        if change.kind == _Kind.SYNCED:
            open_[change.about] = [one for one in open_[change.about] if one.at >= change.offset]
        else:
            open_[change.about].append(change)
    undone: list[_Change] = []
    for pending in open_.values():
        dice = chance.random()
        stay = 0 if dice < 0.5 else len(pending) if dice < 0.7 else chance.randrange(len(pending) + 1)
        undone += pending[stay:]
    return sorted(undone, key=lambda change: -change.at)


def _take_name(change: _Change, recording: Path) -> None:
    place = Path(change.about) / change.name
    if not place.parent.is_dir():
        return  # its folder is no more
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
    if change.kept:
        with suppress(FileNotFoundError):
            place.hardlink_to(recording / change.kept)


def _take_bytes(change: _Change, path: Path, chance: random.Random) -> None:
    """All of what was written, or any sectors of it."""
    all_of_it = chance.random() < 0.5
    with path.open("r+b") as file:
        for at in range(0, len(change.old), _SECTOR_BYTES):
            if all_of_it or chance.random() < 0.5:
                file.seek(change.offset + at)
                file.write(change.old[at : at + _SECTOR_BYTES])
        if all_of_it or chance.random() < 0.5:
            file.truncate(change.size)
