"""The place of a directory store: finding who lives there, moving in, and holding the door.

    <root>/holdfast-store.json   who this store is; written last, so that it vouches for the rest
    <root>/lock                  locked (flock) while a process uses the store; holds its process id
    <root>/tmp/                  what is being written; emptied at attach
    <root>/shards/xx/            blobs, by the first two characters of their names

What must hold: nothing is written to a directory before it has been judged to be ours or empty, and
nothing is used before the lock is held and the judgement was made again under it. Blocking; runs in a
thread of the store.
"""

import errno
import os
import threading
from contextlib import suppress

import msgspec

from holdfast.base.errors import Damaged, Fenced, HoldfastError, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.stores.directory.blobs import LOCK, SHARDS, TEMPORARY, Root
from holdfast.stores.directory.descriptors import Descriptor
from holdfast.stores.directory.device import device_name
from holdfast.stores.directory.failures import failure_of
from holdfast.stores.directory.files import FOLDER, Files
from holdfast.stores.identity import (
    Expected,
    Found,
    Identity,
    Judgement,
    Noted,
    decode_identity,
    encode_identity,
    judge,
)
from holdfast.stores.port import Attachment

IDENTITY = "holdfast-store.json"

_IDENTITY_NEW = "identity.new"
_IDENTITY_BYTES_MAX = 64 << 10
_OURS = frozenset((IDENTITY, LOCK, TEMPORARY, SHARDS))
_NOBODYS = frozenset(("lost+found",))
_STRANGERS_TOLD = 3
_FOLDERS_AT_START = tuple(f"{number:02x}" for number in range(256))
"""Where shards go: their names begin with hex digits. Made ahead, so that the first puts are as fast as
the later ones; folders for other names are made when needed."""


class Opened:
    """What opening a place came to: the judgement, and, when it may be used, the place and who it is."""

    def __init__(self, judgement: Judgement, identity: Identity | None, root: Root | None) -> None:
        self.judgement = judgement
        self.identity = identity
        self.root = root


def open_place(files: Files, path: str, expected: Expected, new: StoreId | None) -> Opened:
    """Judge the directory at `path`, and open it when it is READY, or NEW and `new` names the store that
    moves in.

    Raises Fenced when another process uses it, InvalidInput when it cannot be used as it is (no
    permission, not a directory), StoreFailed and its like when the disk answers with errors.
    """
    try:
        return _open_place(files, path, expected, new)
    except OSError as error:
        raise _explained(error, path, expected.slot) from error


def look(files: Files, path: str) -> Found:
    """Who lives at `path`, without touching anything. Raises as `open_place`, but for Fenced."""
    try:
        try:
            root = Descriptor(files, files.open(path, FOLDER))
        except FileNotFoundError:
            return Found(exists=False)
        try:
            return _find(files, root)
        finally:
            root.close()
    except OSError as error:
        raise _explained(error, path, path) from error


def _open_place(files: Files, path: str, expected: Expected, new: StoreId | None) -> Opened:
    try:
        root = Descriptor(files, files.open(path, FOLDER))
    except FileNotFoundError:
        return Opened(judge(Found(exists=False), expected), None, None)
    try:
        found = _find(files, root)
        judgement = judge(found, expected)
        moving_in = judgement.attachment is Attachment.NEW and new is not None
        if judgement.attachment is not Attachment.READY and not moving_in:
            return Opened(judgement, found.identity, None)
        return _open_locked(files, root, path, expected, new)
    except BaseException:
        root.close()
        raise


def _open_locked(
    files: Files, root: Descriptor, path: str, expected: Expected, new: StoreId | None
) -> Opened:
    lock = _lock(files, root, path)
    try:
        # Again: another process may have moved in between the look and the lock.
        found = _find(files, root)
        judgement = judge(found, expected)
        if judgement.attachment is Attachment.READY:
            return Opened(judgement, found.identity, _enter(files, root, path, lock))
        if judgement.attachment is Attachment.NEW and new is not None:
            identity = Identity(new, expected.cluster, expected.slot)
            return Opened(judgement, identity, _move_in(files, root, path, lock, identity))
        lock.close()
        return Opened(judgement, found.identity, None)
    except BaseException:
        lock.close()
        raise


class IdentityFile:
    """The identity of a store that is open, and what it has noted. Safe from several threads."""

    def __init__(self, files: Files, place: Root, identity: Identity) -> None:
        self._files = files
        self._place: Root | None = place
        self._lock = threading.Lock()
        self.identity = identity

    def has_noted(self, noted: Noted) -> bool:
        """Whether this revision, or a higher one of its incarnation, is noted already."""
        before = self.identity.noted
        return (
            before is not None
            and before.incarnation == noted.incarnation
            and before.revision >= noted.revision
        )

    def note(self, noted: Noted) -> None:
        """Note an index revision; durable when it returns."""
        with self._lock:
            place = self._place
            if place is not None and not self.has_noted(noted):
                identity = msgspec.structs.replace(self.identity, noted=noted)
                _write_identity(self._files, place, identity)
                self.identity = identity

    def let_go(self) -> None:
        """Keep no descriptor; a call under way keeps what it needs until it ends."""
        self._place = None


def _write_identity(files: Files, place: Root, identity: Identity) -> None:
    """Replace the identity file: all of the old one or all of the new one is found after a crash."""
    folder = place.temporary.number
    with suppress(FileNotFoundError):
        files.unlink(_IDENTITY_NEW, folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    file = Descriptor(files, files.open(_IDENTITY_NEW, flags, folder=folder))
    try:
        content = encode_identity(identity)
        if files.write_synced(file.number, [content], 0) != len(content):
            raise OSError(errno.EIO, "The identity file was written in part")
    finally:
        file.close()
    files.rename(_IDENTITY_NEW, IDENTITY, source_folder=folder, folder=place.root.number)
    files.sync(place.root.number)


def _find(files: Files, root: Descriptor) -> Found:
    listing = Descriptor(files, files.open(".", FOLDER, folder=root.number))
    try:
        names = set(files.names(listing.number))
    finally:
        listing.close()
    changed = _changed(files, root, SHARDS in names)
    if IDENTITY in names:
        try:
            return Found(exists=True, identity=_read_identity(files, root), changed=changed)
        except Damaged as error:
            return Found(exists=True, problem=str(error), changed=changed)
    strangers = sorted(names - _OURS - _NOBODYS)
    if SHARDS in names and _has_blobs(files, root):
        strangers.append(f"{SHARDS}/ with blobs in it")
    return Found(
        exists=True,
        strangers=tuple(strangers[:_STRANGERS_TOLD]),
        changed=changed,
        device=device_name(files.status_of(root.number), files.space(root.number)),
        mounted=is_mount_point(files, root),
    )


def is_mount_point(files: Files, root: Descriptor) -> bool:
    """Whether an open directory is where a file system was mounted. Raises OSError."""
    here, above = files.status_of(root.number), files.status("..", folder=root.number)
    return here.st_dev != above.st_dev or here.st_ino == above.st_ino


def _changed(files: Files, root: Descriptor, has_shards: bool) -> tuple[int, ...]:
    times = [files.status_of(root.number).st_mtime_ns]
    if has_shards:
        shards = Descriptor(files, files.open(SHARDS, FOLDER, folder=root.number))
        try:
            times.append(files.status_of(shards.number).st_mtime_ns)
        finally:
            shards.close()
    return tuple(times)


def _has_blobs(files: Files, root: Descriptor) -> bool:
    """Whether there is a blob: then it is no interrupted beginning of a store, but one that has lost
    its identity."""
    shards = Descriptor(files, files.open(SHARDS, FOLDER, folder=root.number))
    try:
        for name in files.names(shards.number):
            folder = Descriptor(files, files.open(name, FOLDER, folder=shards.number))
            try:
                if files.names(folder.number):
                    return True
            finally:
                folder.close()
        return False
    finally:
        shards.close()


def _read_identity(files: Files, root: Descriptor) -> Identity:
    file = Descriptor(files, files.open(IDENTITY, os.O_RDONLY | os.O_CLOEXEC, folder=root.number))
    try:
        raw = bytearray(_IDENTITY_BYTES_MAX)
        count = files.read(file.number, [raw], 0)
        return decode_identity(bytes(raw[:count]))
    finally:
        file.close()


def _lock(files: Files, root: Descriptor, path: str) -> Descriptor:
    """The lock, held until the descriptor is closed. On a medium that is read-only it must be there
    already, which it is in every store."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    writable = True
    try:
        number = files.open(LOCK, flags, folder=root.number)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        writable = False
        number = files.open(LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, folder=root.number)
    lock = Descriptor(files, number)
    try:
        try:
            files.lock(lock.number)
        except BlockingIOError as error:
            raise _in_use(files, lock, path) from error
        if writable:
            # For the message above only: what cannot be written is not worth failing for.
            with suppress(OSError):
                files.write_synced(lock.number, [f"{os.getpid():<10}\n".encode()], 0)
    except BaseException:
        lock.close()
        raise
    return lock


def _in_use(files: Files, lock: Descriptor, path: str) -> Fenced:
    holder = bytearray(32)
    try:
        pid = holder[: files.read(lock.number, [holder], 0)].decode("ascii", "replace").strip()
    except OSError:
        pid = ""
    return Fenced(
        f"{path} is already in use by another Holdfast process (pid {pid or 'unknown'}).",
        hint="Stop that process, or give this one another directory.",
        path=path,
        pid=pid,
    )


def _move_in(files: Files, root: Descriptor, path: str, lock: Descriptor, identity: Identity) -> Root:
    place = _enter(files, root, path, lock)
    for name in _FOLDERS_AT_START:
        with suppress(FileExistsError):
            files.make_folder(name, place.shards.number)
    files.sync(place.shards.number)
    files.sync(root.number)
    _write_identity(files, place, identity)
    _sync_parent(files, root)
    return place


def _sync_parent(files: Files, root: Descriptor) -> None:
    """The directory itself may have been made a moment ago, by whoever configured it."""
    with suppress(PermissionError):  # not ours to open, so not made by us
        parent = Descriptor(files, files.open("..", FOLDER, folder=root.number))
        try:
            files.sync(parent.number)
        finally:
            parent.close()


def _enter(files: Files, root: Descriptor, path: str, lock: Descriptor) -> Root:
    """Open the folders, made again should someone have removed them, and remove what a crash left in
    `tmp/`."""
    for name in (SHARDS, TEMPORARY):
        with suppress(FileExistsError):
            files.make_folder(name, root.number)
            files.sync(root.number)
    opened = [Descriptor(files, files.open(name, FOLDER, folder=root.number)) for name in (SHARDS, TEMPORARY)]
    place = Root(path, root, opened[0], opened[1], lock)
    listing = Descriptor(files, files.open(".", FOLDER, folder=place.temporary.number))
    try:
        for name in files.names(listing.number):
            with suppress(OSError):  # read-only, or not a file: in nobody's way
                files.unlink(name, place.temporary.number)
    finally:
        listing.close()
    # A process that was killed may have made a folder without syncing it.
    files.sync(place.shards.number)
    return place


def _explained(error: OSError, path: str, slot: str) -> HoldfastError:
    if isinstance(error, PermissionError):
        return InvalidInput(
            f"{path}: no permission.", hint="Give this user read and write access.", path=path
        )
    if isinstance(error, NotADirectoryError):
        return InvalidInput(f"{path} is not a directory.", hint="A store needs a directory.", path=path)
    return failure_of(error, StoreId(slot), path, "attaching it")
