"""Where the index lies: on as many devices as there are, and never in somebody else's directory."""

from pathlib import Path

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.randomness import SystemRandomness
from holdfast.index.sqlite.folder import MemberFailed
from holdfast.node.config import Given, StorePlace, make_config
from holdfast.node.index import FOLDER_NAME, Members, StoreMember
from holdfast.node.keeper import Held, Keeper
from holdfast.stores.port import Attachment


def keeper_with(
    home: Path, devices: list[str], *, index_dirs: tuple[Path, ...] = ()
) -> tuple[Members, Keeper]:
    """Members over stores that are on these devices; nothing of it is opened."""
    places = tuple(StorePlace(home / f"s{n}", slot=f"s{n}") for n in range(len(devices)))
    scheme = "raid0" if len(devices) == 1 else None
    given = Given(data=home / "data", stores=places, scheme=scheme, index_dirs=index_dirs or None)
    config = make_config([given], home)
    keeper = Keeper(config, clock=SystemClock(), randomness=SystemRandomness(), on_event=lambda _: None)
    for place, device in zip(places, devices, strict=True):
        keeper.held[place.slot] = Held(place, id=StoreId(f"id-{place.slot}"), device=device)
    return Members(config, keeper), keeper


@pytest.mark.parametrize(
    ("stores", "members"),
    [
        (1, ("s0",)),
        (2, ("s0", "s1", "data")),
        (3, ("s0", "s1", "s2")),
        (4, ("s0", "s1", "s2", "s3", "data")),
        (6, ("s0", "s1", "s2", "s3", "s4")),
    ],
)
def test_there_are_as_many_members_as_make_a_majority_worth_most(
    tmp_path: Path, stores: int, members: tuple[str, ...]
) -> None:
    assert keeper_with(tmp_path, [f"d{n}" for n in range(stores)])[0].first == members


def test_members_go_to_different_devices_first(tmp_path: Path) -> None:
    members, _ = keeper_with(tmp_path, ["a", "a", "a", "b", "c", "d", "e"])
    assert members.first == ("s0", "s3", "s4", "s5", "s6")


def test_directories_of_its_own_are_used_where_they_are_named(tmp_path: Path) -> None:
    dirs = tuple(tmp_path / name for name in ("x", "y", "z"))
    members, _ = keeper_with(tmp_path, ["a"] * 6, index_dirs=dirs)
    assert members.first == ("index1", "index2", "index3")
    assert members.all["index2"].place == str(tmp_path / "y")


def test_an_index_that_was_begun_stays_where_it_is(tmp_path: Path) -> None:
    _, keeper = keeper_with(tmp_path, ["a"] * 6)
    keeper.cluster = type(keeper.cluster)("ours", {}, index=("s1", "s2", "s5"))
    config = make_config([Given(data=tmp_path / "data")], tmp_path)
    assert Members(config, keeper).first == ("s1", "s2", "s5")
    elsewhere = make_config([Given(index_dirs=(tmp_path / "x",))], tmp_path)
    with pytest.raises(InvalidInput, match="lies on s1, s2, s5"):
        Members(elsewhere, keeper)


def test_a_member_is_not_opened_while_its_store_is_away(tmp_path: Path) -> None:
    place = StorePlace(tmp_path / "s0", slot="s0")
    place.path.mkdir()
    member = StoreMember(Held(place, Attachment.FOREIGN))
    with pytest.raises(MemberFailed, match="s0 is foreign"):
        member.open_folder()
    assert list(place.path.iterdir()) == []


async def test_a_member_does_not_make_an_empty_directory_look_used(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    config = make_config([Given(data=tmp_path / "data")], tmp_path)
    keeper = Keeper(config, clock=SystemClock(), randomness=SystemRandomness(), on_event=lambda _: None)
    await keeper.open()
    try:
        held = keeper.held["disk1"]
        member = StoreMember(held)
        member.open_folder().close()
        assert (held.place.path / FOLDER_NAME).is_dir()
        held.place.path.rename(tmp_path / "away")
        held.place.path.mkdir()
        with pytest.raises(MemberFailed, match="not there"):
            member.open_folder()
        assert list(held.place.path.iterdir()) == []
    finally:
        await keeper.close()


async def test_a_folder_that_is_being_removed_is_not_made_again(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    config = make_config([Given(data=tmp_path / "data")], tmp_path)
    keeper = Keeper(config, clock=SystemClock(), randomness=SystemRandomness(), on_event=lambda _: None)
    await keeper.open()
    try:
        held = keeper.held["disk1"]
        member = StoreMember(held)
        member.open_folder().close()
        (held.place.path / FOLDER_NAME).rmdir()
        with pytest.raises(MemberFailed, match="was removed"):
            member.open_folder()
        assert not (held.place.path / FOLDER_NAME).exists()
    finally:
        await keeper.close()
