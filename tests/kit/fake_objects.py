"""An ObjectService in a dictionary: small, without durability, and right about what S3 means.

For tests of the faces above. Nothing is shared with the real one, so that either can prove the other wrong.
"""

import base64
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from holdfast.base.checksums import Buffer, ChecksumAlgorithm, combine_crcs, new_hasher, new_md5
from holdfast.base.clock import Clock
from holdfast.base.ids import RequestId, UploadId, VersionId, new_upload_id, new_version_id
from holdfast.base.randomness import SeededRandomness
from holdfast.objects import errors as e
from holdfast.objects import model as m
from holdfast.packs.model import Receipt
from holdfast.scheme import Scheme, parse_scheme

UNNAMED = RequestId("")

SCHEME = Scheme(4, 2)
RECEIPT = Receipt(SCHEME, 6, 6, {"store": 2}, False)
PIECE = 1 << 20
Digests = tuple[bytes, str, m.Checksum]


@dataclass
class Stored:
    record: m.VersionRecord
    data: bytes


@dataclass
class Upload:
    upload: m.Upload
    create: m.CreateUpload
    parts: dict[int, tuple[m.ListedPart, bytes]] = field(default_factory=dict)


class FakeObjects:
    """Buckets in memory. `failure`, when set, is raised by every call on a key that contains `fail`."""

    def __init__(self, clock: Clock, region: str = "us-east-1") -> None:
        self._clock = clock
        self._randomness = SeededRandomness("fake")
        self._region = region
        self.buckets: dict[str, m.Bucket] = {}
        self.objects: dict[str, dict[str, Stored]] = {}
        self.uploads: dict[UploadId, Upload] = {}
        self.failure: Exception | None = None
        self.break_after: int | None = None

    def _now_ms(self) -> int:
        return int(self._clock.wall() * 1000)

    async def create_bucket(
        self,
        name: str,
        scheme: str | None,
        request: RequestId = UNNAMED,
        tries: int = 1,
        survive: str | None = None,
    ) -> m.Bucket:
        if name in self.buckets:
            raise e.BucketAlreadyOwnedByYou("The bucket exists.")
        parsed = parse_scheme(scheme, 6) if scheme else SCHEME
        bucket = self.buckets[name] = m.Bucket(name, self._now_ms(), parsed, self._region, survive or "")
        self.objects[name] = {}
        return bucket

    async def list_buckets(self, prefix: str, after: str, limit: int) -> Sequence[m.Bucket]:
        names = sorted(name for name in self.buckets if name.startswith(prefix) and name > after)
        return [self.buckets[name] for name in names[:limit]]

    async def get_bucket(self, name: str) -> m.Bucket:
        if name not in self.buckets:
            raise e.NoSuchBucket("There is no such bucket.")
        return self.buckets[name]

    async def delete_bucket(self, name: str, request: RequestId = UNNAMED, tries: int = 1) -> None:
        await self.get_bucket(name)
        if self.objects[name]:
            raise e.BucketNotEmpty("The bucket holds objects.")
        del self.buckets[name], self.objects[name]

    def _keys(self, bucket: str) -> dict[str, Stored]:
        if bucket not in self.objects:
            raise e.NoSuchBucket("There is no such bucket.")
        return self.objects[bucket]

    def _find(self, bucket: str, key: str, version: VersionId | None = None) -> Stored:
        if self.failure is not None and "fail" in key:
            raise self.failure
        found = self._keys(bucket).get(key)
        if version is not None and (found is None or found.record.version != version):
            raise e.NoSuchVersion("There is no such version.")
        if found is None:
            raise e.NoSuchKey("There is no such key.")
        return found

    async def put_object(self, put: m.PutObject) -> m.Stored:
        if self.failure is not None and "fail" in put.key:
            raise self.failure
        self._keys(put.bucket)
        self._check_write(put.bucket, put.key, put.conditions)
        data, etag, checksum = await _take(put.body, put.body.algorithm or ChecksumAlgorithm.CRC64NVME)
        self._check_write(put.bucket, put.key, put.conditions)
        return self._store(
            put.bucket, put.key, data, etag, checksum, put.headers, put.metadata, put.storage_class
        )

    def _check_write(self, bucket: str, key: str, conditions: m.Conditions) -> None:
        found = self._keys(bucket).get(key)
        if conditions.if_none_match and found is not None:
            raise e.PreconditionFailed("It exists.", condition="If-None-Match")
        if conditions.if_match is not None:
            if found is None:
                raise e.NoSuchKey("There is no such key.")
            if not _matches(conditions.if_match, found.record.etag):
                raise e.PreconditionFailed("It is another.", condition="If-Match")

    def _store(
        self,
        bucket: str,
        key: str,
        data: bytes,
        etag: str,
        checksum: m.Checksum | None,
        headers: m.ContentHeaders,
        metadata: tuple[tuple[str, str], ...],
        storage_class: str,
        parts: tuple[m.PartInfo, ...] = (),
    ) -> m.Stored:
        record = m.VersionRecord(
            version=new_version_id(self._randomness),
            order=1,
            size=len(data),
            etag=etag,
            modified_ms=self._now_ms(),
            headers=headers,
            metadata=metadata,
            checksum=checksum,
            extents=(),
            parts=parts,
            storage_class=storage_class,
        )
        self._keys(bucket)[key] = Stored(record, data)
        return m.Stored(etag, checksum, len(data), record.modified_ms, record.version, RECEIPT)

    async def read_object(self, read: m.ReadObject) -> m.ObjectView:
        view = await self.head_object(read)
        data = self._find(read.bucket, read.key).data[view.first : view.first + view.length]
        if len(data) <= 128 << 10:
            return _view(view, data, None)
        break_after = self.break_after

        async def pieces() -> AsyncIterator[Buffer]:
            for at in range(0, len(data), PIECE):
                if break_after is not None and at >= break_after:
                    raise e.TooBusy("The rest is not to be had.")
                yield data[at : at + PIECE]

        return _view(view, None, pieces)

    async def head_object(self, read: m.ReadObject) -> m.ObjectView:
        record = self._find(read.bucket, read.key, read.version).record
        _check_read(record, read.conditions)
        if read.part is not None:
            sizes = [part.size for part in record.parts] or [record.size]
            if read.part > len(sizes):
                raise e.InvalidPartNumber("There is no such part.")
            first = sum(sizes[: read.part - 1])
            return m.ObjectView(record, first, sizes[read.part - 1], True, part_count=len(record.parts))
        if read.range_ is None:
            return m.ObjectView(record, 0, record.size, False, part_count=len(record.parts))
        first, length = _resolve(read.range_, record.size)
        return m.ObjectView(record, first, length, True, part_count=len(record.parts))

    async def delete_objects(
        self, bucket: str, keys: Sequence[m.DeleteKey], request: RequestId, tries: int = 1
    ) -> Sequence[m.DeleteResult]:
        found = self._keys(bucket)
        results = []
        for key in keys:
            error: Exception | None = None
            stored = found.get(key.key)
            if key.if_match is not None and stored is None:
                error = e.NoSuchKey("There is no such key.")
            elif stored and key.if_match is not None and not _matches(key.if_match, stored.record.etag):
                error = e.PreconditionFailed("It is another.", condition="If-Match")
            elif key.version in {None, stored.record.version if stored else None}:
                found.pop(key.key, None)
            results.append(m.DeleteResult(key.key, key.version, error=error))
        return results

    async def copy_object(self, copy: m.CopyObject) -> m.Stored:
        source = self._find(copy.source_bucket, copy.source_key, copy.source_version)
        _check_copy(source.record, copy.source_conditions)
        self._check_write(copy.bucket, copy.key, copy.conditions)
        old = source.record.checksum
        algorithm = copy.algorithm or (old.algorithm if old else ChecksumAlgorithm.CRC64NVME)
        etag, checksum = _digests(source.data, algorithm)
        return self._store(
            copy.bucket,
            copy.key,
            source.data,
            etag,
            checksum,
            copy.headers if copy.replace else source.record.headers,
            copy.metadata if copy.replace else source.record.metadata,
            copy.storage_class,
        )

    async def list_objects(self, listing: m.ListObjects) -> m.Listing:
        found = self._keys(listing.bucket)
        after = listing.after
        if listing.cut_off:
            found, after = {key: one for key, one in found.items() if key.encode() > after.encode()}, ""
        names = _roll_up(sorted(found, key=str.encode), listing.prefix, listing.delimiter, after)
        page = names[: listing.limit]
        return m.Listing(
            tuple(_listed(name, found[name].record) if not rolled else name for name, rolled in page),
            len(names) > listing.limit,
            page[-1][0] if page else "",
        )

    async def create_upload(self, create: m.CreateUpload) -> m.Upload:
        self._keys(create.bucket)
        upload = m.Upload(
            create.bucket,
            create.key,
            new_upload_id(self._randomness),
            self._now_ms(),
            create.algorithm,
            create.full_object,
            create.storage_class,
        )
        self.uploads[upload.upload] = Upload(upload, create)
        return upload

    def _upload(self, bucket: str, key: str, upload: UploadId) -> Upload:
        self._keys(bucket)
        found = self.uploads.get(upload)
        if found is None or (found.upload.bucket, found.upload.key) != (bucket, key):
            raise e.NoSuchUpload("There is no such upload.")
        return found

    async def upload_part(self, part: m.UploadPart) -> m.Stored:
        upload = self._upload(part.bucket, part.key, part.upload)
        wanted = part.body.algorithm or upload.upload.algorithm or ChecksumAlgorithm.CRC64NVME
        data, etag, checksum = await _take(part.body, wanted)
        return self._add_part(upload, part.number, data, etag, checksum)

    def _add_part(
        self, upload: Upload, number: int, data: bytes, etag: str, checksum: m.Checksum
    ) -> m.Stored:
        listed = m.ListedPart(number, len(data), etag, self._now_ms(), checksum)
        upload.parts[number] = (listed, data)
        return m.Stored(etag, checksum, len(data), listed.modified_ms, None, RECEIPT)

    async def copy_part(self, copy: m.CopyPart) -> m.Stored:
        upload = self._upload(copy.bucket, copy.key, copy.upload)
        source = self._find(copy.source_bucket, copy.source_key, copy.source_version)
        _check_copy(source.record, copy.source_conditions)
        data = source.data
        if copy.range_ is not None:
            if copy.range_[1] >= len(data):
                raise e.InvalidRange("The range is outside.", size=len(data))
            data = data[copy.range_[0] : copy.range_[1] + 1]
        etag, checksum = _digests(data, upload.upload.algorithm or ChecksumAlgorithm.CRC64NVME)
        return self._add_part(upload, copy.number, data, etag, checksum)

    async def complete_upload(self, complete: m.CompleteUpload) -> m.Stored:
        upload = self._upload(complete.bucket, complete.key, complete.upload)
        self._check_write(complete.bucket, complete.key, complete.conditions)
        chosen: list[tuple[m.ListedPart, bytes]] = []
        for wanted in complete.parts:
            found = upload.parts.get(wanted.number)
            if found is None or found[0].etag != wanted.etag:
                raise e.InvalidPart("There is no such part.")
            if wanted.checksum is not None and wanted.checksum != found[0].checksum:
                raise e.InvalidPart("The part has another checksum.")
            chosen.append(found)
        if any(part.size < m.PART_BYTES_MIN for part, _ in chosen[:-1]):
            raise e.EntityTooSmall("A part is too small.")
        data = b"".join(piece for _, piece in chosen)
        if complete.size is not None and complete.size != len(data):
            raise e.InvalidRequest("The size is another.")
        md5 = new_md5()
        md5.update(b"".join(bytes.fromhex(part.etag) for part, _ in chosen))
        checksum = _whole_checksum(upload.upload, [part for part, _ in chosen])
        if complete.checksum is not None and complete.checksum != checksum:
            raise e.BadDigest("The checksum is another.", digest="checksum")
        create = upload.create
        del self.uploads[complete.upload]
        return self._store(
            complete.bucket,
            complete.key,
            data,
            f"{md5.digest().hex()}-{len(chosen)}",
            checksum,
            create.headers,
            create.metadata,
            create.storage_class,
            tuple(m.PartInfo(n + 1, part.size, part.checksum) for n, (part, _) in enumerate(chosen)),
        )

    async def abort_upload(
        self, bucket: str, key: str, upload: UploadId, request: RequestId = UNNAMED, tries: int = 1
    ) -> None:
        self._upload(bucket, key, upload)
        del self.uploads[upload]

    async def list_parts(
        self, bucket: str, key: str, upload: UploadId, after: int, limit: int
    ) -> m.PartListing:
        found = self._upload(bucket, key, upload)
        numbers = sorted(number for number in found.parts if number > after)
        page = tuple(found.parts[number][0] for number in numbers[:limit])
        return m.PartListing(found.upload, page, len(numbers) > limit, page[-1].number if page else 0)

    async def list_uploads(
        self, bucket: str, prefix: str, delimiter: str, after_key: str, after_upload: str, limit: int
    ) -> m.UploadListing:
        self._keys(bucket)
        found = sorted(
            (u.upload for u in self.uploads.values() if u.upload.bucket == bucket),
            key=lambda u: (u.key, u.started_ms, u.upload),
        )
        entries: list[m.Upload | str] = []
        for upload in found:
            if not upload.key.startswith(prefix) or upload.key < after_key:
                continue
            if upload.key == after_key and (not after_upload or upload.upload <= after_upload):
                continue
            at = upload.key.find(delimiter, len(prefix)) if delimiter else -1
            if at < 0:
                entries.append(upload)
            elif upload.key[: at + len(delimiter)] not in entries:
                entries.append(upload.key[: at + len(delimiter)])
        page = tuple(entries[:limit])
        last = page[-1] if page else ""
        key, name = (last, "") if isinstance(last, str) else (last.key, last.upload)
        return m.UploadListing(page, len(entries) > limit, key, name)


def _view(
    view: m.ObjectView, whole: bytes | None, body: Callable[[], AsyncIterator[Buffer]] | None
) -> m.ObjectView:
    return m.ObjectView(
        view.record, view.first, view.length, view.partial, whole, body, part_count=view.part_count
    )


async def _take(body: m.Body, algorithm: ChecksumAlgorithm) -> tuple[bytes, str, m.Checksum]:
    data = b"".join([bytes(piece) async for piece in body])
    expected = body.expected()
    etag, checksum = _digests(data, algorithm)
    if expected.md5 is not None and expected.md5.hex() != etag:
        raise e.BadDigest("The MD5 is another.", digest="Content-MD5")
    if expected.checksum is not None and expected.checksum != checksum:
        raise e.BadDigest("The checksum is another.", digest=algorithm.value)
    return data, etag, checksum


def _digests(data: bytes, algorithm: ChecksumAlgorithm) -> tuple[str, m.Checksum]:
    md5, hasher = new_md5(), new_hasher(algorithm)
    md5.update(data)
    hasher.update(data)
    return md5.digest().hex(), m.Checksum(algorithm, hasher.digest())


def _whole_checksum(upload: m.Upload, parts: Sequence[m.ListedPart]) -> m.Checksum | None:
    algorithm = upload.algorithm or ChecksumAlgorithm.CRC64NVME
    values = [part.checksum.value for part in parts if part.checksum is not None]
    if upload.full_object:
        whole = values[0]
        for value, part in zip(values[1:], parts[1:], strict=True):
            whole = combine_crcs(algorithm, whole, value, part.size)
        return m.Checksum(algorithm, whole)
    hasher = new_hasher(algorithm)
    hasher.update(b"".join(values))
    return m.Checksum(algorithm, hasher.digest(), len(values))


def _matches(wanted: tuple[str, ...], etag: str) -> bool:
    return "*" in wanted or etag in wanted


def _check_read(record: m.VersionRecord, c: m.Conditions) -> None:
    second = record.modified_ms // 1000 * 1000
    if c.if_match is not None:
        if not _matches(c.if_match, record.etag):
            raise e.PreconditionFailed("It is another.", condition="If-Match")
    elif c.if_unmodified_since_ms is not None and second > c.if_unmodified_since_ms:
        raise e.PreconditionFailed("It is newer.", condition="If-Unmodified-Since")
    if c.if_none_match is not None:
        if _matches(c.if_none_match, record.etag):
            raise e.NotModified("It is the same.", etag=record.etag, modified_ms=record.modified_ms)
    elif c.if_modified_since_ms is not None and second <= c.if_modified_since_ms:
        raise e.NotModified("It is not newer.", etag=record.etag, modified_ms=record.modified_ms)


def _check_copy(record: m.VersionRecord, conditions: m.Conditions) -> None:
    try:
        _check_read(record, conditions)
    except e.NotModified:
        raise e.PreconditionFailed("It is the same.", condition="x-amz-copy-source") from None


def _resolve(range_: tuple[int | None, int | None], size: int) -> tuple[int, int]:
    first, last = range_
    if first is None:
        assert last is not None
        first, last = max(size - last, 0), size - 1 if last else -1
    if first >= size or (last is not None and last < first):
        raise e.InvalidRange("The range is outside.", size=size)
    end = size - 1 if last is None else min(last, size - 1)
    return first, end - first + 1


def _roll_up(names: list[str], prefix: str, delimiter: str, after: str) -> list[tuple[str, bool]]:
    rolled: list[tuple[str, bool]] = []
    for name in names:
        if not name.startswith(prefix):
            continue
        at = name.find(delimiter, len(prefix)) if delimiter else -1
        entry = (name, False) if at < 0 else (name[: at + len(delimiter)], True)
        if entry[0].encode() > after.encode() and (not rolled or rolled[-1] != entry):
            rolled.append(entry)
    return rolled


def _listed(key: str, record: m.VersionRecord) -> m.ListedObject:
    return m.ListedObject(
        key, record.size, record.etag, record.modified_ms, record.checksum, record.storage_class
    )


def base64_of(data: bytes, algorithm: ChecksumAlgorithm) -> str:
    """A checksum as clients send it."""
    return base64.b64encode(_digests(data, algorithm)[1].value).decode("ascii")
