"""The index port: an ordered key-value store with optimistic transactions.

What must always hold, and what the conformance suite checks on every adapter:

- `commit` decides each transaction on its own, in the order given: its expectations see the effects
  of the transactions before it in the same call. A conflict of one never fails its neighbours. All
  committed ones share one durable round.
- reads see every acknowledged commit, and nothing that is not acknowledged-durable.
- each committed transaction has one revision, greater than all before it. The revision of a row is
  that of the transaction that last put it. A row that was deleted and put again has the new one.
- `Unknown` means: may or may not be committed, now or later. It is resolved by committing the same
  expectations again (see `holdfast.objects`): both cannot commit.

Keys are 1 to 2,048 bytes, values up to 1 MiB, a transaction up to 1.25 MiB and names no key twice
among its puts and deletes.
"""

from collections.abc import AsyncIterator, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from msgspec import Struct

KEY_BYTES_MAX = 2048
VALUE_BYTES_MAX = 1 << 20
TRANSACTION_BYTES_MAX = 5 << 18

ABSENT = 0
"""As the revision of an expectation: the key must not exist."""

PRESENT = -1
"""As the revision of an expectation: the key must exist, at whatever revision."""


class Row(NamedTuple):
    """One row as a reader sees it."""

    key: bytes
    value: bytes
    revision: int


class Prefix(NamedTuple):
    """Stands for all keys that begin with `key` in a delimited scan."""

    key: bytes


class Expect(NamedTuple):
    """What must hold for a transaction to commit: `key` at `revision`, or ABSENT, or PRESENT."""

    key: bytes
    revision: int


class Transaction(NamedTuple):
    """Expectations and their effects. Puts and deletes name no key twice."""

    expects: tuple[Expect, ...]
    puts: tuple[tuple[bytes, bytes], ...] = ()
    deletes: tuple[bytes, ...] = ()


class Committed(NamedTuple):
    """Durable, at this revision."""

    revision: int


class Conflict(NamedTuple):
    """Not committed, and never will be: `key` was not as expected."""

    key: bytes


class Unknown(NamedTuple):
    """May or may not be committed, now or later."""

    reason: str


Outcome = Committed | Conflict | Unknown


class Change(NamedTuple):
    """One committed transaction, as the feed tells it."""

    revision: int
    puts: tuple[tuple[bytes, bytes], ...]
    deletes: tuple[bytes, ...]


class Lease(Struct, frozen=True):
    """A lease that was granted. `token` grows with every grant of that name and fences stale holders:
    put `lease_row(name)` at `token` among the expectations of what only the holder may do."""

    name: str
    holder: str
    token: int


class IndexState(Enum):
    """Whether the index takes commits."""

    SERVING = "serving"
    UNAVAILABLE = "unavailable"
    FENCED = "fenced"


class MemberStatus(Struct, frozen=True):
    """One replica of the index, for `holdfast status`. `state` is a word: current, behind, out, absent."""

    name: str
    state: str
    detail: str = ""


class IndexStatus(Struct, frozen=True):
    """The index, for `holdfast status`. `losses_survivable` is how many members may still go; `remark` is
    what a person should look after before it stops the index."""

    state: IndexState
    engine: str
    incarnation: str
    revision: int
    members: tuple[MemberStatus, ...]
    losses_survivable: int
    remark: str = ""


class Index(Protocol):
    """The rows. Every call raises Unavailable when the engine cannot answer within its patience,
    and Fenced when another process or a newer incarnation has taken over."""

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """The rows of `keys`, in that order, of one moment."""
        ...

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, delimiter: bytes = b"", skip: int = 0
    ) -> list[Row | Prefix]:
        """Rows with start <= key < end in key order, at most `limit` items.

        With a delimiter, all keys that have it at or after byte `skip` of the key are answered by one
        `Prefix` (the key up to and with the delimiter) in their place, found by jumping, not by
        reading them all.
        """
        ...

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        """Decide all; return one outcome each, when the committed ones are durable.

        A call that raises Unavailable has committed nothing. Cancelling it leaves all of it Unknown.
        """
        ...

    def changes(self, after: int) -> AsyncIterator[Change]:
        """Every commit with a revision greater than `after`, in order, without gaps, waiting for more.

        Raises InvalidInput when the feed does not reach back that far (compare and copy instead).
        """
        ...

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        """The lease if it is free or expired, else None. Again by its holder renews it."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give it back; a lease that has moved on is left alone."""
        ...

    def status(self) -> IndexStatus:
        """Where the index stands. Does no I/O."""
        ...

    async def close(self) -> None:
        """Finish or fail what is under way and let go."""
        ...


def lease_row(name: str) -> bytes:
    """The key of a lease's row; its revision is the lease's token."""
    return b"lease/" + name.encode()


def prefix_end(prefix: bytes) -> bytes:
    """The least key greater than all keys that begin with `prefix`; for `scan`."""
    stripped = prefix.rstrip(b"\xff")
    assert stripped, "the empty prefix has no end; use b'\\xff' * KEY_BYTES_MAX"
    return stripped[:-1] + bytes([stripped[-1] + 1])
