"""Drills of the network: real processes, each on a machine of its own, and packets that really do not arrive;
clients at a fixed rate through real balancers, and one fault after the other.

Asserted are the bars that count: no request failed, nothing acknowledged lost, no byte wrong, nothing stale,
whichever node is asked, and every shard on every store as it should be. Times are printed (`make drill` shows
the table). The numbers are those of the list of drills.
"""

import asyncio
import os
from pathlib import Path

import pytest

from holdfast.balance.nodes_cluster import EJECT_PERCENT_MAX
from holdfast.node.status import Status
from tests.kit.ejections import Ejections
from tests.kit.networked import NetworkDrill, drilling, knows_all, silent
from tests.kit.s3 import Answer

pytestmark = pytest.mark.slow

RATE = float(os.environ.get("HOLDFAST_DRILL_RATE", "20")) / 2
SECONDS = float(os.environ.get("HOLDFAST_DRILL_SECONDS", "1"))
THOROUGH = bool(os.environ.get("HOLDFAST_THOROUGH"))


def test_a_node_is_cut_off(tmp_path: Path) -> None:
    async def drills(drill: NetworkDrill) -> None:
        cluster, network = drill.cluster, drill.cluster.network
        one, _, three = cluster.nodes
        front = [cluster.client, cluster.machines["b1"], cluster.machines["b2"]]

        # Both ways, from all but clients: it says that it is not ready, and neither acknowledges a write nor
        # shows what was overwritten meanwhile. What waits in it may go on when it is heard again.
        assert (await one.ask("PUT", "/drill/read", b"before")).status == 200
        waiting: dict[str, asyncio.Task[Answer]] = {}

        async def ask_who_is_cut_off() -> None:
            others = cluster.all_but(three.part, *front)
            await asyncio.to_thread(network.split, [three.part], others)
            assert (await one.ask("PUT", "/drill/read", b"after")).status == 200
            waiting["put"] = asyncio.create_task(three.ask("PUT", "/drill/written", b"x"))
            waiting["get"] = asyncio.create_task(three.ask("GET", "/drill/read"))
            await drill.until_not_ready(three)
            await drill.until(one, silent("n3"), "n3 to be silent")
            for task in waiting.values():
                assert not task.done() or task.result().status == 503, task

        outcome = await drill.run(
            "21 a node is cut off from all but clients", nothing, network.heal, until=ask_who_is_cut_off()
        )
        outcome.check()
        put, get = await waiting["put"], await waiting["get"]
        assert put.status in (200, 503), put
        assert get.status == 503 or get.body == b"after", get
        for node in cluster.nodes:
            assert (await node.ask("GET", "/drill/read")).body == b"after"
            written = (await node.ask("GET", "/drill/written")).status
            assert (put.status, written) in ((200, 200), (503, 200), (503, 404))

        # It hears nobody of the nodes, and what it sends arrives.
        outcome = await drill.run(
            "22 a node does not hear the others",
            lambda: network.lose([node.part for node in cluster.nodes if node is not three], [three.part]),
            network.heal,
            # It leaves to others what it cannot do now.
            until=drill.until_cut_off(three),
        )
        outcome.check()
        outcome = await drill.run(
            "24 connections to a node are reset",
            lambda: network.reset([node.part for node in cluster.nodes if node is not three], [three.part]),
            network.heal,
        )
        outcome.check()

    drilling(tmp_path, drills, rate=RATE, seconds=SECONDS)


def test_packets_are_lost_late_and_doubled(tmp_path: Path) -> None:
    async def drills(drill: NetworkDrill) -> None:
        parts = [node.part for node in drill.cluster.nodes]

        def disturb() -> None:
            for part in parts:
                part.disturb(loss=0.05, delay_s=0.001, jitter_s=0.010, twice=0.02)

        def end() -> None:
            for part in parts:
                part.disturb()

        async with Ejections(drill.cluster.balancers, drill.cluster.nodes[0].ask) as ejections:
            outcome = await drill.run("23 5 % loss, jitter, duplicates", disturb, end, lasts_s=5)
        outcome.ejected = ejections.count
        outcome.check()
        assert ejections.at_once <= len(parts) * EJECT_PERCENT_MAX / 100, ejections.at_once

    drilling(tmp_path, drills, rate=RATE, seconds=SECONDS, relayed=True)


@pytest.mark.skipif(not THOROUGH, reason="`make drill` runs it")
def test_nodes_that_are_far_are_used_like_near_ones(tmp_path: Path) -> None:
    """Round trips of 30, 80 and 110 ms between three nodes: nobody sits out for that, writes wait for all of
    their shards, and each node knows how far the others are."""
    far_s = {"n1": 0.0, "n2": 0.015, "n3": 0.040}

    async def drills(drill: NetworkDrill) -> None:
        nodes = drill.cluster.nodes
        for node in nodes:
            node.part.disturb(delay_s=far_s[node.name], jitter_s=0.1 * far_s[node.name])
            await asyncio.to_thread(node.kill)
        await asyncio.gather(*[asyncio.to_thread(node.start) for node in nodes])
        for node in nodes:
            await drill.until(node, is_well, f"all stores to be well at {node.name}")
        whole = 0
        for number in range(40):
            answer = await nodes[number % 3].ask("PUT", f"/drill/far-{number}", bytes(50_000))
            assert answer.status == 200
            whole += "debt=none" in answer.headers["x-holdfast-receipt"]
            assert (await nodes[number % 3].ask("GET", f"/drill/far-{number}")).status == 200
        assert whole > 30, f"{whole} of 40 writes waited for all shards"
        for node in nodes:
            status = await drill.until(node, is_well, f"all stores to be well at {node.name}")
            for store in (await node.look()).stores:
                owner = store.slot.partition("/")[0]
                least_ms = 0.0 if owner == node.name else 2000 * (far_s[owner] + far_s[node.name])
                assert least_ms <= store.trip_ms < 2 * least_ms + 100, (node.name, store, status)

    drilling(tmp_path, drills, rate=RATE, seconds=SECONDS, relayed=True)


def is_well(status: Status) -> bool:
    """Whether every store is in use."""
    return knows_all(status) and all(store.well for store in status.stores)


def test_clocks_jump(tmp_path: Path) -> None:
    """Requests go to each node in turn, so that of two writes of a key the second often comes to the node
    whose clock is behind that of the first."""

    async def drills(drill: NetworkDrill) -> None:
        _, two, three = drill.cluster.nodes

        def jump() -> None:
            two.jump(3600)
            three.jump(-3600)

        def jump_across() -> None:
            two.jump(-3600)
            three.jump(3600)

        def right() -> None:
            two.jump(0)
            three.jump(0)

        (await drill.run("25 clocks jump an hour either way", jump, jump_across)).check()
        assert two.ahead_s < -3500
        assert three.ahead_s > 3500
        (await drill.run("25 clocks are set right", right, nothing)).check()
        assert abs(two.ahead_s) < 100
        assert abs(three.ahead_s) < 100

    drilling(tmp_path, drills, rate=RATE, seconds=SECONDS, clocks=True)


def nothing() -> None:
    """What happens is done by another."""
