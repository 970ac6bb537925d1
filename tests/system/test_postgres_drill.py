"""Drill 3 over PostgreSQL: the primary is killed under load and its synchronous standby promoted.

Real nodes, real servers, clients at a fixed rate; the nodes know both addresses. Asserted are the bars that
count: no request failed, for they wait, nothing acknowledged lost, no byte wrong, nothing stale, whichever
node is asked. Times are printed by phase, and held where nothing else should run (`HOLDFAST_THOROUGH`).
"""

import asyncio
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from botocore.credentials import Credentials

from holdfast.base.clock import SystemClock
from holdfast.index.port import IndexState
from holdfast.node.status import Status
from tests.kit.cluster import ClusterNode, TestCluster
from tests.kit.cluster_drill import SIZES
from tests.kit.drill import CHANGES, LOOK_EVERY_S, WHOLE_WITHIN_S, Ask, Load, is_redundant
from tests.kit.networked import in_turn
from tests.kit.outcome import Outcome, show
from tests.kit.postgres import postgres_server, postgres_standby
from tests.kit.s3 import Answer, call

pytestmark = pytest.mark.slow

THOROUGH = bool(os.environ.get("HOLDFAST_THOROUGH"))
RATE = float(os.environ.get("HOLDFAST_DRILL_RATE", "20")) / 2
SECONDS = float(os.environ.get("HOLDFAST_DRILL_SECONDS", "1"))
SWITCH_BAR_S = 3.5
"""From when the standby takes commits until every request that waited is answered."""


def asking(node: ClusterNode) -> Ask:
    """Sends requests to one node."""
    credentials = Credentials(node.credentials.access_key_id, node.credentials.secret_access_key)

    async def ask(method: str, target: str, body: bytes = b"", /) -> Answer:
        return await call(node.port, method, target, body=body, credentials=credentials)

    return ask


async def until(what: str, holds: Callable[[], bool]) -> float:
    """Wait for something; how long it took."""
    clock = SystemClock()
    began = clock.monotonic()
    while not holds():
        assert clock.monotonic() - began < WHOLE_WITHIN_S, f"waited for {what}"
        await clock.sleep(0.02)
    return clock.monotonic() - began


async def until_seen(node: Ask, holds: Callable[[Status], bool], what: str) -> None:
    """Wait until a node says so."""
    clock = SystemClock()
    began = clock.monotonic()
    while True:
        answer = await node("GET", "/-/status")
        if answer.status == 200 and holds(msgspec.json.decode(answer.body, type=Status)):
            return
        assert clock.monotonic() - began < WHOLE_WITHIN_S, f"waited for {what}: {answer.body!r}"
        await clock.sleep(LOOK_EVERY_S)


async def test_postgresql_fails_over_under_load(tmp_path: Path) -> None:
    clock = SystemClock()
    with ExitStack() as stack:
        first = stack.enter_context(postgres_server())
        second = stack.enter_context(postgres_standby(first, "second"))
        first.run("ALTER SYSTEM SET synchronous_standby_names = 'second'")
        first.run("SELECT pg_reload_conf()")
        first.wait_until("SELECT bool_or(sync_state = 'sync') FROM pg_stat_replication")
        address = f"postgres://holdfast@127.0.0.1:{first.port},127.0.0.1:{second.port}/postgres"
        cluster = TestCluster.over(tmp_path, address)
        nodes = [stack.enter_context(cluster.node(name)) for name in ("n1", "n2")]
        doors = [asking(node) for node in nodes]
        for door in doors:
            await until_seen(door, lambda status: len(status.stores) == 4, "the nodes to know each other")
        load = Load(in_turn(doors), rate=RATE, seed="failover", sizes=SIZES)
        await load.begin()

        outcome = Outcome("3 PostgreSQL fails over")
        async with load:
            await clock.sleep(0.5)
            began = clock.monotonic()
            await asyncio.to_thread(first.kill)
            await asyncio.to_thread(second.run, "SELECT pg_promote(true)")
            promoted = Outcome("  the standby is promoted", switched_s=clock.monotonic() - began)

            def changed() -> bool:
                return any(one.what in CHANGES and one.due > began and not one.error for one in load.done)

            await until("a change to be acknowledged", changed)
            outcome.switched_s = clock.monotonic() - began
            for door in doors:
                await until_seen(
                    door, lambda status: status.index.state is IndexState.SERVING, "the index to serve"
                )
            seen = Outcome("  every node says that the index serves", switched_s=clock.monotonic() - began)
            await clock.sleep(SECONDS)
        mending = clock.monotonic()
        load.add_up(outcome)
        for door in doors:
            await until_seen(door, is_redundant, "all to be whole")
        outcome.redundant_s = clock.monotonic() - mending
        for node, door in zip(nodes, doors, strict=True):
            outcome.lost += [f"through {node.name}: {key}" for key in await load.read_back(door)]
    show([outcome, promoted, seen])
    outcome.check()
    assert outcome.acknowledged > 0
    assert promoted.switched_s is not None
    assert not THOROUGH or outcome.longest_s <= promoted.switched_s + SWITCH_BAR_S, outcome.row()
