"""The bench's own client: what it counts as failed, and that it goes on."""

import asyncio
from itertools import islice, repeat

from holdfast.base.clock import SystemClock
from holdfast.bench.cluster import Bounded
from holdfast.bench.load import Outcome, Request, run_through
from tests.kit.stores import MovableClock

GET = Request(b"GET /bench/one HTTP/1.1\r\n\r\n", answer_bytes=3)


def answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def test_a_client_counts_what_fails_and_connects_again_where_it_was_cut_off() -> None:
    answers = iter([answer("200 OK", b"yes"), answer("503 No", b"no"), b"", b"", answer("200 OK", b"ye")])
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                said = next(answers, answer("200 OK", b"yes"))
                if not said:
                    break
                writer.write(said)
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    outcome = Outcome()
    async with server:
        await run_through(host, port, repeat(GET, 6), outcome, SystemClock())
    assert len(outcome.latencies) == 6
    assert [failure.split(": ", 1)[1][:12] for failure in outcome.failures] == [
        "status 503, ",
        "ConnectionEr",
        "ConnectionEr",
        "status 200, ",
    ]
    assert connections == 3


async def test_a_client_that_finds_nobody_counts_that_too() -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    server.close()
    await server.wait_closed()
    outcome = Outcome()
    await run_through(host, port, repeat(GET, 2), outcome, SystemClock())
    assert len(outcome.failures) == len(outcome.latencies) == 2


def test_a_run_ends_with_its_time_and_with_its_requests() -> None:
    clock = MovableClock()
    few = Bounded(repeat(GET, 3), 1_000.0, clock)
    assert len(list(few)) == few.given == 3
    endless = Bounded(repeat(GET), 1_000.0, clock)
    clock.ahead_s += 10_000.0
    assert len(list(islice(endless, 5))) == 5, "its time begins with the first request"
    clock.ahead_s += 1_000.0
    assert list(endless) == []
    assert endless.given == 5
