"""A node loses its index and two stores at a random moment; all that was acknowledged is there again.

Clients write, overwrite, delete, copy and upload in parts, each on keys of its own and one thing after the
other, so that it is known at every moment what each key holds. Then everything stops where it is. What
recovery makes of the stores that are left is held against that: what the journal covers exactly, of the rest
every object whose bytes were acknowledged last; and nothing that was refused, ever.
"""

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass, field

import pytest

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import RequestId
from holdfast.base.randomness import SeededRandomness
from holdfast.objects.errors import PreconditionFailed
from holdfast.objects.model import (
    CompletePart,
    CompleteUpload,
    Conditions,
    CopyObject,
    CreateUpload,
    DeleteKey,
    PutObject,
    UploadPart,
)
from holdfast.packs.verifying import Verifier
from tests.kit.objects import BUCKET, BytesBody
from tests.kit.recovery_world import Again, World, held, make_world, recover, serve_again
from tests.kit.virtual import run_virtual

KEYS_EACH = 3
CLIENTS = 5
LIVES = 6


@dataclass
class Deed:
    """One thing that a client did to a key: what the key holds since (None: nothing), the revisions of the
    index when it was begun and when it was acknowledged (None: it never was), and whether its bytes lie in a
    pack that says so."""

    holds: bytes | None
    begun: int
    acked: int | None = None
    told_by_pack: bool = False


@dataclass
class Book:
    """What was done to each key, and bodies that were refused."""

    deeds: dict[str, list[Deed]] = field(default_factory=dict)
    refused: set[bytes] = field(default_factory=set)


class Client:
    """Works on keys of its own until it is stopped."""

    def __init__(self, world: World, book: "Book", number: int, seed: int) -> None:
        self._world = world
        self._book = book
        self._keys = [f"c{number}/k{key}" for key in range(KEYS_EACH)]
        self._chance = SeededRandomness(f"client {number} of {seed}")
        self._count = 0

    async def run(self) -> None:
        while True:
            await self._one()
            await self._world.rig.clock.sleep(self._chance.fraction() * 0.2)

    async def _one(self) -> None:
        key = self._keys[self._chance.below(KEYS_EACH)]
        deeds = self._book.deeds.setdefault(key, [Deed(None, 0, 0)])
        what = self._chance.below(10)
        if what < 5:
            await self._put(key, deeds)
        elif what < 7:
            await self._delete(key, deeds)
        elif what < 8:
            await self._copy(key, deeds)
        elif what < 9:
            await self._upload(key, deeds)
        else:
            await self._refused(key, deeds)

    def _body(self) -> bytes:
        self._count += 1
        size = 150_000 if self._chance.below(8) == 0 else 20 + self._chance.below(3_000)
        return f"{self._keys[0]} {self._count} ".encode().ljust(size, b".")

    async def _do(self, deeds: list[Deed], deed: Deed, work: Awaitable[object]) -> None:
        deeds.append(deed)
        await work
        deed.acked = self._world.rows.revision

    async def _put(self, key: str, deeds: list[Deed]) -> None:
        body = self._body()
        put = PutObject(bucket=BUCKET, key=key, body=BytesBody(body))
        deed = Deed(body, self._world.rows.revision, told_by_pack=True)
        await self._do(deeds, deed, self._world.objects.put_object(put))

    async def _delete(self, key: str, deeds: list[Deed]) -> None:
        deed = Deed(None, self._world.rows.revision)
        keys = [DeleteKey(key=key)]
        await self._do(deeds, deed, self._world.objects.delete_objects(BUCKET, keys, RequestId("")))

    async def _copy(self, key: str, deeds: list[Deed]) -> None:
        source = self._keys[self._chance.below(KEYS_EACH)]
        held = self._book.deeds.get(source, [Deed(None, 0, 0)])[-1].holds
        if source == key or held is None:
            return
        copy = CopyObject(source_bucket=BUCKET, source_key=source, bucket=BUCKET, key=key)
        deed = Deed(held, self._world.rows.revision)
        await self._do(deeds, deed, self._world.objects.copy_object(copy))

    async def _upload(self, key: str, deeds: list[Deed]) -> None:
        objects = self._world.objects
        upload = (await objects.create_upload(CreateUpload(bucket=BUCKET, key=key))).upload
        bodies = [self._body(), self._body()]
        parts = []
        for number, body in enumerate(bodies, 1):
            part = UploadPart(bucket=BUCKET, key=key, upload=upload, number=number, body=BytesBody(body))
            parts.append(CompletePart(number, (await objects.upload_part(part)).etag))
        complete = CompleteUpload(bucket=BUCKET, key=key, upload=upload, parts=tuple(parts))
        deed = Deed(b"".join(bodies), self._world.rows.revision)
        await self._do(deeds, deed, objects.complete_upload(complete))

    async def _refused(self, key: str, deeds: list[Deed]) -> None:
        """What may not be there, must not come back."""
        if deeds[-1].holds is None:
            return
        body = self._body()
        self._book.refused.add(body)
        conditions = Conditions(if_none_match=("*",))
        put = PutObject(bucket=BUCKET, key=key, body=BytesBody(body), conditions=conditions)
        with pytest.raises(PreconditionFailed):
            await self._world.objects.put_object(put)


def allowed(deeds: list[Deed], covered: int) -> list[bytes | None]:
    """What a key may hold when the journal covers that revision: the last deed that it surely covers, or
    the last one behind it that a pack tells of and that was acknowledged, or any that came after that."""
    least = 0
    for number, deed in enumerate(deeds):
        if deed.acked is not None and (deed.acked <= covered or deed.told_by_pack):
            least = number
    return [deed.holds for deed in deeds[least:]]


async def one_life(seed: int) -> tuple[World, Book, Again]:
    world, book = await make_world(seed), Book()
    rig = world.rig
    chance = SeededRandomness(f"end of {seed}")
    world.start()
    world.tasks += [
        asyncio.ensure_future(Client(world, book, number, seed).run()) for number in range(CLIENTS)
    ]
    ended, _ = await asyncio.wait(world.tasks, timeout=3 + chance.fraction() * 8)
    for task in ended:
        task.result()
    await world.stop()
    for _ in range(2):
        rig.attached.pop(rig.stores[chance.below(len(rig.stores))], None)
    return world, book, await recover(rig)


async def check_life(seed: int) -> Again:
    world, book, again = await one_life(seed)
    rig = world.rig
    assert again.loaded.gap == ""
    assert again.surveyed.short == []
    assert again.applied.incomplete == []
    objects, packs, index = serve_again(rig, again.rows)
    for key, deeds in book.deeds.items():
        try:
            found = await held(objects, key)
        except HoldfastError as error:
            raise AssertionError(f"seed {seed}: {key} cannot be read: {error}") from error
        assert found not in book.refused, f"seed {seed}: {key} holds what was refused"
        may = allowed(deeds, again.loaded.revision)
        assert found in may, (
            f"seed {seed}: {key} holds {(found or b'')[:20]!r} at {again.loaded.revision}, and may hold "
            f"{[(one or b'')[:20] for one in may]}; {again.applied}"
        )
    # And the next life goes on with it: nothing is torn.
    verifier = Verifier(rig.attached, index, packs.rows, packs.reader, rig.clock)
    assert all([report.losses_left >= 0 async for report in verifier.verify_all()])
    for key in book.deeds:
        await objects.put_object(PutObject(bucket=BUCKET, key=key, body=BytesBody(b"new " * 10)))
        assert await held(objects, key) == b"new " * 10
    return again


@pytest.mark.slow
def test_an_index_and_two_stores_are_lost_at_any_moment() -> None:
    snapshots = applied = pieces = 0
    for seed in range(LIVES):
        again = run_virtual(check_life(seed))
        snapshots += again.loaded.snapshot is not None
        applied += len(again.applied.applied)
        pieces += again.loaded.pieces
    # It would prove little if no life had a snapshot, or anything behind the journal.
    assert snapshots >= LIVES // 4
    assert applied >= LIVES
    assert pieces >= LIVES
