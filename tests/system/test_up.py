"""A whole cluster of real processes behind real balancers: parts of it die, and nobody notices."""

import os
import signal
from pathlib import Path

import pytest

from tests.kit.process import run_holdfast
from tests.kit.up import Load, UpProcess

pytestmark = pytest.mark.slow


THOROUGH = bool(os.environ.get("HOLDFAST_THOROUGH"))


def test_nodes_and_balancers_die_and_are_restarted_unnoticed(tmp_path: Path) -> None:
    """Drills 1 and 6, under load: a node is killed, then one is restarted; each node and balancer, where
    `HOLDFAST_THOROUGH` asks for it."""
    with UpProcess(tmp_path) as cluster:
        with Load(cluster) as load:
            cluster.restart("n1", signal.SIGKILL)
            load.go_on()
            for name in ("n2", "b1", "n3", "n1", "b2") if THOROUGH else ("n2",):
                cluster.restart(name)
                load.go_on()
        assert load.failed == []
        assert cluster.stop() == 0
        assert "n1 ended (-9) and is started again." in cluster.told()
    if THOROUGH:
        with UpProcess(tmp_path) as cluster:
            assert [entry["Name"] for entry in cluster.clients()[1].list_buckets()["Buckets"]] == ["load"]


def test_what_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    missing = run_holdfast("up", cwd=tmp_path, environment={"PATH": str(tmp_path)})
    assert missing.returncode == 64
    assert "etcd-server" in missing.stderr
    for arguments, said in (
        (("--nodes", "17"), "17 nodes are not possible here"),
        (("--nodes", "2", "--regions", "3"), "2 nodes cannot be in 3 regions"),
    ):
        done = run_holdfast("up", *arguments, cwd=tmp_path)
        assert done.returncode == 64
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
