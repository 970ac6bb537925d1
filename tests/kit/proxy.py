"""A TCP proxy on 127.0.0.1 that breaks connections on command: cut after so many pieces, changed, gone
silent, or late with some.

A *piece* is what one read of a socket gave, in either direction. Real sockets, so that a client's own
handling of half a message is what is tested.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.kit.wire_faults import Does, Way, WireFaults


class Proxy:
    """`cut_after` pieces from now, all connections are cut, once; None leaves them alone. `pieces` counts.
    `faults` does things to single bytes; with `repeats`, what clients send is sent on twice. Each
    `late_every`th piece, and what follows it on its connection, waits `late_s`; `late` counts those."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.port = 0
        self.pieces = 0
        self.cuts = 0
        self.cut_after: int | None = None
        self.faults = WireFaults()
        self.repeats = False
        self.late_every = 0
        self.late_s = 0.0
        self.late = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client."""
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, upstream_writer}
        for way, source, sink in ((Way.OUT, reader, upstream_writer), (Way.BACK, upstream_reader, writer)):
            task = asyncio.create_task(self._pump(way, source, sink))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, way: Way, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while piece := await source.read(1 << 16):
                self.pieces += 1
                if self.cut_after is not None and self.pieces > self.cut_after:
                    self.cut_after = None
                    self.cut()
                    return
                if self.late_every and self.pieces % self.late_every == 0:
                    self.late += 1
                    await asyncio.sleep(self.late_s)
                passed, does = self.faults.passing(way, piece)
                sink.write(passed * 2 if self.repeats and way is Way.OUT else passed)
                await sink.drain()
                if does is Does.CUT:
                    self.cut()
                    return
                if does is Does.HOLD:
                    while await source.read(1 << 16):
                        pass
                    return
        sink.close()
        self._writers.discard(sink)

    def cut(self) -> None:
        """Every connection ends here and now."""
        self.cuts += 1
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        """Let go of everything."""
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@asynccontextmanager
async def proxy_to(port: int, host: str = "127.0.0.1") -> AsyncIterator[Proxy]:
    """A proxy to a server of this machine."""
    proxy = Proxy(host, port)
    server = await asyncio.start_server(proxy.accept, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
