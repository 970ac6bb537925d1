"""Nothing holds the event loop for more than 5 ms while 64 MiB go in and out.

What counts is processor time of the loop's thread in one callback: waiting for the interpreter lock or for
a core that others use is not the callback's doing, and would make this a test of the machine. Even so, a busy
machine makes single callbacks dearer; what the code does is in every round, so the best one counts.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.randomness import SystemRandomness
from holdfast.bench.load import Request, run_load
from holdfast.bench.signing import Signer
from holdfast.node.chores_status import ChoresStatus, chores_status
from holdfast.node.config import ChoresSettings, Given, make_config
from holdfast.node.node import Node, open_node
from holdfast.node.running import keep_large_buffers
from tests.kit.process import delete_store

HOLD_MAX_S = 0.005
SIZE = 64 << 20
ROUNDS = 5
"""At most: the first that is good shows that it can be."""


class TimedLoop(asyncio.SelectorEventLoop):
    """Notes the longest callback, in processor seconds of this thread."""

    longest_s = 0.0
    culprit = ""

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:
        def timed(*given: Any) -> None:
            began = time.thread_time()
            callback(*given)
            took = time.thread_time() - began
            if took > self.longest_s:
                self.longest_s, self.culprit = took, repr(getattr(callback, "__self__", callback))

        return super().call_soon(timed, *args, context=context)


def drive(node: Node, port: int, bucket: str) -> None:
    """One object in, the same object out twice, from a thread with a loop of its own."""
    clock = SystemClock()
    keys = node.credentials
    signer = Signer(
        f"127.0.0.1:{port}", keys.access_key_id, keys.secret_access_key, "us-east-1", clock.wall()
    )
    body = os.urandom(SIZE)

    async def requests() -> None:
        for request in (
            Request(signer.head("PUT", f"/{bucket}")),
            Request(signer.head("PUT", f"/{bucket}/one", body=body), body),
            Request(signer.head("GET", f"/{bucket}/one"), answer_bytes=SIZE),
            Request(signer.head("GET", f"/{bucket}/one"), answer_bytes=SIZE),
        ):
            await run_load("127.0.0.1", port, [request], 1, clock)

    asyncio.run(requests())


async def in_a_thread(work: Callable[[], None]) -> None:
    """Run `work` in a thread while the loop goes on; raises what it raised."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as raised:
            error = raised
        loop.call_soon_threadsafe(ended.set_result, error)

    thread = threading.Thread(target=run)
    thread.start()
    error = await ended
    thread.join()
    if error is not None:
        raise error


@pytest.mark.alone
def test_no_callback_holds_the_loop_for_long(tmp_path: Path) -> None:
    keep_large_buffers()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TimedLoop)
        async with AsyncExitStack() as stack:
            config = make_config([Given(data=tmp_path / "data", port=0)], tmp_path)
            node = await open_node(config, {}, SystemClock(), SystemRandomness(), stack)
            port = int(node.endpoint.rsplit(":", 1)[1])
            rounds: list[tuple[float, str]] = []
            for number in range(ROUNDS):
                loop.longest_s = 0.0
                await in_a_thread(partial(drive, node, port, f"hold-{number}"))
                rounds.append((loop.longest_s, loop.culprit))
                if loop.longest_s <= HOLD_MAX_S:
                    break
            longest, culprit = min(rounds)
            assert longest <= HOLD_MAX_S, f"{longest * 1e3:.1f} ms in {culprit}; {rounds}"

    with asyncio.Runner(loop_factory=TimedLoop) as runner:
        runner.run(main())


def empty(disk: Path) -> None:
    """As when a disk was replaced by an empty one."""
    delete_store(disk)
    disk.mkdir()


def healed(before: ChoresStatus, now: ChoresStatus) -> bool:
    """Whether the packs of the object were made whole since, and proven, and scrub went on meanwhile."""
    repaired = now.heal.repaired >= before.heal.repaired + 4 and not now.heal.unproven
    return repaired and now.scrub.packs_read > before.scrub.packs_read


@pytest.mark.alone
def test_chores_hold_the_loop_no_longer_than_clients(tmp_path: Path) -> None:
    """While scrub reads everything, and a store that came back empty is filled again and proven."""
    keep_large_buffers()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TimedLoop)
        async with AsyncExitStack() as stack:
            settings = ChoresSettings(scrub_pass_s=1.0, scrub_rate_bytes=0)
            config = make_config([Given(data=tmp_path / "data", port=0, chores=settings)], tmp_path)
            node = await open_node(config, {}, SystemClock(), SystemRandomness(), stack)
            port = int(node.endpoint.rsplit(":", 1)[1])
            await in_a_thread(partial(drive, node, port, "hold"))

            background = node._background
            rounds: list[tuple[float, str]] = []
            for number in range(ROUNDS):
                before = chores_status(background)
                await in_a_thread(partial(empty, tmp_path / "data" / f"disk{number + 1}"))
                await asyncio.sleep(0)
                loop.longest_s = 0.0
                async with asyncio.timeout(240):
                    while not healed(before, chores_status(background)):  # noqa: ASYNC110 - a real node
                        await asyncio.sleep(0.2)
                rounds.append((loop.longest_s, loop.culprit))
                if loop.longest_s <= HOLD_MAX_S:
                    break
            longest, culprit = min(rounds)
            assert longest <= HOLD_MAX_S, f"{longest * 1e3:.1f} ms in {culprit}; {rounds}"

    with asyncio.Runner(loop_factory=TimedLoop) as runner:
        runner.run(main())
