"""What the kernel's errors mean for a directory store: one table from errno to the port's errors."""

import errno

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.stores.port import ShardUnreadable, StoreBusy, StoreFailed, StoreFull, StoreReadOnly

NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
OURS_ARE_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS)
"""The process or the machine is short of something; says nothing about the disk."""

UNREADABLE = (errno.EIO, errno.ENODATA, errno.EBADMSG, errno.EUCLEAN, errno.EILSEQ, errno.EREMOTEIO)
"""What media and the file systems on them answer for bytes they cannot give: read errors, bad sectors,
checksums of their own that do not fit."""

READING = "reading"
"""What is being done, when it is a read of one blob."""


def failure_of(error: OSError, store: StoreId, path: str, doing: str) -> HoldfastError:
    """The port's error for what the kernel answered. ShardExists and ShardMissing are not made here:
    EEXIST and ENOENT mean that only at certain calls."""
    facts = {"store": str(store), "errno": errno.errorcode.get(error.errno or 0, str(error.errno))}
    told = f"{path}: {error.strerror or error} while {doing}."
    if error.errno in NO_ROOM:
        return StoreFull(told, **facts)
    if error.errno == errno.EROFS:
        return StoreReadOnly(told, **facts)
    if error.errno in OURS_ARE_SHORT:
        return StoreBusy(told, hint="Raise the limit on open files (ulimit -n) or memory.", **facts)
    if doing == READING and error.errno in UNREADABLE:
        return ShardUnreadable(told, **facts)
    return StoreFailed(told, **facts)
