"""Whoever observes the S3 face is told of each request once: how it ended, how long the client waited."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Unavailable
from holdfast.base.randomness import SeededRandomness
from holdfast.objects.model import DeleteResult
from holdfast.s3.observing import Answered, Ending
from holdfast.s3.server import S3Server
from holdfast.wire.exchange import Limits
from tests.kit.fake_objects import FakeObjects
from tests.kit.s3 import ACCESS_KEY, REGION, SECRET_KEY, call, exchange, render, sign


class Told:
    """An observer that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.all: list[Answered] = []
        self._came = asyncio.Event()

    def answered(self, answered: Answered) -> None:
        self.all.append(answered)
        self._came.set()

    async def last(self, count: int) -> Answered:
        """The newest, once there are `count`."""
        async with asyncio.timeout(60):
            while len(self.all) < count:
                self._came.clear()
                await self._came.wait()
        assert len(self.all) == count
        return self.all[-1]


class Gated(FakeObjects):
    """Objects whose listing of buckets waits for a gate, or fails."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.gate: asyncio.Event | None = None
        self.asked = asyncio.Event()
        self.away = False

    async def list_buckets(self, prefix, after, limit):  # type: ignore[no-untyped-def]
        self.asked.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise Unavailable("The index is away.")
        return await super().list_buckets(prefix, after, limit)

    async def delete_objects(self, bucket, keys, request, tries=1):  # type: ignore[no-untyped-def]
        if self.away:
            return [DeleteResult(key.key, error=Unavailable("The index is away.")) for key in keys]
        return await super().delete_objects(bucket, keys, request)


@asynccontextmanager
async def observed(limits: Limits | None = None) -> AsyncIterator[tuple[int, Gated, Told]]:
    told, objects = Told(), Gated()
    server = S3Server(
        objects,
        {ACCESS_KEY: SECRET_KEY},
        SystemClock(),
        SeededRandomness("observing"),
        port=0,
        region=REGION,
        limits=limits,
        observer=told,
    )
    await server.start()
    try:
        yield server.port, objects, told
    finally:
        await server.stop(1.0)


async def test_a_request_is_told_with_what_it_was_and_what_it_moved() -> None:
    async with observed() as (port, objects, told):
        await objects.create_bucket("bucket", None)
        await call(port, "PUT", "/bucket/key", body=b"hello")
        put = await told.last(1)
        assert (put.operation, put.bucket, put.admitted, put.status) == ("PutObject", "bucket", True, 200)
        assert (put.code, put.ending, put.bytes_in, put.bytes_out) == ("", Ending.COMPLETE, 5, 0)
        assert 0.0 <= put.waited_s <= put.seconds
        await call(port, "GET", "/bucket/key")
        get = await told.last(2)
        assert (get.operation, get.bytes_in, get.bytes_out) == ("GetObject", 0, 5)
        await call(port, "GET", "/bucket/other")
        missing = await told.last(3)
        assert (missing.status, missing.code, missing.bucket) == (404, "NoSuchKey", "bucket")


async def test_a_bucket_that_is_not_there_has_no_name() -> None:
    async with observed() as (port, _, told):
        await call(port, "GET", "/no-such-bucket/key")
        answered = await told.last(1)
        assert (answered.admitted, answered.bucket, answered.code) == (True, "", "NoSuchBucket")


async def test_who_cannot_sign_is_told_without_names() -> None:
    async with observed() as (port, _, told):
        await exchange(port, render("GET", "/bucket/key", {"Host": f"127.0.0.1:{port}"}))
        answered = await told.last(1)
        assert (answered.admitted, answered.operation, answered.bucket) == (False, "", "")
        assert answered.status == 403


async def test_what_is_about_the_node_itself_is_not_told() -> None:
    async with observed() as (port, _, told):
        await call(port, "GET", "/-/nothing")
        await call(port, "GET", "/")
        assert (await told.last(1)).operation == "ListBuckets"


async def test_an_error_of_ours_is_told_with_its_code() -> None:
    async with observed() as (port, objects, told):
        objects.away = True
        await call(port, "GET", "/")
        answered = await told.last(1)
        assert (answered.status, answered.code, answered.ending) == (
            503,
            "ServiceUnavailable",
            Ending.COMPLETE,
        )


async def test_an_error_of_ours_inside_a_success_is_told_too() -> None:
    async with observed() as (port, objects, told):
        await objects.create_bucket("bucket", None)
        body = b"<Delete><Object><Key>k</Key></Object></Delete>"
        headers = {"Content-MD5": base64.b64encode(hashlib.md5(body).digest()).decode()}
        for count, code in ((1, ""), (2, "ServiceUnavailable")):
            answer = await call(port, "POST", "/bucket?delete=", headers=headers, body=body)
            assert answer.status == 200
            answered = await told.last(count)
            assert (answered.operation, answered.status, answered.code) == ("DeleteObjects", 200, code)
            objects.away = True


async def test_a_client_that_leaves_before_its_answer_is_gone() -> None:
    async with observed() as (port, objects, told):
        objects.gate = asyncio.Event()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(render("GET", "/", sign("GET", "/", port)))
        await objects.asked.wait()
        writer.transport.abort()
        await call(port, "HEAD", "/no-such-bucket")  # the server has seen the other one go by now
        objects.gate.set()
        answered = await told.last(2)
        assert (answered.operation, answered.ending) == ("ListBuckets", Ending.GONE)
        assert answered.waited_s < answered.seconds


async def test_who_is_turned_away_for_lack_of_room_is_told_with_what_was_claimed() -> None:
    async with observed(Limits(requests_max=1)) as (port, objects, told):
        objects.gate = asyncio.Event()
        waiting = asyncio.create_task(call(port, "GET", "/"))
        await objects.asked.wait()
        refused = await call(port, "GET", "/bucket/key")
        assert refused.status == 503
        answered = await told.last(1)
        assert (answered.status, answered.admitted) == (503, False)
        assert (answered.operation, answered.bucket) == ("GetObject", "bucket")
        objects.gate.set()
        assert (await waiting).status == 200
        assert (await told.last(2)).admitted
