"""Buckets at clouds as stores of a real node: used, shown, sealed, failing, left, and all that is left.

The clouds are threads of this process that speak S3 over HTTP (`tests.kit.fake_cloud`) and fail by order.
"""

import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.kit.cluster import TestCluster
from tests.kit.fake_cloud import FakeCloud, Refusal, fake_cloud
from tests.kit.process import NodeProcess, run_holdfast, wait_until

pytestmark = pytest.mark.slow

ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "AKIAOFTHEBUCKETS", "AWS_SECRET_ACCESS_KEY": "what-nobody-may-see"}
CONTENT = b"in plain words, " * 4000
PRICE = "price = { storage = 0.023, puts = 0.005, gets = 0.0004, egress = 0.09 }"


@pytest.fixture
def clouds() -> Iterator[list[FakeCloud]]:
    with ExitStack() as stack:
        yield [stack.enter_context(fake_cloud()) for _ in range(3)]


def configure(home: Path, clouds: Sequence[FakeCloud], *, disks: int = 0, scheme: str = "rs-2-1") -> None:
    """Write what the node is told: so many directories, and a bucket at each cloud."""
    lines = [f'scheme = "{scheme}"']
    for number in range(1, disks + 1):
        lines += ["[[store]]", f'slot = "disk{number}"', f'path = "disk{number}"', 'zone = "here"']
        (home / f"disk{number}").mkdir(exist_ok=True)
    for number, cloud in enumerate(clouds, start=1):
        lines += ["[[store]]", f'slot = "cloud{number}"', f'bucket = "s3://bucket{number}/a/prefix"']
        lines += [f'endpoint = "http://127.0.0.1:{cloud.port}"', f'zone = "z{number}"', PRICE]
    (home / "holdfast.toml").write_text("\n".join(lines) + "\n")


@contextmanager
def serving(home: Path) -> Iterator[NodeProcess]:
    """A node in that folder."""
    with NodeProcess(home, environment=ENVIRONMENT) as node:
        yield node


def states(node: NodeProcess) -> dict[str, str]:
    """How each store is."""
    return {store.slot: store.state for store in node.status().stores}


def test_a_bucket_is_a_store_that_is_sealed_and_shown_and_opens_after_a_restart(
    tmp_path: Path, clouds: list[FakeCloud]
) -> None:
    configure(tmp_path, clouds)
    with serving(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="ours")
        for number in range(5):
            s3.put_object(Bucket="ours", Key=f"k{number}", Body=CONTENT)
        listed = node.holdfast("store", "list").stdout
        shown = node.holdfast("status").stdout + node.holdfast("status", "--json").stdout
        shown += listed + node.holdfast("events").stdout + node.holdfast("store", "list", "--json").stdout
        assert node.stop() == 0
        said = node.output
    assert "sealed" in listed
    assert "a month" in listed
    assert "since the start" in listed
    for secret in ENVIRONMENT.values():
        assert secret not in shown + said
        assert not any(
            secret.encode() in path.read_bytes() for path in node.data.rglob("*") if path.is_file()
        )
    for cloud in clouds:
        names = "".join(cloud.blobs)
        assert "/a/prefix/holdfast-store.json" in names
        assert "/a/prefix/shards/" in names
        assert not any(CONTENT[:16] in blob for blob in cloud.blobs.values())
        shards = [blob for name, blob in cloud.blobs.items() if "/shards/" in name]
        assert all(blob.startswith(b"HFSEALED") for blob in shards)
    ring = node.data / "key-ring.json"
    assert stat.S_IMODE(ring.stat().st_mode) == 0o600
    with serving(tmp_path) as node:
        s3 = node.s3()
        assert s3.get_object(Bucket="ours", Key="k3")["Body"].read() == CONTENT
        assert node.stop() == 0
    # Without its keys nothing is taken for damage, and no new ring is passed off as the old one.
    ring.rename(tmp_path / "saved.json")
    with serving(tmp_path) as node:
        found = {store.slot: (store.state, store.reason) for store in node.status().stores}
        assert all(state == "missing" and "key ring" in reason for state, reason in found.values()), found
        done = node.holdfast("keys", "import", str(tmp_path / "saved.json"))
        assert done.returncode == 0, done.stderr
        wait_until("the buckets to come back", lambda: "missing" not in states(node).values())
        assert node.s3().get_object(Bucket="ours", Key="k1")["Body"].read() == CONTENT


def test_a_provider_that_is_down_fails_nothing_sits_out_and_returns(
    tmp_path: Path, clouds: list[FakeCloud]
) -> None:
    configure(tmp_path, clouds[:2], disks=2, scheme="rs-2-2")
    with serving(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="ours")
        s3.put_object(Bucket="ours", Key="before", Body=CONTENT)
        clouds[0].always = Refusal(503, "ServiceUnavailable")
        written = 0

        def work() -> bool:
            nonlocal written
            s3.put_object(Bucket="ours", Key=f"during{written}", Body=CONTENT)
            assert s3.get_object(Bucket="ours", Key="before")["Body"].read() == CONTENT
            written += 1
            return written >= 10 and states(node)["cloud1"] not in ("healthy", "probation")

        wait_until("the provider to be out of use", work)
        (line,) = [store for store in node.status().stores if store.slot == "cloud1"]
        assert line.state in ("suspect", "down", "sitting-out"), line
        # On a machine under load the refusals may come too late to be read.
        assert "503" in line.last_error or "did not answer" in line.last_error
        clouds[0].always = None
        wait_until("the provider to be back", lambda: states(node)["cloud1"] == "healthy")
        wait_until("what is owed to be paid", lambda: node.status().packs.debts == 0)
        for number in range(written):
            assert s3.get_object(Bucket="ours", Key=f"during{number}")["Body"].read() == CONTENT


def test_a_bucket_comes_and_goes_while_the_node_runs(tmp_path: Path, clouds: list[FakeCloud]) -> None:
    configure(tmp_path, [], disks=3, scheme="mirror-2")
    with serving(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="ours")
        s3.put_object(Bucket="ours", Key="k", Body=CONTENT)
        where = ("--endpoint", f"http://127.0.0.1:{clouds[0].port}", "--price", "0.023,0.005,0.0004,0.09")
        clouds[0].blobs["/other/theirs"] = b"not ours"
        refused = node.holdfast("store", "add", "s3://other", *where)
        assert refused.returncode != 0
        assert "not empty" in refused.stdout + refused.stderr
        added = node.holdfast("store", "add", "s3://cold/p", "--slot", "cold", *where)
        assert added.returncode == 0, added.stderr
        assert "key ring" in added.stdout
        assert 'bucket = "s3://cold/p"' in added.stdout
        assert (tmp_path / "disk2" / "key-ring.json").read_bytes() == (
            node.data / "key-ring.json"
        ).read_bytes()
        node.stop()
    with serving(tmp_path) as node:
        assert states(node)["cold"] in ("healthy", "probation")
        drained = node.holdfast("store", "drain", "cold", "--force")
        assert drained.returncode == 0, drained.stderr

        def removed() -> bool:
            return node.holdfast("store", "remove", "cold").returncode == 0

        wait_until("the bucket to be empty", removed, look_every_s=1.0)
        assert "cold" not in states(node)
        assert node.s3().get_object(Bucket="ours", Key="k")["Body"].read() == CONTENT


def test_all_is_made_again_from_buckets_and_a_copy_of_the_keys(
    tmp_path: Path, clouds: list[FakeCloud]
) -> None:
    configure(tmp_path, clouds)
    with serving(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="ours")
        s3.put_object(Bucket="ours", Key="k", Body=CONTENT)
        assert node.holdfast("keys", "export", "saved.json").returncode == 0
        rotated = node.holdfast("keys", "rotate")
        assert rotated.returncode == 0, rotated.stderr
        newest = rotated.stdout.split()[0]
        assert node.holdfast("keys", "list").stdout.splitlines()[-1] == f"{newest}  seals"
        wait_until(
            "blobs to be sealed with the new key",
            lambda: (
                s3.put_object(Bucket="ours", Key="after", Body=CONTENT)
                and any(bytes.fromhex(newest) in blob[:96] for blob in clouds[0].blobs.values())
            ),
        )
        assert node.holdfast("keys", "export", "newer.json").returncode == 0
        assert s3.get_object(Bucket="ours", Key="k")["Body"].read() == CONTENT
        wait_until("the journal to be there", lambda: node.status().recovery is not None)
        node.stop()
    shutil.rmtree(node.data)
    lost = run_holdfast("recover", cwd=tmp_path, environment=ENVIRONMENT)
    assert lost.returncode != 0
    assert "key" in lost.stdout + lost.stderr
    brought = run_holdfast("keys", "import", "newer.json", cwd=tmp_path, environment=ENVIRONMENT)
    assert brought.returncode == 0, brought.stderr
    made = run_holdfast("recover", cwd=tmp_path, environment=ENVIRONMENT)
    assert made.returncode == 0, made.stdout + made.stderr
    with serving(tmp_path) as node:
        for key in ("k", "after"):
            assert node.s3().get_object(Bucket="ours", Key=key)["Body"].read() == CONTENT


def test_a_bucket_that_all_nodes_name_outlives_any_of_them(tmp_path: Path, clouds: list[FakeCloud]) -> None:
    cluster = TestCluster(tmp_path)
    named = "\n".join(
        f'[[store]]\nslot = "cloud{number}"\nbucket = "s3://bucket{number}/p"\n'
        f'endpoint = "http://127.0.0.1:{cloud.port}"\nzone = "z{number}"'
        for number, cloud in enumerate(clouds, start=1)
    )
    nodes = [cluster.node(name, stores=0) for name in ("n1", "n2")]
    with ExitStack() as stack:
        for node in nodes:
            with (node.home / "holdfast.toml").open("a") as file:
                file.write(named)
            node.be_given(ENVIRONMENT)
            stack.enter_context(node)
        first, second = nodes
        s3 = first.s3()
        s3.create_bucket(Bucket="ours")
        s3.put_object(Bucket="ours", Key="k", Body=CONTENT)
        wait_until("one to know the other", lambda: len(second.status().nodes) == 2)
        assert set(states(second)) == {"n2/cloud1", "n2/cloud2", "n2/cloud3"}
        assert second.s3().get_object(Bucket="ours", Key="k")["Body"].read() == CONTENT
        second.s3().put_object(Bucket="ours", Key="k2", Body=CONTENT)
        assert s3.get_object(Bucket="ours", Key="k2")["Body"].read() == CONTENT
        rings = {(node.home / "holdfast-data" / "key-ring.json").read_bytes() for node in nodes}
        assert len(rings) == 1
        first.kill()
        for number in range(5):
            second.s3().put_object(Bucket="ours", Key=f"later{number}", Body=CONTENT)
            assert second.s3().get_object(Bucket="ours", Key="k")["Body"].read() == CONTENT
        assert all(store.state in ("healthy", "probation") for store in second.status().stores)
