"""SIGKILL at random instants under load, again and again: nothing acknowledged is lost, nothing half-written
is seen."""

import json
import os
import random
import threading
from functools import partial
from pathlib import Path

import pytest

from tests.kit.load import BUCKET, Content, Worker, settle
from tests.kit.process import NodeProcess, wait_until

ROUNDS = int(os.environ.get("HOLDFAST_KILL_ROUNDS", "10"))
WORKERS = 4


def busy(workers: list[Worker], enough: int) -> bool:
    """Whether so many operations were acknowledged in this round; also when nobody goes on, who says why."""
    return sum(worker.acknowledged for worker in workers) >= enough or any(one.refused for one in workers)


@pytest.mark.slow
def test_what_was_acknowledged_survives_being_killed_at_any_instant(tmp_path: Path) -> None:
    chance = random.Random(5)
    possible: dict[str, list[Content]] = {}
    acknowledged = 0
    with NodeProcess(tmp_path) as node:
        node.s3().create_bucket(Bucket=BUCKET)
        for number in range(ROUNDS):
            workers = [Worker(index, node.s3(), f"round {number}", possible) for index in range(WORKERS)]
            for worker in workers:
                worker.start()
            # Counted in what was done, and then in time, so that a slow disk does not make it easy.
            enough = chance.randrange(5, 60)
            wait_until("work to be under way", partial(busy, workers, enough), look_every_s=0.01)
            threading.Event().wait(0.1 * chance.random())
            node.kill()
            for worker in workers:
                worker.join()
                assert worker.refused == []
                acknowledged += worker.acknowledged
            node.start()
            settle(node.s3(), possible)
        assert acknowledged > 5 * ROUNDS
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
        wait_until("work to be under way", partial(busy, workers, 60))
        assert node.stop() == 0
        for worker in workers:
            worker.join()
        node.start()
        assert settle(node.s3(), possible) > 0
