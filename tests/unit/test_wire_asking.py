"""One GET: a whole answer, or an error that says who did what."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from holdfast.base.errors import Unavailable
from holdfast.wire.asking import ANSWER_BYTES_MAX, Got, get
from tests.kit.ports import free_ports

T = 30.0


class Answering:
    """Answers every question with the same bytes; keeps the questions."""

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self.url = ""


@asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[Answering]:
    found = Answering(answer)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(found.answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        server.close()
        await server.wait_closed()


async def test_the_question_is_what_was_asked_and_the_answer_whole() -> None:
    async with answering(b"HTTP/1.1 418 Tea\r\nContent-Length: 2\r\n\r\nhi") as other:
        got = await get(f"{other.url}/a/b?c=d", timeout_s=T, headers={"x-proof": "p"})
        assert got == Got(418, b"hi")
        (asked,) = other.asked
        lines = asked.decode().split("\r\n")
        assert lines[0] == "GET /a/b?c=d HTTP/1.1"
        assert lines[1] == f"Host: {other.url.removeprefix('http://')}"
        assert {"Connection: close", "x-proof: p"} < set(lines)
        await get(other.url, timeout_s=T)
        assert other.asked[1].startswith(b"GET / HTTP/1.1\r\n")


async def test_an_answer_in_chunks_is_put_together() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    async with answering(chunked) as other:
        assert await get(other.url, timeout_s=T) == Got(200, b"abcde")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "does not answer in HTTP"),
        (b"SSH-2.0-OpenSSH\r\n", "does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", "does not answer in HTTP"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (ANSWER_BYTES_MAX + 1), "answers without end"),
    ],
)
async def test_what_is_no_answer_is_one_kind_of_error(answer: bytes, said: str) -> None:
    async with answering(answer) as other:
        with pytest.raises(Unavailable, match=said):
            await get(other.url, timeout_s=T)


async def test_nobody_there_and_nobody_who_answers() -> None:
    (port,) = free_ports(1)
    with pytest.raises(Unavailable, match="cannot be reached"):
        await get(f"http://127.0.0.1:{port}", timeout_s=T)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Unavailable, match="not answer"):
        await get(f"http://127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.05)
