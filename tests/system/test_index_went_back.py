"""A store that has seen more of the index than there is: nothing is deleted on the index's word."""

import asyncio
import json
from pathlib import Path

from msgspec.structs import replace

from holdfast.base.clock import SystemClock
from holdfast.base.randomness import SystemRandomness
from holdfast.cluster.rows import NODES, NodeRow, all_of, rows_of
from holdfast.index.postgres import open_postgres
from holdfast.node.chores_status import CHORES_PATH
from holdfast.node.status import Status
from holdfast.stores.identity import Noted, decode_identity, encode_identity
from tests.kit.cluster import ClusterNode, TestCluster
from tests.kit.process import NodeProcess, wait_until
from tests.system.test_changing_disks import asked

IDENTITY = "holdfast-store.json"
DELETING = {"collect", "sweep", "strays", "compact", "audit"}


def paused(node: NodeProcess) -> set[str]:
    return {chore["name"] for chore in asked(node, CHORES_PATH)["chores"] if chore["state"] == "paused"}


def test_deleting_ends_when_a_store_comes_that_has_seen_more_than_the_index_shows(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        assert paused(node) == set()
        disk, pulled = node.data / "disk6", tmp_path / "pulled"
        wait_until("disk6 to note the index", lambda: seen_by(disk) is not None)
        disk.rename(pulled)
        wait_until("disk6 to be let go", lambda: "missing" in states(node.status()))
        # As if it had been there when the index was further than it is.
        seen = decode_identity((pulled / IDENTITY).read_bytes())
        assert seen.noted is not None
        further = replace(seen, noted=Noted(seen.noted.incarnation, seen.noted.revision + 1_000_000))
        (pulled / IDENTITY).write_bytes(encode_identity(further))
        pulled.rename(disk)
        wait_until("disk6 to be back", lambda: is_well(node.status(), "disk6"))
        status = node.status()
        assert any("less than disk6 have seen" in sentence for sentence in status.sentences), status
        assert any("nothing is deleted" in event.text for event in status.events)
        assert paused(node) == DELETING
        node.holdfast("chores", "resume", "sweep")
        assert paused(node) == DELETING


def seen_by(disk: Path) -> Noted | None:
    return decode_identity((disk / IDENTITY).read_bytes()).noted


def states(status: Status) -> set[str]:
    """Not well is not enough: a disk that is back before it was let go of is not looked at anew."""
    return {store.state for store in status.stores}


def is_well(status: Status, slot: str) -> bool:
    return next(store.well for store in status.stores if store.slot == slot)


def test_what_stores_of_one_node_have_seen_stops_deleting_at_every_node(tmp_path: Path) -> None:
    cluster = TestCluster(tmp_path)
    first, second = cluster.node("n1"), cluster.node("n2")
    with first, second:
        wait_until("the nodes to know each other", lambda: len(second.status().nodes) == 2)
        assert paused_in_cluster(second) == set()
        disk, pulled = first.home / "d1", tmp_path / "pulled"
        wait_until("d1 to note the index", lambda: seen_by(disk) is not None)
        disk.rename(pulled)
        wait_until("d1 to be away", lambda: "missing" in states(first.status()))
        seen = decode_identity((pulled / IDENTITY).read_bytes())
        assert seen.noted is not None
        further = replace(seen, noted=Noted(seen.noted.incarnation, seen.noted.revision + 1_000_000))
        (pulled / IDENTITY).write_bytes(encode_identity(further))
        pulled.rename(disk)
        wait_until("n1 to stop deleting", lambda: paused_in_cluster(first) == DELETING)
        wait_until("n2 to stop deleting", lambda: paused_in_cluster(second) == DELETING)
        # What it has heard it does not say again as its own: that would go round for ever.
        second.stop()
        second.start()
        assert not DELETING & at_work(second), "it has heard it again"
        assert asyncio.run(said_ahead(cluster)) == {"n1": True, "n2": False}


def at_work(node: ClusterNode) -> set[str]:
    chores = json.loads(node.client().ask(CHORES_PATH))["chores"]
    return {chore["name"] for chore in chores if chore["state"] != "paused"}


async def said_ahead(cluster: TestCluster) -> dict[str, bool]:
    """What each node's row says of its stores."""
    index = await open_postgres(cluster.index, clock=SystemClock(), randomness=SystemRandomness())
    try:
        rows = rows_of(await index.scan(*all_of(NODES), limit=10), NodeRow)
    finally:
        await index.close()
    return {name: row.ahead for name, (row, _) in rows.items()}


def paused_in_cluster(node: ClusterNode) -> set[str]:
    chores = json.loads(node.client().ask(CHORES_PATH))["chores"]
    return {chore["name"] for chore in chores if chore["state"] == "paused"}
