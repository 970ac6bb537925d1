"""What clients of a real cluster saw has one order that explains it, key by key, whatever failed meanwhile.

Real nodes, members of etcd and balancers; a few clients over a few keys, with and without conditions; a node
is killed, a node hangs, the leader of etcd is killed. The same checker judges as in the simulation. That it
would notice is proven on the very history that was just accepted.
"""

import asyncio
import copy
import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest

from holdfast.base.clock import SystemClock
from tests.kit.cluster_drill import ClusterDrill
from tests.kit.hot_keys import AGENT, KEYS, HotKeys
from tests.kit.process import wait_until
from tests.kit.up import UpProcess, is_up
from tests.simulation.book import Book, Violation
from tests.simulation.history import Need, Op, Sort

pytestmark = pytest.mark.slow

BUCKET = "hot"
HANGS_S = 2.0


async def test_histories_of_a_cluster_that_fails_are_linearizable(tmp_path: Path) -> None:
    with UpProcess(tmp_path) as cluster:
        drill = ClusterDrill(cluster, rate=1, seconds=0, seed="unused")
        doors = [drill.through(name) for name in ("b1", "b2")]
        nodes = [drill.through(name) for name in ("n1", "n2", "n3")]
        assert (await doors[0]("PUT", f"/{BUCKET}")).status == 200
        hot = HotKeys(doors, seed="linearizable", bucket=BUCKET)

        await during(hot, 110, lambda: asyncio.to_thread(drill.kill("n1")))
        await asyncio.to_thread(wait_until, "n1 to be back", lambda: is_back(cluster, "n1"))

        async def hang() -> None:
            await asyncio.to_thread(drill.stop("n2"))
            await SystemClock().sleep(HANGS_S)
            await asyncio.to_thread(drill.go_on("n2"))

        await during(hot, 190, hang)
        await during(hot, 110, lambda: asyncio.to_thread(lambda: drill.kill(drill.leader())()))

        await hot.read_all([*doors, *nodes])
        assert cluster.stop() == 0
    tries = tries_told(tmp_path)
    hot.judge(tries)
    assert hot.book.requests <= 600
    told = f"{hot.book.requests} requests, {hot.unknown} unknown, {hot.book.acknowledged} writes acknowledged"
    print(f"{told}, {sum(n > 1 for n in tries.values())} with several tries, {hot.book.forgotten} forgotten")  # noqa: T201
    for plant in (plant_stale_read, plant_lost_write):
        for key in KEYS:
            planted = copy.deepcopy(hot.book)
            plant(planted, f"{BUCKET}/{key}")
            with pytest.raises(Violation):
                Book.check(planted)


async def during(hot: HotKeys, operations: int, fault: Callable[[], Awaitable[object]]) -> None:
    """So many operations; the fault comes after a few of them."""
    await hot.work(20)
    async with asyncio.TaskGroup() as group:
        group.create_task(hot.work(operations - 20))
        await fault()


def is_back(cluster: UpProcess, node: str) -> bool:
    """Whether a node that was killed has a process again that is ready."""
    part = cluster.parts()[node]
    return part.starts > 1 and is_up(f"{part.endpoint}/-/ready")


def tries_told(folder: Path) -> Mapping[int, int]:
    """How many tries the balancers say that each request had, by its number."""
    lines = [json.loads(line) for log in folder.rglob("access.log") for line in log.read_text().splitlines()]
    told = {
        int(line["agent"].removeprefix(AGENT)): line["tries"]
        for line in lines
        if (line["agent"] or "").startswith(AGENT)
    }
    assert told, "the balancers said nothing"
    return told


def plant_stale_read(book: Book, where: str) -> None:
    """After all else, somebody reads a version that others had replaced."""
    history = book.histories[where]
    now = max(op.need.value for op in history if op.began == max(one.began for one in history))
    old = next(op.leaves for op in history if op.writes and not op.optional and op.leaves not in (None, now))
    assert old is not None
    at = end_of(history)
    history.append(Op(-1, "planted get", at + 1, at + 2, Need(Sort.TOKEN, old)))


def plant_lost_write(book: Book, where: str) -> None:
    """After all else, somebody is told that his version was written, and then reads what was there before."""
    history = book.histories[where]
    for number, token in enumerate(("before", "lost")):
        book.promise(where, token, token.encode())
        at = end_of(history)
        history.append(Op(-2 - number, "planted put", at + 1, at + 2, writes=True, leaves=token))
    at = end_of(history)
    history.append(Op(-4, "planted get", at + 1, at + 2, Need(Sort.TOKEN, "before")))


def end_of(history: list[Op]) -> int:
    """The last tick of it."""
    return max(op.ended or op.began for op in history)
