"""The internal paths of `holdfast bucket`: the buckets and their schemes, and changing one."""

from collections.abc import Awaitable, Callable, Mapping

import msgspec
from msgspec import Struct

from holdfast.base.errors import HoldfastError
from holdfast.node.census import Census
from holdfast.node.store_routes import refused
from holdfast.objects.model import Bucket
from holdfast.objects.service import Objects
from holdfast.s3.face import AdminAnswer, AdminRequest, Route

BUCKETS_PATH = "/-/buckets"
SCHEME_PATH = "/-/buckets/scheme"
SURVIVE_PATH = "/-/buckets/survive"
PAGE = 1000


class BucketLine(Struct, frozen=True):
    """A bucket for `holdfast bucket`. `created_ms` is milliseconds since 1970 UTC; `changed` says that its
    scheme was changed just now, and packs follow. `survive` is what it was told to survive, empty for
    nothing."""

    name: str
    scheme: str
    created_ms: int
    region: str
    changed: bool = False
    survive: str = ""


class BucketList(Struct, frozen=True):
    """All buckets, by name, and how many packs there are of each scheme. A pack is shared by buckets."""

    buckets: tuple[BucketLine, ...]
    packs: dict[str, int] = {}


def bucket_routes(objects: Objects, census: Census) -> Mapping[str, Route]:
    """What is answered at which path."""

    async def answer_list(request: AdminRequest) -> AdminAnswer:
        found: list[Bucket] = []
        try:
            while page := await objects.list_buckets("", found[-1].name if found else "", PAGE):
                found += page
            await census.whole()
        except HoldfastError as error:
            return refused(error)
        lines = tuple(_line(bucket) for bucket in found)
        return AdminAnswer(200, msgspec.json.encode(BucketList(lines, dict(census.last.schemes))))

    def setting(name: str, change: Callable[[str, str], Awaitable[Bucket]]) -> Route:
        """Shows a bucket, or has one thing of it changed."""

        async def answer(request: AdminRequest) -> AdminAnswer:
            bucket = request.query.get("bucket", "")
            try:
                before = await objects.get_bucket(bucket)
                if request.method != "POST":
                    return AdminAnswer(200, msgspec.json.encode(_line(before)))
                after = await change(bucket, request.query.get(name, ""))
            except HoldfastError as error:
                return refused(error)
            return AdminAnswer(200, msgspec.json.encode(_line(after, changed=after.scheme != before.scheme)))

        return Route(answer, signed=True, methods=frozenset({"GET", "POST"}))

    return {
        BUCKETS_PATH: Route(answer_list, signed=True),
        SURVIVE_PATH: setting("survive", objects.set_bucket_survive),
        SCHEME_PATH: setting("scheme", objects.set_bucket_scheme),
    }


def _line(bucket: Bucket, *, changed: bool = False) -> BucketLine:
    return BucketLine(
        bucket.name, bucket.scheme.name, bucket.created_ms, bucket.region, changed, bucket.survive
    )
