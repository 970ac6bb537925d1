"""S3 through the balancer is S3: a real node behind a real Envoy, and the tests of the clients once more.

What is signed over the path, the host or a chunk must be right when it arrives, whatever the key is called.
"""

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.test_bad_input import port
from tests.clients.test_bad_input import test_any_other_key_is_kept_as_it_is as test_any_key  # noqa: F401
from tests.clients.test_boto3_works import (  # noqa: F401
    bucket,
    s3,
    test_a_large_file_goes_up_and_down_in_parts,
    test_an_object_comes_back_as_it_went,
    test_buckets,
    test_checksums_are_verified_and_returned,
    test_conditions_on_reads_and_writes,
    test_copies,
    test_deleting_one_and_many,
    test_listings_in_pages_with_prefixes_and_folders,
    test_presigned_addresses_work_without_credentials,
    test_ranges,
    test_uploads_are_listed_copied_into_and_aborted,
)
from tests.kit.balancer import BalancerProcess
from tests.kit.process import NodeProcess
from tests.kit.s3 import ACCESS_KEY, SECRET_KEY, call, render, sign

pytestmark = pytest.mark.slow
MIB = 1 << 20


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    """A node that is only known by its balancer."""
    home = tmp_path_factory.mktemp("balanced")
    (home / "node").mkdir()
    known = {"HOLDFAST_ACCESS_KEY_ID": ACCESS_KEY, "HOLDFAST_SECRET_ACCESS_KEY": SECRET_KEY}
    with NodeProcess(home / "node", environment=known) as running:
        own = running.endpoint.removeprefix("http://")
        with BalancerProcess(home / "balancer", [own]) as balancer:
            running.endpoint = balancer.endpoint
            running.s3().create_bucket(Bucket="bucket")
            yield running


def test_aws_cli_sends_parts_and_fetches_them(node: NodeProcess, tmp_path: Path) -> None:
    large = tmp_path / "large file"
    large.write_bytes(hashlib.shake_128(b"large").digest(20 * MIB))
    node.run("aws", "s3", "cp", large, "s3://bucket/ä//large file")
    node.run("aws", "s3", "cp", "s3://bucket/ä//large file", tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == large.read_bytes()
    assert "large file" in node.run("aws", "s3", "ls", "s3://bucket/ä//").stdout
    node.run("aws", "s3", "rm", "s3://bucket/ä//large file")


async def test_a_client_that_vanishes_stores_nothing(node: NodeProcess) -> None:
    for size in (10, 100_000, 30_000_000):
        signed = sign("PUT", "/bucket/short", port(node), sha256="UNSIGNED-PAYLOAD")
        head = render("PUT", "/bucket/short", {**signed, "Content-Length": str(size)})
        _, writer = await asyncio.open_connection("127.0.0.1", port(node))
        writer.write(head + b"x" * (size - 1))
        await asyncio.wait_for(writer.drain(), 60)
        writer.transport.abort()
    assert (await call(port(node), "GET", "/bucket/short")).status == 404
    assert (await call(port(node), "PUT", "/bucket/whole", body=b"x")).status == 200


async def test_a_body_that_is_refused_is_not_waited_for(node: NodeProcess) -> None:
    """The signature is wrong: the node says so before the body is there, and the client hears it."""
    head = render("PUT", "/bucket/k", {"Host": f"127.0.0.1:{port(node)}", "Content-Length": str(5 << 30)})
    reader, writer = await asyncio.open_connection("127.0.0.1", port(node))
    writer.write(head + b"x" * 100)
    answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    assert answer.startswith(b"HTTP/1.1 403")
    writer.transport.abort()
