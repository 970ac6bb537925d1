"""What becomes of a request whose client is gone: it goes on or is given up, as its application wants it, and
in either case nothing of it is left behind."""

import asyncio

import pytest
import uvloop

from holdfast.base.clock import SystemClock
from holdfast.wire.connection import Connection, Shared
from holdfast.wire.exchange import Exchange, Limits
from holdfast.wire.http import Head, HeadError
from holdfast.wire.server import Server

T = 60.0
REQUEST = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


class Waits:
    """Answers when its gate opens."""

    single_headers: frozenset[str] = frozenset()

    def __init__(self, *, gives_up: bool) -> None:
        self.gives_up = gives_up
        self.gate = asyncio.Event()
        self.begun = self.answered = self.given_up = 0

    async def handle(self, exchange: Exchange) -> None:
        self.begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        self.answered += 1
        exchange.respond(200, "Content-Length: 0\r\n")

    def is_internal(self, head: Head) -> bool:
        return False

    def answer_at_once(self, exchange: Exchange) -> bool:
        return False

    def refuse(self, error: HeadError) -> tuple[int, str, bytes]:
        return error.status, "Content-Length: 0\r\n", b""

    def claim(self, exchange: Exchange) -> None:
        return


class Wireless(asyncio.Transport):
    """A transport that goes nowhere."""

    def write(self, data: object) -> None:
        return

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        return

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return

    def can_write_eof(self) -> bool:
        return False

    def close(self) -> None:
        return

    def abort(self) -> None:
        return


@pytest.mark.parametrize("lost", [False, True], ids=["eof", "lost"])
async def test_a_request_may_be_given_up_before_it_has_begun(lost: bool) -> None:
    """Its head and the end of its connection can come in one step of the loop."""
    application = Waits(gives_up=True)
    shared = Shared(application, Limits())
    connection = Connection(shared)
    connection.connection_made(Wireless())
    connection.data_received(REQUEST)
    assert len(shared.tasks) == 1
    if lost:
        connection.connection_lost(None)
    else:
        assert connection.eof_received() is False
    for _ in range(5):
        await asyncio.sleep(0)
    assert (application.begun, len(shared.tasks), shared.in_flight) == (0, 0, 0)


async def leave(application: Waits, *, half: bool) -> int:
    """Connect, ask, and go (or close the sending side only); how many tasks are left, once all is quiet."""
    server = Server(application, SystemClock(), host="127.0.0.1", port=0)
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(REQUEST)
    async with asyncio.timeout(T):
        while not application.begun:  # noqa: ASYNC110 (nobody tells when)
            await asyncio.sleep(0.001)
        if half:
            writer.write_eof()
        else:
            writer.transport.abort()
        if application.gives_up:
            while server.connections:  # noqa: ASYNC110 (nobody tells when)
                await asyncio.sleep(0.001)
        else:
            application.gate.set()
            while not application.answered:  # noqa: ASYNC110 (nobody tells when)
                await asyncio.sleep(0.001)
            if half:
                assert (await reader.read()).startswith(b"HTTP/1.1 200")
    writer.close()
    await server.stop(T)
    return server.in_flight


@pytest.mark.parametrize("half", [False, True], ids=["gone", "half-closed"])
@pytest.mark.parametrize("gives_up", [False, True], ids=["goes-on", "gives-up"])
@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_request_goes_on_or_is_given_up_when_its_client_is_gone(runner, gives_up: bool, half: bool) -> None:  # type: ignore[no-untyped-def]
    async def story() -> tuple[int, int, int]:
        application = Waits(gives_up=gives_up)
        left = await leave(application, half=half)
        return left, application.answered, application.given_up

    assert runner(story()) == ((0, 0, 1) if gives_up else (0, 1, 0))
