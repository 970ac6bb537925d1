"""Buckets that were told what to survive: their scheme is chosen from the stores there are, and again when
those are others.

The setting is kept in the bucket's row beside the scheme that follows from it. What must hold: a scheme
changes as if a person had changed it, with the mark for the chore that rewrites what is there; a bucket for
which no scheme does it any more keeps the one it has; and who sets a scheme by hand ends the setting.
"""

from msgspec.structs import replace

from holdfast.base.errors import Busy, InvalidInput
from holdfast.index.port import Expect, Row, Transaction
from holdfast.objects import keys, rows
from holdfast.objects.context import Context
from holdfast.objects.model import Bucket
from holdfast.objects.rows import BucketRow, BucketState
from holdfast.topology import Survive, parse_survive

NOTHING = "none"
PAGE = 500


class Surviving:
    """Sets what a bucket survives, and keeps its scheme up to that."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def tell(self, name: str, survive: str) -> Bucket:
        """Have a bucket survive that, from now on; `none` ends it and leaves the scheme. Raises NoSuchBucket,
        InvalidInput with the stores that are missing, Busy."""
        wanted = None if survive == NOTHING else parse_survive(survive)
        return await self._change(name, wanted, again=False)

    async def choose_again(self) -> dict[str, str]:
        """Give each bucket that was told something the scheme that does it now. Answers the buckets for which
        there is none, with why."""
        failed: dict[str, str] = {}
        start, end = keys.BUCKETS, keys.after_prefix(keys.BUCKETS)
        while True:
            found = await self._context.index.scan(start, end, limit=PAGE)
            page = [row for row in found if isinstance(row, Row)]
            for row in page:
                survive = rows.decode_bucket(row.value).survive
                if not survive:
                    continue
                name = row.key.removeprefix(keys.BUCKETS).decode()
                try:
                    await self._change(name, parse_survive(survive), again=True)
                except InvalidInput as error:
                    failed[name] = str(error)
            if len(page) < PAGE:
                return failed
            start = page[-1].key + b"\0"

    async def _change(self, name: str, survive: Survive | None, *, again: bool) -> Bucket:
        """`again` is for a bucket that is told this already, and only as long as it is."""
        context, key = self._context, keys.bucket_row(name)
        backoff = context.committer.backoff(context.settings.patience.conflict_s)
        told = "" if survive is None else survive.name
        while True:
            (found,) = await context.index.get((key,))
            row = context.heads.bucket(name, found)
            assert found is not None
            scheme = row.scheme if survive is None else context.settings.choose_scheme(survive)
            if (scheme, told) == (row.scheme, row.survive) or (again and row.survive != told):
                return bucket_view(name, row)
            changed = replace(row, scheme=scheme, survive=told, state=BucketState.ACTIVE)
            puts = [(key, rows.encode(changed))]
            if scheme != row.scheme:
                puts.append((keys.rescheme_row(name), b""))
            change = Transaction((Expect(key, found.revision),), tuple(puts))
            if (await context.committer.decide_one(change)).committed:
                return bucket_view(name, changed)
            if not await backoff.wait():
                raise Busy(f"The bucket {name!r} is being changed.", hint="Try again.", bucket=name)


def bucket_view(name: str, row: BucketRow) -> Bucket:
    """A bucket as its owner sees it."""
    return Bucket(name, row.created_ms, row.scheme, row.region, row.survive)
