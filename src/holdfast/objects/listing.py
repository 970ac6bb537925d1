"""ListObjects and ListMultipartUploads.

A listing of objects is one scan of head rows, of which only the listed fields are decoded. What must hold:
entries come in the order of their UTF-8 bytes, each once; what follows `after` follows it in that order,
and after a common prefix (or a key inside one) comes what lies behind that prefix.
"""

from holdfast.base.ids import UploadId
from holdfast.index.port import Prefix
from holdfast.objects import keys, rows
from holdfast.objects.context import Context
from holdfast.objects.model import LISTING_MAX, ListedObject, Listing, ListObjects, Upload, UploadListing
from holdfast.objects.rows import UploadRow


def start_after(base: bytes, prefix: bytes, delimiter: bytes, after: bytes) -> bytes:
    """The first row key that a listing continues at: `base` is what all rows of the bucket begin with."""
    if delimiter and after.startswith(prefix):
        at = after.find(delimiter, len(prefix))
        if at >= 0:
            return keys.after_prefix(base + after[: at + len(delimiter)])
    # The least key greater than `after` is `after` with a NUL, whether such a key is possible or not.
    return base + after + b"\0"


class Listings:
    """Lists what is in a bucket."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def objects(self, listing: ListObjects) -> Listing:
        """One page. Raises NoSuchBucket."""
        context = self._context
        (bucket,) = await context.index.get((keys.bucket_row(listing.bucket),))
        context.heads.bucket(listing.bucket, bucket)
        limit = min(listing.limit, LISTING_MAX)
        if limit <= 0:
            return Listing((), False, "")
        base = keys.heads(listing.bucket)
        prefix = keys.encode_text(listing.prefix)
        delimiter = keys.encode_text(listing.delimiter)
        start = base + prefix
        if listing.after:
            rolled = b"" if listing.cut_off else delimiter
            start = max(start, start_after(base, prefix, rolled, keys.encode_text(listing.after)))
        end = keys.after_prefix(base + prefix)
        if start >= end:
            return Listing((), False, "")
        found = await context.index.scan(
            start, end, limit=limit + 1, delimiter=delimiter, skip=len(base) + len(prefix)
        )
        truncated = len(found) > limit
        skip = len(base)
        entries: list[ListedObject | str] = []
        for item in found[:limit]:
            name = item.key[skip:].decode()
            if isinstance(item, Prefix):
                entries.append(name)
                continue
            record = rows.decode_listed(item.value).current
            entries.append(
                ListedObject(
                    name,
                    record.size,
                    record.etag,
                    record.modified_ms,
                    record.checksum,
                    record.storage_class,
                )
            )
        last = found[limit - 1].key[skip:].decode() if truncated else ""
        return Listing(tuple(entries), truncated, last)

    async def uploads(
        self, bucket: str, prefix: str, delimiter: str, after_key: str, after_upload: str, limit: int
    ) -> UploadListing:
        """One page, in (key, upload id) order. Raises NoSuchBucket.

        `after_upload` alone is ignored, as by S3; without it, all uploads of `after_key` are passed over.
        """
        context = self._context
        (row,) = await context.index.get((keys.bucket_row(bucket),))
        context.heads.bucket(bucket, row)
        limit = min(limit, LISTING_MAX)
        if limit <= 0:
            return UploadListing((), False, "", "")
        base = keys.uploads(bucket)
        prefix_, delimiter_ = keys.encode_text(prefix), keys.encode_text(delimiter)
        start = max(
            base + prefix_,
            _uploads_start(base, prefix_, delimiter_, keys.encode_text(after_key), after_upload),
        )
        end = keys.after_prefix(base + prefix_)
        entries: list[Upload | str] = []
        marker = ("", "")
        # The index would find delimiters in upload ids, too, so the rolling up is done here.
        while start < end:
            page = await context.index.scan(start, end, limit=limit + 1 - len(entries))
            for item in page:
                assert not isinstance(item, Prefix)
                if len(entries) == limit:
                    return UploadListing(tuple(entries), True, *marker)
                key, _, upload = item.key[len(base) :].rpartition(b"\0")
                at = key.find(delimiter_, len(prefix_)) if delimiter_ else -1
                if at >= 0:
                    common = key[: at + len(delimiter_)]
                    entries.append(common.decode())
                    marker = (common.decode(), "")
                    start = keys.after_prefix(base + common)
                    break
                entries.append(
                    upload_view(bucket, key.decode(), upload.decode(), rows.decode_upload(item.value))
                )
                marker = (key.decode(), upload.decode())
                start = item.key + b"\0"
            else:
                break
        return UploadListing(tuple(entries), False, "", "")


def _uploads_start(base: bytes, prefix: bytes, delimiter: bytes, key: bytes, upload: str) -> bytes:
    if not key:
        return base
    if delimiter and key.startswith(prefix) and key.find(delimiter, len(prefix)) >= 0:
        return start_after(base, prefix, delimiter, key)
    if upload:
        return base + key + b"\0" + keys.encode_text(upload) + b"\0"
    return base + key + b"\1"


def upload_view(bucket: str, key: str, upload: str, row: UploadRow) -> Upload:
    """An upload as its owner sees it."""
    return Upload(
        bucket, key, UploadId(upload), row.started_ms, row.algorithm, row.full_object, row.storage_class
    )
