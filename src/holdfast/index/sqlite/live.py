"""The newest rows in memory, and deciding transactions against them. Pure.

Two layers over the copies: rows that are acknowledged but not yet in every copy (`acked`), and effects
that were decided but are not acknowledged (`pending`). Readers see the first, deciding sees both. What
must hold:

- `floor` is a sequence that every copy that may be asked has reached. So a key without an entry here
  has not changed since, and any copy answers right about it.
- the floor does not move while it is held: a read under way in a copy is judged by the entries that
  were there when it began, or newer ones.
- nothing unacknowledged is ever told: an outcome that depends on a pending row says on which sequence it
  has to wait.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from holdfast.index.port import ABSENT, Committed, Conflict, Outcome, Row, Transaction
from holdfast.index.rules import holds


class Entry(NamedTuple):
    """The state of one key after record `sequence`; `row` is None when it was deleted."""

    row: Row | None
    sequence: int


class Decision(NamedTuple):
    """An outcome that may be told once `sequence` is acknowledged."""

    outcome: Outcome
    sequence: int


class Round(NamedTuple):
    """What was decided together: one decision a transaction, and the rows that change."""

    decisions: list[Decision]
    changes: list[tuple[tuple[tuple[bytes, bytes], ...], tuple[bytes, ...]]]
    entries: dict[bytes, Entry]


class LiveRows:
    """The layers. Sequences are those of the log."""

    def __init__(self, floor: int) -> None:
        self.floor = floor
        self.acked: dict[bytes, Entry] = {}
        self.pending: dict[bytes, Entry] = {}
        self._staged: deque[tuple[int, dict[bytes, Entry]]] = deque()
        self._kept: deque[tuple[int, dict[bytes, Entry]]] = deque()
        self._holds = 0
        self._floor_wanted = floor

    def hold(self) -> None:
        """Keep the floor where it is until `release`."""
        self._holds += 1

    def release(self) -> None:
        """End a `hold`."""
        self._holds -= 1
        if not self._holds and self._floor_wanted > self.floor:
            self._trim()

    @property
    def floor_to_come(self) -> int:
        """Where the floor goes when nobody holds it any more. A copy may only begin to be asked from there
        on: what lies before is dropped from here without asking again."""
        return self._floor_wanted

    def raise_floor(self, sequence: int) -> None:
        """Every copy has reached `sequence`."""
        self._floor_wanted = max(self._floor_wanted, sequence)
        if not self._holds and self._floor_wanted > self.floor:
            self._trim()

    def _trim(self) -> None:
        self.floor = self._floor_wanted
        kept, acked = self._kept, self.acked
        while kept and kept[0][0] <= self.floor:
            sequence, entries = kept.popleft()
            for key in entries:
                if acked[key].sequence == sequence:
                    del acked[key]

    def stage(self, sequence: int, entries: dict[bytes, Entry]) -> None:
        """Effects of the record `sequence`, which was sent and is not acknowledged."""
        self._staged.append((sequence, entries))
        self.pending.update(entries)

    def acknowledge(self, sequence: int) -> None:
        """Everything up to `sequence` is acknowledged: it becomes visible."""
        pending = self.pending
        while self._staged and self._staged[0][0] <= sequence:
            number, entries = self._staged.popleft()
            self.acked.update(entries)
            self._kept.append((number, entries))
            for key in entries:
                if pending[key].sequence == number:
                    del pending[key]

    def decide(
        self,
        transactions: Sequence[Transaction],
        fetched: Mapping[bytes, Row | None],
        sequence: int,
        revision: int,
    ) -> Round:
        """Decide in order, as the record `sequence` after `revision`. `fetched` are the rows of expected keys
        that are in neither layer."""
        decisions: list[Decision] = []
        changes: list[tuple[tuple[tuple[bytes, bytes], ...], tuple[bytes, ...]]] = []
        entries: dict[bytes, Entry] = {}
        acked, pending = self.acked, self.pending
        for transaction in transactions:
            conflict = None
            for expect in transaction.expects:
                key = expect.key
                if entry := entries.get(key) or pending.get(key):
                    row, wait = entry
                elif entry := acked.get(key):
                    row, wait = entry.row, 0
                else:
                    row, wait = fetched[key], 0
                if not holds(expect, row.revision if row else ABSENT):
                    conflict = Decision(Conflict(key), wait)
                    break
            if conflict is not None:
                decisions.append(conflict)
                continue
            revision += 1
            changes.append((transaction.puts, transaction.deletes))
            for key, value in transaction.puts:
                entries[key] = Entry(Row(key, value, revision), sequence)
            for key in transaction.deletes:
                entries[key] = Entry(None, sequence)
            decisions.append(Decision(Committed(revision), sequence))
        return Round(decisions, changes, entries)

    def knows(self, key: bytes) -> bool:
        """Whether deciding about `key` needs no copy."""
        return key in self.acked or key in self.pending
