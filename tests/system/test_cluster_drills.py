"""Drills on a cluster: real processes of `holdfast up`, clients at a fixed rate, one fault after the other.

Asserted are the bars that count: no request failed, nothing acknowledged lost, no byte wrong, and afterwards
every node reads all of it and says that nothing is missing. Times are printed (`make drill` shows the table),
and held there (`HOLDFAST_THOROUGH`), where nothing else should run. Numbers are those of the list of drills.
"""

import asyncio
import os
import random
from pathlib import Path

import pytest

from tests.kit.cluster_drill import ClusterDrill, what_is_left
from tests.kit.outcome import Outcome, show
from tests.kit.process import wait_until
from tests.kit.s3 import let_go
from tests.kit.up import UpProcess

pytestmark = pytest.mark.slow

THOROUGH = bool(os.environ.get("HOLDFAST_THOROUGH"))
RATE = float(os.environ.get("HOLDFAST_DRILL_RATE", "20"))
SECONDS = float(os.environ.get("HOLDFAST_DRILL_SECONDS", "1"))
HANGS_S = 10.0 if THOROUGH else 3.0
LARGE = 24 << 20

NODE_BAR_S, LEADER_BAR_S = 1.0, 1.0
"""A request may take so long when a node, or the leader of the index, is lost. Reads are hedged sooner."""


def hold(outcome: Outcome, bar_s: float) -> None:
    """Nothing failed, and, where times count, nothing took longer."""
    outcome.check()
    assert not THOROUGH or outcome.longest_s <= bar_s, outcome.row()


async def test_parts_of_a_cluster_die_and_hang_under_load(tmp_path: Path) -> None:
    with UpProcess(tmp_path) as cluster:
        drill = ClusterDrill(cluster, rate=RATE, seconds=SECONDS, seed="cluster")
        await drill.load.begin()
        hold(await drill.run("1 a node is killed", drill.kill("n1")), NODE_BAR_S)
        hold(
            await drill.run("2 a node hangs", drill.stop("n2"), drill.go_on("n2"), seconds=HANGS_S),
            NODE_BAR_S,
        )
        leader = await asyncio.to_thread(drill.leader)
        hold(await drill.run("3 the leader of etcd is killed", drill.kill(leader)), LEADER_BAR_S)
        assert drill.cut == 0
        hold(await drill.run("5 a balancer is killed", drill.kill("b1")), NODE_BAR_S)
        cut = drill.cut
        followers = [name for name in ("e1", "e2", "e3") if name != drill.leader()][:2]
        lost = await drill.run(
            "28 etcd has no majority", drill.stop(*followers), drill.go_on(*followers), seconds=HANGS_S
        )
        hold(lost, HANGS_S + 2.0)
        assert drill.cut == cut
        assert lost.longest_s >= HANGS_S / 2, "writes wait as long as nobody can agree"
        assert cluster.stop() == 0
    show(drill.outcomes)


async def test_a_node_is_killed_amid_an_upload_and_a_download(tmp_path: Path) -> None:
    """Drill 4: what was under way is cut; an upload leaves all or nothing, a download goes on by range."""
    chance = random.Random(4)
    body, other = chance.randbytes(LARGE), chance.randbytes(LARGE)
    with UpProcess(tmp_path) as cluster:
        drill = ClusterDrill(cluster, rate=RATE, seconds=SECONDS, seed="streams")
        await drill.load.begin()
        put = await drill.through("n2")("PUT", "/drill/large", body)
        assert put.status == 200

        async with drill.load:
            reader, writer = await drill.through("n1").begin("GET", "/drill/large")
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200")
            received = await reader.readexactly(LARGE // 3)
            _, upload = await drill.through("n1").begin("PUT", "/drill/large", other, send=LARGE // 2)
            await asyncio.to_thread(drill.kill("n1"))
            received += await what_is_left(reader)
            assert len(received) < LARGE, "it was cut"
            await let_go(writer)
            await let_go(upload)
            rest = await drill.through("n3")(
                "GET", "/drill/large", headers={"Range": f"bytes={len(received)}-"}
            )
            assert rest.status == 206
            assert received + rest.body == body
        outcome = Outcome("4 a node is killed amid streams")
        drill.load.add_up(outcome)
        hold(outcome, NODE_BAR_S)
        wait_until("n1 to be started again", lambda: cluster.parts()["n1"].starts == 2)
        again = await drill.through("n2")("PUT", "/drill/large", other)
        assert again.status == 200
        assert (await drill.through("n3")("GET", "/drill/large")).body == other
        assert cluster.stop() == 0
    show([outcome])
