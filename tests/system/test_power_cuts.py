"""SIGKILL at random instants under load, again and again: nothing acknowledged is lost, nothing half-written
is seen."""

import json
import os
import random
import threading
from pathlib import Path

import pytest

from tests.kit.load import BUCKET, Content, Worker, settle
from tests.kit.process import NodeProcess

ROUNDS = int(os.environ.get("HOLDFAST_KILL_ROUNDS", "10"))
WORKERS = 4


@pytest.mark.slow
def test_what_was_acknowledged_survives_being_killed_at_any_instant(tmp_path: Path) -> None:
    chance = random.Random(5)
    possible: dict[str, list[Content]] = {}
    acknowledged = 0
    with NodeProcess(tmp_path) as node:
        node.s3().create_bucket(Bucket=BUCKET)
        for number in range(ROUNDS):
            workers = [
                Worker(index, node.s3(read_timeout=30), f"round {number}", possible)
                for index in range(WORKERS)
            ]
            for worker in workers:
                worker.start()
            threading.Event().wait(0.1 + 2.4 * chance.random())
            node.kill()
            for worker in workers:
                worker.join()
                assert worker.refused == []
                acknowledged += worker.acknowledged
            node.start()
            settle(node.s3(), possible)
        assert acknowledged > 20 * ROUNDS
        verified = json.loads(node.holdfast("verify", "--json").stdout)["summary"]
        assert verified["lost"] == 0
        assert verified["packs"] > 0


@pytest.mark.slow
def test_a_clean_stop_under_load_keeps_everything_too(tmp_path: Path) -> None:
    possible: dict[str, list[Content]] = {}
    with NodeProcess(tmp_path) as node:
        node.s3().create_bucket(Bucket=BUCKET)
        workers = [Worker(index, node.s3(), "clean", possible) for index in range(WORKERS)]
        for worker in workers:
            worker.start()
        threading.Event().wait(2)
        assert node.stop() == 0
        for worker in workers:
            worker.join()
        node.start()
        assert settle(node.s3(), possible) > 0
