"""Programs that people have, unmodified, doing what people do with them: copy, sync, mount, back up."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.kit.process import CLIENTS, NodeProcess
from tests.kit.trees import assert_same_tree, write_random_file


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree with awkward names, an empty file and one that needs several parts."""
    root = tmp_path_factory.mktemp("tree")
    for folder in ("a", "a/deep/er", "with space", "ünï"):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(12):
            write_random_file(root / folder / f"file {number}+%.bin", 700 * number, seed=number)
    write_random_file(root / "large.bin", 20 << 20, seed=99)
    return root


def test_every_program_is_there() -> None:
    """A missing client is a failure: `make test` installs them."""
    for name in ("aws", "s3cmd", "python"):
        assert (CLIENTS / name).exists(), f"{name} is missing: run `make test`"
    for name in ("rclone", "restic"):
        assert shutil.which(name), f"{name} is missing: run `make test`"


def test_aws_cli_syncs_both_ways(node: NodeProcess, tree: Path, tmp_path: Path) -> None:
    node.run("aws", "s3", "mb", "s3://cli")
    node.run("aws", "s3", "sync", "--only-show-errors", tree, "s3://cli/tree")
    again = node.run("aws", "s3", "sync", tree, "s3://cli/tree")
    assert again.stdout == "", "nothing has changed, so nothing is sent again"
    node.run("aws", "s3", "sync", "--only-show-errors", "s3://cli/tree", tmp_path / "back")
    assert_same_tree(tree, tmp_path / "back")
    node.run("aws", "s3", "mv", "--only-show-errors", "s3://cli/tree/large.bin", "s3://cli/moved.bin")
    node.run("aws", "s3", "cp", "--only-show-errors", "s3://cli/moved.bin", tmp_path / "moved.bin")
    assert (tmp_path / "moved.bin").read_bytes() == (tree / "large.bin").read_bytes()
    listed = json.loads(node.run("aws", "s3api", "list-objects-v2", "--bucket", "cli").stdout)
    assert len(listed["Contents"]) == sum(path.is_file() for path in tree.rglob("*"))
    node.run("aws", "s3", "rb", "--force", "s3://cli")


def rclone_settings(node: NodeProcess) -> dict[str, str]:
    return {
        "RCLONE_CONFIG": os.devnull,
        "RCLONE_CONFIG_HF_TYPE": "s3",
        "RCLONE_CONFIG_HF_PROVIDER": "Other",
        "RCLONE_CONFIG_HF_ACCESS_KEY_ID": node.credentials.access_key_id,
        "RCLONE_CONFIG_HF_SECRET_ACCESS_KEY": node.credentials.secret_access_key,
        "RCLONE_CONFIG_HF_ENDPOINT": node.endpoint,
        "RCLONE_CONFIG_HF_REGION": "us-east-1",
        "RCLONE_RETRIES": "1",
    }


def test_rclone_syncs_checks_and_reads_back(node: NodeProcess, tree: Path, tmp_path: Path) -> None:
    settings = rclone_settings(node)
    node.run("rclone", "mkdir", "hf:rclone", environment=settings)
    node.run("rclone", "sync", tree, "hf:rclone/tree", environment=settings)
    node.run("rclone", "check", "--download", tree, "hf:rclone/tree", environment=settings)
    node.run("rclone", "copy", "hf:rclone/tree", tmp_path / "back", environment=settings)
    assert_same_tree(tree, tmp_path / "back")
    node.run("rclone", "moveto", "hf:rclone/tree/large.bin", "hf:rclone/moved.bin", environment=settings)
    sizes = node.run("rclone", "lsl", "hf:rclone/moved.bin", environment=settings).stdout
    assert str(20 << 20) in sizes
    node.run("rclone", "purge", "hf:rclone", environment=settings)


def test_restic_backs_up_checks_and_restores(node: NodeProcess, tree: Path, tmp_path: Path) -> None:
    settings = {
        "RESTIC_REPOSITORY": f"s3:{node.endpoint}/restic",
        "RESTIC_PASSWORD": "only for this test",
        "RESTIC_CACHE_DIR": str(tmp_path / "cache"),
    }
    node.run("restic", "init", environment=settings)
    node.run("restic", "backup", tree, environment=settings)
    write_random_file(tree / "new.bin", 100_000, seed=7)
    try:
        node.run("restic", "backup", tree, environment=settings)
        node.run("restic", "check", "--read-data", environment=settings)
        node.run("restic", "restore", "latest", "--target", tmp_path / "back", environment=settings)
        assert_same_tree(tree, tmp_path / "back" / tree.relative_to("/"))
        node.run("restic", "forget", "--keep-last", "1", "--prune", environment=settings)
        node.run("restic", "check", environment=settings)
    finally:
        (tree / "new.bin").unlink()


def test_s3cmd_puts_lists_and_gets(node: NodeProcess, tree: Path, tmp_path: Path) -> None:
    host = node.endpoint.removeprefix("http://")
    command = (
        "s3cmd",
        f"--config={os.devnull}",
        f"--access_key={node.credentials.access_key_id}",
        f"--secret_key={node.credentials.secret_access_key}",
        f"--host={host}",
        f"--host-bucket={host}",
        "--no-ssl",
        "--no-progress",
    )
    node.run(*command, "mb", "s3://s3cmd")
    node.run(*command, "sync", f"{tree}/", "s3://s3cmd/tree/")
    (tmp_path / "back").mkdir()
    node.run(*command, "sync", "s3://s3cmd/tree/", f"{tmp_path}/back/")
    assert_same_tree(tree, tmp_path / "back")
    node.run(*command, "rb", "--recursive", "--force", "s3://s3cmd")


def run_python(node: NodeProcess, script: str, *arguments: str | Path) -> str:
    """A Python program of the clients' own environment."""
    return node.run(CLIENTS / "python", "-c", script, *arguments).stdout


S3FS = """
import os, sys, s3fs
fs = s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"])
tree, back = sys.argv[1:]
fs.mkdir("s3fs")
fs.put(tree, "s3fs/tree", recursive=True)
with fs.open("s3fs/written.bin", "wb", block_size=5 << 20) as file:
    for number in range(12):
        file.write(bytes([number]) * (1 << 20))
with fs.open("s3fs/written.bin", "rb") as file:
    file.seek(7 << 20)
    assert file.read(3) == bytes([7]) * 3
assert fs.info("s3fs/written.bin")["size"] == 12 << 20
fs.mv("s3fs/written.bin", "s3fs/moved.bin")
assert not fs.exists("s3fs/written.bin")
fs.get("s3fs/tree", back, recursive=True)
fs.rm("s3fs", recursive=True)
"""


def test_s3fs_writes_seeks_moves_and_gets(node: NodeProcess, tree: Path, tmp_path: Path) -> None:
    run_python(node, S3FS, tree, tmp_path / "back")
    assert_same_tree(tree, tmp_path / "back")


ARROW = """
import os, sys
import duckdb, pyarrow as pa, pyarrow.dataset as ds, pyarrow.parquet as pq, s3fs
from pyarrow import fs
where = fs.S3FileSystem(
    endpoint_override=os.environ["AWS_ENDPOINT_URL"].removeprefix("http://"),
    scheme="http", region="us-east-1",
    access_key=os.environ["AWS_ACCESS_KEY_ID"], secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
    allow_bucket_creation=True,
)
where.create_dir("lake")
rows = 300_000
numbers = range(rows)
table = pa.table({"n": numbers, "group": [n % 7 for n in numbers], "text": [f"row {n}" for n in numbers]})
ds.write_dataset(table, "lake/table", format="parquet", partitioning=["group"], filesystem=where)
back = ds.dataset("lake/table", format="parquet", partitioning=["group"], filesystem=where)
assert back.count_rows() == rows
threes = back.to_table(filter=ds.field("group") == 3)["n"].to_pylist()
assert sorted(threes) == list(range(3, rows, 7))
pq.write_table(table, "lake/one.parquet", filesystem=where, row_group_size=10_000)
part = pq.ParquetFile("lake/one.parquet", filesystem=where).read_row_group(5, columns=["n"])
assert part["n"].to_pylist() == list(range(50_000, 60_000))
connection = duckdb.connect()
connection.register_filesystem(s3fs.S3FileSystem(endpoint_url=os.environ["AWS_ENDPOINT_URL"]))
found = connection.sql("select sum(n) from 's3://lake/one.parquet' where \\"group\\" = 2").fetchall()
assert found == [(sum(range(2, rows, 7)),)], found
"""


def test_arrow_and_duckdb_keep_tables(node: NodeProcess) -> None:
    run_python(node, ARROW)


MINIO = """
import os, io, sys
from urllib.parse import urlsplit
from minio import Minio
client = Minio(
    endpoint=urlsplit(os.environ["AWS_ENDPOINT_URL"]).netloc, access_key=os.environ["AWS_ACCESS_KEY_ID"],
    secret_key=os.environ["AWS_SECRET_ACCESS_KEY"], secure=False, region="us-east-1",
)
client.make_bucket(bucket_name="minio")
body = os.urandom(17 << 20)
client.put_object(
    bucket_name="minio", object_name="a/b c", data=io.BytesIO(body), length=-1, part_size=5 << 20
)
answer = client.get_object(bucket_name="minio", object_name="a/b c")
assert answer.read() == body
answer.close()
assert [entry.object_name for entry in client.list_objects(bucket_name="minio", recursive=True)] == ["a/b c"]
client.remove_object(bucket_name="minio", object_name="a/b c")
client.remove_bucket(bucket_name="minio")
"""


def test_the_minio_client_streams_a_body_of_unknown_length(node: NodeProcess) -> None:
    run_python(node, MINIO)
