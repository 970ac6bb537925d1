"""`holdfast store list` over several nodes, and commands for a node whose file says no data folder."""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from holdfast.cli.options import read_config
from holdfast.cli.storing import joined, stores_view
from holdfast.node.config import Given
from holdfast.node.stores import DrainStatus, StoreLine, StoreList


def line(slot: str, drain: DrainStatus | None = None) -> StoreLine:
    return StoreLine(
        slot=slot, store=None, path=f"/{slot}", state="healthy", region="r", zone="z", host="h", drain=drain
    )


def shown(stores: StoreList) -> list[str]:
    out = StringIO()
    Console(file=out, width=200).print(stores_view(stores))
    return [text.rstrip() for text in out.getvalue().splitlines()]


def test_the_stores_of_all_nodes_are_one_list_and_who_is_missing_is_said() -> None:
    draining = DrainStatus(1024, 1, False, 0.0, None)
    found = joined(
        [
            ("n1", StoreList((line("disk1"), line("disk2")), 0.1)),
            ("n2", "it is silent"),
            ("n3", StoreList((line("disk1", draining),), 0.2, True, 10, 20, ("a remark",))),
        ]
    )
    assert [(one.node, one.slot) for one in found.stores] == [
        ("n1", "disk1"),
        ("n1", "disk2"),
        ("n3", "disk1"),
    ]
    assert (found.uneven, found.bytes_moved, found.bytes_to_move) == (0.2, 10, 20)
    lines = shown(found)
    assert lines[0].split()[:3] == ["NODE", "STORE", "STATE"]
    assert lines[3].split()[:3] == ["n3", "disk1", "healthy"]
    assert "n3/disk1 is being emptied: 1 shard (1.0 KiB) is left." in lines
    assert "Note: n3: a remark" in lines
    assert lines[-1] == "The stores of n2 are not shown: it is silent"


def test_of_one_node_there_is_no_column_of_nodes() -> None:
    assert shown(StoreList((line("disk1"),)))[0].split()[0] == "STORE"


def test_a_file_that_says_no_data_folder_means_the_one_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    for folder in (home, here):
        folder.mkdir()
    file = home / "holdfast.toml"
    file.write_text("port = 9001\n")
    monkeypatch.chdir(here)
    assert read_config(file, Given()).data == here / "holdfast-data", "as ever, where there is none yet"
    (home / "holdfast-data").mkdir()
    assert read_config(file, Given()).data == home / "holdfast-data"
    assert read_config(file, Given(data=Path("other"))).data == here / "other"
    (here / "holdfast-data").mkdir()
    assert read_config(file, Given()).data == here / "holdfast-data", "where it was so far, it stays"
