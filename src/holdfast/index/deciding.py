"""Deciding a batch of transactions against the rows as they are, before anything is written. Pure.

For engines that decide on the client's side, under a lock: they read the revisions of all keys that are
expected, ask here, and write what comes out in one step. What must hold: each transaction is decided on
its own, after the effects of those before it, exactly as `memory` does it row by row.
"""

from collections.abc import Mapping, Sequence

from msgspec import Struct

from holdfast.index.port import ABSENT, Change, Committed, Conflict, Outcome, Transaction
from holdfast.index.rules import holds


class Batch(Struct):
    """What came of a batch: one outcome a transaction, the rows to put (value and revision) and the keys to
    delete, and the changes for the feed. `revision` is that of the last one that committed."""

    revision: int
    outcomes: list[Outcome]
    puts: dict[bytes, tuple[bytes, int]]
    deletes: set[bytes]
    changes: list[Change]


def decide_batch(transactions: Sequence[Transaction], revisions: Mapping[bytes, int], revision: int) -> Batch:
    """`revisions` are those of the rows that exist among the keys that are expected; `revision` is that of
    the index before the batch."""
    batch = Batch(revision, [], {}, set(), [])
    for transaction in transactions:
        batch.outcomes.append(_decide(transaction, revisions, batch))
    return batch


def _decide(transaction: Transaction, revisions: Mapping[bytes, int], batch: Batch) -> Outcome:
    for expect in transaction.expects:
        if expect.key in batch.puts:
            now = batch.puts[expect.key][1]
        elif expect.key in batch.deletes:
            now = ABSENT
        else:
            now = revisions.get(expect.key, ABSENT)
        if not holds(expect, now):
            return Conflict(expect.key)
    batch.revision += 1
    for key, value in transaction.puts:
        batch.puts[key] = (bytes(value), batch.revision)
        batch.deletes.discard(key)
    for key in transaction.deletes:
        batch.puts.pop(key, None)
        batch.deletes.add(key)
    batch.changes.append(Change(batch.revision, transaction.puts, transaction.deletes))
    return Committed(batch.revision)


def expected_keys(transactions: Sequence[Transaction]) -> list[bytes]:
    """Every key that a batch expects something of, once."""
    return list({expect.key: None for transaction in transactions for expect in transaction.expects})
