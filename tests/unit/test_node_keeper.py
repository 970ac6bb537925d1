"""The keeper: who is there, who is away, who is somebody else, and what happens when that changes."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from holdfast.base.errors import Fenced, HoldfastError, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SystemRandomness
from holdfast.health import StoreHealth, StoreState
from holdfast.health.events import Event
from holdfast.node.cluster import read_cluster
from holdfast.node.config import Config, Given, StorePlace, make_config
from holdfast.node.keeper import Keeper
from holdfast.stores.port import Attachment, Range, Store
from holdfast.topology import Level
from tests.kit.stores import MovableClock

CLOCK = MovableClock()


def configured(home: Path, *stores: Path) -> Config:
    places = tuple(StorePlace(path) for path in stores) or None
    return make_config([Given(data=home / "data", stores=places)], home)


class House:
    """A keeper that is open, with health, and what it told."""

    def __init__(self, config: Config) -> None:
        config.data.mkdir(exist_ok=True)
        self.told: list[str] = []
        self.health = StoreHealth([], 2, CLOCK.monotonic())
        self.keeper = Keeper(config, clock=CLOCK, randomness=SystemRandomness(), on_event=self.tell)

    def tell(self, text: str, *, evidence: object = None, **facts: str) -> None:
        self.told.append(Event(wall=0.0, reason=text, **facts).text)  # type: ignore[arg-type]

    def id(self, slot: str) -> StoreId:
        found = self.keeper.held[slot].id
        assert found is not None
        return found

    def store(self, slot: str) -> Store:
        return self.keeper.attached[self.id(slot)]

    def states(self) -> dict[str, Attachment]:
        return {slot: held.attachment for slot, held in self.keeper.held.items()}

    async def round(self) -> None:
        """One round, a while after the last, with all that it begins."""
        CLOCK.ahead_s += 1.0
        await self.keeper.round()
        await self.keeper.settled()

    async def rounds(self) -> None:
        """As many rounds as it takes to look at everybody, those that are away, too."""
        for _ in range(12):
            await self.round()


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[House]:
    house = House(config)
    try:
        await house.keeper.open()
        house.keeper.start(house.health, lambda _, store: store)
        yield house
    finally:
        await house.keeper.close()


def is_well(state: Attachment) -> bool:
    return state in (Attachment.READY, Attachment.NEW)


async def test_a_first_start_makes_six_stores_and_later_ones_find_them(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        ids = {slot: house.id(slot) for slot in house.keeper.held}
        assert set(ids) == {f"disk{number}" for number in range(1, 7)}
        assert set(house.keeper.attached) == set(ids.values())
        assert house.keeper.topology().count(Level.STORE) == 6
        assert house.keeper.topology().count(Level.DEVICE) == 1
        await house.store("disk1").put("aa.0.0", [b"held"], timeout_s=60)
    async with running(config) as house:
        assert {slot: house.id(slot) for slot in house.keeper.held} == ids
        assert list(await house.store("disk1").get("aa.0.0", [Range(0, 4)], timeout_s=60)) == [b"held"]


async def test_a_lost_data_folder_costs_nothing_but_its_own(tmp_path: Path) -> None:
    stores = [tmp_path / name for name in ("a", "b", "c")]
    config = configured(tmp_path, *stores)
    async with running(config) as house:
        ids = {slot: house.id(slot) for slot in house.keeper.held}
    shutil.rmtree(config.data)
    async with running(configured(tmp_path, *reversed(stores))) as house:
        assert {slot: house.id(slot) for slot in house.keeper.held} == ids


async def test_a_directory_that_is_gone_at_start_is_away_not_made_anew(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        lost = house.id("disk3")
    shutil.rmtree(config.data / "disk3")
    async with running(config) as house:
        assert house.states()["disk3"] is Attachment.MISSING
        assert house.health.state(lost) is StoreState.DOWN
        assert lost not in house.keeper.attached
        assert house.keeper.topology().location(lost) is not None
        assert not (config.data / "disk3").exists()


async def test_every_directory_that_is_gone_is_noticed_in_one_round(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        for slot in ("disk2", "disk4", "disk5"):
            shutil.rmtree(config.data / slot)
        await house.round()
        away = [slot for slot, state in house.states().items() if state is Attachment.MISSING]
        assert away == ["disk2", "disk4", "disk5"]


async def test_looking_in_vain_for_a_store_does_not_begin_its_absence_anew(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        shutil.rmtree(config.data / "disk2")
        await house.round()
        held = house.keeper.held["disk2"]
        since = held.since = held.since - 60.0  # as if a minute had passed
        held.looked = looked = held.looked - 60.0
        while held.looked == looked:
            await house.round()
        assert (held.since, house.states()["disk2"]) == (since, Attachment.MISSING)


async def test_a_store_is_not_made_again_while_it_is_being_removed(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        disk = config.data / "disk2"
        (disk / "lock").unlink()
        while house.states()["disk2"] is not Attachment.MISSING:
            await house.round()
        for entry in ("tmp", "shards/00", "shards/01", "shards", "holdfast-store.json"):
            left = disk / entry
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
            for _ in range(3):
                await house.round()
            assert house.states()["disk2"] is Attachment.MISSING
            assert not left.exists()
        disk.rmdir()


async def test_a_store_that_vanishes_is_noticed_and_an_empty_directory_is_a_new_store(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        lost = house.id("disk2")
        shutil.rmtree(config.data / "disk2")
        await house.rounds()
        assert house.states()["disk2"] is Attachment.MISSING
        assert house.health.state(lost) is StoreState.DOWN
        assert len(house.keeper.attached) == 5
        (config.data / "disk2").mkdir()
        await house.rounds()
        assert is_well(house.states()["disk2"])
        assert house.id("disk2") != lost
        assert house.health.readable(house.id("disk2"))
        assert any("disk2 is missing" in text for text in house.told)
        assert any("disk2 is new" in text for text in house.told)
        await house.store("disk2").put("aa.0.0", [b"held"], timeout_s=60)
    async with running(config) as house:
        assert is_well(house.states()["disk2"])


async def test_a_store_that_is_moved_away_and_back_is_the_same_store(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        own = house.id("disk2")
        await house.store("disk2").put("aa.0.0", [b"held"], timeout_s=60)
        (config.data / "disk2").rename(tmp_path / "unplugged")
        await house.rounds()
        assert own not in house.keeper.attached
        (tmp_path / "unplugged").rename(config.data / "disk2")
        await house.rounds()
        assert house.id("disk2") == own
        assert list(await house.store("disk2").get("aa.0.0", [Range(0, 4)], timeout_s=60)) == [b"held"]
        assert any("disk2 is back" in text for text in house.told)


async def test_a_store_whose_contents_are_wiped_is_new(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        lost = house.id("disk4")
        for entry in (config.data / "disk4").iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        await house.rounds()
        assert is_well(house.states()["disk4"])
        assert house.id("disk4") != lost


async def test_a_store_that_was_half_removed_is_taken_again_with_what_is_left(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        same = house.id("disk2")
        for name in ("shards", "tmp"):
            shutil.rmtree(config.data / "disk2" / name)
        await house.rounds()
        await house.rounds()
        assert house.id("disk2") == same
        await house.store("disk2").put("aa.0.0", [b"again"], timeout_s=60)


async def test_somebody_elses_store_in_a_known_slot_is_left_alone(tmp_path: Path) -> None:
    ours, theirs = configured(tmp_path), configured(tmp_path / "theirs")
    (tmp_path / "theirs").mkdir()
    async with running(ours):
        pass
    async with running(theirs):
        pass
    shutil.rmtree(ours.data / "disk1")
    (theirs.data / "disk1").rename(ours.data / "disk1")
    before = sorted(str(path) for path in (ours.data / "disk1").rglob("*"))
    async with running(ours) as house:
        assert house.states()["disk1"] is Attachment.FOREIGN
        assert "belongs to cluster" in house.keeper.held["disk1"].reason
        await house.rounds()
        assert house.states()["disk1"] is Attachment.FOREIGN
        assert len(house.keeper.attached) == 5
    assert sorted(str(path) for path in (ours.data / "disk1").rglob("*")) == before


async def test_two_disks_that_changed_places_are_recognised_where_slots_are_named(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config):
        pass
    (config.data / "disk1").rename(tmp_path / "other")
    (config.data / "disk2").rename(config.data / "disk1")
    (tmp_path / "other").rename(config.data / "disk2")
    async with running(config) as house:
        assert house.states()["disk1"] is Attachment.SWAPPED
        assert house.states()["disk2"] is Attachment.SWAPPED
        assert len(house.keeper.attached) == 4


async def test_an_old_copy_of_a_disk_is_recognised(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        await house.keeper.note("first", 10)
    shutil.copytree(config.data / "disk5", tmp_path / "copy")
    async with running(config) as house:
        await house.keeper.note("first", 20)
    shutil.rmtree(config.data / "disk5")
    (tmp_path / "copy").rename(config.data / "disk5")
    async with running(config) as house:
        assert house.states()["disk5"] is Attachment.STALE


async def test_a_directory_with_other_things_in_it_is_refused_at_the_first_start(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "photos").mkdir()
    with pytest.raises(Fenced, match="photos"):
        async with running(configured(tmp_path, tmp_path / "a", tmp_path / "b")):
            pass
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["photos"]


async def test_a_store_is_not_made_below_a_mount_point_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises((OSError, HoldfastError)):
        async with running(configured(tmp_path, tmp_path / "a", tmp_path / "mnt" / "b")):
            pass
    assert not (tmp_path / "mnt").exists()


async def test_a_file_where_a_directory_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b").touch()
    with pytest.raises((OSError, InvalidInput)):
        async with running(configured(tmp_path, tmp_path / "a", tmp_path / "b")):
            pass


async def test_two_nodes_do_not_share_a_store(tmp_path: Path) -> None:
    stores = [tmp_path / name for name in ("a", "b")]
    other = make_config(
        [Given(data=tmp_path / "data2", stores=tuple(StorePlace(path) for path in stores))], tmp_path
    )
    async with running(configured(tmp_path, *stores)):
        with pytest.raises(Fenced, match="in use"):
            async with running(other):
                pass


async def test_a_crash_while_a_store_moves_in_is_mended_by_starting_again(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        moved_in = house.id("disk1")
        before = read_cluster(config.data)
    assert before is not None
    # As if the node had died between the store's identity and its line in the file.
    from holdfast.node.cluster import Slot, write_cluster

    write_cluster(config.data, before.with_slot("disk1", Slot(str(config.data / "disk1"))))
    async with running(config) as house:
        assert house.id("disk1") == moved_in
