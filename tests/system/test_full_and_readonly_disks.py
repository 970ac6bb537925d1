"""Disks that are full or refuse writes: said plainly, nothing lost, and over when it is over."""

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from holdfast.node.status import NodeState, StoreStatus
from tests.kit.disks import inside, on_small_disks, with_read_only
from tests.kit.process import NodeProcess, wait_until

MIB = 1 << 20
DISK_BYTES = 160 * MIB
CONFIG = '[limits]\nreserve = "60 MiB"\n'


def node_on_small_disks(home: Path) -> NodeProcess:
    (home / "holdfast.toml").write_text(CONFIG)
    disks = [home / "holdfast-data" / f"disk{number}" for number in range(1, 7)]
    return NodeProcess(home, prefix=on_small_disks(disks, DISK_BYTES))


def body(number: int) -> bytes:
    return number.to_bytes(4, "big") * (2 * MIB)


def fill(s3: Any) -> tuple[int, int]:
    """Put objects until one is refused: how many went in, and the status of the refusal."""
    for number in range(1000):
        try:
            s3.put_object(Bucket="first", Key=str(number), Body=body(number))
        except ClientError as error:
            return number, error.response["ResponseMetadata"]["HTTPStatusCode"]
    raise AssertionError("the disks are never full")


@pytest.mark.slow
def test_all_disks_full_at_once(tmp_path: Path) -> None:
    with node_on_small_disks(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="first")
        stored, refusal = fill(s3)
        assert refusal in (503, 507)
        assert stored > 10
        keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket="first")["Contents"]]
        assert sorted(keys, key=int) == [str(number) for number in range(stored)]
        for number in range(stored):
            assert s3.get_object(Bucket="first", Key=str(number))["Body"].read() == body(number)
        for number in range(0, stored, 2):
            s3.delete_object(Bucket="first", Key=str(number))

        def fits_again() -> bool:
            try:
                s3.put_object(Bucket="first", Key="again", Body=body(7))
            except ClientError:
                return False
            return True

        wait_until("the space to come back", fits_again)
        for number in range(1, stored, 2):
            assert s3.get_object(Bucket="first", Key=str(number))["Body"].read() == body(number)
        assert s3.get_object(Bucket="first", Key="again")["Body"].read() == body(7)


@pytest.mark.slow
def test_disks_that_are_full_of_small_objects_come_back_when_half_of_them_are_deleted(tmp_path: Path) -> None:
    """They share packs, so nothing is dead as a whole: what is needed still has to be written somewhere."""
    (tmp_path / "holdfast.toml").write_text('[limits]\nreserve = "120 MiB"\n')
    disks = [tmp_path / "holdfast-data" / f"disk{number}" for number in range(1, 7)]
    with NodeProcess(tmp_path, prefix=on_small_disks(disks, DISK_BYTES)) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="first")

        def small(number: int) -> bytes:
            return number.to_bytes(4, "big") * 30_000

        def put(number: int) -> bool:
            try:
                s3.put_object(Bucket="first", Key=str(number), Body=small(number))
            except ClientError:
                return False
            return True

        stored: list[int] = []
        with ThreadPoolExecutor(8) as pool:
            for start in range(0, 100_000, 64):
                done = list(pool.map(put, range(start, start + 64)))
                stored += [start + number for number, ok in enumerate(done) if ok]
                if not any(done):
                    break
            assert len(stored) > 150
            gone = random.Random(1).sample(stored, len(stored) // 2)
            for start in range(0, len(gone), 500):
                some = [{"Key": str(number)} for number in gone[start : start + 500]]
                s3.delete_objects(Bucket="first", Delete={"Objects": some})
            left = sorted(set(stored) - set(gone))

            def a_quarter_fits_again() -> bool:
                missing = [number for number in gone[: len(stored) // 4] if number not in again]
                if missing and put(missing[0]):
                    again.add(missing.pop(0))
                else:
                    return not missing
                again.update(number for number, ok in zip(missing, pool.map(put, missing), strict=True) if ok)
                return len(again) == len(stored) // 4

            again: set[int] = set()
            wait_until("the space to come back", a_quarter_fits_again, timeout_s=120)
            there = [*left, *sorted(again)]

            def is_right(number: int) -> bool:
                return bool(s3.get_object(Bucket="first", Key=str(number))["Body"].read() == small(number))

            assert all(pool.map(is_right, there))
        assert node.stop() == 0


@pytest.mark.slow
def test_a_disk_that_is_read_only(tmp_path: Path) -> None:
    with NodeProcess(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="first")
        for number in range(5):
            s3.put_object(Bucket="first", Key=str(number), Body=body(number))
        assert node.stop() == 0
    with NodeProcess(tmp_path, prefix=with_read_only(node.data / "disk2")) as node:
        s3 = node.s3()
        for number in range(5, 10):
            s3.put_object(Bucket="first", Key=str(number), Body=body(number))
        for number in range(10):
            assert s3.get_object(Bucket="first", Key=str(number))["Body"].read() == body(number)

        def disk2() -> StoreStatus:
            (found,) = [store for store in node.status().stores if store.slot == "disk2"]
            return found

        wait_until("the disk to be known for what it is", lambda: disk2().state == "down")
        assert "Read-only" in disk2().reason
        assert node.status().state is NodeState.DEGRADED
        assert node.stop() == 0
    with NodeProcess(tmp_path) as node:

        def mended() -> bool:
            packs = node.status().packs
            return packs.degraded == packs.debts == 0

        wait_until("the debts to be paid", mended, timeout_s=120)
        for number in range(10):
            assert node.s3().get_object(Bucket="first", Key=str(number))["Body"].read() == body(number)


@pytest.mark.slow
def test_a_disk_that_is_unmounted_never_turns_into_the_one_below(tmp_path: Path) -> None:
    with node_on_small_disks(tmp_path) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="first")
        disk = node.data / "disk3"
        inside(node.pid, "umount", "--lazy", disk)
        for number in range(5):
            s3.put_object(Bucket="first", Key=str(number), Body=body(number))
        for number in range(5):
            assert s3.get_object(Bucket="first", Key=str(number))["Body"].read() == body(number)
