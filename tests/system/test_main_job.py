"""The main job: a real tree goes in and comes out unchanged while disks are lost and bytes go bad."""

import contextlib
import json
import random
import subprocess
import threading
import time
from pathlib import Path

import pytest

from holdfast.node.status import NodeState
from tests.kit.process import NodeProcess, delete_store, wait_until
from tests.kit.trees import (
    assert_same_tree,
    copy_standard_library,
    flip_bytes,
    shard_files,
    write_random_file,
)

BIG_BYTES = 300 << 20
STRICT = {"AWS_MAX_ATTEMPTS": "1"}
"""Not one request may fail, not even one that would succeed when tried again."""

PATIENCE_S = 240


class Sync(threading.Thread):
    """`aws s3 sync` under way."""

    def __init__(self, node: NodeProcess, source: str | Path, target: str | Path) -> None:
        super().__init__(daemon=True)
        self._node = node
        self._command = ("aws", "s3", "sync", "--only-show-errors", source, target)
        self.error: BaseException | None = None
        self.done: subprocess.CompletedProcess[str] | None = None

    def run(self) -> None:
        try:
            self.done = self._node.run(*self._command, timeout_s=900, environment=STRICT)
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        self.join()
        if self.error is not None:
            raise self.error
        assert self.done is not None
        assert self.done.stderr == ""


def stored_keys(node: NodeProcess) -> int:
    pages = node.s3().get_paginator("list_objects_v2").paginate(Bucket="main")
    return sum(page["KeyCount"] for page in pages)


@pytest.mark.slow
def test_a_tree_goes_in_and_out_while_disks_are_lost_and_bytes_go_bad(tmp_path: Path) -> None:
    tree, back = tmp_path / "tree", tmp_path / "back"
    files = copy_standard_library(tree)
    write_random_file(tree / "zz-big.bin", BIG_BYTES, seed=1)
    assert files > 1000
    with NodeProcess(tmp_path) as node:
        node.run("aws", "s3", "mb", "s3://main", environment=STRICT)
        up = Sync(node, tree, "s3://main/")
        up.start()

        def enough() -> bool:
            return stored_keys(node) > files // 4 or not up.is_alive()

        wait_until("a quarter of the files", enough, PATIENCE_S)
        assert up.is_alive(), "the disks were to be lost under load"
        for slot in ("disk2", "disk5"):
            delete_store(node.data / slot)
        lost_at = time.time()
        spoiled = spoil_some(node, lost_at, up)
        up.finish()
        assert stored_keys(node) == files + 1

        down = Sync(node, "s3://main/", back)
        down.start()
        down.finish()
        assert_same_tree(tree, back)
        names_what_happened(node, spoiled)


@pytest.mark.slow
def test_empty_disks_in_the_old_places_are_filled_again(tmp_path: Path) -> None:
    chance = random.Random(3)
    bodies = {f"k{number}": chance.randbytes(chance.randrange(200_000)) for number in range(60)}
    with NodeProcess(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="main")
        for key, body in bodies.items():
            s3.put_object(Bucket="main", Key=key, Body=body)
        for slot in ("disk2", "disk5"):
            delete_store(node.data / slot)
        wait_until("the loss to be noticed", lambda: node.status().state is NodeState.DEGRADED)
        for slot in ("disk2", "disk5"):
            (node.data / slot).mkdir()
        wait_until("the heal", lambda: is_whole(node), PATIENCE_S)
        # Any two others may be lost now: nothing leans on what was there before.
        for slot in ("disk1", "disk3"):
            delete_store(node.data / slot)
        for key, body in bodies.items():
            assert s3.get_object(Bucket="main", Key=key)["Body"].read() == body


@pytest.mark.slow
def test_what_nobody_reads_is_found_by_verify_and_written_back(tmp_path: Path) -> None:
    chance = random.Random(4)
    with NodeProcess(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="main")
        for number in range(30):
            s3.put_object(Bucket="main", Key=str(number), Body=chance.randbytes(50_000))
        for path in shard_files(node.data / "disk4"):
            flip_bytes(path, 1, chance)
        assert node.holdfast("verify").returncode == 1

        def verified() -> bool:
            found = json.loads(node.holdfast("verify", "--json").stdout)
            assert found["summary"]["lost"] == 0
            return bool(found["summary"]["degraded"] == 0)

        wait_until("a clean verify", verified, PATIENCE_S)


def spoil_some(node: NodeProcess, lost_at: float, up: Sync) -> set[str]:
    """Flip bytes in shards of packs that were written after the loss: with two stores gone, those are
    the ones that can still lose two shards. Not more than one shard of a pack is touched."""
    chance = random.Random(2)
    spoiled: dict[str, str] = {}

    def spoil() -> bool:
        for slot in ("disk1", "disk6"):
            for path in shard_files(node.data / slot):
                pack = path.name.split(".")[0]
                # The node may remove or replace a shard between our look and our hand.
                with contextlib.suppress(FileNotFoundError):
                    if pack not in spoiled and path.stat().st_ctime > lost_at + 2:
                        flip_bytes(path, 3, chance)
                        spoiled[pack] = slot
        return len(spoiled) >= 40 or not up.is_alive()

    wait_until("shards to spoil", spoil, PATIENCE_S)
    assert len(spoiled) >= 10
    return set(spoiled.values())


def names_what_happened(node: NodeProcess, spoiled: set[str]) -> None:
    shown = node.holdfast("status").stdout
    status = node.status()
    stores = {store.slot: store for store in status.stores}
    assert status.state is NodeState.DEGRADED
    for slot in ("disk2", "disk5"):
        assert stores[slot].state == "missing"
        assert slot in shown
    wrong = {slot for slot, store in stores.items() if store.wrong_blocks}
    assert wrong
    assert wrong <= spoiled
    assert "wrong blocks were found" in shown
    assert status.survives["store"] == 0


def is_whole(node: NodeProcess) -> bool:
    status = node.status()
    return status.state is NodeState.ONLINE and status.packs.degraded == status.packs.debts == 0
