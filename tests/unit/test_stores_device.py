"""Directories on one disk are told to be on one disk, whatever they are called."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from holdfast.stores.directory.device import device_name


def name(system: Path, major: int, minor: int, fsid: int = 0) -> str:
    status: Any = SimpleNamespace(st_dev=os.makedev(major, minor))
    space: Any = SimpleNamespace(f_fsid=fsid)
    return device_name(status, space, system)


def block(system: Path, number: str, path: str, **files: str) -> Path:
    folder = system / "devices" / path
    folder.mkdir(parents=True, exist_ok=True)
    (system / "dev" / "block").mkdir(parents=True, exist_ok=True)
    (system / "dev" / "block" / number).symlink_to(folder)
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder


def test_partitions_of_a_disk_are_the_disk(tmp_path: Path) -> None:
    block(tmp_path, "8:0", "sda", wwid="naa.5000 c500\n")
    block(tmp_path, "8:1", "sda/sda1", partition="1")
    block(tmp_path, "8:2", "sda/sda2", partition="2")
    assert name(tmp_path, 8, 0) == name(tmp_path, 8, 1) == name(tmp_path, 8, 2) == "disk-naa.5000-c500"


def test_a_volume_on_one_disk_is_the_disk_and_one_on_several_is_its_own(tmp_path: Path) -> None:
    disks = [block(tmp_path, f"8:{16 * n}", f"sd{n}", serial=f"serial{n}") for n in range(2)]
    for minor, below in ((0, disks[:1]), (1, disks)):
        volume = block(tmp_path, f"253:{minor}", f"dm-{minor}")
        (volume / "slaves").mkdir()
        for disk in below:
            (volume / "slaves" / disk.name).symlink_to(disk)
    assert name(tmp_path, 253, 0) == name(tmp_path, 8, 0) == "disk-serial0"
    assert name(tmp_path, 253, 1) == "disk-dm-1"


def test_a_disk_without_an_identifier_goes_by_its_name(tmp_path: Path) -> None:
    block(tmp_path, "254:0", "vda", serial="\n")
    assert name(tmp_path, 254, 0) == "disk-vda"


def test_file_systems_without_a_disk_go_by_their_own_id(tmp_path: Path) -> None:
    assert name(tmp_path, 0, 45, fsid=0xABC) == "filesystem-0000000000000abc"
    assert name(tmp_path, 0, 45) == "filesystem-0-45"
