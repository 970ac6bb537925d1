"""A server of HTTP/1.1: listens, hands each request to its application, drains.

Starting raises InvalidInput with one sentence when the address cannot be had. Stopping takes no more
connections, lets what is under way finish for a while, then closes what is left.
"""

import asyncio
import errno
import math
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import cast

from holdfast.base.clock import Clock
from holdfast.base.errors import InvalidInput
from holdfast.wire.admission import LOOK_EVERY_S
from holdfast.wire.connection import Connection, Shared
from holdfast.wire.exchange import Application, ExchangeObserver, Limits

Listen = Callable[[Callable[[], Connection]], Awaitable[asyncio.AbstractServer]]
"""Begins to listen, and makes the protocol of each connection by what it is given. Raises OSError."""

_SWEEP_S = 1.0
_BACKLOG = 1024
_CLOSE_S = 2.0


class Server:
    """One address. `port` 0 takes a free one; `hint` says how to choose another. With `tls`, connections are
    encrypted. `listen` replaces TCP, for simulations."""

    def __init__(
        self,
        application: Application,
        clock: Clock,
        *,
        host: str,
        port: int,
        hint: str = "choose another.",
        tls: ssl.SSLContext | None = None,
        limits: Limits | None = None,
        observer: ExchangeObserver | None = None,
        listen: Listen | None = None,
    ) -> None:
        self._application = application
        self._clock = clock
        self._host = host
        self._port = port
        self._hint = hint
        self._tls = tls
        self._limits = limits or Limits()
        self._observer = observer
        self._listen = listen or self._listen_tcp
        self._shared: Shared | None = None
        self._server: asyncio.AbstractServer | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._looker: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """The port that is bound, once started."""
        assert self._server is not None, "start first"
        return int(cast(asyncio.Server, self._server).sockets[0].getsockname()[1])

    @property
    def in_flight(self) -> int:
        """Requests under way, internal ones not counted."""
        return self._shared.in_flight if self._shared else 0

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._shared.connections) if self._shared else 0

    async def bind(self) -> None:
        """Have the address, and take no connections yet. Raises InvalidInput when it cannot be had."""
        assert self._server is None, "start once"
        self._shared = shared = Shared(self._application, self._limits, self._observer)
        try:
            self._server = await self._listen(lambda: Connection(shared))
        except OSError as error:
            raise self._cannot_listen(error) from error

    async def start(self) -> None:
        """Listen. Raises InvalidInput when the address cannot be had."""
        if self._server is None:
            await self.bind()
        assert self._server is not None
        assert self._shared is not None
        shared = self._shared
        try:
            self._listen_first(self._server)
            await self._server.start_serving()
        except OSError as error:
            raise self._cannot_listen(error) from error
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep(shared))
        if shared.limits.late_s < math.inf:
            self._looker = asyncio.get_running_loop().create_task(self._look(shared))

    @staticmethod
    def _listen_first(server: asyncio.AbstractServer) -> None:
        """Of two that have bound the same port, the second that listens is refused. uvloop would not say so,
        and serve nobody."""
        for ours in cast(asyncio.Server, server).sockets if hasattr(server, "sockets") else ():
            with socket.socket(fileno=os.dup(ours.fileno())) as same:
                same.listen(_BACKLOG)

    async def _listen_tcp(self, make: Callable[[], Connection]) -> asyncio.AbstractServer:
        return await asyncio.get_running_loop().create_server(
            make,
            self._host,
            self._port,
            backlog=_BACKLOG,
            reuse_address=True,
            ssl=self._tls,
            start_serving=False,
        )

    async def stop(self, drain_s: float = 10.0) -> None:
        """Take no more requests, let those under way finish for up to `drain_s`, close the rest."""
        server, shared, sweeper = self._server, self._shared, self._sweeper
        if server is None or shared is None:
            return
        server.close()
        if sweeper is None:  # never started
            self._server = self._shared = None
            return
        shared.drain()
        try:
            async with asyncio.timeout(drain_s):
                while shared.tasks:
                    await asyncio.wait(tuple(shared.tasks))
        except TimeoutError:
            for connection in tuple(shared.connections):
                connection.abort()
            for task in tuple(shared.tasks):
                task.cancel()
            await asyncio.gather(*shared.tasks, return_exceptions=True)
        behind = [task for task in (sweeper, self._looker) if task is not None]
        for task in behind:
            task.cancel()
        await asyncio.gather(*behind, return_exceptions=True)
        for connection in tuple(shared.connections):
            connection.close()
        try:
            async with asyncio.timeout(_CLOSE_S):
                await server.wait_closed()
        except TimeoutError:
            for connection in tuple(shared.connections):
                connection.abort()
        self._server = self._shared = self._sweeper = self._looker = None

    async def _look(self, shared: Shared) -> None:
        """See how late the loop is."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LOOK_EVERY_S
            await self._clock.sleep(LOOK_EVERY_S)
            shared.admission.looked(loop.time() - due, shared.in_flight)

    async def _sweep(self, shared: Shared) -> None:
        while True:
            await self._clock.sleep(_SWEEP_S)
            shared.sweep()

    def _cannot_listen(self, error: OSError) -> InvalidInput:
        host, port = self._host, self._port
        if error.errno == errno.EADDRINUSE:
            return InvalidInput(
                f"Port {port} on {host} is taken.", hint=f"Stop what listens there, or {self._hint}"
            )
        if error.errno in {errno.EACCES, errno.EPERM}:
            return InvalidInput(
                f"No permission to listen on port {port} of {host}.",
                hint=f"Ports below 1024 need a privilege; {self._hint}",
            )
        return InvalidInput(f"Cannot listen on {host}, port {port}: {error.strerror or error}.")
