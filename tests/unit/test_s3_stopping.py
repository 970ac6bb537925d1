"""The S3 server starts, stops, and answers for itself: in one sentence, in bounded time, to whom it may."""

import asyncio
import json

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import SeededRandomness
from holdfast.s3.face import AdminAnswer, AdminRequest, Route
from holdfast.s3.server import S3Server
from tests.kit.s3 import (
    Running,
    call,
    exchange,
    let_go,
    read_answer,
    render,
    serving,
    sign,
)


async def bucket(running: Running) -> None:
    await running.objects.create_bucket("bucket", None)


async def busy(running: Running, wanted: bool = True) -> None:
    """Wait until a request is under way, or none is."""
    while bool(running.server.in_flight) != wanted:  # noqa: ASYNC110 (nobody tells when)
        await asyncio.sleep(0.01)


async def test_stopping_lets_requests_finish_and_takes_no_more() -> None:
    async with serving() as running:
        await bucket(running)
        headers = {**sign("PUT", "/bucket/k", running.port, body=b"hello"), "Content-Length": "5"}
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", running.port)
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(render("PUT", "/bucket/k", headers, b"he"))
        await busy(running)
        stopping = asyncio.create_task(running.server.stop(60))
        assert await idle.read() == b""
        writer.write(b"llo")
        answer = await read_answer(reader)
        assert (answer.status, answer.closed) == (200, True)
        await stopping
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", running.port)
        await let_go(idle_writer)
        await let_go(writer)


async def test_stopping_does_not_wait_for_ever() -> None:
    async with serving() as running:
        await bucket(running)
        headers = {**sign("PUT", "/bucket/k", running.port, body=b"hello"), "Content-Length": "5"}
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(render("PUT", "/bucket/k", headers, b"he"))
        await busy(running)
        async with asyncio.timeout(60):
            await running.server.stop(0.1)
        assert running.objects.objects["bucket"] == {}
        await let_go(writer)


async def test_a_port_that_is_taken_is_said_in_one_sentence() -> None:
    async with serving() as running:
        second = S3Server(
            running.objects, {}, SystemClock(), SeededRandomness(1), host="127.0.0.1", port=running.port
        )
        with pytest.raises(InvalidInput, match=f"Port {running.port} on 127.0.0.1 is taken"):
            await second.start()


async def test_internal_paths() -> None:
    async def live(_: AdminRequest) -> AdminAnswer:
        return AdminAnswer(200, b"ok", "text/plain")

    async def status(request: AdminRequest) -> AdminAnswer:
        return AdminAnswer(200, json.dumps({"query": dict(request.query)}).encode())

    routes = {"/-/live": Route(live, signed=False), "/-/status": Route(status, signed=True)}
    async with serving(routes=routes) as running:
        open_ = await exchange(running.port, b"GET /-/live HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (open_.status, open_.body) == (200, b"ok")
        closed = await exchange(running.port, b"GET /-/status HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (closed.status, closed.code) == (403, "AccessDenied")
        unknown = await exchange(running.port, b"GET /-/secret HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (unknown.status, unknown.code) == (403, "AccessDenied")
        answer = await call(running.port, "GET", "/-/status?a=b")
        assert (answer.status, json.loads(answer.body)) == (200, {"query": {"a": "b"}})
        assert (await call(running.port, "PUT", "/-/status")).code == "MethodNotAllowed"
