"""The file of a key ring: read, made, changed.

What must hold: only its owner can read it, and one that others can read is refused, not used; a crash
leaves the old ring or the new one, whole; making one never takes the place of one that is there, and a change
never takes away a key that it was not told to; and what the disk refuses is told as Unavailable.
"""

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

from holdfast.base.errors import InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.stores.sealing.keys import KEYS_MAX, KeyRing, decode_ring, encode_ring, new_key

_BYTES_MAX = 1024 + 256 * KEYS_MAX


def read_ring(path: Path) -> KeyRing:
    """The ring in a file. Raises InvalidInput."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise InvalidInput(
            f"The key ring {path} cannot be read ({error.strerror}).",
            hint="Put it back from a copy, and run as the user that owns it. A new ring does not open what "
            "another one sealed.",
        ) from None
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise InvalidInput(f"The key ring {path} is no file.")
    with os.fdopen(descriptor, "rb") as file:
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise InvalidInput(
                f"The key ring {path} is open to others (mode {stat.S_IMODE(found.st_mode):04o}).",
                hint=f"Say `chmod 600 {path}`, and consider whether its keys are still yours alone.",
            )
        raw = file.read(_BYTES_MAX + 1)
    if len(raw) > _BYTES_MAX:
        raise InvalidInput(f"The key ring {path} is larger than any ring can be.")
    return decode_ring(raw, str(path))


def create_ring(path: Path, randomness: Randomness) -> KeyRing:
    """A new ring of one key. Raises InvalidInput when there is something at the path."""
    ring = KeyRing((new_key(randomness),))
    save_ring(path, ring, randomness)
    return ring


def save_ring(path: Path, ring: KeyRing, randomness: Randomness) -> None:
    """Write a ring to a new file. Raises InvalidInput when there is something at the path, Unavailable."""
    try:
        temporary = _write_beside(path, ring, randomness)
        try:
            os.link(temporary, path, follow_symlinks=False)
        except FileExistsError:
            raise InvalidInput(
                f"There is a key ring {path} already.",
                hint="What it sealed needs it: add a key to it instead.",
            ) from None
        finally:
            temporary.unlink()
        _sync_folder(path)
    except OSError as error:
        raise _unwritten(path, error) from None


def change_ring(path: Path, change: Callable[[KeyRing], KeyRing], randomness: Randomness) -> KeyRing:
    """Put `change(ring)` in the place of the ring in a file, as `KeyRing.rotated` or `without` make it. One
    change at a time: a second one is refused. Raises InvalidInput, Unavailable."""
    try:
        lock = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InvalidInput(f"The key ring {path} is being changed.", hint="Try again.") from None
            ring = change(read_ring(path))
            temporary = _write_beside(path, ring, randomness)
            try:
                temporary.replace(path)
            except OSError:
                temporary.unlink()
                raise
            _sync_folder(path)
            return ring
        finally:
            os.close(lock)
    except OSError as error:
        raise _unwritten(path, error) from None


def _unwritten(path: Path, error: OSError) -> Unavailable:
    return Unavailable(
        f"The key ring {path} cannot be written ({error.strerror}).",
        hint="Give this user room and the right to write there.",
        path=str(path),
    )


def _write_beside(path: Path, ring: KeyRing, randomness: Randomness) -> Path:
    """A new file with the ring, durable but for its name."""
    temporary = path.with_name(f".{path.name}.{randomness.token(8).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o600)
            file.write(encode_ring(ring))
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise
    return temporary


def _sync_folder(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
