"""The store port: one failure domain that keeps immutable blobs under names.

What must always hold, and what the conformance suite (`tests/conformance`) checks on every adapter,
bare and decorated:

- `put` creates and never overwrites. It returns only when the blob and its name are durable. When it
  fails, the name may or may not exist; the caller never uses that name again.
- a blob is all there or not there: no reader sees half of one.
- `get` returns exactly the bytes asked for, or raises. It does not verify them; packs do.
- every call ends by its time-out, whatever the disk does. A call that is overdue raises
  `StoreOverdue`; its work may go on behind and must not block anyone else.
- names are ASCII: letters, digits, `.`, `-`, `_`, at most 128 characters, not starting with a dot.
  Anything else is an assertion: names are made by us, never by clients.
"""

import re
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.base.errors import Busy, Damaged, Fenced, Unavailable
from holdfast.base.ids import StoreId


class ShardExists(Fenced):
    """`put` under a name that exists."""


class ShardMissing(Damaged):
    """No blob of that name."""


class ShardTruncated(Damaged):
    """The blob ends before the range that was asked for."""


class ShardSpoiled(Damaged):
    """What is there under the name is not what was put: a store that checks its blobs found it so."""


class StoreFailed(Unavailable):
    """The store answered with an error (EIO, a directory that vanished, a failed sync)."""


class ShardUnreadable(StoreFailed):
    """The medium answered a read of this blob with an error. The rest of the store may be well: then what
    cannot be read is written again elsewhere."""


class StoreFull(Unavailable):
    """No room above the reserve; deletes still work."""


class StoreReadOnly(Unavailable):
    """The medium refuses writes; reads still work."""


class StoreOverdue(Busy):
    """No answer within the time-out; the call may still take effect."""


class StoreBusy(Busy):
    """All of the store's slots are taken; refused at once, no effect."""


NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
"""What a blob's name looks like."""


def check_name(name: str) -> None:
    """Names are made by us, never by clients: one that does not fit is our bug."""
    assert NAME.match(name), f"{name!r} is not a name for a blob"


def bytes_of(data: Sequence[Buffer]) -> int:
    """Bytes of all pieces together."""
    return sum(piece.nbytes if isinstance(piece, memoryview) else len(piece) for piece in data)


class Range(NamedTuple):
    """Bytes `offset` to `offset + length` of a blob. `length` is at least 1."""

    offset: int
    length: int


PEEK_BYTES_MAX = 64 << 10
"""What `peek` answers at most: small enough to be copied on the loop in passing."""


MOVING_SHARE = 1 / 4
"""What part of the reserve may be taken by what gives back more than it takes."""

JOURNAL_SHARE = 1 / 2
"""The part for what the index needs to be found again: without it nothing may be moved or removed."""

assert 0 < MOVING_SHARE < JOURNAL_SHARE < 1, "the rest is for the index's own log, and for deletes"


def is_peekable(ranges: Sequence[Range]) -> bool:
    """Whether the ranges are small enough for `peek`."""
    total = 0
    for range_ in ranges:
        total += range_.length
    return total <= PEEK_BYTES_MAX


class Usage(Struct, frozen=True):
    """Space of a store, in bytes. `bytes_free` is what `put` may still take, above the reserve."""

    bytes_total: int
    bytes_free: int
    bytes_reserve: int


class Attachment(Enum):
    """What a store turned out to be when it was attached."""

    READY = "ready"
    NEW = "new"
    FOREIGN = "foreign"
    STALE = "stale"
    SWAPPED = "swapped"
    MISSING = "missing"


class Store(Protocol):
    """One failure domain. All times in seconds."""

    @property
    def id(self) -> StoreId:
        """Who this is, for its lifetime, wherever it is plugged in."""
        ...

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        """Create `name` with the pieces of `data` laid end to end; return when it is durable. It may take
        `reserve_share` of the reserve, where nothing is left above it.

        Raises ShardExists, StoreFull, StoreReadOnly, StoreFailed, StoreOverdue, StoreBusy.
        """
        ...

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        """The bytes of each range, in the order asked. `uncached` reads from the medium itself.

        Raises ShardMissing, ShardTruncated, ShardSpoiled, ShardUnreadable, StoreFailed, StoreOverdue,
        StoreBusy.
        """
        ...

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        """What `get` would answer, if it can be had this instant without waiting (the blob is open and
        its bytes are in memory), else None. Never blocks, never raises: the hot path of small reads.
        At most PEEK_BYTES_MAX in all; more answers None.
        """
        ...

    async def size(self, name: str, *, timeout_s: float) -> int:
        """Length of the blob in bytes. Raises as `get`."""
        ...

    async def delete(self, name: str, *, timeout_s: float) -> None:
        """Remove `name`; a name that is not there is no error. Durable when it returns.

        Raises StoreReadOnly, StoreFailed, StoreOverdue, StoreBusy.
        """
        ...

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        """Up to `limit` names greater than `after` in ASCII order; an empty list is the end.

        Raises StoreFailed, StoreOverdue, StoreBusy.
        """
        ...

    async def usage(self, *, timeout_s: float) -> Usage:
        """Space. Raises StoreFailed, StoreOverdue, StoreBusy."""
        ...

    async def probe(self, *, timeout_s: float) -> None:
        """A real write, an uncached read of it, and its removal; returns when all three worked.

        Raises StoreFull, StoreReadOnly, StoreFailed, StoreOverdue, StoreBusy, Damaged (read back wrong).
        """
        ...

    async def close(self) -> None:
        """Let go of descriptors. Never waits for a hung call. Calls after it raise StoreFailed."""
        ...
