"""Beginning a log with rows that it does not have the history of: recovery of an index that was lost.

Each member gets a checkpoint with all rows, as if the log had been there before, under an incarnation of its
own. What must hold: no member votes before every member holds all of it (`write`, then `join`), so that
whoever looks in between finds an index that is not there yet, never one that is empty or half full.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

from holdfast.base.errors import Damaged
from holdfast.base.randomness import Randomness
from holdfast.index.port import Row
from holdfast.index.sqlite.checkpoint import BLOCK_BYTES, Base, Sums, pack_block, pack_end, sums_of
from holdfast.index.sqlite.member import Member
from holdfast.index.sqlite.records import HASH_BYTES, INCARNATION_BYTES
from holdfast.index.sqlite.seat import MemberAccess

_EPOCH = 1
_SEQUENCE = 2
"""Where the new log begins. Beyond 1: a member that was only founded looks like a new one."""


def new_incarnation(randomness: Randomness) -> str:
    """As status shows it: hex."""
    return randomness.token(INCARNATION_BYTES).hex()


class Refounding:
    """Makes a new log on `accesses`, which hold nothing, or nothing that is wanted. `rows` gives all rows in
    key order, as often as it is called. Synchronous: nobody is served meanwhile."""

    def __init__(
        self,
        accesses: Sequence[MemberAccess],
        rows: Callable[[], Iterator[Row]],
        incarnation: str,
        revision: int,
        randomness: Randomness,
    ) -> None:
        self._accesses = accesses
        self._rows = rows
        self._instance = randomness.token(HASH_BYTES)
        self._base = Base(
            bytes.fromhex(incarnation),
            _SEQUENCE,
            _EPOCH,
            randomness.token(HASH_BYTES),
            revision,
            tuple(access.name for access in accesses),
            Sums(),
        )

    def write(self) -> None:
        """Give every member all rows. None of them votes yet. Raises MemberFailed."""
        sums = sums_of(self._rows())
        base = Base(
            self._base.incarnation,
            self._base.sequence,
            self._base.epoch,
            self._base.hash,
            self._base.revision,
            self._base.members,
            sums,
        )
        for access in self._accesses:
            self._in_member(access, lambda member: self._write(member, base))

    def _write(self, member: Member, base: Base) -> None:
        member.found(base.incarnation)
        member.claim(_EPOCH, self._instance)
        member.begin_checkpoint(base)
        number = rows = 0
        for block in _blocks(self._rows()):
            member.add_checkpoint_block(pack_block(base, number, block))
            number += 1
            rows += len(block)
        member.add_checkpoint_block(pack_end(base, number, rows))
        member.end_copied_checkpoint()
        scan = member.scan()
        if scan.damage or scan.base != base:
            raise Damaged(f"A member of the new index cannot be read back: {'; '.join(scan.damage)}.")

    def join(self) -> None:
        """From now on they vote: the index is there. Raises MemberFailed; a majority that joined is enough,
        with fewer all of it can be done again."""
        for access in self._accesses:
            self._in_member(access, Member.joined)

    @staticmethod
    def _in_member(access: MemberAccess, work: Callable[[Member], None]) -> None:
        folder = access.open_folder()
        member = Member(folder)
        try:
            member.scan()
            work(member)
        finally:
            member.close()


def _blocks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    block: list[Row] = []
    size = 0
    for row in rows:
        block.append(row)
        size += len(row.key) + len(row.value)
        if size >= BLOCK_BYTES:
            yield block
            block, size = [], 0
    if block:
        yield block
