"""The journal: every commit of the index, once more, in named packs on the stores.

Each second in which something was committed makes one piece, each MiB another one; nothing is written
when nothing changes. Pieces follow from each other by revision and by a chain of hashes, so that whoever
reads them knows where they end and that nothing is missing in between. What must hold: a piece is only
counted when its pack is durable; what is pending is bounded; and an index that shows less than its own
journal is never written about, because it went back.
"""

from collections.abc import AsyncIterator, Callable

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.port import Change, Index, IndexState
from holdfast.packs.named import NamedPacks
from holdfast.recovery.format import (
    FORMAT,
    LINEAGE_ROW,
    Head,
    Piece,
    decode_head,
    decode_lineage,
    decode_piece,
    encode_change,
    encode_piece,
    first_chain,
    next_chain,
)
from holdfast.recovery.names import PREFIX, Lineage, PieceName, SnapshotName, kept_of, lineages_of, path_from
from holdfast.stores.port import JOURNAL_SHARE

EVERY_S = 1.0
PIECE_BYTES = 1 << 20
PATIENCE_S = 60.0
"""How long shards that are dead wait to be removed until the journal says that they are."""

SOUND_S = 5.0
"""How far behind the journal may be before nothing that is needed is moved any more."""

HEARD_S = 60.0
"""How long another node's commits may be news to this one, at the very most."""

ANEW_PATIENCE_S = 3600.0
"""How long dead shards wait for the snapshot that closes a gap: it cannot be made where no room is left."""

_CHANGES_AT_ONCE = 128


class Position(Struct, frozen=True):
    """How far the journal is: the revision, the chain there, and its length in bytes so far."""

    revision: int
    chain: bytes
    size: int


class LastSnapshot(Struct, frozen=True):
    """The newest snapshot that has a head."""

    name: SnapshotName
    head: Head


class Journal:
    """Writes the journal of one index, as a chore. `tell` takes a sentence for the events."""

    name = "journal"
    interval_s = EVERY_S

    def __init__(
        self,
        index: Index,
        packs: NamedPacks,
        clock: Clock,
        randomness: Randomness,
        tell: Callable[[str], None],
    ) -> None:
        self._index = index
        self._packs = packs
        self._clock = clock
        self._randomness = randomness
        self._tell = tell
        # Before anybody is served: what packs say they were begun at is never earlier in this process.
        self._began = index.status().revision
        self._changes: AsyncIterator[Change] | None = None
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        self._pending_at = Position(0, b"", 0)
        self._covered_at = clock.monotonic()
        self._failing = False
        self.room_is_needed: Callable[[], bool] = _never
        self.began_elsewhere: Callable[[], int] | None = None
        """Where other nodes write packs, too: no pack still to come was begun before that revision."""
        self.on_change: Callable[[Change], None] = _ignore
        """Told of each commit as it is taken over."""
        self.lineage: Lineage | None = None
        self.ancestors: tuple[str, ...] = ()
        self.position = Position(0, b"", 0)
        self.snapshot: LastSnapshot | None = None
        self.is_ahead = False
        """Whether the journal knows more than the index: nothing may be deleted on the index's word."""
        self.starts_anew = False
        """Whether what was written before does not lead to where the journal is: a snapshot is due."""
        self._anew_since = 0.0
        self._behind_since: float | None = None
        self.older_left = False
        """Whether an index that this one was made from has left something: the next snapshot lets it go."""
        self.gaps = 0
        """How often something was found that cannot be read: a snapshot begun before does not help."""
        self.generation = 0
        """Grows when the journal begins anew: what was being made of the old one is of no use."""
        self.sizes: dict[str, int] = {}
        """Bytes of pieces that this process has written, for who puts them together."""

    def took_over(self) -> None:
        """Another node may have written the journal meanwhile: find out where it goes on."""
        if not self.is_open and not self.is_ahead:
            return
        self.lineage = None
        self.is_ahead = False
        self.snapshot = None
        self._changes = None
        self._pending, self._pending_bytes = [], 0
        self.generation += 1

    @property
    def is_open(self) -> bool:
        """Whether it is known where the journal goes on."""
        return self.lineage is not None

    def covers(self, revision: int) -> bool:
        """Whether what was committed at `revision` is in the journal, so that recovery knows of it. When the
        journal has been behind for too long, it is not waited for: room has to come back."""
        if self.is_ahead or not self.is_open:
            return False  # before it was opened nobody knows whether the index went back
        if self.starts_anew:
            # Recovery ends before the gap, however far the journal goes on behind it.
            return self._clock.monotonic() - self._anew_since > ANEW_PATIENCE_S
        if revision <= self.position.revision:
            return True
        # What was moved is lost to recovery with the place that it was moved from: only for want of room.
        return self.room_is_needed() and self.behind_s() > PATIENCE_S

    @property
    def is_sound(self) -> bool:
        """Whether recovery would know now of what was committed a moment ago. While it would not, nothing
        that is needed may be moved: the place that recovery knows would be emptied, and what was moved is
        no reason to make anything."""
        # Not `behind_s`: one that is paused is not behind while nothing is committed.
        looked_s = self._clock.monotonic() - self._covered_at
        return self.is_open and not self.is_ahead and not self.starts_anew and looked_s <= SOUND_S

    def behind_s(self) -> float:
        """For how long something has been committed that the journal does not have yet."""
        if self._index.status().revision <= self.position.revision and self.is_open:
            return 0.0
        return self._clock.monotonic() - self._covered_at

    def damaged(self, name: str) -> None:
        """A name that recovery would need cannot be read: a snapshot makes it superfluous."""
        self.gaps += 1
        if not self.starts_anew:
            self.starts_anew, self._anew_since = True, self._clock.monotonic()
            self._tell(f"{name} cannot be read any more; a snapshot is made that does without it")

    async def step(self) -> bool:
        """Write one piece, if anything was committed; True when more is waiting."""
        status = self._index.status()
        if status.state is not IndexState.SERVING or self.is_ahead:
            return False
        now = self._clock.monotonic()
        if not self.is_open:
            await self._open()
        await self._gather(status.revision)
        if not self._pending:
            self._covered_at = now
            return False
        try:
            await self._write()
        except Unavailable as error:
            # Said once, not each second: the status goes on saying how far behind it is.
            if not self._failing:
                self._failing = True
                self._tell(f"the journal cannot be written, and is tried again: {error}")
            return False
        self._failing = False
        if self.position.revision >= status.revision:
            self._covered_at = now
        return self.position.revision < status.revision

    async def _gather(self, target: int) -> None:
        """Take over changes up to `target`, as many as make a piece."""
        if self._changes is None:
            self._pending, self._pending_bytes, self._pending_at = [], 0, self.position
            self._changes = self._index.changes(self.position.revision)
        try:
            while self._pending_at.revision < target and self._pending_bytes < PIECE_BYTES:
                change = await anext(self._changes)
                self.on_change(change)
                raw = encode_change(change)
                self._pending.append(raw)
                self._pending_bytes += len(raw)
                chain = next_chain(self._pending_at.chain, raw)
                self._pending_at = Position(change.revision, chain, self.position.size)
                if len(self._pending) % _CHANGES_AT_ONCE == 0:
                    await self._clock.sleep(0)
        except InvalidInput:
            # The index's own log does not reach back so far: the journal was away for long.
            self._begin_anew(self._index.status().revision)
            self._tell("the journal could not follow the index and begins anew; a snapshot is made")
        except BaseException:
            self._changes = None
            raise

    async def _write(self) -> None:
        assert self.lineage is not None
        before, at = self.position, self._pending_at
        name = PieceName(
            self.lineage, before.revision, at.revision, 0, f"{self._randomness.below(1 << 12):03x}"
        )
        piece = Piece(
            FORMAT,
            *self.lineage,
            before.revision,
            at.revision,
            before.chain,
            at.chain,
            int(self._clock.wall() * 1000),
            self._began if self.began_elsewhere is None else self.began_elsewhere(),
            before.size,
            (),
        )
        data = encode_piece(piece, self._pending)
        await self._packs.write(str(name), [data], reserve_share=JOURNAL_SHARE)
        self.sizes[str(name)] = len(data)
        self.position = self._pending_at = Position(at.revision, at.chain, before.size + len(data))
        self._pending, self._pending_bytes = [], 0

    async def _open(self) -> None:
        """Find out where the journal goes on."""
        status = self._index.status()
        (row,) = await self._index.get([LINEAGE_ROW])
        made = None if row is None else decode_lineage(row.value)
        lineage = Lineage(made.number if made else 0, status.incarnation)
        names = await self._packs.list(PREFIX)
        found = await find_end(self._packs, names, lineage)
        if found.position is not None and found.position.revision > status.revision:
            self._wait_for_index()
            self.is_ahead = True
            raise Fenced(
                f"The index is at revision {status.revision}, its journal at {found.position.revision}:",
                hint="the index went back. Nothing is deleted, and nothing written about it.",
            )
        self._behind_since = None
        self.ancestors = made.ancestors if made else ()
        self.lineage = lineage
        self.older_left = any(older.number < lineage.number for older in lineages_of(names))
        self.snapshot = found.snapshot
        if found.position is None:
            self._begin_anew(status.revision)
        else:
            self.position = found.position

    def _wait_for_index(self) -> None:
        """Of an index that others change, too, this process may not have heard for a moment. Raises
        Unavailable until it must have."""
        if self.began_elsewhere is None:
            return
        now = self._clock.monotonic()
        if self._behind_since is None:
            self._behind_since = now
        if now - self._behind_since < HEARD_S:
            raise Unavailable("The journal is ahead of what is known of the index.", hint="Wait for it.")

    def _begin_anew(self, revision: int) -> None:
        assert self.lineage is not None
        # A young index has no past: what happened up to its revision can still be read from its log.
        is_young = revision <= _YOUNG and not (self.generation or self.snapshot or self.lineage.number)
        revision = 0 if is_young else revision
        self.position = Position(revision, first_chain(self.lineage.incarnation, revision), 0)
        self._changes = None
        self._pending, self._pending_bytes = [], 0
        self.starts_anew, self._anew_since = revision > 0, self._clock.monotonic()
        self.generation += 1


_YOUNG = 10_000
"""An index that has seen fewer commits is journaled from its beginning, without a snapshot."""


def _ignore(change: Change) -> None:
    """Nobody wants to know."""


def _never() -> bool:
    """Until somebody knows of full stores."""
    return False


class End(Struct, frozen=True):
    """Where a journal ends, as far as it can be read; `position` is None when there is none to go on with."""

    position: Position | None
    snapshot: LastSnapshot | None


async def find_end(packs: NamedPacks, names: list[str], lineage: Lineage) -> End:
    """Where the journal of an index ends, starting from its newest snapshot whose head can be read, or
    from the beginning. Only the last piece is read: names tell the way, and recovery checks it all."""
    kept = kept_of(names, lineage)
    newest: LastSnapshot | None = None
    for name in kept.snapshots:
        try:
            newest = LastSnapshot(name, decode_head(await packs.read(name.head), name))
            break
        except HoldfastError:
            continue  # an older one will do; this one cannot be used for recovery either
    since = newest.head.since if newest else 0
    pieces = list(kept.pieces)
    while path := path_from(pieces, since):
        last = path[-1]
        try:
            data = await packs.read(str(last))
            piece = decode_piece(data, last)
        except HoldfastError:
            pieces.remove(last)
            continue
        return End(Position(piece.after, piece.chain_after, piece.bytes_before + len(data)), newest)
    if newest is not None:
        return End(Position(since, newest.head.chain, newest.head.journal_bytes), newest)
    return End(None, None)
