"""A peer as a process of its own, that can be stopped, continued and killed: `python -m
tests.kit.peer_child`.

It exports one store in memory, called `store`, whose calls take a moment, and says its port on the standard
output.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvloop

from holdfast.base.clock import SystemClock
from holdfast.base.randomness import SystemRandomness
from holdfast.stores.peer import PeerServer
from tests.kit.peers import SECRET, SERVER, memory_store


async def _serve() -> None:
    store = memory_store(latency_s=(0.001, 0.005))
    server = PeerServer({store.id: store}, SERVER, SECRET, SystemClock(), SystemRandomness(), port=0)
    await server.start()
    sys.stdout.write(f"{server.port}\n")
    sys.stdout.flush()
    await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def peer_child() -> AsyncIterator[tuple[asyncio.subprocess.Process, int]]:
    """The process and its port; killed with the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.kit.peer_child", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(120):
            port = int(await process.stdout.readline())
        yield process, port
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


if __name__ == "__main__":
    uvloop.run(_serve())
