"""The rows themselves, apart from who serves them, so that a simulated node can crash and come back.

Every change is decided and applied in one synchronous step: nothing is ever half there. Whoever opened
the rows last owns them; everybody before is fenced.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

from holdfast.base.errors import InvalidInput
from holdfast.index.port import (
    ABSENT,
    Change,
    Committed,
    Conflict,
    Outcome,
    Prefix,
    Row,
    Transaction,
)
from holdfast.index.rules import holds, past_prefix, rolled_up


class MemoryRows:
    """Ordered rows with their history. `changes_max` bounds how far `changes` reaches back."""

    def __init__(self, incarnation: str = "memory", *, changes_max: int = 1_000_000) -> None:
        self.incarnation = incarnation
        self.revision = 0
        self.owner = 0
        self._rows: dict[bytes, Row] = {}
        self._keys: list[bytes] = []
        self._changes: deque[Change] = deque(maxlen=changes_max)

    def __len__(self) -> int:
        return len(self._rows)

    def open(self) -> int:
        """A new owner's number; all older ones are fenced from now on."""
        self.owner += 1
        return self.owner

    def get(self, key: bytes) -> Row | None:
        """The row of `key`."""
        return self._rows.get(key)

    def scan(self, start: bytes, end: bytes, limit: int, delimiter: bytes, skip: int) -> list[Row | Prefix]:
        """As the port's `scan`."""
        found: list[Row | Prefix] = []
        at = bisect_left(self._keys, start)
        while len(found) < limit and at < len(self._keys) and (key := self._keys[at]) < end:
            prefix = rolled_up(key, delimiter, skip)
            found.append(prefix or self._rows[key])
            if prefix is None:
                at += 1
            elif (beyond := past_prefix(prefix.key)) is None:
                break
            else:
                at = bisect_left(self._keys, beyond, at)
        return found

    def apply(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        """Decide and apply in order; all of it is there when this returns."""
        return [self._apply(transaction) for transaction in transactions]

    def _apply(self, transaction: Transaction) -> Outcome:
        for expect in transaction.expects:
            row = self._rows.get(expect.key)
            if not holds(expect, row.revision if row else ABSENT):
                return Conflict(expect.key)
        self.revision += 1
        for key, value in transaction.puts:
            if key not in self._rows:
                insort(self._keys, key)
            self._rows[key] = Row(key, bytes(value), self.revision)
        for key in transaction.deletes:
            if self._rows.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]
        self._changes.append(Change(self.revision, transaction.puts, transaction.deletes))
        return Committed(self.revision)

    def changes(self, after: int, limit: int) -> list[Change]:
        """Up to `limit` changes with a revision above `after`. Raises InvalidInput beyond the history."""
        if after > self.revision:
            raise InvalidInput(f"The index is at revision {self.revision}, before {after}.")
        oldest = self._changes[0].revision if self._changes else self.revision + 1
        if after + 1 < oldest:
            raise InvalidInput(
                f"The change feed reaches back to revision {oldest}, not to {after}.",
                hint="Compare and copy instead.",
            )
        begin = after + 1 - oldest
        end = min(begin + limit, len(self._changes))
        return [self._changes[at] for at in range(begin, end)]
