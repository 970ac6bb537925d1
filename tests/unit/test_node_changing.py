"""Stores come and go while a keeper runs, over crashes and restarts; spares start, the index moves along."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from holdfast.base.errors import Fenced
from holdfast.base.ids import StoreId
from holdfast.node.changing import Changes
from holdfast.node.cluster import Draining, read_cluster
from holdfast.node.config import Given, StorePlace, make_config
from holdfast.node.housekeeping import Housekeeping, SlotView, spare_to_start
from holdfast.node.membership import choose_heir, choose_leavers
from holdfast.stores.port import Attachment, Range
from tests.unit.test_node_keeper import CLOCK, House, configured, is_well, running


def made(path: Path) -> Path:
    path.mkdir()
    return path


async def test_an_added_store_is_used_at_once_and_after_a_restart(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        await Changes(house.keeper, CLOCK).admit(StorePlace(made(tmp_path / "x"), "new", zone="z"))
        await house.store("new").put("aa.0.0", [b"held"], timeout_s=60)
        store = house.id("new")
        assert house.keeper.room(store) > 0
        await house.rounds()
        await house.keeper.note("it", 5)
    async with running(config) as house:
        assert house.id("new") == store
        assert house.keeper.held["new"].place.zone == "z"
        assert list(await house.store("new").get("aa.0.0", [Range(0, 4)], timeout_s=60)) == [b"held"]


async def test_a_directory_with_something_in_it_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    (made(tmp_path / "x") / "file").write_text("somebody's")
    async with running(configured(tmp_path)) as house:
        before = house.keeper.cluster
        with pytest.raises(Fenced, match="not empty"):
            await Changes(house.keeper, CLOCK).admit(StorePlace(tmp_path / "x", "new"))
        assert read_cluster(tmp_path / "data") == house.keeper.cluster == before
        assert "new" not in house.keeper.held
        with pytest.raises(Fenced, match="not empty"):
            await Changes(house.keeper, CLOCK).replace("disk2", tmp_path / "x")
        assert read_cluster(tmp_path / "data") == house.keeper.cluster == before
        assert is_well(house.states()["disk2"])
        await house.store("disk2").put("aa.0.0", [b"x"], timeout_s=60)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["file"]


@pytest.mark.parametrize("change", ["admit", "replace", "replace one that is away"])
async def test_a_change_that_fails_undoes_nothing_that_happened_elsewhere_meanwhile(
    tmp_path: Path, change: str
) -> None:
    (made(tmp_path / "x") / "file").write_text("somebody's")
    async with running(configured(tmp_path)) as house:
        keeper, changes = house.keeper, Changes(house.keeper, CLOCK)
        if change == "replace one that is away":
            (tmp_path / "data" / "disk2").rename(tmp_path / "pulled")
            await house.rounds()
        before = keeper.cluster
        if change == "admit":
            failing = asyncio.create_task(changes.admit(StorePlace(tmp_path / "x", "new")))
        else:
            failing = asyncio.create_task(changes.replace("disk2", tmp_path / "x"))
        await asyncio.sleep(0)
        assert keeper.cluster != before, "it has not begun"
        meanwhile = replace(keeper.cluster.slots["disk4"], stands_in_for="another")
        keeper.write(keeper.cluster.with_slot("disk4", meanwhile))
        with pytest.raises(Fenced, match="not empty"):
            await failing
        assert read_cluster(tmp_path / "data") == keeper.cluster == before.with_slot("disk4", meanwhile)


async def test_a_store_that_was_let_go_stays_away_and_its_disk_is_refused_as_what_it_is(
    tmp_path: Path,
) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        gone = house.id("disk2")
        await Changes(house.keeper, CLOCK).dismiss("disk2")
        assert gone not in house.keeper.attached
        assert house.keeper.is_gone(gone)
        assert house.keeper.topology().location(gone) is None
        await house.keeper.note("it", 5)
        assert "disk2" not in house.keeper.cluster.slots
    async with running(config) as house:
        assert set(house.keeper.held) == {"disk1", "disk3", "disk4", "disk5", "disk6"}
        assert "disk2" in house.keeper.remarks[0]
        # Its disk in the place of another one.
        (tmp_path / "data" / "disk4").rename(tmp_path / "four")
        (tmp_path / "data" / "disk2").rename(tmp_path / "data" / "disk4")
        await house.rounds()
        assert house.states()["disk4"] is Attachment.STALE
        assert "was removed from slot 'disk2'" in house.keeper.held["disk4"].reason


async def test_a_replaced_store_is_read_until_it_is_empty_and_refused_later(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        changes = Changes(house.keeper, CLOCK)
        before = house.id("disk2")
        await house.store("disk2").put("aa.0.0", [b"held"], timeout_s=60)
        assert await changes.replace("disk2", made(tmp_path / "two")) == "disk2-old"
        assert house.id("disk2-old") == before != house.id("disk2")
        assert house.keeper.room(before) == 0
        assert house.keeper.room(house.id("disk2")) > 0
        after = house.id("disk2")
    async with running(config) as house:
        assert (house.id("disk2"), house.id("disk2-old")) == (after, before)
        assert list(await house.store("disk2-old").get("aa.0.0", [Range(0, 4)], timeout_s=60)) == [b"held"]
        assert house.keeper.cluster.slots["disk2-old"].draining is Draining.YES
        await Changes(house.keeper, CLOCK).dismiss("disk2-old")
        assert house.keeper.is_gone(before)
    async with running(config) as house:
        assert house.id("disk2") == after
        assert house.keeper.held["disk2"].place.path == tmp_path / "two"
        (tmp_path / "two").rename(tmp_path / "away")
        (tmp_path / "data" / "disk2").rename(tmp_path / "two")
        await house.rounds()
        assert house.states()["disk2"] is Attachment.STALE
        assert "was replaced" in house.keeper.held["disk2"].reason


async def test_a_dead_store_is_replaced_at_once(tmp_path: Path) -> None:
    async with running(configured(tmp_path)) as house:
        before = house.id("disk3")
        (tmp_path / "data" / "disk3").rename(tmp_path / "pulled")
        await house.rounds()
        assert await Changes(house.keeper, CLOCK).replace("disk3", made(tmp_path / "three")) is None
        assert house.keeper.is_gone(before)
        assert before not in house.health.stores
        assert is_well(house.states()["disk3"])
        assert set(house.keeper.held) == {f"disk{number}" for number in range(1, 7)}


async def test_a_crash_after_a_change_was_written_down_is_mended_by_the_next_start(tmp_path: Path) -> None:
    config = configured(tmp_path)
    async with running(config) as house:
        changes, cluster = Changes(house.keeper, CLOCK), house.keeper.cluster
        await changes.replace("disk2", made(tmp_path / "two"))
        written = house.keeper.cluster.slots["disk2"]
        assert written.instead_of == cluster.slots["disk2"].path
    # As if the store had not moved in yet.
    for path in (tmp_path / "two").rglob("*"):
        if path.is_file():
            path.unlink()
    async with running(config) as house:
        assert is_well(house.states()["disk2"])
        assert house.keeper.held["disk2"].place.path == tmp_path / "two"


async def test_a_spare_takes_nothing_until_it_starts_and_stays_in_use_over_a_restart(tmp_path: Path) -> None:
    stores = [StorePlace(made(tmp_path / name), name) for name in ("a", "b", "c")]
    spare = StorePlace(made(tmp_path / "hot"), "hot", spare=True)
    config = make_config(
        [Given(data=tmp_path / "data", stores=(*stores, spare), scheme="mirror-3")], tmp_path
    )

    def housekeeping(house: House) -> Housekeeping:
        changes = Changes(house.keeper, CLOCK)
        return Housekeeping(
            house.keeper, house.health, changes, lambda _: False, CLOCK, house.told.append, patience_s=0
        )

    async with running(config) as house:
        assert house.keeper.count() == 3
        assert house.keeper.room(house.id("hot")) == 0
        await housekeeping(house).step()
        assert house.keeper.room(house.id("hot")) == 0
        (tmp_path / "b").rename(tmp_path / "pulled")
        await house.rounds()
        await housekeeping(house).step()
        assert house.keeper.room(house.id("hot")) > 0
        assert any("the spare hot starts, in place of b" in text for text in house.told)
    async with running(config) as house:
        assert house.keeper.room(house.id("hot")) > 0
        await Changes(house.keeper, CLOCK).replace("hot", made(tmp_path / "hotter"))
        assert house.keeper.room(house.id("hot")) > 0
    async with running(config) as house:
        assert house.keeper.held["hot"].place.path == tmp_path / "hotter"
        assert house.keeper.room(house.id("hot")) > 0


async def test_a_slot_that_is_not_configured_any_more_can_be_taken_off_the_record(tmp_path: Path) -> None:
    stores = [made(tmp_path / name) for name in ("a", "b", "c", "d")]
    async with running(configured(tmp_path, *stores)) as house:
        gone = house.id("disk4")
    async with running(configured(tmp_path, *stores[:3])) as house:
        assert not house.keeper.is_gone(gone)
        Changes(house.keeper, CLOCK).forget("disk4")
        assert house.keeper.is_gone(gone)
    async with running(configured(tmp_path, *stores)) as house:
        assert set(house.keeper.held) == {"disk1", "disk2", "disk3"}
        assert "disk4" in house.keeper.remarks[0]


async def test_a_replaced_store_goes_by_itself_when_nothing_is_left_on_it(tmp_path: Path) -> None:
    async with running(configured(tmp_path)) as house:
        changes = Changes(house.keeper, CLOCK)
        old = house.id("disk2")
        await changes.replace("disk2", made(tmp_path / "two"))
        empty: set[StoreId] = set()
        chore = Housekeeping(
            house.keeper, house.health, changes, empty.__contains__, CLOCK, house.told.append
        )
        await chore.step()
        assert "disk2-old" in house.keeper.held
        empty.add(old)
        await chore.step()
        assert "disk2-old" not in house.keeper.held
        assert house.keeper.is_gone(old)


def test_a_spare_starts_for_a_store_that_is_away_for_long_and_only_one() -> None:
    lost = SlotView("disk1", StoreId("one"), away_s=61)
    spares = [SlotView("hot1", StoreId("h1"), spare=True), SlotView("hot2", StoreId("h2"), spare=True)]
    assert spare_to_start([lost, *spares], 60) == ("hot1", StoreId("one"))
    assert spare_to_start([SlotView("disk1", StoreId("one"), away_s=59), *spares], 60) is None
    started = SlotView("hot1", StoreId("h1"), spare=True, stands_in_for="one")
    assert spare_to_start([lost, started, spares[1]], 60) is None
    # The one that started may be lost, too.
    gone = SlotView("hot1", StoreId("h1"), away_s=61, spare=True, stands_in_for="one")
    assert spare_to_start([lost, gone, spares[1]], 60) == ("hot2", StoreId("h1"))
    # A spare that is away is no spare, and nobody stands in for it.
    absent = SlotView("hot1", StoreId("h1"), away_s=61, spare=True)
    assert spare_to_start([lost, absent, spares[1]], 60) == ("hot2", StoreId("one"))
    assert spare_to_start([absent, spares[1]], 60) is None


def test_the_index_moves_to_a_device_of_its_own_if_there_is_one() -> None:
    devices = {"a": "1", "b": "2", "c": "3", "x": "2", "y": "4"}
    assert choose_heir(["a", "b", "c"], ["x", "y"], devices, "a") == "y"
    assert choose_heir(["a", "b", "c"], ["x", "y"], devices, "b") == "x"
    assert choose_heir(["a", "b", "c"], [], devices, "b") is None


def test_the_index_gets_smaller_by_two_and_never_smaller_than_three() -> None:
    assert choose_leavers(["a", "b", "c", "d", "e"], [], "b") == ("e", "b")
    assert choose_leavers(["a", "b", "c", "d", "data"], [], "b") == ("data", "b")
    assert choose_leavers(["a", "b", "c", "d", "data"], ["c"], "b") == ("c", "b")
    assert choose_leavers(["a", "b", "c", "d"], [], "b") == ("b",)  # interrupted in between
    assert choose_leavers(["a", "b", "c"], [], "b") is None
    assert choose_leavers(["a"], [], "a") is None
