"""The one mapping from what went wrong to an exit code and a sentence.

Expected errors never show a traceback: one sentence on stderr, with a hint what to do. Codes are those
of sysexits.h, chosen by error kind (`holdfast.base.errors`); `holdfast verify` adds 1.

    0    all is well
    1    verify found packs with less redundancy than they should have
    64   the options, the configuration, a path or the port cannot be used
    65   stored bytes are damaged beyond correction
    69   too much is missing: no node is running, or its index has no majority
    70   our own mistake
    75   try again later: another node has the data
    76   this data belongs to another cluster, or a newer node has taken over
    130  interrupted
"""

import errno
import os
from enum import IntEnum

from holdfast.base.errors import HoldfastError, InvalidInput, Unavailable


class Exit(IntEnum):
    """Codes that are not errors of ours on their way out."""

    FINE = 0
    DEGRADED = 1
    DAMAGED = 65
    INTERRUPTED = 130


_BY_ERRNO: dict[int, tuple[type[HoldfastError], str]] = {
    errno.EACCES: (InvalidInput, "Run as the user that owns it, or choose another place."),
    errno.EPERM: (InvalidInput, "Run as the user that owns it, or choose another place."),
    errno.EROFS: (InvalidInput, "Choose a place that can be written to, or mount it writable."),
    errno.ENOTDIR: (InvalidInput, "A folder is needed there; choose another place."),
    errno.EISDIR: (InvalidInput, "A file is needed there."),
    errno.EEXIST: (InvalidInput, "Something else is there; choose another place."),
    errno.ENOENT: (InvalidInput, "Create the folder above it first."),
    errno.ELOOP: (InvalidInput, "Its symbolic links go in circles."),
    errno.ENAMETOOLONG: (InvalidInput, "Choose a shorter path."),
    errno.ENOSPC: (Unavailable, "Make room, or choose another place."),
    errno.EDQUOT: (Unavailable, "Make room, or choose another place."),
    errno.EADDRINUSE: (InvalidInput, "Stop what listens there, or choose another with --port."),
    errno.EADDRNOTAVAIL: (InvalidInput, "This machine does not have that address; see --host."),
    errno.EMFILE: (Unavailable, "Allow more open files: `ulimit -n 4096`."),
    errno.EIO: (Unavailable, "The disk failed to read or write; see the kernel's log."),
}


def as_ours(error: OSError) -> HoldfastError | None:
    """An error of the operating system as one of ours; None for one that nobody expects."""
    known = _BY_ERRNO.get(error.errno or 0)
    if known is None:
        return None
    kind, hint = known
    what = os.strerror(error.errno or 0)
    where = f"{error.filename}: " if error.filename else ""
    return kind(f"{where}{what}.", hint=hint)


def sentence(error: HoldfastError) -> str:
    """What went wrong and what to do, on one line."""
    return " ".join(str(error).split())
