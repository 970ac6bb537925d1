"""The keys of a node: found wherever they lie, copied to its disks, never forgotten, made of a secret."""

from pathlib import Path

import pytest

from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import SeededRandomness
from holdfast.node.key_rings import FILE_NAME, SETTLED_S, KeyRings
from holdfast.stores.sealing import change_ring, read_ring


def rings(data: Path, *secrets: bytes, seed: str = "a") -> KeyRings:
    data.mkdir(exist_ok=True)
    return KeyRings(data, SeededRandomness(f"rings {seed}"), lambda: secrets)


def folders(root: Path) -> list[Path]:
    found = [root / "disk1", root / "disk2"]
    for folder in found:
        folder.mkdir(exist_ok=True)
    return found


async def test_a_lost_data_folder_has_its_keys_on_the_disks(tmp_path: Path) -> None:
    disks = folders(tmp_path)
    made = await rings(tmp_path / "data").obtain(disks)
    assert [read_ring(disk / FILE_NAME).newest.id for disk in disks] == [made.newest.id] * 2
    again = await rings(tmp_path / "other", seed="b").obtain(disks)
    assert [key.id for key in again.keys] == [key.id for key in made.keys]
    assert read_ring(tmp_path / "other" / FILE_NAME).newest.id == made.newest.id


async def test_no_key_goes_when_rings_meet(tmp_path: Path) -> None:
    disks = folders(tmp_path)
    one = await rings(tmp_path / "one").obtain(disks[:1])
    two = await rings(tmp_path / "two", seed="b").obtain(disks[1:])
    assert one.newest.id != two.newest.id
    met = await rings(tmp_path / "one").find(disks)
    assert met is not None
    assert [key.id for key in met.keys] == [two.newest.id, one.newest.id], "its own goes on to seal"
    assert len(read_ring(tmp_path / "one" / FILE_NAME).keys) == 2


async def test_a_ring_that_is_there_and_damaged_is_not_made_anew(tmp_path: Path) -> None:
    await rings(tmp_path / "data").obtain([])
    path = tmp_path / "data" / FILE_NAME
    path.write_bytes(path.read_bytes()[:-20])
    path.chmod(0o600)
    with pytest.raises(InvalidInput):
        await rings(tmp_path / "data").obtain([])


async def test_a_copy_that_is_damaged_is_written_again(tmp_path: Path) -> None:
    disks = folders(tmp_path)
    made = await rings(tmp_path / "data").obtain(disks)
    (disks[0] / FILE_NAME).write_bytes(b"nothing")
    found = rings(tmp_path / "data")
    await found.find(disks)
    await found.keep(disks)
    assert read_ring(disks[0] / FILE_NAME).newest.id == made.newest.id


async def test_nothing_is_made_by_looking(tmp_path: Path) -> None:
    disks = folders(tmp_path)
    assert await rings(tmp_path / "data").find(disks) is None
    for folder in (tmp_path / "data", *disks):
        with pytest.raises(InvalidInput):
            read_ring(folder / FILE_NAME)


async def test_what_a_command_did_to_the_file_is_seen(tmp_path: Path) -> None:
    disks = folders(tmp_path)
    found = rings(tmp_path / "data")
    await found.obtain(disks)
    told: list[bytes] = []
    found.on_change.append(lambda ring: told.append(ring.newest.id))
    await found.follow(0.0)
    assert not told
    chance = SeededRandomness("rotation")
    changed = change_ring(tmp_path / "data" / FILE_NAME, lambda ring: ring.rotated(chance), chance)
    await found.follow(2.0)
    assert told == [changed.newest.id]
    assert read_ring(disks[1] / FILE_NAME).newest.id == changed.newest.id
    (tmp_path / "data" / FILE_NAME).unlink()
    await found.follow(4.0)
    assert len(read_ring(tmp_path / "data" / FILE_NAME).keys) == 2
    found.close()


async def test_nodes_with_one_secret_have_one_key_and_a_new_one_seals_when_all_know_it(
    tmp_path: Path,
) -> None:
    known = [b"old"]
    (tmp_path / "n1").mkdir()
    found = KeyRings(tmp_path / "n1", SeededRandomness("n1"), lambda: tuple(known))
    first = await found.find([])
    other = await rings(tmp_path / "n2", b"old", seed="n2").find([])
    assert first is not None
    assert other is not None
    assert first.newest.id == other.newest.id
    await found.follow(0.0)
    known[:] = [b"new", b"old"]
    for now in (1.0, 1.0 + 2 * SETTLED_S):
        await found.follow(now)
        assert found.ring is not None
        assert len(found.ring.keys) == 2
        assert found.ring.newest.id == first.newest.id, "some may not know the new one yet"
    known[:] = [b"new"]
    await found.follow(100.0)
    assert found.ring.newest.id == first.newest.id
    await found.follow(100.0 + SETTLED_S)
    assert found.ring.newest.id != first.newest.id
    assert first.newest.id in {key.id for key in read_ring(tmp_path / "n1" / FILE_NAME).keys}
    found.close()
