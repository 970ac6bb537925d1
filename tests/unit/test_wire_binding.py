"""An address is had before anybody is served there, and served by one."""

import asyncio

import pytest
import uvloop

from holdfast.base.clock import SystemClock
from holdfast.base.errors import InvalidInput
from holdfast.wire.server import Server
from tests.unit.test_wire_giving_up import Waits


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_of_two_that_have_bound_a_port_the_second_that_starts_is_refused(runner) -> None:  # type: ignore[no-untyped-def]
    async def story() -> None:
        application, clock = Waits(gives_up=True), SystemClock()
        first = Server(application, clock, host="127.0.0.1", port=0)
        await first.bind()
        second = Server(application, clock, host="127.0.0.1", port=first.port)
        try:
            # As long as nobody listens, both may have it.
            await second.bind()
            await second.start()
            with pytest.raises(InvalidInput, match="is taken"):
                await first.start()
            _, writer = await asyncio.open_connection("127.0.0.1", second.port)
            writer.close()
        finally:
            await first.stop(0.0)
            await second.stop(0.0)

    runner(story())


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_who_has_only_bound_takes_no_connection(runner) -> None:  # type: ignore[no-untyped-def]
    async def story() -> None:
        server = Server(Waits(gives_up=True), SystemClock(), host="127.0.0.1", port=0)
        await server.bind()
        try:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection("127.0.0.1", server.port)
            await server.start()
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.close()
        finally:
            await server.stop(0.0)

    runner(story())
