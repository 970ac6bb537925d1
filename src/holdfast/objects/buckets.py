"""Buckets: making, listing, deleting them.

Every object transaction expects its bucket's row at the revision it read. So deletion marks the row
first: from then on whatever was proposed before is refused, and a writer who finds the mark takes it off
and goes on. Then the bucket is looked through, and its row deleted if it still bears that very mark. What
must hold: a bucket that is deleted was empty at that moment; nothing is ever put into a bucket that is
gone; a deletion that crashed half-way leaves a bucket like any other.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from holdfast.base.errors import Busy, InvalidInput, Unavailable
from holdfast.base.ids import is_repeatable
from holdfast.index.port import ABSENT, Expect, Row, Transaction
from holdfast.objects import keys, rows
from holdfast.objects.context import Context
from holdfast.objects.errors import BucketAlreadyOwnedByYou, BucketNotEmpty
from holdfast.objects.model import LISTING_MAX, Bucket
from holdfast.objects.repeats import Overtaken, Try, digest_of, leave
from holdfast.objects.rows import BucketRow, BucketState
from holdfast.objects.surviving import bucket_view
from holdfast.scheme import parse_scheme
from holdfast.topology import parse_survive

_NONCE_BYTES = 8


class Buckets:
    """Makes, shows and deletes buckets."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._heads = context.heads

    async def create(self, name: str, scheme: str | None, tried: Try, survive: str | None = None) -> Bucket:
        """CreateBucket, in a scheme that is named, or that survives what is to be survived. Raises
        InvalidBucketName, InvalidInput for the scheme, BucketAlreadyOwnedByYou."""
        context = self._context
        keys.check_bucket_name(name)
        settings = context.settings
        told = "" if survive is None else parse_survive(survive).name
        if survive is not None:
            if scheme is not None:
                raise InvalidInput(
                    "A bucket has a scheme that is named, or one that is chosen for what it shall survive:",
                    hint="say one of them.",
                )
            resolved = settings.choose_scheme(parse_survive(survive))
        else:
            resolved = parse_scheme(settings.default_scheme if scheme is None else scheme, settings.stores())
            resolved = settings.fit_default(resolved) if scheme is None else resolved
        settings.check_scheme(resolved)
        # A second try knows by the nonce what the first one made.
        nonce = context.randomness.token(_NONCE_BYTES).hex()
        if is_repeatable(tried.request):
            nonce = tried.request
        row = BucketRow(rows.FORMAT, context.now_ms(), resolved, settings.region, nonce, survive=told)
        key = keys.bucket_row(name)
        if digest_of(name) in tried.earned:
            return bucket_view(name, row)  # it was made, and has been deleted since
        expects = (Expect(key, ABSENT), Expect(keys.ended_row(nonce), ABSENT), *tried.expects())
        decided = await context.committer.decide_one(Transaction(expects, ((key, rows.encode(row)),)))
        if not decided.committed:
            if decided.conflict.startswith(keys.REQUESTS):
                raise Overtaken
            (found,) = await context.index.get((key,))
            if found is None and not decided.certain:
                raise Unavailable(
                    "Whether the bucket was made cannot be found out: it is gone again.",
                    hint="Look before you repeat it.",
                    unknown=True,
                )
            if found is None or rows.decode_bucket(found.value).nonce != nonce:
                raise BucketAlreadyOwnedByYou(f"The bucket {name!r} exists and is yours.", bucket=name)
        if not decided.certain:
            await self._mark_unsure(key, row)
        return bucket_view(name, row)

    async def set_scheme(self, name: str, scheme: str) -> Bucket:
        """Have everything in a bucket protected in another way: new objects from now on, what there is by a
        chore, for which a mark is left. Ends what it was told to survive. Raises NoSuchBucket,
        InvalidInput, Busy."""
        settings, committer = self._context.settings, self._context.committer
        resolved = parse_scheme(scheme, settings.stores())
        settings.check_scheme(resolved)
        backoff = committer.backoff(settings.patience.conflict_s)
        key = keys.bucket_row(name)
        while True:
            (found,) = await self._context.index.get((key,))
            row = self._heads.bucket(name, found)
            assert found is not None
            if row.scheme == resolved and not row.survive:
                return bucket_view(name, row)
            puts: tuple[tuple[bytes, bytes], ...] = ((keys.rescheme_row(name), b""),)
            if row.scheme == resolved:
                puts = ()
            row = replace(row, scheme=resolved, survive="", state=BucketState.ACTIVE)
            puts = ((key, rows.encode(row)), *puts)
            change = Transaction((Expect(key, found.revision),), puts)
            if (await committer.decide_one(change)).committed:
                return bucket_view(name, row)
            if not await backoff.wait():
                raise Busy(f"The bucket {name!r} is being changed.", hint="Try again.", bucket=name)

    async def _mark_unsure(self, key: bytes, row: BucketRow) -> None:
        (found,) = await self._context.index.get((key,))
        if found is not None and found.value == rows.encode(row):
            unsure = ((key, rows.encode(replace(row, unsure=True))),)
            await self._context.committer.decide_one(Transaction((Expect(key, found.revision),), unsure))

    async def list(self, prefix: str, after: str, limit: int) -> Sequence[Bucket]:
        """ListBuckets, in name order: those with `prefix`, after `after`, at most `limit`."""
        if limit <= 0:
            return ()
        base = keys.BUCKETS + keys.encode_text(prefix)
        start = max(base, keys.BUCKETS + keys.encode_text(after) + b"\0") if after else base
        end = keys.after_prefix(base)
        if start >= end:
            return ()
        found = await self._context.index.scan(start, end, limit=min(limit, LISTING_MAX * 10))
        return [
            bucket_view(row.key[len(keys.BUCKETS) :].decode(), rows.decode_bucket(row.value))
            for row in found
            if isinstance(row, Row)
        ]

    async def get(self, name: str) -> Bucket:
        """HeadBucket. Raises NoSuchBucket."""
        (row,) = await self._context.index.get((keys.bucket_row(name),))
        return bucket_view(name, self._heads.bucket(name, row))

    async def delete(self, name: str, tried: Try) -> None:
        """DeleteBucket. Raises NoSuchBucket, BucketNotEmpty, Busy."""
        digest = digest_of(name)
        if digest in tried.earned:
            return
        committer = self._context.committer
        backoff = committer.backoff(self._context.settings.patience.conflict_s)
        key = keys.bucket_row(name)
        certain = True
        while True:
            (found,) = await self._context.index.get((key,))
            if found is None and not certain:
                return
            row = self._heads.bucket(name, found)
            assert found is not None
            if not await self._is_empty(name):
                if row.state is BucketState.DELETING:
                    await self._heads.revive(name, row, found.revision)
                raise BucketNotEmpty(f"The bucket {name!r} is not empty.", hint="Delete what is in it.")
            if row.state is BucketState.DELETING:
                # Marked, by us or by a deletion that crashed, and found empty since: nothing that was
                # proposed before the mark can be committed after it.
                ended = ((keys.ended_row(row.nonce), b""),) if row.unsure else ()
                told = (*tried.ended(digest), *leave(row.nonce, digest, None))
                expects = (*tried.expects(), Expect(key, found.revision))
                decided = await committer.decide_one(Transaction(expects, (*ended, *told), (key,)))
                if decided.committed:
                    return
                certain = certain and decided.certain
            else:
                marked = replace(row, state=BucketState.DELETING)
                expects = (*tried.expects(), Expect(key, found.revision))
                mark = Transaction(expects, ((key, rows.encode(marked)),))
                decided = await committer.decide_one(mark)
                if decided.committed:
                    continue
            if decided.conflict.startswith(keys.REQUESTS):
                raise Overtaken
            if not await backoff.wait():
                raise Busy(f"The bucket {name!r} is being written to.", hint="Try again.", bucket=name)

    async def _is_empty(self, name: str) -> bool:
        for prefix in (keys.heads(name), keys.versions(name), keys.uploads(name)):
            if await self._context.index.scan(prefix, keys.after_prefix(prefix), limit=1):
                return False
        return True
