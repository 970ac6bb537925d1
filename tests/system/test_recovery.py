"""The day the index is gone: every copy of it is destroyed and two of six stores, and all comes back."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from holdfast.base.ids import parse_shard_name
from holdfast.stores.directory.place import IDENTITY
from holdfast.stores.identity import decode_identity, encode_identity
from tests.kit.process import NodeProcess, run_holdfast, wait_until

BUCKET = "main"
PART = 5 << 20


class Book:
    """What was acknowledged: the content of each key, and the keys that are gone."""

    def __init__(self, s3: Any, seed: int) -> None:
        self.s3 = s3
        self.chance = random.Random(seed)
        self.there: dict[str, bytes] = {}
        self.gone: set[str] = set()

    def put(self, key: str, size: int) -> None:
        body = self.chance.randbytes(size)
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body, Metadata={"of": key})
        self.there[key] = body
        self.gone.discard(key)

    def delete(self, key: str) -> None:
        self.s3.delete_object(Bucket=BUCKET, Key=key)
        del self.there[key]
        self.gone.add(key)

    def copy(self, source: str, key: str) -> None:
        self.s3.copy_object(Bucket=BUCKET, Key=key, CopySource={"Bucket": BUCKET, "Key": source})
        self.there[key] = self.there[source]

    def multipart(self, key: str) -> None:
        upload = self.s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        bodies = [self.chance.randbytes(PART), self.chance.randbytes(70_000)]
        parts = [self.part(key, upload, number, body) for number, body in enumerate(bodies, 1)]
        self.s3.complete_multipart_upload(
            Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
        )
        self.there[key] = b"".join(bodies)

    def part(self, key: str, upload: str, number: int, body: bytes) -> dict[str, Any]:
        done = self.s3.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number, Body=body)
        return {"PartNumber": number, "ETag": done["ETag"]}

    def check(self, s3: Any) -> None:
        listed = {
            entry["Key"]
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
            for entry in page.get("Contents", ())
        }
        assert listed == set(self.there)
        for key, body in self.there.items():
            assert s3.get_object(Bucket=BUCKET, Key=key)["Body"].read() == body, key
        for key in self.gone:
            with pytest.raises(s3.exceptions.NoSuchKey):
                s3.get_object(Bucket=BUCKET, Key=key)


def fill(book: Book) -> None:
    for number in range(30):
        book.put(f"small/{number}", book.chance.randrange(20_000))
    for number in range(0, 30, 3):
        book.put(f"small/{number}", book.chance.randrange(20_000))
    book.put("empty", 0)
    book.put("large", 17 << 20)
    book.put("overwritten", 2 << 20)
    book.put("overwritten", 300_000)
    book.multipart("parts")
    book.copy("small/1", "copy/small")
    book.copy("large", "copy/large")
    for number in range(1, 30, 3):
        book.delete(f"small/{number}")
    book.put("deleted", 300_000)
    book.delete("deleted")


def up_to_date(node: NodeProcess) -> bool:
    recovery = node.status().recovery
    return recovery is not None and recovery.behind_commits == 0


def recover(node: NodeProcess, *arguments: str) -> dict[str, Any]:
    done = run_holdfast("recover", "--json", *arguments, cwd=node.home, environment={})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert isinstance(report, dict)
    return report


def shards_of_packs(node: NodeProcess) -> list[Path]:
    """All but those of packs with names, in which recovery keeps the new index's first snapshot."""
    found = node.data.glob("disk*/shards/*/*")
    return sorted(path for path in found if parse_shard_name(path.name) is not None)


def lose_the_index(node: NodeProcess, keep: Path) -> None:
    """Every member and every copy; what was there is kept elsewhere, as an old backup would be."""
    for index in node.data.glob("**/index"):
        shutil.copytree(index, keep / index.relative_to(node.data))
        shutil.rmtree(index)


@pytest.mark.slow
def test_everything_comes_back_from_the_stores_alone(tmp_path: Path) -> None:
    node, keep = NodeProcess(tmp_path), tmp_path / "keep"
    with node:
        book = Book(node.s3(), seed=1)
        book.s3.create_bucket(Bucket=BUCKET)
        fill(book)
        upload = book.s3.create_multipart_upload(Bucket=BUCKET, Key="open")["UploadId"]
        half = book.chance.randbytes(PART)
        parts = [book.part("open", upload, 1, half)]
        wait_until("the journal has it all", lambda: up_to_date(node), 60)
        # Of the last moment the journal may know nothing: the packs themselves say what is in them.
        for number in range(10):
            book.put(f"late/{number}", book.chance.randrange(30_000))
        book.put("small/2", 5_000)
        book.put("late/large", 17 << 20)
        node.kill()
        credentials = node.credentials
        shutil.copy(node.data / "cluster.json", tmp_path / "cluster.json")
        lose_the_index(node, keep)
        for slot in ("disk2", "disk5"):
            shutil.rmtree(node.data / slot)
            (node.data / slot).mkdir()
        refused = run_holdfast("serve", "--port", "0", cwd=tmp_path)
        assert "holdfast recover" in refused.stderr
        assert refused.returncode == 76

        before = shards_of_packs(node)
        trial = recover(node, "--dry-run")
        assert trial["objects"] == len(book.there)
        assert not list(node.data.glob("**/index"))
        recover(node)
        # As if that had been interrupted before a majority of the members counted.
        for number in range(1, 4):
            (node.data / f"disk{number}" / "index" / "joining").touch()
        again = run_holdfast("serve", "--port", "0", cwd=tmp_path)
        assert (again.returncode, "holdfast recover" in again.stderr) == (69, True)
        report = recover(node)
        assert report["objects"] == len(book.there)
        assert report["first_snapshot"].startswith("index-0002-")
        assert report["gap"] == ""
        assert (report["packs_short"], report["incomplete_count"], report["doubtful_count"]) == (0, 0, 0)
        assert shards_of_packs(node) == before
        whole = run_holdfast("recover", cwd=tmp_path)
        assert "The index is there" in whole.stderr
        assert whole.returncode == 64

        node.start()
        assert node.credentials == credentials
        assert any("made again" in event.text for event in node.status().events)
        s3 = node.s3()
        book.check(s3)
        book.s3 = s3
        parts.append(book.part("open", upload, 2, b"the end"))
        s3.complete_multipart_upload(
            Bucket=BUCKET, Key="open", UploadId=upload, MultipartUpload={"Parts": parts}
        )
        book.there["open"] = half + b"the end"
        book.delete("copy/large")
        book.delete("large")
        book.put("new", 100_000)
        book.check(s3)
        wait_until(
            "the shards of lost stores are written again", lambda: not node.status().packs.degraded, 90
        )
        assert node.stop() == 0

        # Whoever has the old index, and knows nothing of the new one, is turned away.
        now = tmp_path / "now"
        now.mkdir()
        for index in node.data.glob("**/index"):
            (now / index.parent.name).mkdir()
            index.rename(now / index.parent.name / "index")
        for index in keep.glob("**/index"):
            shutil.copytree(index, node.data / index.relative_to(keep))
        fenced = run_holdfast("serve", "--port", "0", cwd=tmp_path)
        assert fenced.returncode == 76, fenced.stderr
        (node.data / "cluster.json").rename(now / "cluster.json")
        fenced = run_holdfast("serve", "--port", "0", cwd=tmp_path)
        assert fenced.returncode == 76, fenced.stderr


@pytest.mark.slow
def test_the_data_folder_may_be_lost_as_well(tmp_path: Path) -> None:
    stores = [tmp_path / "disks" / f"d{number}" for number in range(4)]
    (tmp_path / "disks").mkdir()
    arguments = [part for store in stores for part in ("--store", str(store))]
    with NodeProcess(tmp_path, *arguments) as node:
        book = Book(node.s3(), seed=2)
        book.s3.create_bucket(Bucket=BUCKET)
        for number in range(20):
            book.put(f"k{number}", 5_000)
        book.delete("k3")
        assert node.stop() == 0
        shutil.rmtree(node.data)
        shutil.rmtree(stores[1])
        for store in stores:
            shutil.rmtree(store / "index", ignore_errors=True)
        report = recover(node, *arguments)
        assert report["applied_count"] == 0, "a clean stop leaves nothing behind the journal"
        assert "new ones are made" in report["credentials"]
        node.start()
        book.s3 = node.s3()
        book.check(book.s3)
        # Lost again at once: what was done in between is known all the same.
        book.delete("k5")
        book.put("k6", 7_000)
        book.copy("k7", "copy")
        wait_until("the journal has it", lambda: up_to_date(node), 60)
        node.kill()
        lose_the_index(node, tmp_path / "keep")
        for index in (tmp_path / "disks").glob("*/index"):
            shutil.rmtree(index)
        recover(node, *arguments)
        node.start()
        book.check(node.s3())


@pytest.mark.slow
def test_what_cannot_be_recovered_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        book = Book(node.s3(), seed=3)
        book.s3.create_bucket(Bucket=BUCKET)
        book.put("a", 1000)
        book.put("b", 1000)
        wait_until("the journal has it", lambda: up_to_date(node), 60)
        busy = run_holdfast("recover", cwd=tmp_path)
        assert (busy.returncode, "Another node is running" in busy.stderr) == (75, True)
        book.put("c", 1000)
        book.copy("a", "copy")
        book.delete("b")
        node.kill()
        lose_the_index(node, tmp_path / "keep")
        # A single member that is left knows what the journal does not.
        shutil.copytree(tmp_path / "keep" / "disk3" / "index", node.data / "disk3" / "index")
        report = recover(node, "--dry-run")
        assert report["objects"] == 3
        assert report["log_changes"] >= report["revision"] - report["journal_revision"] - 2
        shutil.rmtree(node.data / "disk3" / "index")
        report = recover(node, "--dry-run")
        assert (report["log_changes"], report["applied_count"] <= 1) == (0, True)
        other = tmp_path / "other"
        shutil.copytree(node.data / "disk1", other)
        identity = decode_identity((other / IDENTITY).read_bytes())
        (other / IDENTITY).write_bytes(encode_identity(replace(identity, cluster="another")))
        mixed = [other, node.data / "disk2", node.data / "disk3"]
        said = run_holdfast("recover", *(part for path in mixed for part in ("--store", path)), cwd=tmp_path)
        assert (said.returncode, "different clusters" in said.stderr) == (76, True)
        for slot in ("disk1", "disk2", "disk3", "disk4"):
            shutil.rmtree(node.data / slot)
        few = run_holdfast("recover", cwd=tmp_path)
        assert (few.returncode, "4 of 6 stores are missing" in few.stderr) == (69, True)
        for slot in ("disk5", "disk6"):
            shutil.rmtree(node.data / slot)
        none = run_holdfast("recover", cwd=tmp_path)
        assert (none.returncode, "None of the stores can be used" in none.stderr) == (69, True)
