"""Memory for direct reads, lent to whoever reads and taken back when nobody looks at it any more.

Direct reads want aligned memory, which an anonymous mapping is. New pages from the kernel cost more than all
else about such a read, and so does a copy into other memory, both while the interpreter lock is held. So the
caller is given the memory itself, and some buffers that were touched before are kept between reads. What
must hold: a buffer is lent again only when no view of it is left, whoever holds it and however it was sliced.
Each loan has a ctypes array of its own over the buffer, which all views keep alive, and whose end a weak
reference tells.

Safe from several threads.
"""

import ctypes
import mmap
import weakref
from collections import deque

ALIGNMENT = 4096
"""Of direct reads: no disk has larger logical sectors."""

READ_BYTES_MAX = (1 << 20) + (64 << 10)
"""Of one direct read: a MiB of a shard, and the head before it."""

COPIED_BYTES_MAX = 64 << 10
"""What is as little as this is better copied than kept in a large buffer."""

KEPT_MAX = 48
"""Buffers that are kept between reads, of all stores together: as many as a scrub holds that reads four packs
of six shards side by side, each a chunk ahead. With half as many, every other read gets new pages."""

assert READ_BYTES_MAX % ALIGNMENT == 0

_Loan = ctypes.c_char * READ_BYTES_MAX


class _Lent(weakref.ref["ctypes.Array[ctypes.c_char]"]):
    """What is kept of a loan until it ends."""

    __slots__ = ("buffer",)
    buffer: mmap.mmap


_free: deque[mmap.mmap] = deque(maxlen=KEPT_MAX)
_lent: dict[int, _Lent] = {}


def lend(size: int) -> memoryview:
    """Memory for a direct read of `size` bytes: as many or, up to the next block, a few more; what is in it
    is anybody's guess. More than `READ_BYTES_MAX` is not kept for others."""
    length = -(-size // ALIGNMENT) * ALIGNMENT
    if length > READ_BYTES_MAX:
        return memoryview(mmap.mmap(-1, length))
    try:
        buffer = _free.pop()
    except IndexError:
        buffer = mmap.mmap(-1, READ_BYTES_MAX)
    loan = _Loan.from_buffer(buffer)
    lent = _Lent(loan, _take_back)
    lent.buffer = buffer
    _lent[id(lent)] = lent
    return memoryview(loan).cast("B")[:length]


def _take_back(lent: "weakref.ref[ctypes.Array[ctypes.c_char]]") -> None:
    assert isinstance(lent, _Lent)
    del _lent[id(lent)]
    _free.append(lent.buffer)
