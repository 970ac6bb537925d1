"""A node whose index is moved from its own stores to etcd, and back, with the command."""

import shutil
from pathlib import Path

import pytest

from holdfast.node.config_cluster import Engine
from holdfast.node.status import NodeState
from tests.kit.cluster import SECRET, ClusterNode, TestCluster
from tests.kit.process import NodeProcess, run_holdfast


@pytest.mark.slow
def test_a_node_moves_its_index_to_etcd_and_back(tmp_path: Path) -> None:
    address = TestCluster(tmp_path, Engine.ETCD).index
    home = tmp_path / "n1"
    home.mkdir()
    (home / "secret").write_bytes(SECRET)
    (home / "secret").chmod(0o600)
    stores = ""
    for number in range(3):
        (home / f"d{number}").mkdir()
        stores += f'[[store]]\npath = "d{number}"\n'
    alone = 'name = "n1"\n' + stores
    shared = (
        f'name = "n1"\nindex = "{address}"\n[cluster]\nsecret_file = "secret"\npeer = "127.0.0.1:0"\n'
        + stores
    )
    file = home / "holdfast.toml"
    file.write_text(alone)
    with NodeProcess(home) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="before", Body=b"x" * 1000)
        refused = node.holdfast("index", "copy", "embedded", address)
        assert refused.returncode == 75
        assert "Another node is running" in refused.stderr
        assert node.stop() == 0

        copied = node.holdfast("index", "copy", "embedded", address)
        assert copied.returncode == 0, copied.stderr
        assert f'Say index = "{address}"' in copied.stdout
        refused = node.holdfast("serve", "--port", "0")
        assert refused.returncode == 76
        assert f"The index was moved to {address}" in refused.stderr

    file.write_text(shared)
    with ClusterNode(home, "n1") as member:
        s3 = member.s3()
        assert s3.get_object(Bucket="bucket", Key="before")["Body"].read() == b"x" * 1000
        s3.put_object(Bucket="bucket", Key="between", Body=b"y" * 1000)
        assert member.status().index.engine == "etcd"
        assert member.stop() == 0

    back = run_holdfast("index", "copy", address, "embedded", cwd=home)
    assert back.returncode == 64
    assert "holds an index already" in back.stderr
    for folder in [*home.glob("d*/index"), *home.glob("*/index")]:
        shutil.rmtree(folder, ignore_errors=True)
    back = run_holdfast("index", "copy", address, "embedded", cwd=home)
    assert back.returncode == 0, back.stderr
    file.write_text(alone)
    with NodeProcess(home) as node:
        s3 = node.s3()
        for key, body in (("before", b"x" * 1000), ("between", b"y" * 1000)):
            assert s3.get_object(Bucket="bucket", Key=key)["Body"].read() == body
        assert node.status().state is NodeState.ONLINE
