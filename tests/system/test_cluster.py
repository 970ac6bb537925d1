"""Three real nodes over one PostgreSQL: any of them serves, and what one leaves the others take up."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgspec
import pytest

from holdfast.base.errors import InvalidInput
from holdfast.chores.lease import TTL_S
from holdfast.chores.sharing import OF_EACH_NODE
from tests.kit.cluster import ClusterNode, TestCluster
from tests.kit.process import run_holdfast, wait_until

MIB = 1 << 20


@pytest.fixture
def cluster(tmp_path: Path) -> TestCluster:
    return TestCluster(tmp_path)


@pytest.fixture
def nodes(cluster: TestCluster) -> Iterator[list[ClusterNode]]:
    """Three, each with two stores, that all know each other."""
    found = [cluster.node(f"n{number}") for number in (1, 2, 3)]
    # The threads stay until the end: the kernel kills a node with the thread that began it.
    with ThreadPoolExecutor() as together, ExitStack() as stack:
        for node in together.map(lambda node: node.__enter__(), found):
            stack.push(node)
        wait_for_all(found)
        yield found


def wait_for_all(nodes: list[ClusterNode]) -> None:
    """Until each node sees all others, and all of their stores."""
    for node in nodes:
        wait_until(f"{node.name} to know all", lambda node=node: sees(node, 3, "ready"))


def sees(node: ClusterNode, count: int, state: str) -> bool:
    """Whether a node sees so many nodes in a state, and two stores of each that is ready."""
    status = node.status()
    there = sum(store.well for store in status.stores)
    found = sum(one.state == state for one in status.nodes)
    return found == count and (state != "ready" or there == 2 * count)


def may_stop(node: ClusterNode) -> tuple[int, list[str]]:
    """What it answers to whoever asks whether it may be taken down."""
    try:
        with urlopen(f"{node.endpoint}/-/can-stop") as answer:
            return answer.status, json.load(answer)["reasons"]
    except HTTPError as error:
        with error:
            return error.code, json.load(error)["reasons"]


def rivals(together: ThreadPoolExecutor, nodes: list[ClusterNode]) -> tuple[ClusterNode, ClusterNode]:
    """Has both claim the word at once until one of them has it; the one that has, the one that has not."""
    while True:
        claims = list(together.map(lambda node: node.holdfast("node", "can-stop", "--claim"), nodes))
        got = [node for node, done in zip(nodes, claims, strict=True) if done.returncode == 0]
        assert all(done.returncode in (0, 75) for done in claims), claims
        assert len(got) <= 1, "both were told so"
        if got:  # else a slow moment made another reason
            assert "This node has the word: stop it now.\n" in [done.stdout for done in claims]
            (other,) = set(nodes) - set(got)
            return got[0], other


def remove(asked: ClusterNode, node: ClusterNode, force: str = "") -> None:
    """What `holdfast node remove` says to a node."""
    name = f"name={node.name}"
    asked.client().ask("/-/nodes/remove", f"{force[1:]}&{name}" if force else name, method="POST")


def listed(node: ClusterNode) -> set[str]:
    """The nodes that `holdfast node list` shows there."""
    lines = node.holdfast("node", "list").stdout.splitlines()
    return {line.split()[0] for line in lines[1:] if line.strip()}


def body_of(node: ClusterNode, key: str) -> bytes:
    body: bytes = node.s3().get_object(Bucket="bucket", Key=key)["Body"].read()
    return body


def chores_of(node: ClusterNode) -> set[str]:
    """The chores of the whole cluster that a node does."""
    found = msgspec.json.decode(node.client().ask("/-/chores"))["chores"]
    return {
        chore["name"]
        for chore in found
        if chore["state"] != "elsewhere" and chore["name"] not in OF_EACH_NODE
    }


@pytest.mark.slow
def test_a_node_that_cannot_serve_does_not_join(cluster: TestCluster, nodes: list[ClusterNode]) -> None:
    taken = nodes[0].endpoint.rpartition(":")[2]
    late = cluster.node("n4")
    done = run_holdfast("serve", "--port", taken, cwd=late.home)
    assert done.returncode == 64
    assert f"Port {taken} on 127.0.0.1 is taken." in done.stderr
    assert {node.name for node in nodes[0].status().nodes} == {"n1", "n2", "n3"}

    # Who only asks hears yes everywhere, as often as he likes. Of two that claim the word at the same moment
    # one gets it, and that is what those who ask at the others hear from then on.
    with ThreadPoolExecutor() as together:

        def all_may() -> bool:
            return list(together.map(may_stop, nodes * 2)) == [(200, [])] * 6

        wait_until("all to hear yes", all_may)
        has, has_not = rivals(together, nodes[:2])
    word = f"Node {has.name} has the word to stop"
    wait_until("it to hear yes", lambda: may_stop(has) == (200, []))
    for node in (has_not, nodes[2]):
        code, reasons = may_stop(node)
        assert code == 412
        assert any(reason.startswith(word) for reason in reasons)
    with pytest.raises(HTTPError, match="403"):
        urlopen(Request(f"{has.endpoint}/-/can-stop/claim", method="POST"))


@pytest.mark.slow
def test_any_node_serves_and_the_end_of_one_stops_nobody(nodes: list[ClusterNode]) -> None:
    one, two, three = nodes
    one.s3().create_bucket(Bucket="bucket")

    # Put through one, get through another: small and large.
    for size in (10, 3 * MIB):
        one.s3().put_object(Bucket="bucket", Key=f"k{size}", Body=b"x" * size)
        assert body_of(three, f"k{size}") == b"x" * size

    # A node is not emptied where the others cannot keep what was promised: all of its stores count.
    refused = two.holdfast("node", "drain", "n2")
    assert refused.returncode == 64
    assert "Node n2 with its 2 stores cannot be emptied. Without disk1 the promise" in refused.stderr
    assert "stores and 4 would be left" in refused.stderr
    assert "is not being emptied" in two.holdfast("node", "drain", "--cancel", "n2").stdout

    # An upload that is begun at one node goes on at the others, over the death of the first.
    upload = two.s3().create_multipart_upload(Bucket="bucket", Key="large")["UploadId"]
    parts = []

    def part_by(node: ClusterNode, number: int) -> None:
        body = bytes([number]) * 5 * MIB
        answer = node.s3().upload_part(
            Bucket="bucket", Key="large", UploadId=upload, PartNumber=number, Body=body
        )
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})

    part_by(two, 1)
    part_by(one, 2)
    # What a slow moment cost is paid first.
    wait_until("n2 not to be needed", lambda: may_stop(two) == (200, []))
    two.kill()
    # Nobody waits for anybody to notice.
    for number in range(5):
        one.s3().put_object(Bucket="bucket", Key=f"after{number}", Body=b"y" * MIB)
        assert body_of(three, f"after{number}") == b"y" * MIB
    part_by(three, 3)
    one.s3().complete_multipart_upload(
        Bucket="bucket", Key="large", UploadId=upload, MultipartUpload={"Parts": parts}
    )
    assert body_of(three, "large") == b"".join(bytes([number]) * 5 * MIB for number in (1, 2, 3))
    for node in (one, three):
        wait_until(f"{node.name} to find n2 silent", lambda node=node: sees(node, 1, "silent"))
    lines = one.holdfast("store", "list").stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [
        [n, d] for n in ("n1", "n3") for d in ("disk1", "disk2")
    ]
    assert lines[-1] == "The stores of n2 are not shown: it is silent"

    code, reasons = may_stop(one)
    assert code == 412
    assert any("could not be read without the stores of this node" in reason for reason in reasons)

    # It comes back with what it had, and what was owed is paid.
    two.start()
    wait_for_all(nodes)
    assert body_of(two, "after4") == b"y" * MIB
    wait_until("debts to be paid", lambda: two.status().packs.debts == 0)

    # A node that stops hands its chores over, so that nobody waits for its leases to run out.
    holder = max(nodes, key=lambda node: len(chores_of(node)))
    chores = chores_of(holder)
    assert chores
    assert holder.stop() == 0
    left = [node for node in nodes if node is not holder]
    wait_until(
        "its chores to go on elsewhere",
        lambda: chores <= set().union(*map(chores_of, left)),
        timeout_s=TTL_S - 5,
    )
    for node in left:
        assert body_of(node, "large")[-1:] == b"\3"

    # Who is alive stays; who has something goes only with force; who was removed stays away until asked.
    asked = left[0]
    with pytest.raises(InvalidInput, match="is alive"):
        remove(asked, left[1])
    wait_until("the stopped node to be silent", lambda: sees(asked, 1, "silent"))
    with pytest.raises(InvalidInput, match="shards that are not elsewhere"):
        remove(asked, holder)
    remove(asked, holder, "&force=yes")
    wait_until("the list to be without it", lambda: listed(asked) == {node.name for node in left})
    assert body_of(left[1], "large")[:1] == b"\1"
    ended = holder.holdfast("serve")
    assert ended.returncode == 76
    assert "was removed from the cluster" in ended.stderr
    assert "may join again" in asked.holdfast("node", "remove", "--cancel", holder.name).stdout
    holder.start()
    wait_for_all(nodes)
    assert body_of(holder, "large")[:1] == b"\1"
