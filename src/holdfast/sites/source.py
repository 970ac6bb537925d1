"""The active site, as its standby sees it: rows, commits, and the bytes of packs."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.base.errors import Unavailable
from holdfast.base.ids import PackId
from holdfast.index.port import Change, Committed, Expect, Index, Row, Transaction
from holdfast.packs.errors import PackGone
from holdfast.packs.model import Extent, ManifestEntry, PackRow, PackStorage, debt_row, pack_row
from holdfast.packs.rows import decode_row, promised_scheme
from holdfast.scheme import Scheme
from holdfast.sites.digests import Survey, survey
from holdfast.sites.rows import MARK_ROW, only_rows


class PackCopy(Struct, frozen=True):
    """All of a pack that does not depend on where it lies. `promised` is the scheme that it shall have."""

    promised: Scheme
    object_bytes: int
    payload: list[Buffer]
    entries: tuple[ManifestEntry, ...]


class Source(Protocol):
    """What a standby asks. Every call raises Unavailable when the active cannot answer."""

    async def incarnation(self) -> str:
        """Of the active's index: revisions of another one mean nothing."""
        ...

    async def revision(self) -> int:
        """One that is no less than that of anything that was read before, and that the feed reaches."""
        ...

    def changes(self, after: int) -> AsyncIterator[Change]:
        """As the index port's: InvalidInput when the feed does not reach back so far."""
        ...

    async def page(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        """Rows of one moment in key order; fewer than `limit` at the end."""
        ...

    async def survey(self, start: bytes, end: bytes, limit: int) -> Survey:
        """The digest of about `limit` rows from `start`, or of all up to `end`; see `digests.survey`."""
        ...

    async def pack(self, pack: PackId) -> PackCopy | None:
        """A pack; None when it is gone."""
        ...


class IndexSource:
    """The active within reach: its index and its packs."""

    def __init__(self, index: Index, packs: PackStorage) -> None:
        self._index = index
        self._packs = packs

    async def incarnation(self) -> str:
        """See `Source`."""
        return self._index.status().incarnation

    async def revision(self) -> int:
        """By a commit of its own: what this process knows of the index may be older than what it has read."""
        (found,) = await self._index.get([MARK_ROW])
        number = 0 if found is None else int(found.value) + 1
        expects = (Expect(MARK_ROW, 0 if found is None else found.revision),)
        (outcome,) = await self._index.commit([Transaction(expects, ((MARK_ROW, str(number).encode()),))])
        if not isinstance(outcome, Committed):
            raise Unavailable("The index did not say how far it is.", hint="It is asked again.")
        return outcome.revision

    def changes(self, after: int) -> AsyncIterator[Change]:
        """See `Source`."""
        return self._index.changes(after)

    async def page(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        """See `Source`."""
        return only_rows(await self._index.scan(start, end, limit=limit))

    async def survey(self, start: bytes, end: bytes, limit: int) -> Survey:
        """See `Source`."""
        return await survey(self._index, start, end, limit)

    async def pack(self, pack: PackId) -> PackCopy | None:
        """See `Source`."""
        found, debt = await self._index.get([pack_row(pack), debt_row(pack)])
        if found is None:
            return None
        row: PackRow = decode_row(found.value)
        try:
            entries: Sequence[ManifestEntry] = await self._packs.manifest(pack)
            extent = Extent(pack, 0, row.payload_bytes)
            payload = [piece async for piece in self._packs.read((extent,), 0, row.payload_bytes)]
        except PackGone:
            return None
        return PackCopy(promised_scheme(row, debt), row.object_bytes, payload, tuple(entries))
