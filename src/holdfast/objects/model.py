"""The values that objects speak in, shared with the faces above.

Times are whole milliseconds since 1970 UTC by the wall clock (labels, never order). Sizes are bytes.
ETags are without quotes. Stored types (`VersionRecord` and below) are `array_like`: fields are only added at
the end, with defaults.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from msgspec import Struct

from holdfast.base.checksums import Buffer, ChecksumAlgorithm
from holdfast.base.ids import RequestId, UploadId, VersionId
from holdfast.packs.model import Extent, Receipt
from holdfast.scheme import Scheme

KEY_BYTES_MAX = 1024
USER_METADATA_BYTES_MAX = 2048
OBJECT_BYTES_MAX = 5 << 40
BODY_BYTES_MAX = 5 << 30
PART_BYTES_MIN = 5 << 20
PARTS_MAX = 10_000
LISTING_MAX = 1000


class Checksum(Struct, frozen=True, array_like=True):
    """One of S3's additional checksums. `parts` is 0 for a checksum of the full object, else the
    number of parts of a composite one (a checksum of checksums, written `value-parts`)."""

    algorithm: ChecksumAlgorithm
    value: bytes
    parts: int = 0


class ContentHeaders(Struct, frozen=True, array_like=True):
    """Headers that S3 stores and gives back as they came. Empty means not set."""

    content_type: str = ""
    content_encoding: str = ""
    content_disposition: str = ""
    content_language: str = ""
    cache_control: str = ""
    expires: str = ""
    website_redirect: str = ""


class PartInfo(Struct, frozen=True, array_like=True):
    """One part of a completed multipart object, for reads by part number."""

    number: int
    size: int
    checksum: Checksum | None = None


class VersionRecord(Struct, frozen=True, array_like=True):
    """One immutable state of an object, as head and version rows hold it.

    `extents` are in order; where there are too many for a row, they and `parts` are empty and
    `extents_at` names where the table of both lies (`holdfast.objects.table`). `shared` says that the
    bytes, and the table, belong to another version, and are held by `share` rows. `part_count` is the
    number of parts of a completed multipart upload, else 0.
    """

    version: VersionId
    order: int
    size: int
    etag: str
    modified_ms: int
    headers: ContentHeaders
    metadata: tuple[tuple[str, str], ...]
    checksum: Checksum | None
    extents: tuple[Extent, ...]
    extents_at: Extent | None = None
    parts: tuple[PartInfo, ...] = ()
    storage_class: str = "STANDARD"
    scheme: Scheme | None = None
    shared: bool = False
    part_count: int = 0


class Bucket(Struct, frozen=True):
    """A bucket as its owner sees it."""

    name: str
    created_ms: int
    scheme: Scheme
    region: str
    survive: str = ""
    """What it was told to survive, as `region` or `host:2`; empty for nothing."""


class Conditions(Struct, frozen=True):
    """The conditional headers of a request, parsed. None means not sent; the tuple of ETags may be
    ("*",). Times in milliseconds, from headers with a resolution of a second."""

    if_match: tuple[str, ...] | None = None
    if_none_match: tuple[str, ...] | None = None
    if_modified_since_ms: int | None = None
    if_unmodified_since_ms: int | None = None


NO_CONDITIONS = Conditions()


class ExpectedDigests(Struct, frozen=True):
    """What the client says its body's digests are. Known only when the body has ended, because they
    may come in trailers. A checksum without a value asks for the algorithm only."""

    md5: bytes | None = None
    checksum: Checksum | None = None
    algorithm: ChecksumAlgorithm | None = None


class Body(Protocol):
    """A request's body, already unwrapped from its transfer and chunk signature coding.

    Iterating yields buffers of any size, never a client's half-trusted bytes: whatever can be checked
    on the way (chunk signatures, framing, the announced length) is checked on the way and raises from
    the iterator; the end of iteration means that all of that held.
    """

    @property
    def length(self) -> int:
        """Decoded length in bytes, as announced."""
        ...

    @property
    def algorithm(self) -> ChecksumAlgorithm | None:
        """The checksum that the client announced, before the body is read; None for the default."""
        ...

    def expected(self) -> ExpectedDigests:
        """Call after the end of iteration."""
        ...

    def __aiter__(self) -> AsyncIterator[Buffer]: ...


class PutObject(Struct, frozen=True, kw_only=True):
    """A PutObject request. `request` is the same for all its tries, of which this is number `tries`; so it is
    in all that change something."""

    bucket: str
    key: str
    body: Body
    headers: ContentHeaders = ContentHeaders()
    metadata: tuple[tuple[str, str], ...] = ()
    conditions: Conditions = NO_CONDITIONS
    storage_class: str = "STANDARD"
    request: RequestId = RequestId("")
    tries: int = 1


class Stored(Struct, frozen=True):
    """What a write that made a version (or a part) answers."""

    etag: str
    checksum: Checksum | None
    size: int
    modified_ms: int
    version: VersionId | None
    receipt: Receipt | None


class ReadObject(Struct, frozen=True, kw_only=True):
    """A GetObject or HeadObject request. `range_` as the header's three forms: (first, last),
    (first, None), (None, suffix length); `part` is a part number instead."""

    bucket: str
    key: str
    version: VersionId | None = None
    range_: tuple[int | None, int | None] | None = None
    part: int | None = None
    conditions: Conditions = NO_CONDITIONS


class ObjectView(Struct, frozen=True):
    """What a read answers: the version, which bytes of it (`first` to `first + length`), whether they
    were asked for as a range or part, and the bytes. `body` is either whole (small objects) or an
    iterator of verified pieces; a HEAD has neither. `part_count` is 0 outside multipart objects."""

    record: VersionRecord
    first: int
    length: int
    partial: bool
    whole: Buffer | None = None
    body: Callable[[], AsyncIterator[Buffer]] | None = None
    part_count: int = 0


class DeleteResult(Struct, frozen=True):
    """What deleting one key came to. Deleting what is not there is a success."""

    key: str
    version: VersionId | None = None
    delete_marker: bool = False
    error: Exception | None = None


class DeleteKey(Struct, frozen=True, kw_only=True):
    """One key to delete. `if_match` is a conditional delete ("*" or an ETag)."""

    key: str
    version: VersionId | None = None
    if_match: tuple[str, ...] | None = None


class CopyObject(Struct, frozen=True, kw_only=True):
    """A CopyObject request: the source, its conditions, and the target. With `replace` the target gets
    `headers` and `metadata`, else those of the source."""

    source_bucket: str
    source_key: str
    source_version: VersionId | None = None
    source_conditions: Conditions = NO_CONDITIONS
    bucket: str
    key: str
    conditions: Conditions = NO_CONDITIONS
    replace: bool = False
    headers: ContentHeaders = ContentHeaders()
    metadata: tuple[tuple[str, str], ...] = ()
    algorithm: ChecksumAlgorithm | None = None
    storage_class: str = "STANDARD"
    request: RequestId = RequestId("")
    tries: int = 1


class ListObjects(Struct, frozen=True, kw_only=True):
    """A listing: keys with `prefix`, after `after` (exclusive; a key or a common prefix), rolled up at
    `delimiter`, at most `limit` items. A common prefix that `after` is in was listed before, unless it is
    `cut_off`: then it counts as a key only, and what follows it in the same prefix is rolled up."""

    bucket: str
    prefix: str = ""
    delimiter: str = ""
    after: str = ""
    cut_off: bool = False
    limit: int = LISTING_MAX


class ListedObject(Struct, frozen=True):
    """One key of a listing."""

    key: str
    size: int
    etag: str
    modified_ms: int
    checksum: Checksum | None
    storage_class: str


class Listing(Struct, frozen=True):
    """One page, in key order. `entries` are objects and common prefixes (str) as they interleave;
    `next_after` continues it when `truncated`."""

    entries: tuple[ListedObject | str, ...]
    truncated: bool
    next_after: str


class CreateUpload(Struct, frozen=True, kw_only=True):
    """A CreateMultipartUpload request. `full_object` is ChecksumType FULL_OBJECT (the default for
    CRC64NVME and when no algorithm was named), else COMPOSITE."""

    bucket: str
    key: str
    headers: ContentHeaders = ContentHeaders()
    metadata: tuple[tuple[str, str], ...] = ()
    algorithm: ChecksumAlgorithm | None = None
    full_object: bool = True
    storage_class: str = "STANDARD"
    request: RequestId = RequestId("")


class Upload(Struct, frozen=True):
    """A multipart upload in progress."""

    bucket: str
    key: str
    upload: UploadId
    started_ms: int
    algorithm: ChecksumAlgorithm | None
    full_object: bool
    storage_class: str


class UploadPart(Struct, frozen=True, kw_only=True):
    """An UploadPart request."""

    bucket: str
    key: str
    upload: UploadId
    number: int
    body: Body
    request: RequestId = RequestId("")
    tries: int = 1


class CopyPart(Struct, frozen=True, kw_only=True):
    """An UploadPartCopy request; `range_` is (first, last), both inclusive, or None for all."""

    bucket: str
    key: str
    upload: UploadId
    number: int
    source_bucket: str
    source_key: str
    source_version: VersionId | None = None
    source_conditions: Conditions = NO_CONDITIONS
    range_: tuple[int, int] | None = None


class CompletePart(Struct, frozen=True):
    """One line of a CompleteMultipartUpload request."""

    number: int
    etag: str
    checksum: Checksum | None = None


class CompleteUpload(Struct, frozen=True, kw_only=True):
    """A CompleteMultipartUpload request. `size` is x-amz-mp-object-size when sent."""

    bucket: str
    key: str
    upload: UploadId
    parts: tuple[CompletePart, ...]
    checksum: Checksum | None = None
    size: int | None = None
    conditions: Conditions = NO_CONDITIONS
    request: RequestId = RequestId("")
    tries: int = 1


class ListedPart(Struct, frozen=True):
    """One uploaded part."""

    number: int
    size: int
    etag: str
    modified_ms: int
    checksum: Checksum | None


class PartListing(Struct, frozen=True):
    """One page of parts."""

    upload: Upload
    parts: tuple[ListedPart, ...]
    truncated: bool
    next_after: int


class UploadListing(Struct, frozen=True):
    """One page of uploads in (key, upload id) order; entries are uploads and common prefixes (str)."""

    entries: tuple[Upload | str, ...]
    truncated: bool
    next_key: str
    next_upload: str


class ObjectService(Protocol):
    """What the faces ask of objects. Errors are those of `holdfast.objects.errors` and the kinds of
    `holdfast.base.errors`. The caller has authorised already."""

    async def create_bucket(
        self,
        name: str,
        scheme: str | None,
        request: RequestId = ...,
        tries: int = ...,
        survive: str | None = ...,
    ) -> Bucket: ...
    async def list_buckets(self, prefix: str, after: str, limit: int) -> Sequence[Bucket]: ...
    async def get_bucket(self, name: str) -> Bucket: ...
    async def delete_bucket(self, name: str, request: RequestId = ..., tries: int = ...) -> None: ...
    async def put_object(self, put: PutObject) -> Stored: ...
    async def read_object(self, read: ReadObject) -> ObjectView: ...
    async def head_object(self, read: ReadObject) -> ObjectView: ...
    async def delete_objects(
        self, bucket: str, keys: Sequence[DeleteKey], request: RequestId, tries: int = ...
    ) -> Sequence[DeleteResult]: ...
    async def copy_object(self, copy: CopyObject) -> Stored: ...
    async def list_objects(self, listing: ListObjects) -> Listing: ...
    async def create_upload(self, create: CreateUpload) -> Upload: ...
    async def upload_part(self, part: UploadPart) -> Stored: ...
    async def copy_part(self, part: CopyPart) -> Stored: ...
    async def complete_upload(self, complete: CompleteUpload) -> Stored: ...
    async def abort_upload(
        self, bucket: str, key: str, upload: UploadId, request: RequestId = ..., tries: int = ...
    ) -> None: ...
    async def list_parts(
        self, bucket: str, key: str, upload: UploadId, after: int, limit: int
    ) -> PartListing: ...
    async def list_uploads(
        self, bucket: str, prefix: str, delimiter: str, after_key: str, after_upload: str, limit: int
    ) -> UploadListing: ...
