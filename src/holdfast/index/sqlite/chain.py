"""The log in memory: the hashes of its chain and its newest records. Pure.

What must hold: each record names the hash of the one before; what is not acknowledged stays in the tail.
"""

from collections.abc import Sequence

from holdfast.index.sqlite.checkpoint import Base
from holdfast.index.sqlite.records import Record


class Chain:
    """The hashes and the newest records of the log, in memory."""

    def __init__(self, base: Base, hashes: Sequence[bytes], tail_bytes: int) -> None:
        self._low = base.sequence
        self._hashes = [base.hash, *hashes]
        self._tail: list[Record] = []
        self._tail_bytes = 0
        self._tail_bytes_max = tail_bytes

    @property
    def low(self) -> int:
        """The first sequence whose hash is known."""
        return self._low

    @property
    def tip(self) -> int:
        """The last sequence."""
        return self._low + len(self._hashes) - 1

    def hash_at(self, sequence: int) -> bytes | None:
        """The hash of that record, if it is known."""
        at = sequence - self._low
        return self._hashes[at] if 0 <= at < len(self._hashes) else None

    def add(self, record: Record) -> None:
        """The next record."""
        assert record.sequence == self.tip + 1
        assert record.previous == self._hashes[-1]
        self._hashes.append(record.hash)
        self._tail.append(record)
        self._tail_bytes += len(record.raw)

    def trim(self, acked: int) -> None:
        """Let the oldest acknowledged records go when the tail is too large."""
        if self._tail_bytes <= self._tail_bytes_max:
            return
        cut = 0
        while self._tail_bytes > self._tail_bytes_max // 2 and cut < len(self._tail):
            if self._tail[cut].sequence > acked:
                break
            self._tail_bytes -= len(self._tail[cut].raw)
            cut += 1
        del self._tail[:cut]

    def forget_before(self, sequence: int) -> None:
        """Hashes below `sequence` are not needed any more."""
        cut = min(sequence, self.tip) - self._low
        if cut > 0:
            del self._hashes[:cut]
            self._low += cut

    def after(self, sequence: int, through: int, bytes_max: int) -> list[Record] | None:
        """Records behind `sequence`, from memory; None when the tail does not reach back that far."""
        if sequence >= self.tip or sequence >= through:
            return []
        if not self._tail or self._tail[0].sequence > sequence + 1:
            return None
        at = begin = sequence + 1 - self._tail[0].sequence
        size = 0
        while (
            at < len(self._tail) and self._tail[at].sequence <= through and (at == begin or size < bytes_max)
        ):
            size += len(self._tail[at].raw)
            at += 1
        return self._tail[begin:at]
