"""Connections inside one process, for protocols on a virtual clock: no sockets, no real time.

A `PipeNetwork` has listeners by address; `dial(address)` connects to one. Bytes take `latency_s`, arrive
in order, in pieces as they were written or smaller (`piece_bytes_max`), and stop while the receiver does not
read; a writer is told to pause as by a socket. `faults` may cut, change or hold them; `down` refuses
connections to an address, `silent` takes them and never lets a byte pass.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from tests.kit.wire_faults import Does, Way, WireFaults

Make = Callable[[], Any]


class PipeEnd(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, network: "PipeNetwork", protocol: Any, way: Way) -> None:
        super().__init__()
        self._network = network
        self._loop = asyncio.get_running_loop()
        self.protocol = protocol
        self._way = way
        self.other: PipeEnd | None = None
        self._queue: deque[bytes] = deque()
        self._unsent = 0
        self._high = 64 << 10
        self._paused_writer = False
        self._reading = True
        self._held = False
        self._closing = False
        self._ended = False
        self._eof_due = False
        self._eof_sent = False
        self._pumping = False

    # What protocols ask of a transport

    def write(self, data: Any) -> None:
        if self._closing or self._ended:
            return
        piece = bytes(data)
        most = self._network.piece_bytes_max
        for at in range(0, len(piece), most):
            self._queue.append(piece[at : at + most])
        self._unsent += len(piece)
        if self._unsent > self._high and not self._paused_writer:
            self._paused_writer = True
            self.protocol.pause_writing()
        self._pump_later()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = 64 << 10 if high is None else high

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._eof_due = True
        self._pump_later()

    def is_closing(self) -> bool:
        return self._closing or self._ended

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        if self.other is not None:
            self.other._pump_later()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.write_eof()

    def abort(self) -> None:
        if not self._ended:
            self._queue.clear()
            self._end(None)

    # The wire

    def _pump_later(self) -> None:
        if not self._pumping and not self._ended:
            self._pumping = True
            self._loop.call_later(self._network.latency_s, self._pump)

    def _pump(self) -> None:
        self._pumping = False
        other = self.other
        if other is None or self._ended or other._ended or self._held or not other._reading:
            return
        if self._queue:
            piece = self._queue.popleft()
            self._unsent -= len(piece)
            passed, does = self._network.faults.passing(self._way, piece)
            if passed:
                other._receive(passed)
            if does is Does.CUT:
                self._network.cut()
                return
            self._held |= does is Does.HOLD
            if self._paused_writer and self._unsent <= self._high // 4:
                self._paused_writer = False
                self.protocol.resume_writing()
        elif self._eof_due and not self._eof_sent:
            self._eof_sent = True
            if self._closing:
                self._end(None)
            else:
                other._receive_eof()
            return
        if self._queue or (self._eof_due and not self._eof_sent):
            self._pump_later()

    def _receive(self, piece: bytes) -> None:
        if not isinstance(self.protocol, asyncio.BufferedProtocol):
            self.protocol.data_received(piece)
            return
        while piece and not self._ended:
            buffer = self.protocol.get_buffer(len(piece))
            count = min(len(buffer), len(piece))
            buffer[:count] = piece[:count]
            piece = piece[count:]
            self.protocol.buffer_updated(count)

    def _receive_eof(self) -> None:
        if not self.protocol.eof_received():
            self.close()

    def _end(self, error: Exception | None) -> None:
        if self._ended:
            return
        self._ended = self._closing = True
        self._network.ends.pop(self, None)
        self._loop.call_soon(self.protocol.connection_lost, error)
        other = self.other
        if other is not None and not other._ended and not self._held:
            self._loop.call_later(self._network.latency_s, other._end, ConnectionResetError())


class _Listening(asyncio.AbstractServer):
    """What listens at an address."""

    def __init__(self, network: "PipeNetwork", address: str) -> None:
        self._network = network
        self._address = address

    async def start_serving(self) -> None:
        return

    def close(self) -> None:
        self._network.listeners.pop(self._address, None)

    async def wait_closed(self) -> None:
        return


class PipeNetwork:
    """Addresses, and the connections between them."""

    def __init__(self, *, latency_s: float = 0.0001, piece_bytes_max: int = 256 << 10) -> None:
        self.latency_s = latency_s
        self.piece_bytes_max = piece_bytes_max
        self.listeners: dict[str, Make] = {}
        self.down: set[str] = set()
        self.silent: set[str] = set()
        self.faults = WireFaults()
        self.ends: dict[PipeEnd, None] = {}
        self.dials = 0

    def listen(self, address: str) -> Callable[[Make], Awaitable[asyncio.AbstractServer]]:
        """For a server that is to be found at `address`."""

        async def begin(make: Make) -> asyncio.AbstractServer:
            self.listeners[address] = make
            return _Listening(self, address)

        return begin

    def dial(self, address: str) -> Callable[[Make], Awaitable[Any]]:
        """For a client of what is at `address`."""

        async def connect(make: Make) -> Any:
            self.dials += 1
            await asyncio.sleep(self.latency_s)
            if address in self.down or address not in self.listeners:
                raise ConnectionRefusedError(111, "Connection refused")
            return self._join(make(), self.listeners[address](), held=address in self.silent)

        return connect

    def cut(self) -> None:
        """Every connection ends here and now."""
        for end in tuple(self.ends):
            end._end(ConnectionResetError())

    def _join(self, client: Any, server: Any, *, held: bool) -> Any:
        out, back = PipeEnd(self, client, Way.OUT), PipeEnd(self, server, Way.BACK)
        out.other, back.other = back, out
        out._held = back._held = held
        self.ends |= {out: None, back: None}
        server.connection_made(back)
        client.connection_made(out)
        return client
