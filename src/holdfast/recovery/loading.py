"""Reading what was kept of an index: the newest snapshot that its journal makes whole, and the journal.

What must hold: every change is applied that can be reached without a gap, in order, and nothing behind a
gap; the chain of hashes says so, not names alone. Where it ends, and why, is told.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.errors import HoldfastError, InvalidInput, Unavailable
from holdfast.base.ids import StoreId
from holdfast.index.port import Change
from holdfast.packs.named import FoundNames, read_found
from holdfast.recovery.format import (
    Head,
    Piece,
    chain_at,
    decode_head,
    decode_page,
    decode_piece,
    first_chain,
)
from holdfast.recovery.names import Lineage, PieceName, SnapshotName, kept_of, lineages_of, path_from
from holdfast.recovery.scratch import Scratch
from holdfast.stores.port import Store

WINDOW_MS = 60_000
"""How long before the journal's end a pack may have been begun that was committed behind it."""

_HEADS = b"head/"


class Loaded(Struct, frozen=True):
    """What was loaded. `revision` is that of the last change; `written_ms` when the last piece was written
    (0: none was). `window` is the revision before which nothing was begun that was committed after the
    journal's end; `changed` are the heads that the journal changed since then, and when. `gap` says what
    lies behind the end and could not be reached."""

    lineage: Lineage
    ancestors: tuple[str, ...]
    snapshot: SnapshotName | None
    head: Head | None
    pieces: int
    revision: int
    written_ms: int
    window: int
    changed: Mapping[bytes, int]
    gap: str
    passed_over: tuple[str, ...]
    later: frozenset[str] = frozenset()
    """Incarnations that were made from this index and lost before their first snapshot: all that was begun
    under them was begun behind the journal's end."""


def newest_lineage(names: FoundNames, wanted: str) -> Lineage:
    """The index to make again: the newest that left anything, or the one whose incarnation begins with
    `wanted`. Raises Unavailable when there is none, InvalidInput when it is not clear which."""
    found = [one for one in lineages_of(names.names) if one.incarnation.startswith(wanted)]
    if not found:
        raise Unavailable(
            "No snapshot and no journal of an index was found on these stores"
            + (f" whose incarnation begins with {wanted!r}." if wanted else "."),
            hint="Name more of the stores: any but as many as the scheme can lose are enough.",
        )
    equals = [one for one in found if one.number == found[0].number]
    if len(equals) > 1:
        listed = ", ".join(one.incarnation for one in equals)
        raise InvalidInput(
            f"{len(equals)} indexes say that they are the newest: {listed}.",
            hint="Say which one with --incarnation.",
        )
    return found[0]


async def load(
    stores: Mapping[StoreId, Store],
    names: FoundNames,
    lineage: Lineage,
    scratch: Scratch,
    tell: Callable[[str], None],
) -> Loaded:
    """Fill `scratch`. Raises Unavailable or Damaged when no snapshot can be read whole."""
    kept = kept_of(names.names, lineage)
    passed_over: list[str] = []
    error: HoldfastError = Unavailable(
        f"No whole snapshot of index {lineage.incarnation} was found, and its journal does not begin at 0.",
        hint="Name more of the stores.",
    )
    for snapshot in (*kept.snapshots, None):
        loading = _Loading(stores, names, lineage, scratch, tell)
        try:
            if not await loading.begin(snapshot, list(kept.pieces)):
                continue
            later = [one for one in lineages_of(names.names) if one.number > lineage.number]
            loaded = await loading.follow(tuple(passed_over))
            return replace(loaded, later=frozenset(one.incarnation for one in later))
        except HoldfastError as raised:
            error = raised
            what = snapshot.head if snapshot else "the journal from its beginning"
            passed_over.append(f"{what}: {raised}")
            tell(f"passed over {what}: {raised}")
    raise error


def follow_log(
    scratch: Scratch, loaded: Loaded, changes: Iterable[Change]
) -> tuple[Loaded, int, HoldfastError | None]:
    """Go on where the journal ends, with what a member of the index's log still has. Answers what is loaded
    then, how many changes there were, and what ended it early. What lies behind a gap is not used."""
    revision, count = loaded.revision, 0
    changed = dict(loaded.changed)
    error: HoldfastError | None = None
    try:
        for change in changes:
            if change.revision <= revision:
                continue
            if change.revision != revision + 1:
                break
            scratch.apply(*change)
            changed |= _heads_of(*change)
            revision = change.revision
            count += 1
    except HoldfastError as raised:
        error = raised  # what came before it is right all the same
    return replace(loaded, revision=revision, changed=changed), count, error


class _Loading:
    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        names: FoundNames,
        lineage: Lineage,
        scratch: Scratch,
        tell: Callable[[str], None],
    ) -> None:
        self._stores = stores
        self._names = names
        self._lineage = lineage
        self._scratch = scratch
        self._tell = tell
        self._snapshot: SnapshotName | None = None
        self._head: Head | None = None
        self._pieces: list[PieceName] = []
        self._all: tuple[PieceName, ...] = ()
        self._recent: deque[tuple[int, int, dict[bytes, int]]] = deque()
        self._window: int | None = None
        self._began = 0
        self._unread: list[str] = []

    async def begin(self, snapshot: SnapshotName | None, pieces: list[PieceName]) -> bool:
        """Read the snapshot's pages; None stands for an index at its very beginning. False when there is
        nothing to begin with."""
        self._snapshot, self._pieces, self._all = snapshot, pieces, tuple(pieces)
        self._scratch.clear()
        if snapshot is None:
            return bool(path_from(pieces, 0))
        head = decode_head(await self._read(snapshot.head), snapshot)
        path = path_from(pieces, head.since)
        reach = path[-1].after if path else head.since
        if reach < head.through:
            raise Unavailable(f"The journal behind it ends at {reach}, before {head.through}.")
        self._tell(f"reading a snapshot of {head.rows:,} rows, {head.size:,} bytes")
        rows = 0
        for number in range(head.pages):
            page = decode_page(await self._read(snapshot.page(number)), snapshot, number)
            self._scratch.put_rows(page)
            rows += len(page)
        if rows != head.rows:
            raise Unavailable(f"It has {rows} rows, and its head says {head.rows}.")
        self._head = head
        return True

    async def follow(self, passed_over: tuple[str, ...]) -> Loaded:
        """Apply the journal, as far as it goes."""
        head = self._head
        at = head.since if head else 0
        chain = head.chain if head else first_chain(self._lineage.incarnation, 0)
        written_ms = head.written_ms if head else 0
        used = 0
        while path := path_from(self._pieces, at):
            name = path[0]
            try:
                piece = decode_piece(await self._read(str(name)), name)
                if chain_at(piece, at) != chain:
                    raise Unavailable("It does not follow from what was before.")
            except HoldfastError as error:
                self._unread.append(f"{name}: {error}")
                self._pieces.remove(name)
                continue
            self._apply(piece, at)
            at, chain, written_ms = piece.after, piece.chain_after, piece.written_ms
            used += 1
        if head is not None and at < head.through:
            raise Unavailable(f"The journal behind it can be read up to {at}, and it needs {head.through}.")
        behind = [str(piece) for piece in self._pieces if piece.after > at]
        gap = ""
        if behind or self._unread:
            first = min((piece.before for piece in self._pieces if piece.after > at), default=at)
            gap = (
                f"after revision {at}: {len(behind)} pieces from {first} on follow from nothing that is left"
            )
            if self._unread:
                gap += f"; could not be read: {'; '.join(self._unread)}"
        if self._window is None and head is not None:
            await self._look_back(head.since, written_ms)
        changed: dict[bytes, int] = {}
        for *_, heads in self._recent:
            changed.update(heads)
        return Loaded(
            self._lineage,
            head.ancestors if head else (),
            self._snapshot,
            head,
            used,
            at,
            written_ms,
            max(self._window or 0, self._began),
            changed,
            gap,
            passed_over,
        )

    def _apply(self, piece: Piece, at: int) -> None:
        heads: dict[bytes, int] = {}
        for revision, puts, deletes in piece.changes:
            if revision > at:
                self._scratch.apply(revision, puts, deletes)
                heads |= _heads_of(revision, puts, deletes)
        self._recent.append((piece.after, piece.written_ms, heads))
        self._began = max(self._began, piece.began)
        while len(self._recent) > 1 and self._recent[0][1] <= piece.written_ms - WINDOW_MS:
            self._window = self._recent.popleft()[0]

    async def _look_back(self, since: int, written_ms: int) -> None:
        """The window reaches back beyond the snapshot: read pieces that it made superfluous, where they are
        still there, for what they changed."""
        self._window = since
        for name in sorted(self._all, key=lambda name: -name.after):
            if name.after > self._window or name.after <= self._began:
                continue
            try:
                piece = decode_piece(await self._read(str(name)), name)
            except HoldfastError:
                return  # then the window is shorter, and more is left alone
            if piece.written_ms <= written_ms - WINDOW_MS or piece.after != self._window:
                return
            heads: dict[bytes, int] = {}
            for change in piece.changes:
                heads |= _heads_of(*change)
            self._recent.appendleft((piece.after, piece.written_ms, heads))
            self._window = piece.before
            self._began = max(self._began, piece.began)

    async def _read(self, name: str) -> bytes:
        return await read_found(self._stores, name, self._names)


def _heads_of(
    revision: int, puts: tuple[tuple[bytes, bytes], ...], deletes: tuple[bytes, ...]
) -> dict[bytes, int]:
    keys = (*(key for key, _ in puts), *deletes)
    return {key: revision for key in keys if key.startswith(_HEADS)}
