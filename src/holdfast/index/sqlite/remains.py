"""What is left of a log that has no majority any more, read without claiming it.

A member that is left knows what the journal on the stores does not: the last second. What must hold: nothing
is written; only a chain of the incarnation that is asked for, and only as far as it verifies. It may hold
records that were never acknowledged, of which nobody was told that they had failed either.
"""

from collections.abc import Iterator

from holdfast.index.port import Change
from holdfast.index.sqlite.folder import Folder
from holdfast.index.sqlite.member import Member
from holdfast.index.sqlite.records import changes_of
from holdfast.index.sqlite.scan import Scan

_PIECE_BYTES = 4 << 20


def look(folder: Folder) -> Scan:
    """What a member holds. Raises MemberFailed."""
    member = Member(folder)
    try:
        return member.scan()
    finally:
        member.close()


def changes_after(folder: Folder, incarnation: str, revision: int) -> Iterator[Change]:
    """Every change beyond `revision` that a member has, in order; nothing when it does not reach back that
    far. Raises MemberFailed, MemberDamaged in the middle of it."""
    member = Member(folder)
    try:
        scan = member.scan()
        if scan.incarnation is None or scan.incarnation.hex() != incarnation:
            return
        at = member.sequence_at(revision)
        while at is not None and (records := member.read(at, scan.tip[1], _PIECE_BYTES)):
            for record in records:
                at = record.sequence
                for number, (puts, deletes) in enumerate(changes_of(record), record.revision + 1):
                    if number > revision:
                        yield Change(number, puts, deletes)
    finally:
        member.close()
