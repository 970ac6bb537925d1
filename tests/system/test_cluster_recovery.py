"""The day the whole index of a cluster is gone: three nodes, their engine emptied, and all comes back."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from holdfast.node.config_cluster import Engine
from tests.kit.cluster import ClusterNode, Lender, TestCluster
from tests.kit.etcd import EtcdCluster, etcd_cluster
from tests.kit.postgres import running_server
from tests.kit.process import run_holdfast, wait_until
from tests.system.test_cluster import wait_for_all
from tests.system.test_recovery import BUCKET, Book

FEW = 12


def fill(book: Book, clients: list[Any]) -> None:
    """A little of everything, through all nodes in turn."""
    for number in range(FEW):
        book.s3 = clients[number % len(clients)]
        book.put(f"small/{number}", book.chance.randrange(20_000))
    for number in range(0, FEW, 3):
        book.s3 = clients[(number + 1) % len(clients)]
        book.put(f"small/{number}", book.chance.randrange(20_000))
    book.put("large", 3 << 20)
    book.multipart("parts")
    book.copy("large", "copy")
    for number in range(1, FEW, 3):
        book.s3 = clients[(number + 2) % len(clients)]
        book.delete(f"small/{number}")
    book.put("deleted", 300_000)
    book.delete("deleted")


def is_covered(nodes: list[ClusterNode], revision: int) -> bool:
    """Whether the journal, wherever it is written, has what was committed until then."""
    found = [node.status().recovery for node in nodes]
    return any(one is not None and one.journal_revision >= revision for one in found)


def recovered(node: ClusterNode, *arguments: str) -> dict[str, Any]:
    done = run_holdfast("recover", "--json", *arguments, cwd=node.home)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def emptied(etcd: EtcdCluster, keep: Path) -> None:
    """All of its data are gone; they are kept elsewhere, as a backup would be."""
    etcd.kill()
    for member in etcd.members:
        shutil.move(member.data, keep / member.name)
    etcd.start()


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(Engine))
def test_a_cluster_that_lost_its_index_has_everything_again(tmp_path: Path, engine: Engine) -> None:
    keep = tmp_path / "keep"
    keep.mkdir()
    with ThreadPoolExecutor() as together, ExitStack() as stack:
        empty: Callable[[], object]
        if engine is Engine.ETCD:
            etcd = stack.enter_context(etcd_cluster())
            cluster = TestCluster.over(tmp_path, etcd.address("holdfast"))
            empty = partial(emptied, etcd, keep)
        else:
            cluster = TestCluster(tmp_path, engine)
            drop = "DROP SCHEMA holdfast CASCADE"
            empty = partial(running_server().run, drop, cluster.database)
        nodes = [cluster.node(f"n{number}") for number in (1, 2, 3)]
        for node in together.map(lambda node: node.__enter__(), nodes):
            stack.push(node)
        wait_for_all(nodes)
        first, second, third = nodes
        book = Book(first.s3(), seed=4)
        book.s3.create_bucket(Bucket=BUCKET)
        fill(book, [node.s3() for node in nodes])
        upload = book.s3.create_multipart_upload(Bucket=BUCKET, Key="open")["UploadId"]
        half = book.chance.randbytes(5 << 20)
        parts = [book.part("open", upload, 1, half)]
        revision = max(node.status().index.revision for node in nodes)
        wait_until("the journal to have it all", lambda: is_covered(nodes, revision))
        # Of the last moment the journal may know nothing: the packs themselves say what is in them.
        for number, node in enumerate(nodes):
            book.s3 = node.s3()
            book.put(f"late/{number}", 20_000)
        # What would not be safe is refused: a node runs, the index is there.
        if engine is Engine.ETCD:
            peer = next(node.peer for node in third.status().nodes if node.name == "n3")
            first.kill()
            running = first.holdfast("recover", "--peer", f"n3={peer}")
            assert (running.returncode, "Node n3 runs" in running.stderr) == (75, True), running.stderr
        for node in nodes:
            node.kill()
        if engine is Engine.ETCD:
            there = first.holdfast("recover")
            assert (there.returncode, "The index is there" in there.stderr) == (64, True), there.stderr
        empty()
        refused = second.holdfast("serve", "--port", "0")
        assert (refused.returncode, "holdfast recover" in refused.stderr) == (76, True), refused.stderr

        with Lender(second) as two, Lender(third) as three:
            peers = ("--peer", two.peer, "--peer", three.peer)
            if engine is Engine.POSTGRES:
                trial = recovered(first, "--dry-run", *peers)
                assert trial["objects"] == len(book.there)
            report = recovered(first, *peers)
            assert (two.wait(), three.wait()) == (0, 0)
        assert report["objects"] == len(book.there)
        assert (report["gap"], report["packs_short"], report["incomplete_count"]) == ("", 0, 0)
        assert {one["name"]: one["part"] for one in report["nodes"]} == {
            "n1": "here",
            "n2": "lends",
            "n3": "lends",
        }
        assert report["first_snapshot"].startswith("index-0001-")

        list(together.map(lambda node: node.start(), nodes))
        wait_for_all(nodes)
        for node in nodes:
            book.check(node.s3())
        book.s3 = second.s3()
        parts.append(book.part("open", upload, 2, b"the end"))
        book.s3.complete_multipart_upload(
            Bucket=BUCKET, Key="open", UploadId=upload, MultipartUpload={"Parts": parts}
        )
        book.there["open"] = half + b"the end"
        book.delete("large")
        book.put("new", 100_000)
        book.check(third.s3())
        told = [event.text for node in nodes for event in node.status().events]
        assert not any("nothing is deleted" in text or "begins anew" in text for text in told), told
        revision = max(node.status().index.revision for node in nodes)
        wait_until("the journal to go on", lambda: is_covered(nodes, revision))
        if engine is Engine.ETCD:
            for node in nodes:
                node.kill()
            etcd.kill()
            for member in etcd.members:
                shutil.rmtree(member.data)
                shutil.move(keep / member.name, member.data)
            etcd.start()
            fenced = third.holdfast("serve", "--port", "0")
            assert fenced.returncode == 76, fenced.stderr
