"""A node over an etcd or a PostgreSQL that speaks TLS only, and asks for certificates and passwords."""

import base64
import json
import os
import shutil
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests.kit.cluster import TestCluster
from tests.kit.etcd import EtcdCluster, etcd_cluster
from tests.kit.postgres import postgres_server
from tests.kit.process import run_holdfast, wait_until

TLS = Path(__file__).parents[1] / "kit" / "tls"
AUTHORITY, MEMBER = TLS / "etcd-authority.pem", TLS / "etcd.pem"
PASSWORD = "it's %41 @ / of etcd"


@pytest.fixture
def etcd() -> Iterator[EtcdCluster]:
    """One member. It was started, and may not serve yet."""
    with etcd_cluster(1) as cluster:
        (process,) = cluster.processes
        process.kill()
        url = process.member.client_url.replace("http:", "https:")
        process.options = (
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--cert-file={MEMBER}",
            f"--key-file={MEMBER}",
            f"--trusted-ca-file={AUTHORITY}",
            "--client-cert-auth=true",
        )
        process.start()
        yield cluster


def tell(etcd: EtcdCluster, what: str, **said: object) -> None:
    """One call of etcd's interface for JSON."""
    trust = ssl.create_default_context(cafile=AUTHORITY)
    trust.load_cert_chain(MEMBER)
    url = etcd.members[0].client_url.replace("http:", "https:")
    with urlopen(Request(f"{url}/v3/{what}", json.dumps(said).encode()), context=trust, timeout=5) as answer:
        answer.read()


def demand_passwords(etcd: EtcdCluster) -> None:
    """From now on etcd knows users: root, and holdfast, who may do what it likes to keys."""
    everything = {"permType": "READWRITE", "key": base64.b64encode(b"\0").decode()}
    everything["range_end"] = everything["key"]
    tell(etcd, "auth/role/add", name="root")
    tell(etcd, "auth/role/add", name="keys")
    tell(etcd, "auth/role/grant", name="keys", perm=everything)
    for user, role in (("root", "root"), ("holdfast", "keys")):
        tell(etcd, "auth/user/add", name=user, password=PASSWORD)
        tell(etcd, "auth/user/grant", user=user, role=role)
    tell(etcd, "auth/enable")


def serves(etcd: EtcdCluster) -> bool:
    """Whether it answers those who show a certificate."""
    try:
        tell(etcd, "maintenance/status")
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_a_node_meets_an_etcd_that_asks_who_it_is(tmp_path: Path, etcd: EtcdCluster) -> None:
    cluster = TestCluster.over(tmp_path, etcd.address().replace("etcd://", "etcd://holdfast@"))
    node = cluster.node(
        "n1",
        3,
        more={
            "etcd": 'authority = "ca.pem"\ncertificate = "me.pem"\nkey = "me.pem"\n'
            'password_file = "password"\nquota = "8 GiB"'
        },
    )
    shutil.copy(AUTHORITY, node.home / "ca.pem")
    shutil.copy(MEMBER, node.home / "me.pem")
    (node.home / "me.pem").chmod(0o600)
    (node.home / "password").write_text(f"{PASSWORD}\n")
    (node.home / "password").chmod(0o640)
    wait_until("etcd to serve", lambda: serves(etcd))
    demand_passwords(etcd)

    refused = run_holdfast("serve", "--port", "0", cwd=node.home)
    assert refused.returncode == 64
    assert "can be read by others (mode 0640)" in refused.stderr
    (node.home / "password").chmod(0o600)
    (node.home / "password").write_text("another")
    refused = run_holdfast("serve", "--port", "0", cwd=node.home)
    assert refused.returncode == 64
    assert "etcd refuses" in refused.stderr
    assert "another" not in refused.stderr

    (node.home / "password").write_text(f"{PASSWORD}\n")
    with node:
        s3 = node.s3()
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="key", Body=b"x" * 1000)
        assert s3.get_object(Bucket="bucket", Key="key")["Body"].read() == b"x" * 1000
        wait_until("members to be seen", lambda: bool(node.status().index.members))
        assert "MiB of 8192" in node.status().index.members[0].detail
        assert PASSWORD not in node.output
        assert node.holdfast("status").returncode == 0
        assert node.stop() == 0


@pytest.mark.slow
def test_a_node_meets_a_postgresql_that_asks_for_certificates(tmp_path: Path) -> None:
    with postgres_server() as server:
        server.stop()
        data = server.folder / "data"
        for name, source in (("authority.pem", AUTHORITY), ("member.pem", MEMBER)):
            shutil.copy(source, data / name)
            (data / name).chmod(0o600)
            owner = data.stat()
            os.chown(data / name, owner.st_uid, owner.st_gid)
        (data / "pg_hba.conf").write_text("hostssl all all 127.0.0.1/32 trust clientcert=verify-ca\n")
        server.start(
            ssl="on", ssl_cert_file="member.pem", ssl_key_file="member.pem", ssl_ca_file="authority.pem"
        )
        mine = tmp_path / "me.pem"
        shutil.copy(MEMBER, mine)
        mine.chmod(0o600)
        address = (
            f"{server.address()}?sslmode=verify-full&sslrootcert={AUTHORITY}&sslcert={mine}&sslkey={mine}"
        )
        # Who shows no certificate is told, and does not serve.
        bare = TestCluster.over(tmp_path, f"{server.address()}?sslmode=verify-full&sslrootcert={AUTHORITY}")
        refused = run_holdfast("serve", "--port", "0", cwd=bare.node("n0").home)
        assert refused.returncode == 64, refused.stderr
        assert "PostgreSQL refuses" in refused.stderr
        with TestCluster.over(tmp_path, address).node("n1", 3) as node:
            node.s3().create_bucket(Bucket="bucket")
            node.s3().put_object(Bucket="bucket", Key="key", Body=b"x" * 1000)
            assert node.s3().get_object(Bucket="bucket", Key="key")["Body"].read() == b"x" * 1000
            assert "sslkey" not in node.output
            assert node.stop() == 0
