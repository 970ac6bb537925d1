"""Manifests younger than the journal: what was acknowledged in its last moment, and what is left alone.

The journal ends a second or so before the index did. Objects that were written in between lie in packs that
no row names, and those packs say what is in them. What must hold:

- a version counts only if its pack was begun when the journal ended or shortly before, and after the key was
  last changed. What a crash or a refusal left behind earlier is not brought back.
- one whose order says that something newer is there counts as well: the key was deleted meanwhile, and counts
  anew from 1, or two wrote at once. It is told; and where its write could have been refused for that, it does
  not count.
- what was moved from another pack was in the index before: it is never a reason to make anything. (Where
  the index has it in a place that is gone, see `recovery.relocating`.)
- it counts only with all of its bytes: every pack that it names has a row, or can be read and gets one.
- what could be meant either way is told, and left as the journal has it. Nothing is given up for that: the
  bytes stay where they are.

Deletions, copies that share bytes, uploads and their parts change rows only, so of those of the last moment
nothing is known here; the report says so.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.errors import Damaged, HoldfastError
from holdfast.base.ids import PackId, StoreId
from holdfast.base.randomness import Randomness
from holdfast.index.port import ABSENT, Row
from holdfast.objects import keys, rows
from holdfast.objects.heads import State, Target, made, mark, packs_of, put_transaction, target
from holdfast.objects.model import VersionRecord
from holdfast.objects.rows import BucketRow, BucketState
from holdfast.packs.found import FoundPack, FoundReader, FoundShard, identify
from holdfast.packs.manifest import Manifest
from holdfast.packs.model import DebtReason, DebtRow, Extent, ManifestEntry, debt_row, pack_row
from holdfast.packs.rows import encode_row
from holdfast.recovery.loading import Loaded
from holdfast.recovery.scratch import Scratch
from holdfast.recovery.surveying import Nameless
from holdfast.scheme import Scheme
from holdfast.stores.port import Store

_encoder = msgspec.msgpack.Encoder()


class Told(Struct, frozen=True):
    """One version, and what became of it."""

    bucket: str
    key: str
    version: str
    why: str = ""


class Applied(Struct):
    """What came of the manifests. `older` are packs without a row that were begun before the window: left
    behind, and found by the search for strays; `unreadable` ones cannot be read from what is there."""

    applied: list[Told] = []
    doubtful: list[Told] = []
    incomplete: list[Told] = []
    buckets_made: list[str] = []
    packs_added: int = 0
    older: int = 0
    unreadable: int = 0
    pieces: int = 0
    relocated: list[Told] = []
    """Versions and parts that were found in the pack that they were moved to."""


class Young(NamedTuple):
    """A pack that was begun within the window."""

    found: FoundPack
    manifest: Manifest
    has_row: bool


class Candidate(NamedTuple):
    """A version that might count. Sorted as they are tried: by when they were begun, then by order."""

    since: int
    order: int
    bucket: str
    key: str
    pack: PackId
    conditional: bool
    record: VersionRecord


async def read_young(
    stores: Mapping[StoreId, Store],
    loaded: Loaded,
    nameless: Sequence[Nameless],
    recent: Sequence[Nameless],
    applied: Applied,
) -> dict[PackId, Young]:
    """Which of these packs were begun within the window, by what they say themselves."""
    young: dict[PackId, Young] = {}
    for has_row, packs in ((False, nameless), (True, recent)):
        for pack, shards in packs:
            found = await _read(stores, pack, shards)
            if found is None:
                applied.unreadable += not has_row
            elif _is_young(found[1], loaded):
                young[pack] = Young(*found, has_row)
            else:
                applied.older += not has_row
    return young


async def _read(
    stores: Mapping[StoreId, Store], pack: PackId, shards: Sequence[FoundShard]
) -> tuple[FoundPack, Manifest] | None:
    for group in await identify(stores, pack, shards):
        try:
            return group, await FoundReader(stores, group).manifest()
        except HoldfastError:
            continue
    return None


def _is_young(manifest: Manifest, loaded: Loaded) -> bool:
    if manifest.incarnation in loaded.later:
        return True
    return manifest.incarnation == loaded.lineage.incarnation and manifest.revision >= loaded.window


def candidates(young: Mapping[PackId, Young], applied: Applied) -> list[Candidate]:
    """The versions that these packs complete, in the order in which they are tried. Pure but for counting
    pieces that complete nothing."""
    found: list[Candidate] = []
    for pack, (_, manifest, has_row) in young.items():
        for entry in manifest.entries:
            if entry.moved:
                continue
            if not entry.record or entry.part:
                applied.pieces += not has_row
                continue
            try:
                record = in_place(rows.decode_record(entry.record), pack)
            except Damaged as error:
                applied.doubtful.append(_told(entry, str(error)))
                continue
            order, at = record.order, manifest.revision
            found.append(Candidate(at, order, entry.bucket, entry.key, pack, entry.conditional, record))
    return sorted(found, key=lambda one: (one.since, one.order, one.record.modified_ms, one.record.version))


def in_place(record: VersionRecord, pack: PackId) -> VersionRecord:
    """With the pack's id where the manifest could not know it."""
    at = record.extents_at
    if at is not None and not at.pack:
        at = Extent(pack, at.offset, at.length)
    extents = tuple(
        Extent(pack, extent.offset, extent.length) if not extent.pack else extent for extent in record.extents
    )
    return replace(record, extents=extents, extents_at=at)


def _told(entry: ManifestEntry, why: str) -> Told:
    return Told(entry.bucket, entry.key, entry.version, why)


class Applier:
    """Tries candidates on the rows, one after the other. `changed_here` are rows that recovery has put anew
    before."""

    def __init__(
        self,
        scratch: Scratch,
        loaded: Loaded,
        young: Mapping[PackId, Young],
        next_revision: Callable[[], int],
        region: str,
        randomness: Randomness,
        changed_here: Iterable[bytes] = (),
    ) -> None:
        self._scratch = scratch
        self._loaded = loaded
        self._young = young
        self._next_revision = next_revision
        self._region = region
        self._randomness = randomness
        self._made = set(changed_here)

    def run(self, found: Sequence[Candidate], applied: Applied) -> None:
        """All of them."""
        for one in found:
            self._try(one, applied)

    def _try(self, one: Candidate, applied: Applied) -> None:
        record = one.record
        told = Told(one.bucket, one.key, record.version)
        where = target(one.bucket, one.key)
        bucket, head, marked = self._scratch.get([where.bucket_row, where.head_row, mark(record)])
        current = None if head is None else rows.decode_head(head.value)
        if marked is not None or made(current, record.version):
            return  # the journal says what became of it
        if lacking := [pack.hex() for pack in packs_of(record) if not self._is_there(pack)]:
            applied.incomplete.append(replace(told, why=f"without pack {', '.join(lacking)}"))
            return
        changed_at = self._changed_at(where.head_row, head)
        if changed_at > one.since:
            why = f"begun at revision {one.since}, and the key was changed at {changed_at}"
            applied.doubtful.append(replace(told, why=why))
            return
        if current is not None and current.order >= record.order:
            # The key was deleted and counts anew, or two wrote at once and it is not known who came last.
            why = f"of order {record.order}, where {current.order} is: after a deletion, or at the same time"
            if one.conditional:
                applied.doubtful.append(replace(told, why=f"{why}; it may have been refused"))
                return
            applied.doubtful.append(replace(told, why=f"{why}; it counts"))
            record = replace(record, order=current.order + 1)
        if bucket is None and one.since < self._loaded.revision:
            applied.doubtful.append(replace(told, why="its bucket is not in the journal"))
            return
        self._apply(one, record, where, bucket, head, applied)
        self._made.add(where.head_row)
        applied.applied.append(told)

    def _changed_at(self, key: bytes, head: Row | None) -> int:
        """The last revision at which the journal says that the key changed; nothing of what is done here."""
        if key in self._made or head is None:
            return self._loaded.changed.get(key, 0)
        return max(head.revision, self._loaded.changed.get(key, 0))

    def _is_there(self, pack: PackId) -> bool:
        (row,) = self._scratch.get([pack_row(pack)])
        return row is not None or (pack in self._young and self._young[pack].found.losses_left >= 0)

    def _apply(
        self,
        one: Candidate,
        record: VersionRecord,
        where: Target,
        bucket: Row | None,
        head: Row | None,
        applied: Applied,
    ) -> None:
        revision = self._next_revision()
        for pack in packs_of(record):
            (row,) = self._scratch.get([pack_row(pack)])
            if row is None:
                self._scratch.apply(revision, pack_rows(pack, self._young[pack], record.scheme), ())
                applied.packs_added += 1
        described = self._bucket(one, record, bucket, revision, applied)
        state = State(
            where,
            described,
            revision if bucket is None else bucket.revision,
            None if head is None else rows.decode_head(head.value),
            ABSENT if head is None else head.revision,
        )
        change = put_transaction(state, rows.encode_record(record), "")
        self._scratch.apply(revision, change.puts, change.deletes)

    def _bucket(
        self, one: Candidate, record: VersionRecord, row: Row | None, revision: int, applied: Applied
    ) -> BucketRow:
        if row is not None:
            found = rows.decode_bucket(row.value)
            if found.state is BucketState.ACTIVE:
                return found
            made_ = replace(found, state=BucketState.ACTIVE)
        else:
            assert record.scheme is not None
            nonce = self._randomness.token(16).hex()
            made_ = BucketRow(rows.FORMAT, record.modified_ms, record.scheme, self._region, nonce)
            applied.buckets_made.append(one.bucket)
        self._scratch.apply(revision, ((keys.bucket_row(one.bucket), rows.encode(made_)),), ())
        return made_


def pack_rows(pack: PackId, young: Young, promised: Scheme | None) -> tuple[tuple[bytes, bytes], ...]:
    """The row of a pack that has none, and its debt, if it lacks some of what was `promised`."""
    found, manifest, _ = young
    row = found.row(sum(entry.length for entry in manifest.entries))
    puts = [(pack_row(pack), encode_row(row))]
    promised = promised or found.scheme
    if found.missing or found.scheme != promised:
        reason = DebtReason.STRAGGLER if found.scheme == promised else DebtReason.STORES_MISSING
        puts.append((debt_row(pack), _encoder.encode(DebtRow(promised, reason, found.missing))))
    return tuple(puts)
