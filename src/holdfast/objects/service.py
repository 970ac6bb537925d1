"""`Objects`: buckets and objects as the faces ask for them, over an index and packs.

It only brings the subjects together; each has a file of its own.
"""

from collections.abc import Sequence

from holdfast.base.clock import Clock
from holdfast.base.ids import RequestId, UploadId
from holdfast.base.randomness import Randomness
from holdfast.index.port import Index
from holdfast.objects.auditing import Auditing
from holdfast.objects.buckets import Buckets
from holdfast.objects.cleanup import Cleanups
from holdfast.objects.completing import Completing
from holdfast.objects.context import Context
from holdfast.objects.copying import Copying
from holdfast.objects.deleting import Deleting
from holdfast.objects.listing import Listings
from holdfast.objects.model import (
    Bucket,
    CompleteUpload,
    CopyObject,
    CopyPart,
    CreateUpload,
    DeleteKey,
    DeleteResult,
    Listing,
    ListObjects,
    ObjectView,
    PartListing,
    PutObject,
    ReadObject,
    Stored,
    Upload,
    UploadListing,
    UploadPart,
)
from holdfast.objects.moving import Moving
from holdfast.objects.reading import Reading
from holdfast.objects.repeats import Repeats
from holdfast.objects.rescheming import Rescheming
from holdfast.objects.settings import ObjectsSettings
from holdfast.objects.surviving import Surviving
from holdfast.objects.uploads import Uploads
from holdfast.objects.writing import Writing
from holdfast.packs.model import PackStorage

_UNNAMED = RequestId("")


class Objects:
    """The ObjectService."""

    def __init__(
        self,
        index: Index,
        packs: PackStorage,
        clock: Clock,
        randomness: Randomness,
        settings: ObjectsSettings,
    ) -> None:
        self._context = context = Context(index, packs, clock, randomness, settings)
        self._cleanups = Cleanups(context)
        self._repeats = Repeats(index, context.committer, clock)
        self._buckets = Buckets(context)
        self._surviving = Surviving(context)
        self._reading = Reading(context)
        self._writing = Writing(context)
        self._deleting = Deleting(context)
        self._listings = Listings(context)
        self._uploads = Uploads(context, self._cleanups)
        self._completing = Completing(context, self._uploads, self._cleanups)
        self._copying = Copying(context, self._reading, self._writing, self._uploads)

    async def create_bucket(
        self,
        name: str,
        scheme: str | None,
        request: RequestId = _UNNAMED,
        tries: int = 1,
        survive: str | None = None,
    ) -> Bucket:
        tried = await self._repeats.begin(request, tries)
        return await self._buckets.create(name, scheme, tried, survive)

    async def list_buckets(self, prefix: str, after: str, limit: int) -> Sequence[Bucket]:
        return await self._buckets.list(prefix, after, limit)

    async def get_bucket(self, name: str) -> Bucket:
        return await self._buckets.get(name)

    async def set_bucket_scheme(self, name: str, scheme: str) -> Bucket:
        """For administrators: see `Buckets.set_scheme`."""
        return await self._buckets.set_scheme(name, scheme)

    async def set_bucket_survive(self, name: str, survive: str) -> Bucket:
        """For administrators: see `Surviving.tell`."""
        return await self._surviving.tell(name, survive)

    async def choose_schemes(self) -> dict[str, str]:
        """For a chore: see `Surviving.choose_again`."""
        return await self._surviving.choose_again()

    async def delete_bucket(self, name: str, request: RequestId = _UNNAMED, tries: int = 1) -> None:
        await self._buckets.delete(name, await self._repeats.begin(request, tries))

    async def put_object(self, put: PutObject) -> Stored:
        return await self._writing.put(put, await self._repeats.begin(put.request, put.tries))

    async def read_object(self, read: ReadObject) -> ObjectView:
        return await self._reading.get(read)

    async def head_object(self, read: ReadObject) -> ObjectView:
        return await self._reading.head(read)

    async def delete_objects(
        self, bucket: str, keys: Sequence[DeleteKey], request: RequestId, tries: int = 1
    ) -> Sequence[DeleteResult]:
        return await self._deleting.delete(bucket, keys, await self._repeats.begin(request, tries))

    async def copy_object(self, copy: CopyObject) -> Stored:
        return await self._copying.copy(copy, await self._repeats.begin(copy.request, copy.tries))

    async def list_objects(self, listing: ListObjects) -> Listing:
        return await self._listings.objects(listing)

    async def create_upload(self, create: CreateUpload) -> Upload:
        return await self._uploads.create(create)

    async def upload_part(self, part: UploadPart) -> Stored:
        return await self._uploads.put_part(part, await self._repeats.begin(part.request, part.tries))

    async def copy_part(self, part: CopyPart) -> Stored:
        return await self._copying.copy_part(part)

    async def complete_upload(self, complete: CompleteUpload) -> Stored:
        tried = await self._repeats.begin(complete.request, complete.tries)
        return await self._completing.complete(complete, tried)

    async def abort_upload(
        self, bucket: str, key: str, upload: UploadId, request: RequestId = _UNNAMED, tries: int = 1
    ) -> None:
        await self._uploads.abort(bucket, key, upload, await self._repeats.begin(request, tries))

    async def list_parts(
        self, bucket: str, key: str, upload: UploadId, after: int, limit: int
    ) -> PartListing:
        return await self._uploads.list_parts(bucket, key, upload, after, limit)

    async def list_uploads(
        self, bucket: str, prefix: str, delimiter: str, after_key: str, after_upload: str, limit: int
    ) -> UploadListing:
        return await self._listings.uploads(bucket, prefix, delimiter, after_key, after_upload, limit)

    async def finish_cleanups(self, steps: int) -> bool:
        """For a chore: up to `steps` bounded steps of the work that completed, aborted and huge
        objects left over, and one of forgetting requests; True when nothing is left. Any number of nodes may
        do it at once."""
        forgotten = await self._repeats.forget()
        return await self._cleanups.work(steps) and forgotten

    def moving(self, clock: Clock) -> Moving:
        """For a chore: empties packs into new ones. It rests by `clock` between two pieces of work."""
        return Moving(self._context, clock)

    def rescheming(self, clock: Clock) -> Rescheming:
        """For a chore: says what packs should be promised. It rests by `clock` likewise."""
        return Rescheming(self._context, clock)

    def auditing(self, clock: Clock) -> Auditing:
        """For a chore: finds what nobody owns in a pack. It rests by `clock` likewise."""
        return Auditing(self._context, clock)

    def close(self) -> None:
        """Let go of threads. Nothing may be under way."""
        self._context.close()
