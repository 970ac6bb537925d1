"""Whatever happens to a commit, the answer is true and the books balance.

Every operation is run once for each of its commits and each way in which that commit can go wrong. Then
the answer must be the one that an undisturbed run gives and the state the one it leaves; or the answer
is Unavailable, and the state is that of before (or after, where the answer says it is unknown).
"""

from collections.abc import Awaitable, Callable, Sequence

import pytest

from holdfast.base.errors import Unavailable
from holdfast.base.ids import RequestId
from holdfast.index.memory.index import Fault, MemoryIndex, Mishap
from holdfast.index.port import Outcome, Transaction
from holdfast.objects.errors import BucketNotEmpty, NoSuchKey, PreconditionFailed
from holdfast.objects.model import (
    CompletePart,
    CompleteUpload,
    Conditions,
    CopyObject,
    CreateUpload,
    ListObjects,
    PutObject,
    UploadPart,
)
from holdfast.objects.settings import ObjectsLimits
from tests.kit.objects import BUCKET, BytesBody, Desk
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual

LIMITS = ObjectsLimits(hashing_threads=0, part_bytes_min=1, inline_bytes_max=100)
SMALL, LARGE = b"s" * 1000, b"L" * (200 << 10)


class FailsAtNth(MemoryIndex):
    """Commit number `nth` from now on goes wrong; `before` runs first."""

    nth = -1
    fault: Fault | None = None
    before: Callable[[], Awaitable[object]] | None = None
    seen = 0

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        now, self.seen = self.seen, self.seen + 1
        if now == self.nth:
            fault, before = self.fault, self.before
            self.nth, self.before = -1, None
            if before is not None:
                await before()
            if fault is not None:
                self.faults.append(fault)
        return await super().commit(transactions)

    def arm(self, nth: int, fault: Fault | None = None) -> None:
        """Count from here."""
        self.seen, self.nth, self.fault = 0, nth, fault


async def prepared(seed: int = 1) -> tuple[Desk, FailsAtNth]:
    clock = VirtualClock()
    index = FailsAtNth(clock)
    desk = await Desk(clock, index=index, limits=LIMITS, seed=seed).bucket()
    await desk.put("old", b"before")
    await desk.put("large", LARGE)
    await desk.bucket("bucket-b")
    return desk, index


async def create(desk: Desk) -> object:
    return (await desk.put("new", SMALL)).etag


async def create_empty(desk: Desk) -> object:
    return (await desk.put("new", b"")).etag


async def create_large(desk: Desk) -> object:
    return (await desk.put("new", LARGE)).etag


async def overwrite(desk: Desk) -> object:
    return (await desk.put("old", SMALL)).etag


async def create_if_absent(desk: Desk) -> object:
    return (await desk.put("new", SMALL, Conditions(if_none_match=("*",)))).etag


async def replace_if_match(desk: Desk) -> object:
    etag = (await desk.view("old")).record.etag
    return (await desk.put("old", LARGE, Conditions(if_match=(etag,)))).etag


async def delete(desk: Desk) -> object:
    results = await desk.delete("old", "large", "never")
    for result in results:
        if result.error is not None:
            raise result.error
    return len(results)


async def delete_if_match(desk: Desk) -> object:
    etag = (await desk.view("old")).record.etag
    (result,) = await desk.delete("old", if_match=(etag,))
    if result.error is not None:
        raise result.error
    return True


async def copy(desk: Desk) -> object:
    copied = CopyObject(source_bucket=BUCKET, source_key="large", bucket=BUCKET, key="new")
    return (await desk.objects.copy_object(copied)).etag


async def copy_over(desk: Desk) -> object:
    copied = CopyObject(source_bucket=BUCKET, source_key="large", bucket=BUCKET, key="old")
    return (await desk.objects.copy_object(copied)).etag


async def copy_onto_itself(desk: Desk) -> object:
    copied = CopyObject(source_bucket=BUCKET, source_key="old", bucket=BUCKET, key="old", replace=True)
    return (await desk.objects.copy_object(copied)).etag


async def multipart(desk: Desk) -> object:
    upload = await desk.objects.create_upload(CreateUpload(bucket=BUCKET, key="old"))
    parts = []
    for number, data in ((1, LARGE), (2, b"once"), (2, SMALL), (7, b"unused")):
        part = UploadPart(bucket=BUCKET, key="old", upload=upload.upload, number=number, body=BytesBody(data))
        parts.append(CompletePart(number, (await desk.objects.upload_part(part)).etag))
    complete = CompleteUpload(bucket=BUCKET, key="old", upload=upload.upload, parts=(parts[0], parts[2]))
    return (await desk.objects.complete_upload(complete)).etag


async def multipart_aborted(desk: Desk) -> object:
    upload = await desk.objects.create_upload(CreateUpload(bucket=BUCKET, key="old"))
    for number, data in ((1, LARGE), (2, SMALL)):
        part = UploadPart(bucket=BUCKET, key="old", upload=upload.upload, number=number, body=BytesBody(data))
        await desk.objects.upload_part(part)
    await desk.objects.abort_upload(BUCKET, "old", upload.upload)
    return None


async def create_bucket(desk: Desk) -> object:
    return (await desk.objects.create_bucket("bucket-c", None)).name


async def delete_bucket(desk: Desk) -> object:
    return await desk.objects.delete_bucket("bucket-b")


async def delete_full_bucket(desk: Desk) -> object:
    with pytest.raises(BucketNotEmpty):
        await desk.objects.delete_bucket(BUCKET)
    return None


async def snapshot(desk: Desk) -> object:
    """Everything a client can see."""
    listing = await desk.objects.list_objects(ListObjects(bucket=BUCKET))
    names = [entry if isinstance(entry, str) else entry.key for entry in listing.entries]
    uploads = await desk.objects.list_uploads(BUCKET, "", "", "", "", 1000)
    buckets = await desk.objects.list_buckets("", "", 100)
    contents = tuple([(name, await desk.get(name)) for name in names])
    return contents, len(uploads.entries), tuple(bucket.name for bucket in buckets)


OPERATIONS: list[Callable[[Desk], Awaitable[object]]] = [
    create,
    create_empty,
    create_large,
    overwrite,
    create_if_absent,
    replace_if_match,
    delete,
    delete_if_match,
    copy,
    copy_over,
    copy_onto_itself,
    multipart,
    multipart_aborted,
    create_bucket,
    delete_bucket,
    delete_full_bucket,
]
FAULTS = [
    Fault(Mishap.APPLIED),
    Fault(Mishap.NOT_APPLIED),
    Fault(Mishap.APPLIED_LATER, 0.001),
    Fault(Mishap.APPLIED_LATER, 5.0),
    Fault(Mishap.UNAVAILABLE),
]


async def outcome_of(operation: Awaitable[object]) -> tuple[object, Unavailable | None]:
    try:
        return await operation, None
    except Unavailable as error:
        return None, error


async def settle(desk: Desk) -> None:
    """Let everything land that still can, and clean up."""
    await VirtualClock().sleep(30)
    assert await desk.objects.finish_cleanups(1000)
    await desk.audit()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.mishap.name}-{fault.delay_s}")
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_the_answer_is_true_whichever_commit_goes_wrong(
    operation: Callable[[Desk], Awaitable[object]], fault: Fault
) -> None:
    desk, index = await prepared()
    before = await snapshot(desk)
    index.arm(-1)
    answer = await operation(desk)
    commits = index.seen
    await settle(desk)
    after = await snapshot(desk)
    multistep = operation in (multipart, multipart_aborted)
    for nth in range(commits):
        desk, index = await prepared()
        index.arm(nth, fault)
        got, error = await outcome_of(operation(desk))
        await settle(desk)
        if error is None:
            assert got == answer
            assert await snapshot(desk) == after
        else:
            assert fault.mishap is Mishap.UNAVAILABLE, "one unknown outcome is found out"
            assert "unknown" not in error.facts
            assert multistep or await snapshot(desk) == before


@pytest.mark.parametrize("fault", [None, *FAULTS[:4]], ids=str)
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=len)
async def test_a_put_that_meets_a_rival_and_a_fault_still_gets_through(
    fault: Fault | None, data: bytes
) -> None:
    desk, index = await prepared()
    rival = Desk(VirtualClock(), index=index, packs=desk.packs, seed=100, limits=LIMITS)
    index.before = lambda: rival.put("old", b"rival")
    index.arm(0, fault)
    await desk.put("old", data)
    assert index.before is None
    await settle(desk)
    assert await desk.get("old") == data


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("fault", [None, *FAULTS[:4]], ids=str)
async def test_a_creation_that_loses_to_a_rival_is_refused_and_leaves_no_bytes(
    fault: Fault | None, large: bool
) -> None:
    desk, index = await prepared()
    rival = Desk(VirtualClock(), index=index, packs=desk.packs, seed=100, limits=LIMITS)
    index.before = lambda: rival.put("new", b"rival")
    index.arm(0, fault)
    with pytest.raises(PreconditionFailed):
        await desk.put("new", LARGE if large else SMALL, Conditions(if_none_match=("*",)))
    await settle(desk)
    assert await desk.get("new") == b"rival"


@pytest.mark.parametrize("fault", FAULTS[:4], ids=str)
async def test_a_refusal_whose_own_outcome_is_unknown_stays_a_refusal(fault: Fault) -> None:
    desk, index = await prepared()
    rival = Desk(VirtualClock(), index=index, packs=desk.packs, seed=100, limits=LIMITS)

    async def before() -> None:
        await rival.put("new", b"rival")
        index.arm(1, fault)  # the commit that gives the bytes back; number 0 is the one that conflicts

    index.before = before
    index.arm(0)
    with pytest.raises(PreconditionFailed):
        await desk.put("new", SMALL, Conditions(if_none_match=("*",)))
    await settle(desk)
    assert await desk.get("new") == b"rival"


@pytest.mark.parametrize("rivals", [0, 1, 6])
@pytest.mark.parametrize("data", [SMALL, LARGE, b""], ids=len)
async def test_a_put_that_was_applied_unseen_and_replaced_since_is_not_done_again(
    data: bytes, rivals: int
) -> None:
    """Its version is not in the head row any more, but its mark is."""
    desk, index = await prepared()
    rival = Desk(VirtualClock(), index=index, packs=desk.packs, seed=100, limits=LIMITS)

    async def before() -> None:
        await rival.delete("new")
        for number in range(rivals):
            await rival.put("new", b"rival %d" % number)

    index.before = before
    index.arm(1)
    index.faults.append(Fault(Mishap.APPLIED))
    stored = await desk.put("new", data)
    assert stored.size == len(data)
    await settle(desk)
    if rivals:
        assert await desk.get("new") == b"rival %d" % (rivals - 1)
    else:
        with pytest.raises(NoSuchKey):
            await desk.get("new")


@pytest.mark.parametrize("keep", ["mine", "deleted"])
async def test_a_creation_that_lands_late_never_brings_back_what_was_deleted(keep: str) -> None:
    desk, index = await prepared()
    index.arm(0, Fault(Mishap.APPLIED_LATER, 60.0))
    await desk.put("new", SMALL)
    if keep == "deleted":
        await desk.delete("new")
    await VirtualClock().sleep(120)
    if keep == "deleted":
        with pytest.raises(NoSuchKey):
            await desk.get("new")
    else:
        assert await desk.get("new") == SMALL
    await desk.audit()


async def test_an_outcome_that_stays_unknown_is_said_to_be_unknown() -> None:
    desk, index = await prepared()
    index.faults.extend([Fault(Mishap.NOT_APPLIED)] * 10_000)
    before = VirtualClock().monotonic()
    with pytest.raises(Unavailable) as caught:
        await desk.delete("old")
    assert caught.value.facts["unknown"] is True
    assert VirtualClock().monotonic() - before < 15
    index.faults.clear()
    assert await desk.get("old") == b"before"


async def test_a_repeated_request_gets_the_answer_that_the_first_one_earned() -> None:
    desk, _ = await prepared()
    first = await desk.put("new", SMALL, request="r-1")
    await desk.put("new", b"later", request="r-2")
    again = await desk.objects.put_object(
        PutObject(bucket=BUCKET, key="new", body=BytesBody(SMALL), request=RequestId("r-1"))
    )
    assert (again.etag, again.modified_ms) == (first.etag, first.modified_ms)
    assert await desk.get("new") == b"later"
    await settle(desk)
