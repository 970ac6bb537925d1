"""Disks that are full for long, vanish while in use, or change places."""

import asyncio
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from xml.etree import ElementTree

import msgspec
import pytest
from botocore.exceptions import ClientError

from holdfast.node.status import NodeState, Status
from tests.kit.disks import inside, on_small_disks
from tests.kit.process import NodeProcess, delete_store, wait_until
from tests.kit.s3 import ACCESS_KEY, SECRET_KEY, call

MIB = 1 << 20


def body(number: int) -> bytes:
    return number.to_bytes(4, "big") * (2 * MIB)


def fits(s3: Any, key: str, data: bytes) -> ClientError | None:
    """Put an object; the refusal if there is no room."""
    try:
        s3.put_object(Bucket="first", Key=key, Body=data)
    except ClientError as error:
        return error
    return None


def check(s3: Any, numbers: range) -> None:
    for number in numbers:
        assert s3.get_object(Bucket="first", Key=str(number))["Body"].read() == body(number)


async def begin_and_abort_uploads(node: NodeProcess, count: int) -> None:
    """Each takes 24 KB of the index's log, for its headers."""
    port = urlsplit(node.endpoint).port
    assert port is not None
    left = iter(range(count))

    async def work() -> None:
        for number in left:
            path = f"/first/upload-{number}"
            begun = await call(port, "POST", f"{path}?uploads", headers={"Content-Language": "x" * 24_000})
            assert begun.status == 200, begun.body
            upload = ElementTree.fromstring(begun.body).findtext("{*}UploadId")
            assert (await call(port, "DELETE", f"{path}?uploadId={upload}")).status == 204

    await asyncio.gather(*(work() for _ in range(24)))


@pytest.mark.slow
def test_the_index_goes_on_however_long_all_disks_are_full(tmp_path: Path) -> None:
    """Its log is replaced several times while nothing but deletes, and what the index alone holds, can
    be written: else nobody could delete any more, and full disks stayed full for ever."""
    disks = [tmp_path / "holdfast-data" / f"disk{number}" for number in range(1, 7)]
    known = {"HOLDFAST_ACCESS_KEY_ID": ACCESS_KEY, "HOLDFAST_SECRET_ACCESS_KEY": SECRET_KEY}
    prefix = on_small_disks(disks, 320 * MIB)
    with NodeProcess(tmp_path, prefix=prefix, environment=known) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="first")
        stored = 0
        while fits(s3, str(stored), body(stored)) is None:
            stored += 1
        # What is left is too little for one so large. Ever smaller ones take it, too.
        small = 0
        refusal: ClientError | None = None
        for size in (MIB, 128 << 10, 16 << 10):
            while (refusal := fits(s3, f"small-{small}", b"x" * size)) is None:
                small += 1
        assert refusal is not None
        assert refusal.response["ResponseMetadata"]["HTTPStatusCode"] in (503, 507)
        assert "free space" in refusal.response["Error"]["Message"]

        def says_so() -> bool:
            status = msgspec.json.decode(node.holdfast("status", "--json").stdout, type=Status)
            full = [store.state for store in status.stores].count("full")
            told = any("Full: " in sentence for sentence in status.sentences)
            return status.state is NodeState.DEGRADED and full >= 4 and told

        wait_until("status to say that disks are full", says_so)

        segments = {path for path in inside(node.pid, "ls", disks[0] / "index").split() if "log" in path}
        asyncio.run(begin_and_abort_uploads(node, 3000))
        later = {path for path in inside(node.pid, "ls", disks[0] / "index").split() if "log" in path}
        assert not segments & later, "the log was not replaced as a whole: begin more uploads"
        check(s3, range(stored))
        for number in range(0, stored, 2):
            s3.delete_object(Bucket="first", Key=str(number))
        wait_until("the space to come back", lambda: fits(s3, "again", body(7)) is None)
        check(s3, range(1, stored, 2))


def test_a_full_disk_is_written_round(tmp_path: Path) -> None:
    """One of the disks has room for its part of the index and its reserve, and for nothing else."""
    data = tmp_path / "holdfast-data"
    disks = [data / f"disk{number}" for number in range(1, 7)]
    with NodeProcess(tmp_path, prefix=on_small_disks([disks[5]], 32 * MIB)) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="first")

        def full() -> list[str]:
            return [store.slot for store in node.status().stores if store.state == "full"]

        wait_until("its space to be measured", lambda: full() == ["disk6"])
        for number in range(5):
            stored = s3.put_object(Bucket="first", Key=str(number), Body=body(number))
            receipt = stored["ResponseMetadata"]["HTTPHeaders"]["x-holdfast-receipt"]
            assert receipt.startswith("scheme=rs-3-2; durable=")  # a busy disk may make one of them late
        check(s3, range(5))
        assert full() == ["disk6"]
        assert node.status().state is NodeState.DEGRADED


def test_two_disks_in_each_others_places_are_known_for_what_they_are(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="first")
        for number in range(3):
            s3.put_object(Bucket="first", Key=str(number), Body=body(number))
        assert node.stop() == 0
    one, two, aside = node.data / "disk2", node.data / "disk5", node.data / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    with NodeProcess(tmp_path) as node:
        s3 = node.s3()
        check(s3, range(3))
        s3.put_object(Bucket="first", Key="3", Body=body(3))
        check(s3, range(4))
        told = node.output + " ".join(node.status().sentences)
        states = {store.slot: store.state for store in node.status().stores}
        assert (states["disk2"], states["disk5"]) == ("swapped", "swapped"), told
        assert "disk2 is swapped" in told
        assert "disk5 is swapped" in told
        assert node.stop() == 0
    one.rename(aside)
    two.rename(one)
    aside.rename(two)
    with NodeProcess(tmp_path) as node:
        check(node.s3(), range(4))
        assert not [store for store in node.status().stores if store.state != "healthy"]


def test_a_directory_that_is_removed_in_use_costs_no_request(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="first")
        for number in range(3):
            s3.put_object(Bucket="first", Key=str(number), Body=body(number))
        for slot in ("disk3", "disk6"):
            delete_store(node.data / slot)
        for number in range(3, 6):
            s3.put_object(Bucket="first", Key=str(number), Body=body(number))
        check(s3, range(6))
        s3.delete_object(Bucket="first", Key="0")

        def noticed() -> bool:
            states = {store.slot: store.state for store in node.status().stores}
            return states["disk3"] != "healthy" and states["disk6"] != "healthy"

        wait_until("status to name them", noticed)
        assert node.status().state is NodeState.DEGRADED
        check(s3, range(1, 6))
