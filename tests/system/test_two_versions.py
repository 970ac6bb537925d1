"""Holdfast beside its own past: nodes of two versions are one cluster, and old data folders open.

The past is real: the source of earlier commits, run as it was. `DELIVERED` is the commit whose nodes today's
have to get on with, `OLDER` one from before there were clusters. Both move on when less is promised.
"""

import itertools
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from holdfast.node.config_cluster import Engine
from holdfast.node.status import NodeState
from tests.kit.cluster import ClusterNode, TestCluster
from tests.kit.earlier import unpack
from tests.kit.process import NodeProcess, run_holdfast, wait_until

OLDER = "38c785c21347"
DELIVERED = "c55162cc1c39"

BUCKET = "bucket"
MIB = 1 << 20
SIZES = (0, 900, 20_000, 300_000, MIB)
PACE_S = 0.1
"""Between two objects of the load, so that it does not grow with how long a node takes to start."""
TRIES = {"total_max_attempts": 3, "mode": "standard"}
"""As any S3 client does: a node that just lost a peer may answer 503 once."""


class Clients:
    """Writes and reads back through some nodes, in turn, until it is told to stop; keeps what it wrote."""

    def __init__(self) -> None:
        self.written: dict[str, bytes] = {}
        self.failed: list[str] = []
        self._numbers = itertools.count()

    def work(self, through: list[ClusterNode], stop: threading.Event) -> None:
        doors = itertools.cycle([(node.name, node.s3(retries=TRIES)) for node in through])
        while not stop.is_set():
            number = next(self._numbers)
            body = number.to_bytes(4, "big") * (SIZES[number % len(SIZES)] // 4)
            (name, put), (other, get) = next(doors), next(doors)
            try:
                put.put_object(Bucket=BUCKET, Key=f"k{number}", Body=body)
                self.written[f"k{number}"] = body
                found = get.get_object(Bucket=BUCKET, Key=f"k{number}")["Body"].read()
            except Exception as error:
                self.failed.append(f"k{number} by {name} and {other}: {error!r}")
                continue
            if found != body:
                self.failed.append(f"k{number} by {name} is another one at {other}")
            next(doors)  # so that with two of them each is first in turn
            stop.wait(PACE_S)


def roll(nodes: list[ClusterNode], one: ClusterNode, source: Path | None, clients: Clients) -> None:
    """Start one node anew as another version, while clients work through the others."""
    stop = threading.Event()
    others = [node for node in nodes if node is not one]
    load = threading.Thread(target=clients.work, args=(others, stop), daemon=True)
    before = len(clients.written)
    load.start()
    try:
        wait_until("the load to begin", lambda: len(clients.written) >= before + 2 or not load.is_alive())
        assert one.stop() == 0
        one.be(source)
        one.start()
        wait_for_all(nodes)
    finally:
        stop.set()
        load.join()
    assert not clients.failed


def wait_for_all(nodes: list[ClusterNode]) -> None:
    """Until each sees all others and their stores."""

    def sees(node: ClusterNode) -> bool:
        status = node.status()
        return [one.state for one in status.nodes] == ["ready"] * len(nodes) and all(
            store.well for store in status.stores
        )

    for node in nodes:
        wait_until(f"{node.name} to know all", lambda node=node: sees(node))


def check_all(nodes: list[ClusterNode], clients: Clients) -> None:
    """Everything reads through every node."""
    assert clients.written
    for node in nodes:
        s3 = node.s3(retries=TRIES)
        for key, body in clients.written.items():
            assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body, f"{key} at {node.name}"


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[ClusterNode]]:
    """Three of one cluster over etcd, not yet started, dead with the test."""
    cluster = TestCluster(tmp_path, Engine.ETCD)
    found = [cluster.node(f"n{number}") for number in (1, 2, 3)]
    with ExitStack() as stack:
        for node in found:
            stack.callback(node.kill)
        yield found


@pytest.mark.slow
@pytest.mark.skipif("HOLDFAST_THOROUGH" not in os.environ, reason="half a minute: part of `make drill`")
def test_a_cluster_is_rolled_forward_and_back(nodes: list[ClusterNode], tmp_path: Path) -> None:
    past = unpack(DELIVERED, tmp_path / "past")
    one, two, three = nodes
    for node in nodes:
        node.be(past if node is not three else None)
        node.start()
    wait_for_all(nodes)
    one.s3().create_bucket(Bucket=BUCKET)
    clients = Clients()

    roll(nodes, one, None, clients)
    roll(nodes, two, None, clients)
    check_all(nodes, clients)
    roll(nodes, three, past, clients)
    roll(nodes, one, past, clients)
    check_all(nodes, clients)


@pytest.mark.slow
def test_once_all_know_it_older_versions_are_shut_out(nodes: list[ClusterNode], tmp_path: Path) -> None:
    """An older version would join again although it was removed, for one: it looks at no row that says so."""
    past = unpack(DELIVERED, tmp_path / "past")
    one, two, _ = nodes
    two.be(past)
    one.start()
    two.start()
    wait_until("both to be members", lambda: len(one.status().nodes) == 2)
    shown = one.holdfast("cluster", "format").stdout
    assert "has format 1; this version knows 2" in shown
    assert "Nodes that do not know 2: n2" in shown
    refused = one.holdfast("cluster", "format", "--raise")
    assert refused.returncode == 64
    assert "would be shut out" in refused.stderr

    assert two.stop() == 0
    two.be(None)
    two.start()

    def raised() -> bool:
        # A node that says something new of itself at the same time is looked at again.
        return one.holdfast("cluster", "format", "--raise").returncode == 0

    wait_until("it to be raised", raised)
    two.kill()
    two.be(past)
    ended = two.holdfast("serve")
    assert ended.returncode == 65
    assert "format 2, this Holdfast knows 1" in ended.stderr


def fill(s3: Any) -> dict[str, bytes]:
    """Objects of all sizes, written twice, and others that are let go again."""
    s3.create_bucket(Bucket=BUCKET)
    written = {}
    for number, size in enumerate((*SIZES, 9 * MIB)):
        written[f"k{number}"] = body = bytes([number]) * size
        for again in (b"let go" * 1000, body):
            s3.put_object(Bucket=BUCKET, Key=f"k{number}", Body=again)
        s3.put_object(Bucket=BUCKET, Key=f"gone{number}", Body=body)
        s3.delete_object(Bucket=BUCKET, Key=f"gone{number}")
    s3.copy_object(Bucket=BUCKET, Key="copy", CopySource={"Bucket": BUCKET, "Key": "k4"})
    written["copy"] = written["k4"]
    return written


@pytest.mark.slow
@pytest.mark.parametrize("commit", [OLDER, DELIVERED])
def test_a_data_folder_of_an_old_version_opens(tmp_path: Path, commit: str) -> None:
    past = unpack(commit, tmp_path / "past")
    stores = itertools.chain.from_iterable(("--store", f"d{number}") for number in range(1, 5))
    for number in range(1, 5):
        (tmp_path / f"d{number}").mkdir()
    with ExitStack() as stack:
        # As it was: filled, and killed with all that is in its journal and waits to be cleaned up.
        node = NodeProcess(tmp_path, *stores)
        stack.callback(node.kill)
        node.be(past)
        node.start()
        s3 = node.s3()
        written = fill(s3)
        upload = s3.create_multipart_upload(Bucket=BUCKET, Key="parts")["UploadId"]
        parts = [part(s3, upload, 1), part(s3, upload, 2)]
        node.kill()

        node.be(None)
        node.start()
        s3 = node.s3()
        for key, body in written.items():
            assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body, key
        listed = s3.list_objects_v2(Bucket=BUCKET)["Contents"]
        assert {entry["Key"]: entry["Size"] for entry in listed} == {
            key: len(body) for key, body in written.items()
        }

        # What was under way goes on, and what waits to be cleaned up is.
        parts.append(part(s3, upload, 3))
        s3.complete_multipart_upload(
            Bucket=BUCKET, Key="parts", UploadId=upload, MultipartUpload={"Parts": parts}
        )
        body = s3.get_object(Bucket=BUCKET, Key="parts")["Body"].read()
        assert body == b"".join(bytes([number]) * 5 * MIB for number in (1, 2, 3))
        wait_until("all to be well", lambda: node.status().state is NodeState.ONLINE)
        verified = run_holdfast("verify", cwd=tmp_path)
        assert verified.returncode == 0, verified.stdout + verified.stderr


def part(s3: Any, upload: str, number: int) -> dict[str, object]:
    """One part of the upload that outlives its version."""
    answer = s3.upload_part(
        Bucket=BUCKET, Key="parts", UploadId=upload, PartNumber=number, Body=bytes([number]) * 5 * MIB
    )
    return {"PartNumber": number, "ETag": answer["ETag"]}
