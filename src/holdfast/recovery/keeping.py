"""What a node does so that its index can be made again: the journal, snapshots and their upkeep, together."""

from collections.abc import Callable, Sequence

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.base.wording import counted
from holdfast.index.port import Index
from holdfast.packs.named import NamedPacks
from holdfast.recovery.journal import Journal
from holdfast.recovery.snapshot import JOURNAL_BYTES_MIN, Snapshots
from holdfast.recovery.upkeep import Upkeep

BEHIND_TOLD_S = 10.0
"""From here on a journal that is behind is worth a sentence."""


class RecoveryStatus(Struct, frozen=True, kw_only=True):
    """How far a lost index could be made again. Revisions count commits; `behind_s` is for how long something
    has been committed that the journal does not have; the snapshot's fields are None when there is none
    and the journal still begins at the beginning. `unreadable` are names that recovery would read and
    that cannot be read any more,
    `left_to_read` is how many are due to be read from the medium."""

    journal_revision: int
    journal_bytes: int
    behind_commits: int
    behind_s: float
    snapshot_revision: int | None
    snapshot_age_s: float | None
    snapshot_rows: int | None
    pieces_written_anew: int
    unreadable: tuple[str, ...]
    is_ahead: bool = False
    left_to_read: int = 0


class Keeping:
    """Built before anybody is served: what is journaled begins there."""

    def __init__(
        self,
        index: Index,
        packs: NamedPacks,
        writable: Callable[[], frozenset[StoreId]],
        clock: Clock,
        randomness: Randomness,
        tell: Callable[[str], None],
        *,
        journal_bytes_min: int = JOURNAL_BYTES_MIN,
    ) -> None:
        self._index = index
        self._clock = clock
        self.journal = Journal(index, packs, clock, randomness, tell)
        self.snapshots = Snapshots(
            index, packs, self.journal, clock, randomness, journal_bytes_min=journal_bytes_min
        )
        self.upkeep = Upkeep(packs, self.journal, writable, clock, randomness)

    @property
    def chores(self) -> Sequence[Journal | Snapshots | Upkeep]:
        """To be run side by side."""
        return (self.journal, self.snapshots, self.upkeep)

    async def finish(self) -> None:
        """Bring the journal up to date, once nothing is committed any more."""
        while await self.journal.step():
            await self._clock.sleep(0)

    def status(self) -> RecoveryStatus:
        """How far it is."""
        journal, last = self.journal, self.journal.snapshot
        wall_ms = int(self._clock.wall() * 1000)
        behind = max(0, self._index.status().revision - journal.position.revision)
        return RecoveryStatus(
            journal_revision=journal.position.revision,
            journal_bytes=journal.position.size,
            behind_commits=behind if journal.is_open else 0,
            behind_s=round(journal.behind_s(), 3),
            snapshot_revision=last.head.through if last else None,
            snapshot_age_s=max(0.0, (wall_ms - last.head.written_ms) / 1000) if last else None,
            snapshot_rows=last.head.rows if last else None,
            pieces_written_anew=self.upkeep.rewritten,
            unreadable=tuple(sorted(self.upkeep.unreadable)),
            is_ahead=journal.is_ahead,
            left_to_read=self.upkeep.left_to_read,
        )


def sentences_of(status: RecoveryStatus) -> list[str]:
    """What of it a person has to know. Pure."""
    sentences = []
    if status.is_ahead:
        sentences.append("The index shows less than its own journal on the stores: it went back.")
    elif status.behind_s >= BEHIND_TOLD_S:
        sentences.append(
            f"The journal on the stores is {status.behind_s:.0f} s and {status.behind_commits} commits "
            "behind the index: that much would be lost with it."
        )
    if status.unreadable:
        sentences.append(
            f"{counted(len(status.unreadable), 'part')} of the journal or a snapshot cannot be read any "
            "more: a snapshot is being made that does without."
        )
    return sentences
