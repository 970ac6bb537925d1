"""The audit lets go what nobody owns, once; whatever somebody needs, or may still need, is left alone."""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Unavailable
from holdfast.base.ids import PackId, VersionId
from holdfast.chores.audit import Audit
from holdfast.chores.collect import Collect
from holdfast.chores.compact import Move
from holdfast.index.port import PRESENT, Conflict, Expect, Row, Transaction, prefix_end
from holdfast.objects.auditing import Audited, AuditReport
from holdfast.objects.errors import PreconditionFailed
from holdfast.objects.keys import dead_row
from holdfast.objects.model import (
    CompletePart,
    CompleteUpload,
    Conditions,
    CopyObject,
    CreateUpload,
    UploadPart,
)
from holdfast.objects.receiving import TAIL_BYTES
from holdfast.objects.rows import decode_cleanup, decode_dead, decode_head, encode
from holdfast.objects.settings import ObjectsLimits
from holdfast.packs.model import PACK_BYTES_MAX, Appended, Extent, ManifestEntry, Piece
from holdfast.packs.rows import PackRows, decode_row
from holdfast.scheme import Scheme
from tests.kit.memory_packs import MemoryPacks
from tests.kit.objects import BUCKET, BytesBody, Desk, before_commit, puts
from tests.kit.virtual import VirtualClock

RS = Scheme(4, 2)
NEVER = Transaction((Expect(b"never", PRESENT),))


async def ready(inline_bytes_max: int = 32 << 10) -> Desk:
    limits = ObjectsLimits(hashing_threads=0, part_bytes_min=1, inline_bytes_max=inline_bytes_max)
    return await Desk(SystemClock(), limits=limits).bucket()


def mover(desk: Desk) -> Move:
    return desk.objects.moving(desk.clock).move


def auditor(desk: Desk) -> Callable[[PackId], Awaitable[AuditReport]]:
    return desk.objects.auditing(desk.clock).audit


async def packs_of(desk: Desk) -> list[PackId]:
    found = await desk.index.scan(b"pack/", prefix_end(b"pack/"), limit=1000)
    return [PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode())) for row in found]


async def abandon(desk: Desk, key: str, data: bytes, version: str = "f" * 32) -> Appended:
    """A small body whose transaction was refused, and whose writer then died."""

    def describe(extent: Extent) -> ManifestEntry:
        return ManifestEntry(BUCKET, key, version, extent.offset, extent.length)

    appended = await desk.packs.append(RS, Piece(data, describe, lambda _: NEVER))
    assert isinstance(appended.outcome, Conflict)
    return appended


def refuses(transaction: Transaction) -> bool:
    """Whether a transaction gives back what a refused write has written."""
    return puts(transaction, b"dead/") and not puts(transaction, b"head/")


async def audit_all(desk: Desk) -> dict[PackId, Audited]:
    return {pack: (await auditor(desk)(pack)).ended for pack in await packs_of(desk)}


async def collect(desk: Desk) -> None:
    chore = Collect(desk.index, PackRows(desk.index), lambda _: False)
    while await chore.step():
        pass


@pytest.mark.parametrize("key_is_there", [False, True])
async def test_bytes_whose_writer_died_are_let_go_once(key_is_there: bool) -> None:
    desk = await ready()
    if key_is_there:
        await desk.put("lost", b"older")
    _, lost = await asyncio.gather(desk.put("kept", b"k" * 100), abandon(desk, "lost", b"l" * 50))
    pack = lost.extent.pack
    report = await auditor(desk)(pack)
    assert (report.ended, report.bytes_found) == (Audited.FOUND, 50)
    await desk.audit()
    assert (await auditor(desk)(pack)).ended is Audited.BALANCED
    await desk.delete("kept", "lost")
    await collect(desk)
    assert await packs_of(desk) == []


async def test_what_is_found_later_is_added_to_what_was_found_before() -> None:
    desk = await ready()
    _, one, two = await asyncio.gather(
        desk.put("kept", b"k" * 100), abandon(desk, "a", b"a" * 10), abandon(desk, "b", b"b" * 20, "e" * 32)
    )
    pack = one.extent.pack
    # Of the second one, part was let go by a deletion that the audit cannot assign.
    await desk.index.commit([Transaction((), ((dead_row(pack, "x"), b"\x93\x01\x14\xa1x"),))])
    assert (await auditor(desk)(pack)).bytes_found == 10
    await desk.index.commit([Transaction((), (), (dead_row(pack, "x"),))])
    assert (await auditor(desk)(pack)).bytes_found == 20
    await desk.audit()
    assert two.extent.pack == pack


async def test_all_that_somebody_needs_is_balanced() -> None:
    desk = await ready(inline_bytes_max=64)
    await asyncio.gather(*(desk.put(f"key-{number}", bytes(number * 31)) for number in range(8)))
    await desk.put("large", bytes(200_000))
    await desk.put("key-1", b"over")
    await desk.delete("key-2")
    for source, key in (("key-3", "copy"), ("large", "large copy"), ("key-4", "key-5")):
        await desk.objects.copy_object(
            CopyObject(source_bucket=BUCKET, source_key=source, bucket=BUCKET, key=key)
        )
    await desk.delete("key-3", "large")
    for key in ("complete", "open"):
        upload = (await desk.objects.create_upload(CreateUpload(bucket=BUCKET, key=key))).upload
        done = []
        for number in (1, 2, 2, 3):
            body = BytesBody(bytes([number]) * (number * 999))
            part = UploadPart(bucket=BUCKET, key=key, upload=upload, number=number, body=body)
            done.append(CompletePart(number, (await desk.objects.upload_part(part)).etag))
        if key == "complete":
            wanted = CompleteUpload(bucket=BUCKET, key=key, upload=upload, parts=(done[0], *done[2:]))
            await desk.objects.complete_upload(wanted)
    assert await desk.objects.finish_cleanups(100)
    for _ in range(3):
        assert set((await audit_all(desk)).values()) == {Audited.BALANCED}
        await desk.audit()
        packs = await packs_of(desk)
        await mover(desk)(dict.fromkeys(packs, 1 << 30), RS, frozenset(packs))
        await collect(desk)
    await desk.delete("complete", "copy", "large copy")
    assert await desk.objects.finish_cleanups(100)
    assert set((await audit_all(desk)).values()) == {Audited.BALANCED}


async def test_a_version_that_is_being_cleaned_up_is_left_alone() -> None:
    desk = await ready(inline_bytes_max=64)
    upload = (await desk.objects.create_upload(CreateUpload(bucket=BUCKET, key="huge"))).upload
    done = []
    for number in range(1, 5):
        part = UploadPart(
            bucket=BUCKET, key="huge", upload=upload, number=number, body=BytesBody(bytes(number * 1000))
        )
        done.append(CompletePart(number, (await desk.objects.upload_part(part)).etag))
    await desk.objects.complete_upload(
        CompleteUpload(bucket=BUCKET, key="huge", upload=upload, parts=tuple(done))
    )
    await desk.delete("huge")
    assert Audited.FOUND not in (await audit_all(desk)).values()
    assert await desk.objects.finish_cleanups(100)
    await desk.audit()
    await collect(desk)
    assert await packs_of(desk) == []


async def test_a_cleanup_that_is_stuck_keeps_only_its_own_packs_from_being_audited() -> None:
    """The table of a large object cannot be read, for days: what others left behind is found all the same."""
    desk = await ready(inline_bytes_max=64)
    upload = (await desk.objects.create_upload(CreateUpload(bucket=BUCKET, key="huge"))).upload
    done = []
    for number in range(1, 5):
        body = BytesBody(bytes(number * 1000))
        part = UploadPart(bucket=BUCKET, key="huge", upload=upload, number=number, body=body)
        done.append(CompletePart(number, (await desk.objects.upload_part(part)).etag))
    wanted = CompleteUpload(bucket=BUCKET, key="huge", upload=upload, parts=tuple(done))
    await desk.objects.complete_upload(wanted)
    assert await desk.objects.finish_cleanups(100)
    its_own = await packs_of(desk)
    (head,) = await desk.index.get([b"head/" + BUCKET.encode() + b"/huge"])
    assert head is not None
    table = decode_head(head.value).current.extents_at
    assert table is not None

    def unreadable(extent: Extent) -> None:
        if extent.pack == table.pack:
            raise Unavailable("Too few shards answer.")

    desk.packs.before_read = unreadable
    await desk.delete("huge")
    with pytest.raises(Unavailable):
        await desk.objects.finish_cleanups(100)
    lost = await abandon(desk, "lost", b"l" * 50)
    audited = await audit_all(desk)
    assert audited.pop(lost.extent.pack) is Audited.FOUND
    assert set(audited) == set(its_own)
    assert set(audited.values()) == {Audited.UNSETTLED}
    # A row of an older version does not say whose bytes it is about: it may be anybody's.
    (row,) = [
        item
        for item in await desk.index.scan(b"cleanup/", prefix_end(b"cleanup/"), limit=10)
        if isinstance(item, Row)
    ]
    older = encode(msgspec.structs.replace(decode_cleanup(row.value), bucket="", key=""))
    await desk.index.commit([Transaction((), ((row.key, older),))])
    other = await abandon(desk, "other", b"o" * 50)
    assert (await auditor(desk)(other.extent.pack)).ended is Audited.UNSETTLED
    desk.packs.before_read = None
    assert await desk.objects.finish_cleanups(100)
    assert (await auditor(desk)(other.extent.pack)).ended is Audited.FOUND
    await desk.audit()
    await collect(desk)
    assert await packs_of(desk) == []


def test_a_cleanup_row_of_an_older_version_is_read() -> None:
    older = msgspec.msgpack.encode([1, "cause", None, b"", "v" * 32, [b"p" * 16, 0, 64], False, 3])
    row = decode_cleanup(older)
    assert (row.done, row.bucket, row.key) == (3, "", "")


async def test_a_writer_that_comes_after_the_audit_is_turned_away() -> None:
    """The key changes under a PUT, which finds its bytes given up when it decides anew."""
    desk = await ready()
    await desk.put("key", b"first")
    audited: list[Audited] = []
    real = desk.packs.append

    async def append(scheme: Scheme, piece: Piece) -> Appended:
        desk.packs.append = real  # type: ignore[method-assign]
        await desk.put("key", b"second")
        appended = await real(scheme, piece)
        assert isinstance(appended.outcome, Conflict)
        audited.append((await auditor(desk)(appended.extent.pack)).ended)
        return appended

    desk.packs.append = append  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="given up"):
        await desk.put("key", b"third")
    assert audited == [Audited.FOUND]
    assert await desk.get("key") == b"second"
    await desk.audit()
    await collect(desk)
    assert len(await packs_of(desk)) == 1


async def test_the_audit_that_comes_after_a_writer_takes_nothing() -> None:
    """Between looking at the key and closing the piece, its writer succeeds."""
    desk = await ready()
    lost = await abandon(desk, "key", b"l" * 50)
    async with before_commit(desk, lambda one: puts(one, b"dead/"), lambda _: desk.put("key", b"new")):
        assert (await auditor(desk)(lost.extent.pack)).ended is Audited.UNSETTLED
    assert await desk.get("key") == b"new"
    assert (await auditor(desk)(lost.extent.pack)).ended is Audited.FOUND
    await desk.audit()


async def test_a_writer_that_gives_up_after_the_audit_gives_nothing_back_twice() -> None:
    """Its condition does not hold any more, and the audit is there before it says so of its bytes."""
    desk = await ready()
    await desk.put("key", b"first")
    condition = Conditions(if_match=((await desk.view("key")).record.etag,))
    audited: list[Audited] = []
    real = desk.packs.append

    async def meanwhile(_: object) -> None:
        audited.extend((await audit_all(desk)).values())

    async def append(scheme: Scheme, piece: Piece) -> Appended:
        desk.packs.append = real  # type: ignore[method-assign]
        await desk.put("key", b"second")
        return await real(scheme, piece)

    desk.packs.append = append  # type: ignore[method-assign]
    async with before_commit(desk, refuses, meanwhile):
        with pytest.raises(PreconditionFailed):
            await desk.put("key", b"third", condition)
    assert audited.count(Audited.FOUND) == 1
    assert await desk.get("key") == b"second"
    await desk.audit()


async def test_a_large_body_of_which_one_pack_was_given_up_is_turned_away() -> None:
    """Not only the pack that bears its mark counts."""
    desk = await ready()
    await desk.put("key", b"first")
    tail: list[PackId] = []

    async def change(_: object) -> None:
        await desk.put("key", b"second")

    async def audit(_: object) -> None:
        found = [row for row in await desk.rows(b"pack/") if decode_row(row.value).object_bytes == TAIL_BYTES]
        tail.extend(PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode())) for row in found)
        assert (await auditor(desk)(tail[0])).ended is Audited.FOUND

    async def change_and_wait(found: object) -> None:
        await change(found)
        stack = before_commit(desk, lambda one: puts(one, b"head/"), audit)
        await stack.__aenter__()

    async with before_commit(desk, lambda one: puts(one, b"head/"), change_and_wait):
        with pytest.raises(Unavailable, match="given up"):
            await desk.put("key", bytes(PACK_BYTES_MAX + 9))
    assert await desk.get("key") == b"second"
    assert set((await audit_all(desk)).values()) <= {Audited.FOUND, Audited.BALANCED}
    await desk.audit()


async def test_parts_of_a_key_with_open_uploads_wait_until_they_end() -> None:
    desk = await ready()
    upload = (await desk.objects.create_upload(CreateUpload(bucket=BUCKET, key="key"))).upload

    def describe(extent: Extent) -> ManifestEntry:
        return ManifestEntry(BUCKET, "key", "a" * 32, extent.offset, extent.length, 1)

    lost = await desk.packs.append(RS, Piece(b"part", describe, lambda _: NEVER))
    assert (await auditor(desk)(lost.extent.pack)).ended is Audited.UNSETTLED
    await desk.objects.abort_upload(BUCKET, "key", upload)
    assert (await auditor(desk)(lost.extent.pack)).bytes_found == 4
    await desk.audit()


async def test_a_part_that_went_elsewhere_keeps_nothing_waiting_although_its_upload_is_open() -> None:
    desk = await ready()
    upload = (await desk.objects.create_upload(CreateUpload(bucket=BUCKET, key="key"))).upload
    part = UploadPart(bucket=BUCKET, key="key", upload=upload, number=1, body=BytesBody(b"p" * 40))
    await asyncio.gather(desk.objects.upload_part(part), abandon(desk, "lost", b"l" * 50))
    (old,) = await packs_of(desk)
    assert (await mover(desk)({old: 1 << 30}, RS, frozenset([old]))).moved == 1
    report = await auditor(desk)(old)
    assert (report.ended, report.bytes_found) == (Audited.FOUND, 50)
    await desk.audit()


async def test_a_manifest_that_does_not_account_for_every_byte_is_no_ground_for_anything() -> None:
    desk = await ready()
    lost = await abandon(desk, "key", b"l" * 50)
    pack = lost.extent.pack
    packs: MemoryPacks = desk.packs
    (entry,) = packs.manifests[pack]
    packs.manifests[pack] = ()
    assert (await auditor(desk)(pack)).ended is Audited.UNSETTLED
    packs.manifests[pack] = (ManifestEntry("", "name", "", 0, 50),)
    assert (await auditor(desk)(pack)).ended is Audited.UNSETTLED
    packs.manifests[pack] = (entry,)
    assert (await auditor(desk)(pack)).ended is Audited.FOUND


@pytest.mark.virtual
async def test_the_chore_looks_only_at_packs_that_were_there_a_walk_ago() -> None:
    clock = VirtualClock()
    desk = await Desk(clock).bucket()
    lost = await abandon(desk, "key", b"l" * 50)
    chore = Audit(desk.index, auditor(desk), clock, walk_every_s=100)

    async def walk() -> int:
        await clock.sleep(100)
        while await chore.step():
            pass
        return chore.found_bytes

    assert await walk() == 0
    late = await abandon(desk, "key", b"l" * 7, "d" * 32)
    assert await walk() == 50
    assert await walk() == 57
    (row,) = await desk.index.get((dead_row(late.extent.pack, VersionId("audit")),))
    assert isinstance(row, Row)
    assert decode_dead(row.value).size == 7
    assert lost.extent.pack != late.extent.pack
