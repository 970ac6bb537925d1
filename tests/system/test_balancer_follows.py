"""A balancer is told by the nodes who they are: real nodes over a real etcd, behind a real Envoy."""

import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from holdfast.cluster.telling import FORMAT, Told, ToldNode, answer, balancer_secret
from holdfast.node.config_cluster import Engine
from tests.kit.balancer import BalancerProcess
from tests.kit.cluster import SECRET, ClusterNode, TestCluster
from tests.kit.known import AWAY, GONE, Known, seen_by_balancer
from tests.kit.process import REGION, run_holdfast, wait_until

KNOWN = balancer_secret(SECRET)

pytestmark = pytest.mark.slow


def address(node: ClusterNode) -> str:
    return node.endpoint.removeprefix("http://")


def wait_for(balancer: BalancerProcess, expected: dict[str, str]) -> None:
    wait_until(f"the balancer to see {expected}", lambda: seen_by_balancer(balancer) == expected)


def requests_of(balancer: BalancerProcess, name: str) -> int:
    return sum(node["requests"] for node in balancer.status()["nodes"] if node["name"] == name)


def follower(home: Path, *seeds: str, secret: str = KNOWN) -> BalancerProcess:
    return BalancerProcess(home, (), [f'secret = "{secret}"'], seeds=seeds)


def s3(balancer: BalancerProcess, node: ClusterNode) -> object:
    return boto3.client(
        "s3",
        endpoint_url=balancer.endpoint,
        aws_access_key_id=node.credentials.access_key_id,
        aws_secret_access_key=node.credentials.secret_access_key,
        region_name=REGION,
        config=Config(retries={"total_max_attempts": 1}),
    )


def test_nodes_join_drain_and_leave_and_what_is_known_outlives_who_told(tmp_path: Path) -> None:
    cluster = TestCluster(tmp_path, Engine.ETCD)
    one, two, three = (cluster.node(f"n{number}") for number in (1, 2, 3))
    with ExitStack() as stack:
        for node in (one, two):
            stack.enter_context(node)
        balancer = stack.enter_context(follower(tmp_path / "b", address(one)))
        another = stack.enter_context(follower(tmp_path / "c", address(two)))
        # One was named; it told of both.
        wait_for(balancer, {"n1": "ready", "n2": "ready"})
        wait_for(another, {"n1": "ready", "n2": "ready"})
        known = Known((balancer, another))

        # A node that joins gets requests.
        known.until(
            "a node joins",
            lambda: stack.enter_context(three),
            "n3",
            (one, two, three),
            to_nodes=("ready",),
            to_balancers="ready",
        )
        client = s3(balancer, one)
        client.create_bucket(Bucket="bucket")  # type: ignore[attr-defined]
        wait_until(
            "all to be asked",
            lambda: (
                bool(client.list_buckets())  # type: ignore[attr-defined]
                and all(requests_of(balancer, name) for name in ("n1", "n2", "n3"))
            ),
            look_every_s=0.01,
        )

        # One that is being emptied gets nothing new; it is asked again when it stays.
        known.until(
            "a node is drained",
            lambda: three.client().ask("/-/nodes/drain", "force=yes&name=n3", method="POST"),
            "n3",
            (one, two, three),
            to_nodes=("draining",),
            to_balancers="draining",
        )
        before = requests_of(balancer, "n3")
        for _ in range(20):
            client.list_buckets()  # type: ignore[attr-defined]
        assert requests_of(balancer, "n3") == before
        known.until(
            "it stays after all",
            lambda: three.client().ask("/-/nodes/drain", "cancel=yes&name=n3", method="POST"),
            "n3",
            (one, two, three),
            to_nodes=("ready",),
            to_balancers="ready",
        )

        # The seed dies: others go on telling. A node that is removed is forgotten.
        known.until(
            "a node is killed",
            lambda: one.signal(signal.SIGKILL),
            "n1",
            (two, three),
            to_nodes=(AWAY, "silent"),
            to_balancers="not ready",
        )
        one.wait()
        wait_until("n1 to be silent", lambda: any(node.state == "silent" for node in two.status().nodes))
        known.until(
            "a node is removed",
            lambda: two.client().ask("/-/nodes/remove", "force=yes&name=n1", method="POST"),
            "n1",
            (two, three),
            to_nodes=(GONE,),
            to_balancers=GONE,
        )
        shown = run_holdfast("balance", "status", cwd=tmp_path / "b").stdout
        assert "Told by node n" in shown, shown
        known.until(
            "a node stops",
            lambda: three.signal(signal.SIGTERM),
            "n3",
            (two,),
            to_nodes=("stopping", "silent", AWAY),
            to_balancers="draining",
        )
        assert three.wait() == 0
        known.show()

        # Nobody tells any more: the last that was known stays, over a restart of the balancer too.
        two.kill()
        wait_until("it to be said", lambda: "what is known of the nodes stays" in balancer.output)
        wait_for(balancer, {"n2": "not ready", "n3": "draining"})
        assert balancer.stop() == 0
        balancer.start()
        wait_until("both", lambda: set(seen_by_balancer(balancer)) == {"n2", "n3"})


class _Liar(BaseHTTPRequestHandler):
    """Tells of a node of its own, with a secret of its own."""

    def do_GET(self) -> None:
        nonce = self.path.partition("nonce=")[2]
        host, port = self.server.server_address[:2]
        mine = Told(FORMAT, "mine", "liar", (ToldNode("liar", f"http://{host!s}:{port}"),))
        body = answer("another-secret-than-theirs", nonce, mine)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nobody wants to know."""


@pytest.fixture
def liar() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Liar) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(timeout=30)


def test_who_does_not_know_the_secret_is_neither_believed_nor_told(tmp_path: Path, liar: str) -> None:
    cluster = TestCluster(tmp_path, Engine.ETCD)
    with cluster.node("n1") as node:
        # A seed that lies is not believed, and another one is asked.
        with follower(tmp_path / "b", liar) as balancer:
            wait_until("it to be told", lambda: f"{liar} is not believed" in balancer.output)
            assert seen_by_balancer(balancer) == {}
            balancer.know((), (liar, address(node)))
            wait_for(balancer, {"n1": "ready"})
        # The secret of the balancer is wrong.
        with follower(tmp_path / "c", address(node), secret="some-other-secret") as balancer:
            wait_until("it to be told", lambda: "does not take the secret" in balancer.output)
            assert seen_by_balancer(balancer) == {}
        made = run_holdfast("balance", "secret", tmp_path / "n1" / "secret", cwd=tmp_path)
        assert made.stdout == f"{KNOWN}\n"
