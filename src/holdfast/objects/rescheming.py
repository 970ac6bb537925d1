"""Buckets that change their scheme: what each pack should be promised, now that its pieces' buckets want
something else.

A pack is shared by the objects of all buckets that had one scheme when it was written; so after a change it
may hold pieces of buckets that want different ones. Who needs a pack is asked of the rows
(`holdfast.objects.surveying`). What must hold: no pack is ever promised less than a bucket with a piece in it
has a right to: a pack of one scheme gets that, a mixed one keeps the strongest, and what wants another is
moved out of it, into packs of its own.
"""

from collections.abc import Mapping

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.ids import PackId
from holdfast.index.port import Row
from holdfast.objects import keys, rows
from holdfast.objects.context import Context
from holdfast.objects.moving import Moving
from holdfast.objects.surveying import Surveyor
from holdfast.packs.errors import PackGone
from holdfast.packs.model import PACK_BYTES_MAX
from holdfast.scheme import Scheme

PAGE = 500


class Decision(Struct, frozen=True):
    """The promise of a pack, and the buckets whose pieces leave it, by the scheme that they want."""

    promised: Scheme
    leaving: Mapping[Scheme, frozenset[str]] = {}


def decide(now: Scheme, wanted: Mapping[str, Scheme], *, divisible: bool) -> Decision:
    """What becomes of a pack with the promise `now`, in which the buckets of `wanted` have pieces. One that
    is not `divisible` cannot be divided. Pure."""
    schemes = set(wanted.values())
    if not schemes:
        return Decision(now)
    # The most redundant, then the one that takes least space; what it has already, if that is as good.
    best = max(schemes, key=lambda scheme: (scheme.m, scheme == now, scheme.k))
    if not divisible:
        return Decision(best)
    leaving = {
        scheme: frozenset(bucket for bucket, wants in wanted.items() if wants == scheme)
        for scheme in sorted(schemes - {best}, key=lambda scheme: scheme.name)
    }
    return Decision(best, leaving)


class Rescheming:
    """Looks at packs, one at a time."""

    def __init__(self, context: Context, clock: Clock) -> None:
        self._context = context
        self._index = context.index
        self._surveyor = Surveyor(context, clock)
        self._moving = Moving(context, clock)
        self._clock = clock

    async def marks(self) -> dict[bytes, int]:
        """The buckets whose packs have to be looked at: their mark and its revision."""
        found = await self._index.scan(keys.RESCHEMES, keys.after_prefix(keys.RESCHEMES), limit=PAGE)
        return {row.key: row.revision for row in found if isinstance(row, Row)}

    async def schemes(self) -> dict[str, Scheme]:
        """What each bucket wants now."""
        found: dict[str, Scheme] = {}
        start, end = keys.BUCKETS, keys.after_prefix(keys.BUCKETS)
        while True:
            page = [row for row in await self._index.scan(start, end, limit=PAGE) if isinstance(row, Row)]
            for row in page:
                found[row.key.removeprefix(keys.BUCKETS).decode()] = rows.decode_bucket(row.value).scheme
            if len(page) < PAGE:
                return found
            start = page[-1].key + b"\0"

    async def decide(self, pack: PackId, now: Scheme) -> Decision:
        """What becomes of a pack, by what its buckets want at this moment: one may have been made, or want
        more, since somebody began to look at all packs. Raises what reading its manifest raises."""
        survey = await self._surveyor.survey([pack])
        buckets = {claim.where.bucket for claim in (*survey.owners, *survey.sharers)}
        buckets |= {upload.where.bucket for upload in survey.uploads}
        divisible = pack in survey.needed and survey.complete
        if not divisible:
            buckets |= await self._named(pack)
        names = sorted(buckets)
        found = await self._index.get([keys.bucket_row(name) for name in names])
        wanted = {
            name: rows.decode_bucket(row.value).scheme
            for name, row in zip(names, found, strict=True)
            if row is not None
        }
        return decide(now, wanted, divisible=divisible)

    async def _named(self, pack: PackId) -> set[str]:
        """All buckets that a pack may have to do with, dead pieces and all."""
        try:
            named = {entry.bucket for entry in await self._context.packs.manifest(pack)}
        except PackGone:
            return set()
        start, end = b"share/" + pack.hex().encode() + b"/", b""
        end = keys.after_prefix(start)
        while True:
            page = [row for row in await self._index.scan(start, end, limit=PAGE) if isinstance(row, Row)]
            named |= {rows.decode_share(row.value).bucket for row in page}
            if len(page) < PAGE:
                return named
            start = page[-1].key + b"\0"

    async def divide(self, pack: PackId, leaving: Mapping[Scheme, frozenset[str]]) -> bool:
        """Move the pieces of some buckets out of a pack; whether all went."""
        refused = 0
        for scheme, buckets in leaving.items():
            report = await self._moving.move({pack: 2 * PACK_BYTES_MAX}, scheme, only=buckets)
            refused += report.refused + len(report.untouched)
        return refused == 0
