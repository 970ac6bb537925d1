"""S3 through the balancer is S3: a real node behind a real Envoy, and the tests of the clients once more.

What is signed over the path, the host or a chunk must be right when it arrives, whatever the key is called.
"""

import asyncio
import hashlib
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

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
from tests.kit.balancer import SECRET, BalancerProcess
from tests.kit.process import NodeProcess
from tests.kit.s3 import ACCESS_KEY, SECRET_KEY, call, render, sign
from tests.kit.upstream import Asked, Told, Upstream

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


class Forgetful:
    """Stands before a node and passes everything on, but of some requests it loses the answer."""

    def __init__(self, node: str) -> None:
        self._node = node
        self.lost: list[Asked] = []
        self.losing = False

    def __call__(self, asked: Asked) -> Told:
        connection = http.client.HTTPConnection(self._node, timeout=60)
        try:
            connection.putrequest(asked.method, asked.target, skip_host=True, skip_accept_encoding=True)
            for name, value in asked.headers.items():
                connection.putheader(name, value)
            connection.endheaders(asked.body)
            answer = connection.getresponse()
            body = answer.read()
            headers = tuple(pair for pair in answer.getheaders() if pair[0].lower() != "content-length")
            if self.losing and asked.headers["x-envoy-attempt-count"] == "1":
                self.lost.append(asked)
                return Told(cut=True)
            return Told(answer.status, body, headers)
        finally:
            connection.close()


def test_an_answer_that_was_lost_is_given_again(tmp_path: Path) -> None:
    """Each write is made, its answer lost on the way, and tried again: clients see nothing of it."""
    (tmp_path / "node").mkdir()
    (tmp_path / "node" / "holdfast.toml").write_text(f'[balancer]\nsecret = "{SECRET}"\n')
    with (
        NodeProcess(tmp_path / "node") as node,
        Upstream() as one,
        Upstream() as two,
        BalancerProcess(tmp_path / "balancer", [one.address, two.address]) as balancer,
    ):
        forgetful = Forgetful(node.endpoint.removeprefix("http://"))
        one.behave = two.behave = forgetful
        node.endpoint = balancer.endpoint
        s3 = node.s3()
        forgetful.losing = True
        s3.create_bucket(Bucket="bucket")
        etag = s3.put_object(Bucket="bucket", Key="k", Body=b"x" * 1000, IfNoneMatch="*")["ETag"]
        assert s3.head_object(Bucket="bucket", Key="k")["ETag"] == etag
        upload = s3.create_multipart_upload(Bucket="bucket", Key="m")["UploadId"]
        part = s3.upload_part(Bucket="bucket", Key="m", UploadId=upload, PartNumber=1, Body=b"p")["ETag"]
        parts = {"Parts": [{"PartNumber": 1, "ETag": part}]}
        s3.complete_multipart_upload(
            Bucket="bucket", Key="m", UploadId=upload, MultipartUpload=parts, IfNoneMatch="*"
        )
        assert "Uploads" not in s3.list_multipart_uploads(Bucket="bucket")
        given_up = s3.create_multipart_upload(Bucket="bucket", Key="m")["UploadId"]
        s3.abort_multipart_upload(Bucket="bucket", Key="m", UploadId=given_up)
        s3.delete_object(Bucket="bucket", Key="k", IfMatch=etag)
        deleted = s3.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": "k"}, {"Key": "m"}]})
        assert [entry["Key"] for entry in deleted["Deleted"]] == ["k", "m"]
        s3.delete_bucket(Bucket="bucket")
        assert s3.list_buckets()["Buckets"] == []
        assert len(forgetful.lost) >= 12, "every answer was lost once"
        forgetful.losing = False
        s3.create_bucket(Bucket="bucket")
        s3.put_object(Bucket="bucket", Key="k", Body=b"x")
        with pytest.raises(ClientError, match="PreconditionFailed"):
            s3.put_object(Bucket="bucket", Key="k", Body=b"x", IfNoneMatch="*")
