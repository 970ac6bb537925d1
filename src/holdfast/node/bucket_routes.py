"""The internal paths of `holdfast bucket`: the buckets and their schemes, and changing one."""

from collections.abc import Mapping

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

    async def answer_scheme(request: AdminRequest) -> AdminAnswer:
        name, scheme = request.query.get("bucket", ""), request.query.get("scheme", "")
        try:
            before = await objects.get_bucket(name)
            if request.method != "POST":
                return AdminAnswer(200, msgspec.json.encode(_line(before)))
            bucket = await objects.set_bucket_scheme(name, scheme)
        except HoldfastError as error:
            return refused(error)
        return AdminAnswer(200, msgspec.json.encode(_line(bucket, changed=bucket.scheme != before.scheme)))

    async def answer_survive(request: AdminRequest) -> AdminAnswer:
        name, survive = request.query.get("bucket", ""), request.query.get("survive", "")
        try:
            before = await objects.get_bucket(name)
            if request.method != "POST":
                return AdminAnswer(200, msgspec.json.encode(_line(before)))
            bucket = await objects.set_bucket_survive(name, survive)
        except HoldfastError as error:
            return refused(error)
        return AdminAnswer(200, msgspec.json.encode(_line(bucket, changed=bucket.scheme != before.scheme)))

    return {
        BUCKETS_PATH: Route(answer_list, signed=True),
        SURVIVE_PATH: Route(answer_survive, signed=True, methods=frozenset({"GET", "POST"})),
        SCHEME_PATH: Route(answer_scheme, signed=True, methods=frozenset({"GET", "POST"})),
    }


def _line(bucket: Bucket, *, changed: bool = False) -> BucketLine:
    return BucketLine(
        bucket.name, bucket.scheme.name, bucket.created_ms, bucket.region, changed, bucket.survive
    )
