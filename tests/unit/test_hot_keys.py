"""Clients of hot keys write down what they are told as it was: what a sound server says is accepted, and
each of several mistakes of a server is found."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import pytest

from holdfast.base.ids import RequestId
from holdfast.objects import model as m
from tests.kit.fake_objects import FakeObjects
from tests.kit.hot_keys import HotKeys
from tests.kit.s3 import Answer, call, serving
from tests.simulation.book import Violation


async def fight(spoil: Callable[[FakeObjects], None] = lambda _: None, clients: int = 1) -> HotKeys:
    """Some clients at a server in this process, which may make mistakes. Judged. One client alone does the
    same every time."""
    async with serving() as running:

        async def door(
            method: str, target: str, body: bytes = b"", /, *, headers: Mapping[str, str] | None = None
        ) -> Answer:
            return await call(running.port, method, target, headers=headers, body=body)

        assert (await door("PUT", "/hot")).status == 200
        spoil(running.objects)
        hot = HotKeys([door], seed="fight", bucket="hot")
        hot.pause_s = 0.0
        if clients == 1:
            hot.leaving = 0.0
        await hot.work(250, clients)
        await hot.read_all([door])
    hot.judge({})
    return hot


async def test_a_sound_server_is_accepted() -> None:
    hot = await fight(clients=6)
    assert hot.book.acknowledged > 50


def loses_a_write(objects: FakeObjects) -> None:
    """Acknowledges, and keeps what was there."""
    put, numbers = objects.put_object, itertools.count()

    async def put_object(wanted: m.PutObject) -> m.Stored:
        kept = dict(objects._keys(wanted.bucket))
        stored = await put(wanted)
        if next(numbers) % 10 == 9:
            objects._keys(wanted.bucket).clear()
            objects._keys(wanted.bucket).update(kept)
        return stored

    objects.put_object = put_object  # type: ignore[method-assign]


def loses_a_deletion(objects: FakeObjects) -> None:
    """Acknowledges, and does nothing."""
    delete, numbers = objects.delete_objects, itertools.count()

    async def delete_objects(
        bucket: str, keys: Sequence[m.DeleteKey], request: RequestId, tries: int = 1
    ) -> Sequence[m.DeleteResult]:
        kept = dict(objects._keys(bucket))
        results = await delete(bucket, keys, request, tries)
        if next(numbers) % 3 == 2:
            objects._keys(bucket).update(kept)
        return results

    objects.delete_objects = delete_objects  # type: ignore[method-assign]


def reads_what_was(objects: FakeObjects) -> None:
    """Answers some reads with what was there at the read before."""
    read, before = objects.read_object, dict[str, m.ObjectView]()

    async def read_object(wanted: m.ReadObject) -> m.ObjectView:
        now = await read(wanted)
        return before.setdefault(wanted.key, now)

    objects.read_object = read_object  # type: ignore[method-assign]


def ignores_conditions(objects: FakeObjects) -> None:
    """Writes, whatever is there."""
    objects._check_write = lambda *_: None  # type: ignore[method-assign]


@pytest.mark.parametrize("spoil", [loses_a_write, loses_a_deletion, reads_what_was, ignores_conditions])
async def test_mistakes_are_found(spoil: Callable[[FakeObjects], None]) -> None:
    with pytest.raises(Violation):
        await fight(spoil)
