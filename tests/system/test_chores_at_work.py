"""What runs behind a real node: a disk that is taken away is done without, and chores can be looked at."""

import random
from pathlib import Path

import msgspec
import pytest

from holdfast.chores.chore import ChoreState
from holdfast.node.chores_status import ChoresStatus
from tests.kit.process import NodeProcess, delete_store, wait_until

CONFIG = """
[chores]
scrub = "10 s"
away_patience = "3 s"
"""


def chores(node: NodeProcess) -> ChoresStatus:
    asked = node.holdfast("chores", "--json")
    assert asked.returncode == 0, asked.stderr
    return msgspec.json.decode(asked.stdout, type=ChoresStatus)


def state_of(status: ChoresStatus, name: str) -> ChoreState:
    return next(chore.state for chore in status.chores if chore.name == name)


@pytest.mark.slow
def test_redundancy_comes_back_by_itself_and_chores_are_seen_and_paused(tmp_path: Path) -> None:
    (tmp_path / "holdfast.toml").write_text(CONFIG)
    data = {f"key{number}": random.Random(number).randbytes(700_000) for number in range(6)}
    with NodeProcess(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="first")
        for key, body in data.items():
            s3.put_object(Bucket="first", Key=key, Body=body)
        assert node.holdfast("chores", "pause", "compact").returncode == 0
        delete_store(tmp_path / "holdfast-data" / "disk5")
        wait_until("all is healed", lambda: chores(node).heal.repaired >= 1 and not chores(node).heal.waiting)
        wait_until(
            "nothing is degraded, though a disk is away",
            lambda: node.status().packs.degraded == 0 and node.status().packs.shards_missing == 0,
        )
        verified = node.holdfast("verify")
        assert (verified.returncode, " 0 degraded, 0 lost" in verified.stdout) == (0, True), verified.stdout
        wait_until("every shard was read", lambda: chores(node).scrub.packs_read > 0)
        assert "paused" in node.holdfast("chores", "pause", "scrub").stdout
        node.stop()
        node.start()
        assert state_of(chores(node), "scrub") is ChoreState.PAUSED
        assert node.holdfast("chores", "resume", "scrub").returncode == 0
        assert state_of(chores(node), "scrub") is not ChoreState.PAUSED
        wrong = node.holdfast("chores", "pause", "scrb")
        assert (wrong.returncode, "known are" in wrong.stderr) == (64, True)
        assert node.holdfast("chores", "pause").returncode == 64
        for key, body in data.items():
            assert node.s3().get_object(Bucket="first", Key=key)["Body"].read() == body
