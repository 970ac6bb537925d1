"""Disks are added, emptied, removed and replaced while clients read and write, and nobody notices."""

import json
import random
import shutil
import subprocess
import threading
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from holdfast.base.clock import SystemClock
from holdfast.cli.client import NodeClient
from holdfast.cli.main import run
from holdfast.node.bucket_routes import BUCKETS_PATH
from holdfast.node.config import Given, make_config
from holdfast.node.stores import STORES_PATH
from tests.kit.process import NodeProcess, wait_until

PATIENCE_S = 300
OBJECT_BYTES = 2 << 20


class Traffic(threading.Thread):
    """Reads what is there and compares it, writes something new, and does so again until told to stop, in
    bursts, so that chores get on with it. Not one request may fail."""

    def __init__(self, node: NodeProcess, bodies: dict[str, bytes]) -> None:
        super().__init__(daemon=True)
        self._s3 = node.s3()
        self._bodies = bodies
        self._told = threading.Event()
        self.rounds = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        chance = random.Random(9)
        try:
            while not self._told.is_set():
                key = chance.choice(sorted(self._bodies))
                found = self._s3.get_object(Bucket="main", Key=key)["Body"].read()
                assert found == self._bodies[key], f"{key} came back wrong"
                new, body = f"new-{self.rounds % 40}", chance.randbytes(chance.randrange(1, 60_000))
                self._s3.put_object(Bucket="main", Key=new, Body=body)
                self._bodies[new] = body
                self.rounds += 1
                self._told.wait(2.0 if self.rounds % 5 == 0 else 0)
        except BaseException as error:
            self.error = error

    def finish(self) -> None:
        self._told.set()
        self.join()
        if self.error is not None:
            raise self.error
        assert self.rounds > 0


def asked(node: NodeProcess, path: str) -> dict[str, Any]:
    """What a command with --json would print, without starting a program for it."""
    client = NodeClient(make_config([Given(data=node.data)], node.home), SystemClock())
    found: dict[str, Any] = json.loads(client.ask(path))
    return found


def stores(node: NodeProcess) -> dict[str, Any]:
    return asked(node, STORES_PATH)


def line(node: NodeProcess, slot: str) -> dict[str, Any]:
    return next((line for line in stores(node)["stores"] if line["slot"] == slot), {})


def slots(node: NodeProcess) -> list[str]:
    return [line["slot"] for line in stores(node)["stores"]]


def commanded(node: NodeProcess, *arguments: str | Path) -> tuple[int, str, str]:
    """What the program would end with and print, without starting a process for it."""
    out, complaints = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(complaints):
        code = run([*map(str, arguments), "--data", str(node.data)])
    return code, out.getvalue(), complaints.getvalue()


def done(node: NodeProcess, *arguments: str | Path) -> str:
    code, told, complaint = commanded(node, "store", *arguments)
    assert code == 0, complaint
    return told


def refused(node: NodeProcess, code: int, *arguments: str | Path) -> str:
    *ended, complaint = commanded(node, "store", *arguments)
    assert ended == [code, ""]
    return complaint


def filled(node: NodeProcess, objects: int = 8) -> dict[str, bytes]:
    chance = random.Random(5)
    bodies = {f"big-{number}": chance.randbytes(OBJECT_BYTES) for number in range(objects)}
    s3 = node.s3()
    s3.create_bucket(Bucket="main")
    for key, body in bodies.items():
        s3.put_object(Bucket="main", Key=key, Body=body)
    return bodies


def assert_whole(node: NodeProcess, bodies: dict[str, bytes]) -> None:
    s3 = node.s3()
    for key, body in bodies.items():
        assert s3.get_object(Bucket="main", Key=key)["Body"].read() == body
    verified: subprocess.CompletedProcess[str] | None = None

    def is_whole() -> bool:
        nonlocal verified
        verified = node.holdfast("verify")
        return verified.returncode == 0

    wait_until("everything to be whole", is_whole, PATIENCE_S)
    assert verified is not None
    assert " 0 degraded, 0 lost" in verified.stdout


def made(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.slow
def test_disks_come_go_and_are_replaced_under_load_and_everything_stays_whole(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        bodies = filled(node, 24)
        traffic = Traffic(node, bodies)
        traffic.start()
        assert "store disk7" in done(node, "add", made(tmp_path / "seven"))
        assert "store big" in done(node, "add", made(tmp_path / "eight"), "--slot", "big", "--zone", "local")
        spread(node)

        assert "disk1 takes nothing new" in done(node, "drain", "disk1")
        wait_until("disk1 to be empty", lambda: line(node, "disk1")["drain"]["empty"], PATIENCE_S)
        assert "disk1 is no longer part" in done(node, "remove", "disk1")

        assert "is copied to it" in done(node, "replace", "disk2", made(tmp_path / "two"))
        assert line(node, "disk2")["path"] == str(tmp_path / "two")
        wait_until("the old disk2 to be empty and gone", lambda: "disk2-old" not in slots(node), PATIENCE_S)
        traffic.finish()

        # Nothing leans on the two that left.
        for path in (node.data / "disk1", node.data / "disk2"):
            shutil.rmtree(path)
        before = {line["slot"]: (line["store"], line["path"]) for line in stores(node)["stores"]}
        assert set(before) == {"disk2", "disk3", "disk4", "disk5", "disk6", "disk7", "big"}
        node.kill()
        node.start()
        after = {line["slot"]: (line["store"], line["path"]) for line in stores(node)["stores"]}
        assert after == before
        assert "write the new path there" in node.output
        assert_whole(node, bodies)


def spread(node: NodeProcess) -> None:
    def even() -> bool:
        found = stores(node)
        fills = [line["bytes_held"] for line in found["stores"]]
        return found["uneven"] < 0.05 and min(fills) > 0.9 * max(fills)

    wait_until("all stores to be equally full", even, PATIENCE_S)


@pytest.mark.slow
def test_what_would_break_a_promise_is_refused_and_says_what_would_be_lost(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        bodies = filled(node)
        told = refused(node, 64, "remove", "disk3")
        assert "packs could lose 1 more" in told
        assert "drain disk3" in told
        assert "need 6 stores and 5 would be left" in refused(node, 64, "drain", "disk3")
        assert "There is no slot 'disk9'" in refused(node, 64, "drain", "disk9")
        assert "not empty" in refused(node, 76, "add", tmp_path / made_full(tmp_path / "full"))
        assert "is store disk4 already" in refused(node, 64, "add", node.data / "disk4")
        assert "no directory" in refused(node, 64, "add", tmp_path / "nowhere")
        assert "belongs to cluster" in refused(node, 76, "replace", "disk3", of_another_cluster(tmp_path))

        done(node, "add", made(tmp_path / "seven"))
        done(node, "drain", "disk3")
        assert "stays" in done(node, "drain", "disk3", "--cancel")
        done(node, "drain", "disk3")
        node.kill()
        node.start()
        wait_until("the drain to go on", lambda: line(node, "disk3")["drain"]["empty"], PATIENCE_S)
        done(node, "remove", "disk3")
        assert "was removed from slot 'disk3'" in refused(node, 76, "add", node.data / "disk3")

        # A disk that is dead is replaced without a copy.
        (node.data / "disk5").rename(tmp_path / "pulled")
        wait_until("the loss to be noticed", lambda: line(node, "disk5")["state"] == "missing")
        assert "made again from the others" in done(node, "replace", "disk5", made(tmp_path / "five"))
        assert_whole(node, bodies)

        # What is forced says what it costs, and is done.
        forced = done(node, "remove", "disk4", "--force")
        assert "made again from the others" in forced
        assert "need 6 stores and 5 would be left" in forced
        for key, body in bodies.items():
            assert node.s3().get_object(Bucket="main", Key=key)["Body"].read() == body


@pytest.mark.slow
def test_a_bucket_changes_its_scheme_and_back_while_it_is_read_over_a_restart(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        bodies = filled(node)
        for scheme, kill in (("mirror-3", True), ("rs-4-2", False)):
            told = commanded(node, "bucket", "scheme", "main", scheme)[1]
            assert f"New objects in main are {scheme} from now on" in told
            if kill:
                node.kill()
                node.start()
            traffic = Traffic(node, bodies)
            traffic.start()
            wait_until(f"all packs to be {scheme}", partial(is_all, node, scheme), PATIENCE_S)
            traffic.finish()
            assert commanded(node, "bucket", "scheme", "main") == (0, f"{scheme}\n", "")
        assert_whole(node, bodies)
        assert "needs 11 stores" in commanded(node, "bucket", "scheme", "main", "rs-8-3")[2]
        assert commanded(node, "bucket", "scheme", "nowhere", "mirror-3")[0] == 64
        assert (
            "survives store:2: rs-4-2, as it is" in commanded(node, "bucket", "survive", "main", "store:2")[1]
        )
        assert "store:2" in commanded(node, "bucket", "list")[1]
        assert commanded(node, "bucket", "survive", "main") == (0, "store:2 (rs-4-2)\n", "")
        code, _, why = commanded(node, "bucket", "survive", "main", "host")
        assert (code, "takes stores in 2 of them, there is 1" in why) == (64, True)
        assert "stays rs-4-2" in commanded(node, "bucket", "survive", "main", "none")[1]
        assert commanded(node, "bucket", "survive", "main")[1] == "nothing in particular\n"


@pytest.mark.slow
def test_a_spare_starts_by_itself_for_a_disk_that_is_gone_and_all_is_whole_again(tmp_path: Path) -> None:
    tables = ['[chores]\naway_patience = "3 s"\n']
    for slot in ("a", "b", "c", "d", "e", "f", "hot"):
        path = made(tmp_path / slot)
        tables.append(f'[[store]]\nslot = "{slot}"\npath = "{path}"\nspare = {str(slot == "hot").lower()}\n')
    (tmp_path / "holdfast.toml").write_text("\n".join(tables))
    with NodeProcess(tmp_path) as node:
        bodies = filled(node)
        assert line(node, "hot")["spare"]
        assert line(node, "hot")["shards"] == 0
        (tmp_path / "c").rename(tmp_path / "pulled")
        wait_until("the spare to hold what was lost", lambda: line(node, "hot")["shards"] > 0, PATIENCE_S)
        assert not line(node, "hot")["spare"]
        wait_until("it to be said", lambda: "the spare hot starts, in place of c" in node.output)
        assert_whole(node, bodies)


def is_all(node: NodeProcess, scheme: str) -> bool:
    return set(asked(node, BUCKETS_PATH)["packs"]) == {scheme}


def made_full(path: Path) -> Path:
    path.mkdir()
    (path / "something").write_text("of somebody")
    return path


def of_another_cluster(folder: Path) -> Path:
    home = made(folder / "other")
    with NodeProcess(home):
        pass
    return home / "holdfast-data" / "disk1"
