"""Snapshots: all rows of the index in pages on the stores, so that the journal behind them may go.

Pages are read one after the other while commits go on; nothing stops and nothing large is held. What was
changed meanwhile is in the journal, and replaying it over the pages gives all rows of one revision, so the
head, which is written last, says between which revisions that is. What must hold: a snapshot has a head
only when the journal covers the time it was read in; and nothing older goes before every page of the newer
one was read back from the medium and is what was written.
"""

from hashlib import blake2b

from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged
from holdfast.base.randomness import Randomness
from holdfast.index.port import KEY_BYTES_MAX, Index, Row
from holdfast.packs.named import NamedPacks
from holdfast.recovery.format import FORMAT, Head, encode_head, encode_page
from holdfast.recovery.journal import Journal, LastSnapshot
from holdfast.recovery.names import PREFIX, SnapshotName, kept_of, superfluous
from holdfast.stores.port import JOURNAL_SHARE

JOURNAL_BYTES_MIN = 16 << 20
PAGE_BYTES = 2 << 20
SCAN_ROWS = 250
REMOVE_AT_ONCE = 20

_END = b"\xff" * KEY_BYTES_MAX


class _Making:
    """One snapshot on its way."""

    def __init__(self, name: SnapshotName, generation: int, chain: bytes, journal_bytes: int) -> None:
        self.name = name
        self.generation = generation
        self.gaps = 0
        self.chain = chain
        self.journal_bytes = journal_bytes
        self.next = b"\0"
        self.read_all = False
        self.rows: list[Row] = []
        self.rows_bytes = 0
        self.rows_total = 0
        self.size = 0
        self.through: int | None = None
        self.written: list[bytes] = []
        self.head: Head | None = None
        self.checked = 0


class Snapshots:
    """Makes a snapshot when the journal has grown by more than the last one weighs (and 16 MiB), as a chore:
    so that all snapshots together cost no more than the journal does."""

    name = "snapshot"

    def __init__(
        self,
        index: Index,
        packs: NamedPacks,
        journal: Journal,
        clock: Clock,
        randomness: Randomness,
        *,
        journal_bytes_min: int = JOURNAL_BYTES_MIN,
        page_bytes: int = PAGE_BYTES,
    ) -> None:
        self._index = index
        self._packs = packs
        self._journal = journal
        self._clock = clock
        self._randomness = randomness
        self._journal_bytes_min = journal_bytes_min
        self._page_bytes = page_bytes
        self._making: _Making | None = None
        self._gone: list[str] = []
        self._asked = False
        self.made = 0

    @property
    def interval_s(self) -> float:
        """Short while one is under way: it waits for the journal only."""
        return 0.5 if self._making else 5.0

    def took_over(self) -> None:
        """Another node may have made snapshots meanwhile: what was found superfluous is found again."""
        self._making = None
        self._gone = []

    def ask(self) -> None:
        """Make one as soon as possible, whatever the journal has grown by."""
        self._asked = True

    def is_due(self) -> bool:
        """Whether one should be begun."""
        journal = self._journal
        if not journal.is_open:
            return False
        if self._asked or journal.starts_anew or journal.older_left:
            return True
        last = journal.snapshot.head if journal.snapshot else None
        grown = journal.position.size - (last.journal_bytes if last else 0)
        return grown > max(self._journal_bytes_min, last.size if last else 0)

    async def step(self) -> bool:
        """One page read, written or checked, or some of what is superfluous removed."""
        if self._making is not None and self._making.generation != self._journal.generation:
            self._making = None  # what it leaves is removed once another one is whole
        if self._making is None:
            if self._gone:
                return await self._remove_some()
            if not self.is_due():
                return False
            self._begin()
        making = self._making
        assert making is not None
        if not making.read_all or making.rows:
            await self._read_on(making)
            return True
        if making.head is None:
            return await self._close(making)
        return await self._check_on(making)

    def _begin(self) -> None:
        journal = self._journal
        assert journal.lineage is not None
        at = journal.position
        nonce = self._randomness.token(3).hex()
        self._asked = False
        self._making = _Making(
            SnapshotName(journal.lineage, at.revision, nonce), journal.generation, at.chain, at.size
        )
        self._making.gaps = journal.gaps

    async def _read_on(self, making: _Making) -> None:
        if not making.read_all and making.rows_bytes < self._page_bytes:
            found = await self._index.scan(making.next, _END, limit=SCAN_ROWS)
            rows = [row for row in found if isinstance(row, Row)]
            making.rows += rows
            making.rows_bytes += sum(len(row.key) + len(row.value) for row in rows)
            if len(rows) < SCAN_ROWS:
                making.read_all = True
            else:
                making.next = rows[-1].key + b"\0"
        if making.rows and (making.read_all or making.rows_bytes >= self._page_bytes):
            page = encode_page(making.name, len(making.written), making.rows)
            digest = blake2b(digest_size=16)
            for part in page:
                digest.update(part)
            await self._packs.write(making.name.page(len(making.written)), page, reserve_share=JOURNAL_SHARE)
            making.written.append(digest.digest())
            making.rows_total += len(making.rows)
            making.size += making.rows_bytes
            making.rows, making.rows_bytes = [], 0

    async def _close(self, making: _Making) -> bool:
        """Write the head, once the journal covers all that was read."""
        journal = self._journal
        if making.through is None:
            making.through = self._index.status().revision
        if journal.position.revision < making.through:
            return False
        head = Head(
            FORMAT,
            *making.name.lineage,
            making.name.since,
            making.through,
            making.chain,
            len(making.written),
            making.rows_total,
            making.size,
            making.journal_bytes,
            int(self._clock.wall() * 1000),
            journal.ancestors,
        )
        raw = encode_head(head)
        await self._packs.write(making.name.head, [raw], reserve_share=JOURNAL_SHARE)
        making.written.append(blake2b(raw, digest_size=16).digest())
        making.head = head
        return True

    async def _check_on(self, making: _Making) -> bool:
        """Read the next page, or at last the head, back from the medium."""
        assert making.head is not None
        number = making.checked
        is_head = number == making.head.pages
        name = making.name.head if is_head else making.name.page(number)
        data = await self._packs.check(name)
        if blake2b(data, digest_size=16).digest() != making.written[number]:
            self._making = None
            raise Damaged(f"{name} is not what was written; another snapshot is made.")
        making.checked += 1
        if is_head:
            await self._is_whole(making, making.head)
        return True

    async def _is_whole(self, making: _Making, head: Head) -> None:
        journal = self._journal
        earlier = journal.snapshot
        journal.snapshot = LastSnapshot(making.name, head)
        if making.gaps == journal.gaps:
            journal.starts_anew = False
        journal.older_left = False
        self._making = None
        self.made += 1
        names = await self._packs.list(PREFIX)
        whole = [making.name]
        if earlier is not None:
            # Of those before, only ones that lead here: an older base of the journal is of no more use.
            kept = kept_of(names, making.name.lineage)
            whole += [name for name in kept.snapshots if name < making.name]
        self._gone = superfluous(names, making.name.lineage, whole)

    async def _remove_some(self) -> bool:
        """Remove names that nothing needs. The heads of snapshots come first: one of which pages are gone
        must not look whole."""
        self._gone.sort(key=lambda name: not name.endswith("-head"))
        batch, self._gone = self._gone[:REMOVE_AT_ONCE], self._gone[REMOVE_AT_ONCE:]
        for name in batch:
            await self._packs.remove(name)
        return True
