"""Several commits of the active, folded into one of the standby. Pure.

The last word on each key counts, so that the standby skips states and invents none. What does not fit into
one transaction waits for the next; and two attempts for one part never go together, because the order in
which they came is that of their revisions."""

from holdfast.base.ids import PackId
from holdfast.index.port import Change
from holdfast.packs.model import PackRow
from holdfast.packs.rows import decode_row
from holdfast.sites.rows import PACKS, PARTS, Checkpoint, is_copied, pack_of, part_number

WEIGHT_MAX = 96
BYTES_MAX = 1 << 20
"""What a transaction of several commits may have; one commit alone may have what the port allows. A pack is
a few keys, and what is expected of them."""

PACK_WEIGHT = 4


def weight(rows: int, packs: int) -> int:
    """What so many rows and packs are in a transaction, in keys."""
    return rows + PACK_WEIGHT * packs


class Folded:
    """What is to change, after `revision` of the active. `packs` are those that became known (their rows at
    the active), or were buried (None)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._bytes = 0
        self._attempts: dict[bytes, bytes] = {}
        self.revision = checkpoint.revision
        self.rows: dict[bytes, bytes | None] = {}
        self.packs: dict[PackId, PackRow | None] = {}

    def add(self, change: Change) -> bool:
        """Take the next commit in, unless it has to wait for the next transaction."""
        assert change.revision > self.revision
        puts = [(key, value) for key, value in change.puts if self._concerns(key)]
        deletes = [key for key in change.deletes if self._concerns(key)]
        attempts = {
            key: part_number(key) for key, _ in puts if key.startswith(PARTS) and self.rows.get(key) is None
        }
        if self.rows or self.packs:
            size = sum(len(key) + len(value) for key, value in puts)
            packs = sum(key.startswith(PACKS) for key in (*(key for key, _ in puts), *deletes))
            rows = len(self.rows) + len(puts) + len(deletes) - packs
            tie = not self._attempts.keys().isdisjoint(attempts.values())
            if weight(rows, len(self.packs) + packs) > WEIGHT_MAX or self._bytes + size > BYTES_MAX or tie:
                return False
        for key, value in puts:
            self._bytes += len(key) + len(value)
            if key.startswith(PACKS):
                self.packs[pack_of(key)] = decode_row(value)
            else:
                self.rows[key] = value
        for key in deletes:
            if key.startswith(PACKS):
                self.packs[pack_of(key)] = None
            else:
                self.rows[key] = None
        self._attempts.update({number: key for key, number in attempts.items()})
        self.revision = change.revision
        return True

    def _concerns(self, key: bytes) -> bool:
        return is_copied(key) and self._checkpoint.covers(key)
