"""One call fails, the first, the second, the third, until an operation gets by: nothing is ever half done.

For each operation and each way in which a store or the index can fail, the N-th call that the operation makes
goes wrong, for N = 1, 2, 3 and so on until a run is untouched (as SQLite's tests fail the N-th allocation).
After each: what is there is what was there before, or what the operation makes of it, and the latter if it
was acknowledged; asked again, it ends well; every pack is whole, and every byte has its owner.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import pytest

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import RequestId
from holdfast.index.memory import Fault, Mishap
from holdfast.objects import errors as e
from holdfast.objects import model as m
from holdfast.objects.service import Objects
from tests.kit.virtual import run_virtual
from tests.simulation.contents import SimulatedBody, etag_of, make_bytes
from tests.simulation.node import SimulationSettings
from tests.simulation.proofs import check_accounts, until_collected, until_tidy, until_whole
from tests.simulation.world import World

SMALL, LARGE, PART = 5_000, 300_000, 70_000
CALLS_MAX = 60


@dataclass
class Bench:
    """A node without chores, and what the operations need to know."""

    world: World
    upload: m.Upload

    @property
    def objects(self) -> Objects:
        return self.world.node.objects

    def body(self, name: str, size: int) -> SimulatedBody:
        return SimulatedBody(make_bytes(name, size), self.world.clock)

    async def put(self, bucket: str, key: str, name: str, size: int, **how: object) -> object:
        put = m.PutObject(bucket=bucket, key=key, body=self.body(name, size), **how)  # type: ignore[arg-type]
        return await self.objects.put_object(put)

    async def part(self, number: int, name: str, size: int) -> object:
        upload = self.upload
        part = m.UploadPart(
            bucket=upload.bucket,
            key=upload.key,
            upload=upload.upload,
            number=number,
            body=self.body(name, size),
        )
        return await self.objects.upload_part(part)

    async def delete(self, *keys: str) -> object:
        wanted = [m.DeleteKey(key=key) for key in keys]
        results = await self.objects.delete_objects("full", wanted, RequestId(""))
        for result in results:
            if result.error is not None:
                raise result.error
        return results

    async def copy(self, bucket: str) -> object:
        copy = m.CopyObject(source_bucket="full", source_key="large", bucket=bucket, key="copy")
        return await self.objects.copy_object(copy)

    async def copy_onto_itself(self) -> object:
        copy = m.CopyObject(
            source_bucket="full",
            source_key="large",
            bucket="full",
            key="large",
            replace=True,
            metadata=(("a", "b"),),
        )
        return await self.objects.copy_object(copy)

    async def copy_part(self) -> object:
        upload = self.upload
        copy = m.CopyPart(
            bucket=upload.bucket,
            key=upload.key,
            upload=upload.upload,
            number=3,
            source_bucket="full",
            source_key="large",
            range_=(1000, LARGE - 1000),
        )
        return await self.objects.copy_part(copy)

    async def complete(self) -> object:
        upload = self.upload
        parts = [m.CompletePart(n, etag_of(make_bytes(f"part {n}", PART))) for n in (1, 2)]
        return await self.objects.complete_upload(
            m.CompleteUpload(bucket=upload.bucket, key=upload.key, upload=upload.upload, parts=tuple(parts))
        )

    async def abort(self) -> object:
        upload = self.upload
        return await self.objects.abort_upload(upload.bucket, upload.key, upload.upload)

    async def create_upload(self) -> object:
        return await self.objects.create_upload(m.CreateUpload(bucket="full", key="begun"))


Operation = Callable[[Bench], Awaitable[object]]
CREATE = m.Conditions(if_none_match=("*",))
OF_SMALL = m.Conditions(if_match=(etag_of(make_bytes("small", SMALL)),))

OPERATIONS: dict[str, tuple[Operation, tuple[type[HoldfastError], ...]]] = {
    "put small": (lambda b: b.put("full", "new", "new", SMALL), ()),
    "put large": (lambda b: b.put("full", "new", "new", LARGE), ()),
    "put over": (lambda b: b.put("full", "small", "new", SMALL), ()),
    "put if absent": (
        lambda b: b.put("full", "new", "new", SMALL, conditions=CREATE),
        (e.PreconditionFailed,),
    ),
    "put if match": (
        lambda b: b.put("full", "small", "new", SMALL, conditions=OF_SMALL),
        (e.PreconditionFailed,),
    ),
    "put empty": (lambda b: b.put("full", "new", "new", 0), ()),
    "delete": (lambda b: b.delete("small"), ()),
    "delete several": (lambda b: b.delete("small", "large"), ()),
    "copy": (lambda b: b.copy("full"), ()),
    "copy to another scheme": (lambda b: b.copy("other"), ()),
    "copy onto itself": (lambda b: b.copy_onto_itself(), ()),
    "create bucket": (lambda b: b.objects.create_bucket("made", None), (e.BucketAlreadyOwnedByYou,)),
    "delete bucket": (lambda b: b.objects.delete_bucket("empty"), (e.NoSuchBucket,)),
    "create upload": (lambda b: b.create_upload(), ()),
    "upload part": (lambda b: b.part(3, "part 3", PART), ()),
    "upload large part": (lambda b: b.part(1, "part 1 again", LARGE), ()),
    "copy part": (lambda b: b.copy_part(), ()),
    "complete": (lambda b: b.complete(), ()),
    "complete with a table": (lambda b: b.complete(), ()),
    "abort": (lambda b: b.abort(), (e.NoSuchUpload,)),
}

WITH_TABLE = ("complete with a table",)
"""The extents of these don't fit a head row."""

WAYS = ("store before", "store after", *(f"index {mishap.name.lower()}" for mishap in Mishap))

Snapshot = dict[str, object]


async def prepare(seed: str, inline_bytes_max: int) -> Bench:
    settings = SimulationSettings(other_scheme="mirror-3", inline_bytes_max=inline_bytes_max)
    world = World(seed, settings)
    await world.start()
    node = world.node
    await node.chores.close()
    for bucket, scheme in (("full", None), ("other", "mirror-3"), ("empty", None)):
        await node.objects.create_bucket(bucket, scheme)
    upload = await node.objects.create_upload(m.CreateUpload(bucket="full", key="upload"))
    bench = Bench(world, upload)
    await bench.put("full", "small", "small", SMALL)
    await bench.put("full", "large", "large", LARGE)
    for number in (1, 2):
        await bench.part(number, f"part {number}", PART)
    return bench


async def snapshot(bench: Bench) -> Snapshot:
    """All that a client can see. Uploads are told apart by what is in them, not by their ids."""
    objects, seen = bench.objects, Snapshot()
    for bucket in await objects.list_buckets("", "", 100):
        listing = await objects.list_objects(m.ListObjects(bucket=bucket.name))
        for entry in listing.entries:
            assert isinstance(entry, m.ListedObject)
            view = await objects.read_object(m.ReadObject(bucket=bucket.name, key=entry.key))
            data = (
                view.whole if view.body is None else b"".join([bytes(piece) async for piece in view.body()])
            )
            assert data is not None
            seen[f"{bucket.name}/{entry.key}"] = (entry.etag, etag_of(bytes(data)), view.record.metadata)
        uploads = await objects.list_uploads(bucket.name, "", "", "", "", 100)
        for upload in uploads.entries:
            assert isinstance(upload, m.Upload)
            parts = await objects.list_parts(bucket.name, upload.key, upload.upload, 0, 100)
            seen[f"{bucket.name}/{upload.key} upload"] = tuple((p.number, p.etag) for p in parts.parts)
        seen[bucket.name] = bucket.scheme
    return seen


async def _run(operation: str, way: str, n: int, inline_bytes_max: int) -> tuple[bool, Snapshot]:
    """Whether a call failed, and what is there in the end. With n = 0 nothing fails."""
    run, done_already = OPERATIONS[operation]
    bench = await prepare(f"{operation} {way} {n}", inline_bytes_max)
    world = bench.world
    before = await snapshot(bench)
    nth = world.nth if way.startswith("store") else world.index_nth
    nth.after = way == "store after"
    if way.startswith("index"):
        world.index_fault = Fault(Mishap[way.removeprefix("index ").upper()], 0.3)
    nth.left = n or None
    began = world.clock.monotonic()
    acknowledged = True
    try:
        await world.call(lambda _: run(bench))
    except HoldfastError:
        acknowledged = False
    nth.left = None
    world.index.faults.clear()
    after = await snapshot(bench)
    if n:
        wanted = _untouched[operation]
        assert after in ((wanted,) if acknowledged else (before, wanted)), f"{operation}: half done at {n}"
    if not acknowledged:
        try:
            await world.call(lambda _: run(bench))
        except done_already:
            assert after != before, "refused as done already, and it was not"
    ended = world.clock.monotonic()
    world.node.chores.start()
    await until_tidy(world)
    await until_whole(world)
    await until_collected(world)
    last = await snapshot(bench)
    await check_accounts(world, [(began, ended)])
    assert not world.failures, world.failures
    await world.stop()
    return nth.fires > 0, last


_untouched: dict[str, Snapshot] = {}
"""What each operation makes of it when nothing fails."""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_is_done_or_not_done_whichever_call_fails(operation: str, way: str) -> None:
    inline_bytes_max = 50 if operation in WITH_TABLE else 32 << 10
    if operation not in _untouched:
        _, _untouched[operation] = run_virtual(_run(operation, way, 0, inline_bytes_max))
    for n in range(1, CALLS_MAX):
        failed, last = run_virtual(_run(operation, way, n, inline_bytes_max))
        assert last == _untouched[operation], f"{operation} with {way} at {n}"
        if not failed:
            assert n > 1 or way.startswith("store"), "nothing was ever called"
            return
    raise AssertionError(f"{operation} makes more than {CALLS_MAX} calls")
