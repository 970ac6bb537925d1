"""Moving bytes between packs: every object stays what it is, every byte has one owner, space comes back."""

import asyncio

import pytest
from msgspec.structs import replace

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Unavailable
from holdfast.base.ids import PackId
from holdfast.chores.collect import Collect
from holdfast.chores.compact import Move
from holdfast.index.memory import Fault, Mishap
from holdfast.index.port import PRESENT, Conflict, Expect, Transaction
from holdfast.objects.heads import mark, put_transaction, target
from holdfast.objects.keys import dead_row, head_row
from holdfast.objects.model import (
    CompletePart,
    CompleteUpload,
    CopyObject,
    CreateUpload,
    UploadPart,
)
from holdfast.objects.moving import PIECES_MAX, MoveReport
from holdfast.objects.rows import decode_head, decode_record, encode_record
from holdfast.objects.settings import ObjectsLimits
from holdfast.packs.model import pack_row
from holdfast.packs.rows import PackRows, decode_row
from holdfast.scheme import Scheme
from tests.kit.objects import BUCKET, BytesBody, Desk, before_commit, puts

RS = Scheme(4, 2)
ANY = 1 << 40
SMALL = {f"key-{number}": b"%d " % number * (number * 97) for number in range(12)}


async def ready(inline_bytes_max: int = 32 << 10) -> Desk:
    limits = ObjectsLimits(hashing_threads=0, part_bytes_min=1, inline_bytes_max=inline_bytes_max)
    return await Desk(SystemClock(), limits=limits).bucket()


def mover(desk: Desk) -> Move:
    return desk.objects.moving(desk.clock).move


async def packs_of(desk: Desk) -> list[PackId]:
    return [
        PackId(bytes.fromhex(row.key.removeprefix(b"pack/").decode())) for row in await desk.rows(b"pack/")
    ]


async def move(desk: Desk, packs: list[PackId] | None = None, worth: int = ANY) -> MoveReport:
    if packs is None:
        packs = await packs_of(desk)
    return await mover(desk)(dict.fromkeys(packs, worth), RS, frozenset(packs))


async def collect(desk: Desk) -> None:
    chore = Collect(desk.index, PackRows(desk.index), lambda _: False)
    while await chore.step():
        pass


async def copy(desk: Desk, source: str, key: str) -> None:
    await desk.objects.copy_object(
        CopyObject(source_bucket=BUCKET, source_key=source, bucket=BUCKET, key=key)
    )


async def parts(desk: Desk, key: str, sizes: list[int]) -> tuple[CompleteUpload, bytes]:
    """An upload with these parts, not completed."""
    upload = (await desk.objects.create_upload(CreateUpload(bucket=BUCKET, key=key))).upload
    done, whole = [], b""
    for number, size in enumerate(sizes, 1):
        data = bytes([number]) * size
        part = UploadPart(bucket=BUCKET, key=key, upload=upload, number=number, body=BytesBody(data))
        done.append(CompletePart(number, (await desk.objects.upload_part(part)).etag))
        whole += data
    return CompleteUpload(bucket=BUCKET, key=key, upload=upload, parts=tuple(done)), whole


async def test_small_objects_move_into_one_pack_and_the_old_ones_die() -> None:
    desk = await ready()
    for key, data in SMALL.items():
        await desk.put(key, data)
    before = await packs_of(desk)
    assert len(before) == len(SMALL)
    report = await move(desk)
    assert (report.moved, report.refused, report.untouched) == (len(SMALL), 0, ())
    assert report.bytes_moved == sum(map(len, SMALL.values()))
    await desk.audit()
    await collect(desk)
    (pack,) = await packs_of(desk)
    assert pack not in before
    for key, data in SMALL.items():
        assert await desk.get(key) == data
    await desk.audit()
    await desk.delete(*SMALL)
    await collect(desk)
    assert not await packs_of(desk)
    assert not await desk.rows(b"dead/")


async def test_the_new_manifest_says_what_is_there_with_the_order_that_was_committed() -> None:
    desk = await ready()
    await desk.put("key", b"old")
    await desk.put("key", b"new")
    await desk.put("large", bytes(200_000))
    await move(desk)
    await collect(desk)
    (pack,) = await packs_of(desk)
    for entry in await desk.packs.manifest(pack):
        current = decode_head((await desk.rows(head_row(BUCKET, entry.key.encode())))[0].value).current
        (extent,) = current.extents
        assert (entry.bucket, entry.version) == (BUCKET, current.version)
        assert (extent.pack, entry.offset, entry.length) == (pack, extent.offset, extent.length)
        said = decode_record(entry.record)
        assert said.order == current.order
        assert said.extents[0].pack == b""
    assert current.order == 1


async def test_a_pack_of_which_too_much_is_needed_stays() -> None:
    desk = await ready()
    await asyncio.gather(*(desk.put(key, data) for key, data in SMALL.items()))
    (pack,) = await packs_of(desk)
    assert (await move(desk, worth=1000)).untouched == (pack,)
    await desk.delete(*[key for key in SMALL if key != "key-3"])
    assert (await move(desk, worth=1000)).moved == 1
    await collect(desk)
    assert await packs_of(desk) != [pack]
    assert await desk.get("key-3") == SMALL["key-3"]
    await desk.audit()


async def test_a_pack_that_would_be_the_only_one_stays_unless_it_is_worth_it() -> None:
    desk = await ready()
    complete, _ = await parts(desk, "pinned", [1000, 2000])
    await desk.objects.complete_upload(complete)
    await copy(desk, "pinned", "copy")
    assert await desk.objects.finish_cleanups(100)
    await desk.put("key", b"bytes")
    packs = await packs_of(desk)
    report = await mover(desk)(dict.fromkeys(packs, ANY), RS, frozenset())
    assert (report.moved, report.untouched) == (0, tuple(packs))
    assert (await move(desk)).moved == 1


async def test_whoever_changes_while_it_moves_stays_and_harms_nobody() -> None:
    desk = await ready()
    for key, data in SMALL.items():
        await desk.put(key, data)
    busy = True

    async def gate() -> None:
        nonlocal busy
        if busy:
            busy = False
            await desk.put("key-1", b"changed")
            await desk.delete("key-2")
            await copy(desk, "key-3", "copy-of-3")
            await copy(desk, "key-4", "key-5")

    def begin() -> asyncio.Future[None]:
        return asyncio.ensure_future(gate())

    desk.packs.write_gate = begin
    report = await move(desk)
    assert (report.moved, report.refused) == (len(SMALL) - 3, 3)
    await desk.audit()
    await collect(desk)
    await desk.audit()
    await move(desk)
    await collect(desk)
    await desk.audit()
    wanted = SMALL | {"key-1": b"changed", "copy-of-3": SMALL["key-3"], "key-5": SMALL["key-4"]}
    del wanted["key-2"]
    for key, data in wanted.items():
        assert await desk.get(key) == data
    await desk.delete(*wanted)
    await collect(desk)
    assert not await packs_of(desk)


async def test_copies_follow_their_owner_and_share_its_bytes_again() -> None:
    desk = await ready()
    await desk.put("source", b"x" * 1000)
    await desk.put("other", b"y" * 1000)
    for number in range(5):
        await copy(desk, "source", f"copy-{number}")
    report = await move(desk)
    assert (report.bytes_moved, report.moved) == (2000, 7)
    await desk.audit()
    await collect(desk)
    assert len(await packs_of(desk)) == 1
    assert len(await desk.rows(b"share/")) == 5
    await desk.delete("source", "other", "copy-1")
    await collect(desk)
    assert await desk.get("copy-4") == b"x" * 1000
    await desk.audit()


async def test_copies_whose_owner_is_gone_get_bytes_of_their_own_once() -> None:
    desk = await ready()
    await asyncio.gather(desk.put("source", b"x" * 1000), desk.put("other", b"y" * 50_000))
    for number in range(3):
        await copy(desk, "source", f"copy-{number}")
    await desk.delete("source", "other")
    await collect(desk)
    assert (await move(desk, worth=2000)).bytes_moved == 1000
    await desk.audit()
    await collect(desk)
    await desk.audit()
    (pack,) = await packs_of(desk)
    assert decode_row((await desk.index.get([pack_row(pack)]))[0].value).object_bytes == 1000  # type: ignore[union-attr]
    await desk.delete("copy-0")
    await collect(desk)
    assert await desk.get("copy-1") == await desk.get("copy-2") == b"x" * 1000
    await desk.delete("copy-1", "copy-2")
    await collect(desk)
    assert not await packs_of(desk)
    assert not await desk.rows(b"share/")


async def test_a_pack_with_a_copy_in_several_pieces_stays() -> None:
    desk = await ready()
    complete, whole = await parts(desk, "source", [1000, 2000])
    await desk.objects.complete_upload(complete)
    await copy(desk, "source", "copy")
    report = await move(desk)
    assert report.moved == 0
    await desk.delete("source")
    await collect(desk)
    assert await desk.get("copy") == whole
    await desk.audit()


async def test_parts_of_open_uploads_move_and_the_attempt_that_came_last_still_counts() -> None:
    desk = await ready()
    complete, _ = await parts(desk, "key", [1000, 200_000, 3000])
    first_packs = await packs_of(desk)
    again = UploadPart(
        bucket=BUCKET, key="key", upload=complete.upload, number=1, body=BytesBody(b"again" * 100)
    )
    etag = (await desk.objects.upload_part(again)).etag
    assert (await move(desk, first_packs)).moved == 1
    await desk.audit()
    wanted = (CompletePart(1, etag), *complete.parts[1:])
    await desk.objects.complete_upload(
        CompleteUpload(bucket=BUCKET, key="key", upload=complete.upload, parts=wanted)
    )
    assert await desk.objects.finish_cleanups(100)
    await collect(desk)
    assert await desk.get("key") == b"again" * 100 + b"\x02" * 200_000 + b"\x03" * 3000
    await desk.audit()
    await move(desk)
    await collect(desk)
    assert len(await packs_of(desk)) == 1
    await desk.audit()
    await desk.delete("key")
    await collect(desk)
    assert not await packs_of(desk)


async def test_parts_that_move_while_the_upload_completes_or_ends() -> None:
    desk = await ready()
    one, whole = await parts(desk, "one", [1000, 2000])
    two, _ = await parts(desk, "two", [3000, 4000])

    async def gate() -> None:
        await desk.objects.complete_upload(one)
        await desk.objects.abort_upload(BUCKET, "two", two.upload)

    desk.packs.write_gate = lambda: asyncio.ensure_future(gate())
    packs = await packs_of(desk)
    task = asyncio.ensure_future(move(desk, packs))
    await asyncio.sleep(0)
    report = await task
    assert (report.moved, report.refused) == (0, 2)
    assert await desk.objects.finish_cleanups(100)
    await desk.audit()
    await collect(desk)
    assert await desk.get("one") == whole
    await desk.audit()


async def test_a_huge_object_moves_by_writing_its_table_anew() -> None:
    desk = await ready(inline_bytes_max=64)
    complete, whole = await parts(desk, "huge", [1000 * n for n in range(1, 9)])
    await desk.objects.complete_upload(complete)
    assert await desk.objects.finish_cleanups(100)
    packs = await packs_of(desk)
    table = decode_head((await desk.rows(b"head/"))[0].value).current.extents_at
    assert table is not None
    data = [pack for pack in packs if pack != table.pack]
    assert (await move(desk, data[:3])).moved == 1
    await desk.audit()
    await collect(desk)
    assert table.pack not in await packs_of(desk)
    assert await desk.get("huge") == whole
    # Now table and pieces together, some of them in packs that were new.
    await move(desk)
    await collect(desk)
    await desk.audit()
    assert await desk.get("huge") == whole
    await move(desk)
    await collect(desk)
    assert await desk.get("huge") == whole
    await desk.audit()
    await desk.delete("huge")
    assert await desk.objects.finish_cleanups(100)
    await collect(desk)
    assert not await packs_of(desk)
    assert not await desk.rows(b"dead/")


async def test_a_table_alone_moves_as_it_is() -> None:
    desk = await ready(inline_bytes_max=64)
    complete, whole = await parts(desk, "huge", [1000, 2000, 3000])
    await desk.objects.complete_upload(complete)
    assert await desk.objects.finish_cleanups(100)
    table = decode_head((await desk.rows(b"head/"))[0].value).current.extents_at
    assert table is not None
    await desk.put("other", b"o")
    assert (await move(desk, [table.pack])).moved == 1
    await collect(desk)
    assert table.pack not in await packs_of(desk)
    assert await desk.get("huge") == whole
    await desk.audit()
    await desk.delete("huge")
    assert await desk.objects.finish_cleanups(100)
    await collect(desk)
    await desk.audit()


@pytest.mark.parametrize("old_pack_is_gone", [False, True])
async def test_a_creation_that_lands_late_never_brings_back_what_moved_and_was_deleted(
    old_pack_is_gone: bool,
) -> None:
    desk = await ready()
    where = target(BUCKET, "key")
    state = await desk.objects._context.heads.read(where)
    await desk.put("key", b"bytes")
    record = decode_head((await desk.rows(b"head/"))[0].value).current
    late = put_transaction(state, encode_record(record), "")
    late = late._replace(expects=(*late.expects, Expect(pack_row(record.extents[0].pack), PRESENT)))
    await move(desk)
    if old_pack_is_gone:
        await collect(desk)
    await desk.delete("key")
    (outcome,) = await desk.index.commit([late])
    assert getattr(outcome, "key", None) in (mark(record), pack_row(record.extents[0].pack))
    assert not await desk.rows(b"head/")
    await collect(desk)
    assert not await packs_of(desk)


async def test_the_creation_of_a_copy_that_lands_late_is_refused_after_a_move_too() -> None:
    desk = await ready()
    await asyncio.gather(desk.put("source", b"bytes"), desk.put("stays", b"s"))
    late: list[Transaction] = []
    async with before_commit(desk, lambda one: puts(one, b"share/"), late.extend):
        await copy(desk, "source", "copy")
    (pack,) = await packs_of(desk)
    # The old pack lives on: somebody has bytes there whom the mover does not find.
    desk.packs.manifests[pack] = tuple(one for one in desk.packs.manifests[pack] if one.key != "stays")
    assert (await move(desk)).moved == 2
    await desk.delete("copy")
    await collect(desk)
    assert pack in await packs_of(desk)
    (outcome,) = await desk.index.commit(late)
    assert isinstance(outcome, Conflict)
    # Also where nothing else would have met a conflict: the source is as it was when the copy was made.
    (first,) = late
    names = head_row(BUCKET, b"source")
    (outcome,) = await desk.index.commit(
        [first._replace(expects=tuple(one for one in first.expects if one.key != names))]
    )
    assert isinstance(outcome, Conflict)
    assert outcome.key.startswith(b"dead/")


async def test_the_creation_of_a_copy_that_got_bytes_of_its_own_is_refused_likewise() -> None:
    desk = await ready()
    await desk.put("source", b"bytes")
    await copy(desk, "source", "first")
    await desk.delete("source")
    first = (await desk.view("first")).record.version
    late: list[Transaction] = []
    while True:
        async with before_commit(desk, lambda one: puts(one, b"share/"), late.extend):
            await copy(desk, "first", "second")
        if (await desk.view("second")).record.version < first:
            break  # it is found before the other one, and becomes the owner
        await desk.delete("second")
        late.clear()
    (pack,) = await packs_of(desk)
    async with before_commit(desk, lambda one: puts(one, b"share/"), lambda _: desk.delete("second")):
        assert (await move(desk)).moved == 1
    await collect(desk)
    assert pack in await packs_of(desk)
    (outcome,) = await desk.index.commit(late)
    assert isinstance(outcome, Conflict)
    assert outcome.key == dead_row(pack, late[0].expects[2].key.decode().rpartition("/")[2])
    await desk.audit()
    assert await desk.get("first") == b"bytes"


async def test_a_copy_only_follows_an_owner_that_is_there() -> None:
    desk = await ready()
    await desk.put("source", b"bytes")
    await desk.put("other", b"other")
    await copy(desk, "source", "copy")
    async with before_commit(desk, lambda one: puts(one, b"share/"), lambda _: desk.delete("source")):
        assert (await move(desk)).moved == 2
    await collect(desk)
    await desk.audit()
    assert await desk.get("copy") == b"bytes"
    await move(desk)
    await collect(desk)
    assert await desk.get("copy") == b"bytes"
    assert not await desk.rows(b"share/")
    await desk.audit()


async def test_an_upload_that_completes_while_its_parts_move_reads_them_again() -> None:
    desk = await ready()
    complete, whole = await parts(desk, "key", [1000, 2000])
    reports: list[MoveReport] = []

    async def meanwhile(_: object) -> None:
        reports.append(await move(desk))

    async with before_commit(desk, lambda one: puts(one, b"head/"), meanwhile):
        await desk.objects.complete_upload(complete)
    assert reports[0].moved == 1
    assert await desk.objects.finish_cleanups(100)
    await collect(desk)
    assert len(await packs_of(desk)) == 1
    assert await desk.get("key") == whole
    await desk.audit()


@pytest.mark.parametrize("mishap", Mishap)
@pytest.mark.parametrize("sharers", [False, True])
async def test_a_move_whose_commit_goes_wrong_loses_nothing(mishap: Mishap, sharers: bool) -> None:
    desk = await ready()
    for key, data in SMALL.items():
        await desk.put(key, data)
    if sharers:
        await copy(desk, "key-7", "key-7-copy")
    desk.index.faults.append(Fault(mishap, 0.01))
    if mishap is Mishap.UNAVAILABLE:
        with pytest.raises(Unavailable):
            await move(desk)
    else:
        await move(desk)
    for _ in range(3):
        await move(desk)
        await collect(desk)
    await desk.audit()
    for key, data in SMALL.items():
        assert await desk.get(key) == data
    assert len(await packs_of(desk)) == 1


async def test_a_step_is_bounded_and_the_next_goes_on() -> None:
    desk = await ready()
    await asyncio.gather(*(desk.put(f"key-{number}", b"x") for number in range(PIECES_MAX + 100)))
    assert (await move(desk)).moved == PIECES_MAX
    packs = await packs_of(desk)
    sizes = [decode_row(row.value).object_bytes for row in await desk.rows(b"pack/")]
    old = [pack for pack, size in zip(packs, sizes, strict=True) if size > PIECES_MAX]
    assert (await move(desk, old)).moved == 100
    await collect(desk)
    await desk.audit()
    assert len(await packs_of(desk)) == 2


async def test_what_a_manifest_says_wrongly_harms_nobody() -> None:
    desk = await ready()
    await desk.put("key", b"bytes")
    (pack,) = await packs_of(desk)
    (entry,) = desk.packs.manifests[pack]
    wrong = (replace(entry, key="nothing"), replace(entry, key="\0"), replace(entry, part=3, bucket="x" * 99))
    desk.packs.manifests[pack] = wrong
    assert (await move(desk)).untouched == (pack,)
    assert await desk.get("key") == b"bytes"
    await desk.audit()
