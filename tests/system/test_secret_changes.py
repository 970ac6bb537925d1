"""A cluster changes its secret while it works: three real nodes over a real etcd behind a real Envoy, and no
request fails."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from holdfast.cluster.telling import balancer_secret
from holdfast.node.config_cluster import Engine
from holdfast.node.credentials import from_secret
from tests.kit.balancer import BalancerProcess
from tests.kit.cluster import SECRET, ClusterNode, TestCluster
from tests.kit.process import REGION, run_holdfast, wait_until

NEW = b"what the cluster is known by from now on"

pytestmark = pytest.mark.slow


def client_of(endpoint: str, secret: bytes) -> Any:
    keys = from_secret(secret)
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=keys.access_key_id,
        aws_secret_access_key=keys.secret_access_key,
        region_name=REGION,
        config=Config(retries={"total_max_attempts": 1}),
    )


def put_secret(folder: Path, content: bytes) -> None:
    """As the guide says: a whole file takes the place of the one before."""
    new = folder / "secret.new"
    new.touch(mode=0o600)
    new.write_bytes(content)
    new.replace(folder / "secret")


def counts(node: ClusterNode, secrets: int) -> bool:
    """Whether a node says that it read its file anew, and how many secrets count."""
    said = "one secret counts" if secrets == 1 else f"{secrets} secrets count"
    (counted,) = [line for line in metrics_of(node) if line.startswith("holdfast_cluster_secrets ")]
    return said in node.output and counted == f"holdfast_cluster_secrets {secrets}"


def metrics_of(node: ClusterNode) -> list[str]:
    token = (node.home / "holdfast-data" / "metrics-token").read_text().strip()
    request = Request(f"{node.endpoint}/-/metrics", headers={"Authorization": f"Bearer {token}"})
    with urlopen(request) as answer:
        return str(answer.read(), "utf-8").splitlines()


@contextmanager
def load(client: Any) -> Iterator[Callable[[], int]]:
    """Puts and gets without a pause, none of which may fail; how many there were so far."""
    ended, failures, done = threading.Event(), [], 0

    def work() -> None:
        nonlocal done
        body = b"x" * 100_000
        while not ended.is_set():
            key = f"k{done % 50}"
            try:
                client.put_object(Bucket="bucket", Key=key, Body=body)
                assert client.get_object(Bucket="bucket", Key=key)["Body"].read() == body
            except Exception as error:
                failures.append(error)
                return
            done += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield lambda: done
    finally:
        ended.set()
        thread.join()
    assert failures == []


def test_no_request_fails_while_the_secret_changes(tmp_path: Path) -> None:
    cluster = TestCluster(tmp_path, Engine.ETCD)
    nodes = [cluster.node(f"n{number}") for number in (1, 2, 3)]
    with ExitStack() as stack:
        for node in nodes:
            stack.enter_context(node)
        seeds = [node.endpoint.removeprefix("http://") for node in nodes]
        known = [f'secret = "{balancer_secret(SECRET)}"']
        balancer = stack.enter_context(BalancerProcess(tmp_path / "b", (), known, seeds=seeds))
        wait_until(
            "all to be ready",
            lambda: [node["state"] for node in balancer.status()["nodes"]] == ["ready"] * 3,
        )
        wait_until("n1 to have all stores", lambda: sum(one.well for one in nodes[0].status().stores) == 6)
        old = client_of(balancer.endpoint, SECRET)
        old.create_bucket(Bucket="bucket")

        def change(done: Callable[[], int], content: bytes, secrets: int) -> None:
            """One node, while the others go on as before; then these."""
            for some in (nodes[:1], nodes[1:]):
                for node in some:
                    put_secret(node.home, content)
                for node in some:
                    wait_until(f"{node.name} to read it", lambda node=node: counts(node, secrets))
                meanwhile(done)

        def meanwhile(done: Callable[[], int]) -> None:
            before = done()
            wait_until("requests to go on", lambda: done() >= before + 5)

        with load(old) as done:
            meanwhile(done)
            change(done, NEW + b"\nalso " + SECRET + b"\n", 2)
            # The balancer, and then clients, go over.
            file = tmp_path / "b" / "balance.toml"
            printed = run_holdfast("balance", "secret", str(nodes[0].home / "secret"), cwd=tmp_path)
            assert printed.stdout.strip() == balancer_secret(NEW)
            file.write_text(file.read_text().replace(balancer_secret(SECRET), balancer_secret(NEW)))
            wait_until("the balancer to read its file", lambda: "was read anew" in balancer.output)
            meanwhile(done)
        new = client_of(balancer.endpoint, NEW)
        with load(new) as done:
            change(done, NEW + b"\n", 1)
            states = [node["state"] for node in balancer.status()["nodes"]]
            assert states == ["ready"] * 3
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            old.list_buckets()

        # All of that went over the stores of all nodes, and was counted there.
        for node in nodes:
            counted = metrics_of(node)
            for call in ("hello", "put", "get"):
                name = f'holdfast_peer_requests_total{{call="{call}",result="good"}} '
                assert sum(float(line.removeprefix(name)) for line in counted if line.startswith(name)) > 0
            assert 'holdfast_peer_refused_total{reason="Altered"} 0' in counted
            assert sum(line.startswith("holdfast_node_connections{") for line in counted) == 2

        # A node that starts with the old one is told so.
        refused = run_holdfast("serve", cwd=cluster.node("n4").home)
        assert refused.returncode == 64
        assert "is not that of cluster" in refused.stderr
        assert balancer.output.count("is not believed") == 0
