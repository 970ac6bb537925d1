"""Disks that are not mounted: what lies below a mount point is not taken for a new, empty store."""

import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from holdfast.node.changing import Changes
from holdfast.stores.identity import Expected, Found, judge
from holdfast.stores.port import Attachment
from tests.unit.test_node_changing import made
from tests.unit.test_node_keeper import CLOCK, House, configured, is_well, running


@pytest.mark.parametrize(
    ("recorded", "found", "expected"),
    [
        # (device, was a mount point) as recorded, (device, is a mount point) as found
        (("sdb", True), ("root", False), Attachment.MISSING),
        (("sdb", False), ("root", False), Attachment.MISSING),
        (("sda", True), ("sda", False), Attachment.MISSING),  # two partitions of one disk
        (("", True), ("", False), Attachment.MISSING),
        (("sdb", True), ("sdc", True), Attachment.NEW),
        (("sdb", True), ("sdb", True), Attachment.NEW),
        (("root", False), ("sdc", True), Attachment.NEW),
        (("root", False), ("root", False), Attachment.NEW),
        (("", False), ("root", False), Attachment.NEW),
        (("root", False), ("", False), Attachment.NEW),
    ],
)
def test_an_empty_directory_is_new_unless_the_slots_disk_is_not_mounted_there(
    recorded: tuple[str, bool], found: tuple[str, bool], expected: Attachment
) -> None:
    slot = Expected("cluster-a", "disk1", device=recorded[0], mounted=recorded[1])
    judgement = judge(Found(True, device=found[0], mounted=found[1]), slot)
    assert judgement.attachment is expected
    assert ("not mounted" in judgement.reason) == (expected is Attachment.MISSING)


def lay_on(house: House, slot: str, device: str, *, mounted: bool) -> None:
    """As if the slot's store had lain there."""
    keeper = house.keeper
    line = replace(keeper.cluster.slots[slot], device=device, mounted=mounted)
    keeper.write(keeper.cluster.with_slot(slot, line))


@pytest.mark.parametrize("mounted", [False, True])
async def test_what_is_below_a_mount_point_is_left_alone_until_the_disk_is_back(
    tmp_path: Path, mounted: bool
) -> None:
    config, path, elsewhere = configured(tmp_path), tmp_path / "data" / "disk3", tmp_path / "elsewhere"
    async with running(config) as house:
        store, device = house.id("disk3"), house.keeper.cluster.slots["disk3"].device
        device = device if mounted else "disk-of-its-own"
        path.rename(elsewhere)
        made(path)
        lay_on(house, "disk3", device, mounted=mounted)
        await house.rounds()
        await house.rounds()
        assert house.states()["disk3"] is Attachment.MISSING
        assert "mounted" in house.keeper.held["disk3"].reason
    async with running(config) as house:
        assert house.states()["disk3"] is Attachment.MISSING
        assert list(path.iterdir()) == []
        path.rmdir()
        elsewhere.rename(path)
        await house.rounds()
        assert (house.states()["disk3"], house.id("disk3")) == (Attachment.READY, store)


async def test_an_empty_directory_on_another_device_is_used_when_somebody_says_so(tmp_path: Path) -> None:
    config, path, elsewhere = configured(tmp_path), tmp_path / "data" / "disk3", tmp_path / "elsewhere"
    async with running(config) as house:
        before = house.id("disk3")
        path.rename(elsewhere)
        made(path)
        lay_on(house, "disk3", "disk-of-its-own", mounted=True)
        await house.rounds()
        assert await Changes(house.keeper, CLOCK).replace("disk3", path) is None
        after = house.id("disk3")
        assert after != before
        assert is_well(house.states()["disk3"])
    async with running(config) as house:
        assert (house.id("disk3"), house.keeper.remarks) == (after, ())


@contextmanager
def disk(path: Path) -> Iterator[None]:
    """A file system of its own, mounted there; pulled at the end although it is in use."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


async def test_a_disk_that_is_unmounted_while_the_node_runs_and_a_new_one_in_its_place(
    tmp_path: Path,
) -> None:
    stores = [made(tmp_path / name) for name in ("a", "b", "c")]
    config = configured(tmp_path, *stores)
    async with AsyncExitStack() as stack:
        with disk(stores[1]):
            house = await stack.enter_async_context(running(config))
            before = house.id("disk2")
            assert house.keeper.cluster.slots["disk2"].mounted
        await house.rounds()
        await house.rounds()
        assert house.states()["disk2"] is Attachment.MISSING
        assert "not mounted" in house.keeper.held["disk2"].reason
        assert list(stores[1].iterdir()) == []
    async with running(config) as house:
        assert house.states()["disk2"] is Attachment.MISSING
        with disk(stores[1]):
            await house.rounds()
            assert is_well(house.states()["disk2"])
            assert house.id("disk2") != before
    assert list(stores[1].iterdir()) == []
