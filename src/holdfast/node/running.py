"""Runs one node in this process until it is told to stop.

The first SIGINT or SIGTERM drains: no new requests, those under way finish. The second stops at once, which
is safe: nothing that was acknowledged depends on a clean end. Two that come together are one: terminals,
make and supervisors tell a whole group of processes and then each of them again.
"""

import asyncio
import ctypes
import gc
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress

import uvloop

from holdfast.base.clock import Clock
from holdfast.base.randomness import Randomness
from holdfast.base.supervisor import Supervisor
from holdfast.node.config import Config
from holdfast.node.descriptors import allow_many_files
from holdfast.node.keeper import Decorate
from holdfast.node.node import Node, open_node

STOPPED_AT_ONCE = 130
TOGETHER_S = 0.5

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BYTES = 64 << 20
_COLLECT_EVERY = 20_000


def run_node(
    config: Config,
    environment: Mapping[str, str],
    clock: Clock,
    randomness: Randomness,
    *,
    on_ready: Callable[[Node], None],
    on_stopping: Callable[[], None],
    wrap: Decorate = lambda _, store: store,
) -> None:
    """Serve until stopped. `on_ready` is called once requests are taken, `on_stopping` when draining
    begins. Raises what stands in the way of serving."""
    keep_large_buffers()
    allow_many_files()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(config, environment, clock, randomness, on_ready, on_stopping, wrap))


async def _serve(
    config: Config,
    environment: Mapping[str, str],
    clock: Clock,
    randomness: Randomness,
    on_ready: Callable[[Node], None],
    on_stopping: Callable[[], None],
    wrap: Decorate,
) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    asked_at = 0.0
    supervisor = Supervisor(environment, os.getpid())

    def stop() -> None:
        nonlocal asked_at
        if not stopping.is_set():
            asked_at = clock.monotonic()
        elif clock.monotonic() - asked_at > TOGETHER_S:
            os._exit(STOPPED_AT_ONCE)
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    alive = asyncio.create_task(supervisor.stay_alive(clock))
    try:
        async with AsyncExitStack() as stack:
            opening = asyncio.create_task(open_node(config, environment, clock, randomness, stack, wrap=wrap))
            asked = asyncio.create_task(stopping.wait())
            await asyncio.wait({opening, asked}, return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            if not opening.done():
                opening.cancel()
                with suppress(asyncio.CancelledError):
                    await opening
                return
            node = opening.result()
            _spare_the_collector()
            on_ready(node)
            supervisor.ready()
            ended = asyncio.create_task(node.ended.wait())
            stopped = asyncio.create_task(stopping.wait())
            await asyncio.wait({ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            stopped.cancel()
            supervisor.stopping()
            on_stopping()
            if node.ended_by is None:
                await node.stop_serving()
                await node.note()
        if node.ended_by is not None:
            raise node.ended_by
    finally:
        alive.cancel()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def keep_large_buffers() -> None:
    """glibc gives freed blocks above 128 KiB straight back to the kernel, so that each megabyte that is
    encoded or sent would be faulted in anew, page by page: measured, 0.4 GB/s instead of 5 to 8. Raising
    the two thresholds keeps up to `_KEEP_BYTES` for the next one. Other C libraries lack the call, or
    need no such help."""
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES // 2)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def _spare_the_collector() -> None:
    """What was made until now lives as long as the node: the cycle collector need not look at it again
    and again. Requests make few cycles; looking every 700 objects costs more than it finds."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_EVERY, 20, 20)
