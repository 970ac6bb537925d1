"""One node over a real PostgreSQL or etcd: it serves, starts anew, and knows to whom it belongs."""

from pathlib import Path

import pytest

from holdfast.base.errors import Unavailable
from holdfast.base.randomness import SystemRandomness
from holdfast.node.config_cluster import Engine, IndexAddress
from holdfast.node.shared_index import open_shared
from holdfast.node.status import NodeState
from tests.kit.cluster import TestCluster
from tests.kit.process import run_holdfast, wait_until


@pytest.mark.slow
@pytest.mark.parametrize("engine", list(Engine))
def test_a_node_keeps_its_index_elsewhere(tmp_path: Path, engine: Engine) -> None:
    cluster = TestCluster(tmp_path, engine)
    with cluster.node("n1", stores=3) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="small", Body=b"x" * 1000)
        s3.put_object(Bucket="bucket", Key="large", Body=b"y" * (20 << 20))
        # A machine that is busy may leave it short of a beat, or a store of an answer, for a moment.
        wait_until("all to be well", lambda: node.status().state is NodeState.ONLINE)
        assert node.status().index.engine == engine.value
        assert node.stop() == 0
        assert f"The index is in {engine.value}" in node.output

        node.start()
        s3 = node.s3()
        assert s3.get_object(Bucket="bucket", Key="small")["Body"].read() == b"x" * 1000
        assert s3.get_object(Bucket="bucket", Key="large")["Body"].read() == b"y" * (20 << 20)
        shown = node.holdfast("status")
        assert shown.returncode == 0, shown.stderr
        assert engine.value in shown.stdout
        assert node.holdfast("verify").returncode == 0


@pytest.mark.slow
def test_who_does_not_belong_to_the_cluster_is_told_so(tmp_path: Path) -> None:
    cluster = TestCluster(tmp_path)
    with cluster.node("n1", stores=2) as first:
        stranger = cluster.node("n2", secret=b"another secret, and as long as it has to be")
        refused = run_holdfast("serve", "--port", "0", cwd=stranger.home)
        assert refused.returncode == 64
        assert "The secret of this node is not that of cluster holdfast-" in refused.stderr
        (tmp_path / "namesake").mkdir()
        cluster.folder = tmp_path / "namesake"
        refused = run_holdfast("serve", "--port", "0", cwd=cluster.node("n1").home)
        assert refused.returncode == 76
        assert "There is a node 'n1' in this cluster already" in refused.stderr
        assert "holdfast node remove n1" in refused.stderr
        first.stop()

    # The same node, told of the database of another cluster: first an empty one, then one in use.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    other = TestCluster(elsewhere)
    file = first.home / "holdfast.toml"
    file.write_text(file.read_text().replace(cluster.index, other.index))
    refused = run_holdfast("serve", "--port", "0", cwd=first.home)
    assert refused.returncode == 76
    assert "Is the address of the index right?" in refused.stderr

    # A new data folder for stores that belong to a cluster.
    (first.home / "holdfast-data").rename(first.home / "gone")
    with other.node("n3"):
        refused = run_holdfast("serve", "--port", "0", cwd=first.home)
    assert refused.returncode == 76
    assert "The stores here belong to cluster" in refused.stderr


class HastyClock:
    """Waits for nothing, and counts what it would have waited."""

    def __init__(self) -> None:
        self.waited = 0.0

    def monotonic(self) -> float:
        return self.waited

    def aging(self) -> float:
        return self.waited

    def wall(self) -> float:
        return self.waited

    async def sleep(self, seconds: float) -> None:
        self.waited += seconds


async def _open_where_nobody_listens(clock: HastyClock) -> None:
    address = IndexAddress(Engine.POSTGRES, "postgres://me:word@127.0.0.1:1/db")
    await open_shared(address, clock, SystemRandomness())


async def test_an_index_that_is_away_at_the_start_is_waited_for_and_then_named() -> None:
    clock = HastyClock()
    with pytest.raises(Unavailable) as caught:
        await _open_where_nobody_listens(clock)
    assert 20 < clock.waited <= 30
    assert "The index at postgres://me@127.0.0.1:1/db cannot be reached" in str(caught.value)
    assert "word" not in str(caught.value)
