"""What every adapter of the index port must agree on, as pure functions.

Whether a transaction is within the limits, whether an expectation holds, and how a delimiter rolls up
keys. An adapter that decided one of these for itself would sooner or later decide differently.
"""

from collections.abc import Sequence

from holdfast.base.errors import InvalidInput
from holdfast.index.port import (
    ABSENT,
    KEY_BYTES_MAX,
    PRESENT,
    TRANSACTION_BYTES_MAX,
    VALUE_BYTES_MAX,
    Expect,
    Prefix,
    Transaction,
)


def check_transaction(transaction: Transaction) -> int:
    """Its size in bytes, keys and values of all its parts. Raises InvalidInput beyond the port's limits."""
    # Every commit passes here once a transaction: plain loops, no call per key.
    size = 0
    for key, value in transaction.puts:
        if not 1 <= len(key) <= KEY_BYTES_MAX:
            raise _bad_key(key)
        if len(value) > VALUE_BYTES_MAX:
            raise InvalidInput(
                f"The value of index row {key!r} has {len(value)} bytes;",
                hint=f"at most {VALUE_BYTES_MAX} fit.",
            )
        size += len(key) + len(value)
    for key in transaction.deletes:
        if not 1 <= len(key) <= KEY_BYTES_MAX:
            raise _bad_key(key)
        size += len(key)
    for key, revision in transaction.expects:
        if not 1 <= len(key) <= KEY_BYTES_MAX:
            raise _bad_key(key)
        if revision < PRESENT:
            raise InvalidInput(
                f"Revision {revision} is expected of index row {key!r};",
                hint="it must be a revision, ABSENT or PRESENT.",
            )
        size += len(key)
    if size > TRANSACTION_BYTES_MAX:
        raise InvalidInput(
            f"An index transaction has {size} bytes;", hint=f"at most {TRANSACTION_BYTES_MAX} fit."
        )
    changed = len(transaction.puts) + len(transaction.deletes)
    if changed > 1 and len({key for key, _ in transaction.puts} | set(transaction.deletes)) != changed:
        raise InvalidInput("An index transaction changes one key twice;", hint="name each key once.")
    return size


def _bad_key(key: bytes) -> InvalidInput:
    return InvalidInput(f"An index key has {len(key)} bytes;", hint=f"1 to {KEY_BYTES_MAX} are possible.")


def check_scan(limit: int, skip: int) -> None:
    """Raises InvalidInput for a scan that asks for nothing or for a negative place."""
    if limit < 1 or skip < 0:
        raise InvalidInput(f"A scan of {limit} items, skipping {skip} bytes, is not possible.")


def holds(expect: Expect, revision: int) -> bool:
    """Whether `expect` holds for a row at `revision` (ABSENT for a row that is not there)."""
    if expect.revision == PRESENT:
        return revision != ABSENT
    return expect.revision == revision


def rolled_up(key: bytes, delimiter: bytes, skip: int) -> Prefix | None:
    """The prefix that stands for `key` in a delimited scan, or None when the key stands for itself."""
    if not delimiter:
        return None
    at = key.find(delimiter, skip)
    return None if at < 0 else Prefix(key[: at + len(delimiter)])


def past_prefix(prefix: bytes) -> bytes | None:
    """The least key greater than all that begin with `prefix`; None when there is no greater key."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else None


def check_all(transactions: Sequence[Transaction]) -> list[int]:
    """Sizes of all; raises InvalidInput before any is decided."""
    return [check_transaction(transaction) for transaction in transactions]
