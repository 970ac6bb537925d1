"""Finding bytes that nobody owns: what crashes and lost answers left in packs that live on.

A piece of a pack is needed by somebody, or was let go, or its writer is still under way, or nobody will
ever own it. The last two look alike, and no clock tells them apart. So the audit first *closes* every
piece that nobody needs: it puts an empty `dead` row for its owner, expecting the key's head row as it was
read, without the piece. Whoever would make the piece somebody's expects that row to be absent: exactly one
of the two wins. What is closed never changes again. What then is neither needed nor dead is garbage.

What must hold:

- rows are read in this order: who needs what; that no cleanup of a key with bytes here is under way; what
  is dead. Bytes may pass
  from needed to dead meanwhile, and are then counted twice; none pass the other way, and none are missed.
  So what is found is at most the garbage there is.
- it is recorded as dead once: in one row of the pack's, expected as it was read when it was counted.
- what cannot be settled (a part of an upload that is open, a key with too many uploads, a manifest that does
  not account for every byte) is left alone.
"""

from collections.abc import Container, Sequence
from enum import Enum

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.ids import PackId, VersionId
from holdfast.index.port import ABSENT, PRESENT, Expect, Row, Transaction
from holdfast.objects import keys, rows
from holdfast.objects.context import Context
from holdfast.objects.heads import dead_puts, not_let_go, target
from holdfast.objects.surveying import Survey, Surveyor
from holdfast.packs.model import Extent, ManifestEntry, pack_row
from holdfast.packs.rows import decode_row

AUDITOR = "audit"
"""The owner of what nobody owned."""

CLOSED_AT_ONCE = 64
PAGE = 1000
CLEANUPS_MAX = 1000
"""With more of them under way, the audit waits: they are done in seconds."""


class Audited(Enum):
    """How looking at a pack ended."""

    BALANCED = "every byte is needed or dead"
    UNSETTLED = "something is under way that cannot be told from garbage yet"
    FOUND = "bytes that nobody owned are dead now"


class AuditReport(Struct, frozen=True):
    """What came of it, and how many bytes were found."""

    ended: Audited
    bytes_found: int = 0


class Auditing:
    """Audits packs, one at a time."""

    def __init__(self, context: Context, clock: Clock) -> None:
        self._context = context
        self._index = context.index
        self._surveyor = Surveyor(context, clock)

    async def audit(self, pack: PackId) -> AuditReport:
        """Look at one pack. Raises PackGone, Unavailable, Damaged."""
        entries = await self._context.packs.manifest(pack)
        survey = await self._surveyor.owners_of(pack, entries)
        needed = survey.needed[pack]
        (row,) = await self._index.get((pack_row(pack),))
        if row is None or await self._unowned(pack, row, needed) <= 0:
            return AuditReport(Audited.BALANCED)
        if not survey.complete or sum(one.length for one in entries) != decode_row(row.value).object_bytes:
            return AuditReport(Audited.UNSETTLED)
        if not await self._close(pack, entries, survey):
            return AuditReport(Audited.UNSETTLED)
        if await self._is_being_cleaned_up({(entry.bucket, entry.key) for entry in entries}):
            return AuditReport(Audited.UNSETTLED)
        found = await self._take(pack, needed)
        return AuditReport(Audited.FOUND if found else Audited.UNSETTLED, found)

    async def _is_being_cleaned_up(self, names: Container[tuple[str, str]]) -> bool:
        """Whether bytes of one of these keys are being let go. One that gets stuck (its table cannot be read)
        keeps only the packs of its own key from being audited. What shares bytes lets none go."""
        found = await self._index.scan(
            keys.CLEANUPS, keys.after_prefix(keys.CLEANUPS), limit=CLEANUPS_MAX + 1
        )
        for item in found:
            assert isinstance(item, Row)
            cleanup = rows.decode_cleanup(item.value)
            if cleanup.shared:
                continue
            if not cleanup.bucket or (cleanup.bucket, cleanup.key) in names:
                return True
        return len(found) > CLEANUPS_MAX

    async def _close(self, pack: PackId, entries: Sequence[ManifestEntry], survey: Survey) -> bool:
        """See to it that nobody comes any more for the pieces that nobody needs; whether that is so."""
        live = survey.extents()
        open_: dict[str, ManifestEntry] = {}
        coming: list[str] = []
        for entry in entries:
            if Extent(pack, entry.offset, entry.length) in live:
                continue
            if not entry.part:
                open_[entry.version] = entry
            elif survey.uploads_of(entry):
                coming.append(entry.version)
        for start in range(0, len(coming), CLOSED_AT_ONCE):
            parts = coming[start : start + CLOSED_AT_ONCE]
            if None in await self._index.get([keys.dead_row(pack, part) for part in parts]):
                return False  # it may still become one of an upload that is open
        owners = list(open_)
        for start in range(0, len(owners), CLOSED_AT_ONCE):
            some = owners[start : start + CLOSED_AT_ONCE]
            there = await self._index.get([keys.dead_row(pack, owner) for owner in some])
            wanted = [owner for owner, row in zip(some, there, strict=True) if row is None]
            changes = [self._closing(pack, open_[owner], survey) for owner in wanted]
            if changes and not all(one.committed for one in await self._context.committer.decide(changes)):
                return False
        return True

    def _closing(self, pack: PackId, entry: ManifestEntry, survey: Survey) -> Transaction:
        head = target(entry.bucket, entry.key).head_row
        expects = (
            Expect(head, survey.heads.get(head, ABSENT)),
            Expect(pack_row(pack), PRESENT),
            *not_let_go((pack,), entry.version),
        )
        # The cause is the version itself: so its writer, should there be one, is told that it failed.
        return Transaction(expects, dead_puts({pack: 0}, entry.version, entry.version))

    async def _unowned(self, pack: PackId, row: Row, needed: int) -> int:
        """Bytes that are neither needed nor dead."""
        dead = sum(rows.decode_dead(item.value).size for item in await self._dead(pack))
        return decode_row(row.value).object_bytes - needed - dead

    async def _take(self, pack: PackId, needed: int) -> int:
        """Record what nobody owns as dead; how many bytes."""
        (row,) = await self._index.get((pack_row(pack),))
        if row is None:
            return 0
        name = keys.dead_row(pack, VersionId(AUDITOR))
        dead, before, revision = 0, 0, ABSENT
        for item in await self._dead(pack):
            size = rows.decode_dead(item.value).size
            dead += size
            if item.key == name:
                before, revision = size, item.revision
        found = decode_row(row.value).object_bytes - needed - dead
        if found <= 0:
            return 0
        change = Transaction(
            (Expect(pack_row(pack), PRESENT), Expect(name, revision)),
            dead_puts({pack: before + found}, AUDITOR, AUDITOR),
        )
        decided = await self._context.committer.decide_one(change)
        return found if decided.committed else 0

    async def _dead(self, pack: PackId) -> list[Row]:
        prefix = b"dead/" + pack.hex().encode() + b"/"
        start, found = prefix, list[Row]()
        while True:
            page = await self._index.scan(start, keys.after_prefix(prefix), limit=PAGE)
            found += [item for item in page if isinstance(item, Row)]
            if len(page) < PAGE:
                return found
            start = page[-1].key + b"\0"
