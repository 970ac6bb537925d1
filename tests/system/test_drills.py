"""Drills on one node: real processes, real files, clients at a fixed rate, and one fault after the other.

Asserted are the bars that count: no request failed, nothing acknowledged lost, no byte wrong, and afterwards
every shard on every disk what the byte tables say. Times are printed (`make drill` shows the table); they are
held on the virtual clock, by `tests/simulation/test_latency.py`. The numbers are those of the list of drills.
"""

import asyncio
import json
import os
import random
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from holdfast.node.status import Status
from tests.kit.audit import Audit, audit
from tests.kit.drill import Drill, DrillNode, Load, is_out, store_is
from tests.kit.harm import Harm, harmed
from tests.kit.outcome import show
from tests.kit.regions import index_regions
from tests.kit.s3 import call
from tests.kit.trees import flip_bytes, shard_files

pytestmark = pytest.mark.slow

RATE = float(os.environ.get("HOLDFAST_DRILL_RATE", "20"))
SECONDS = float(os.environ.get("HOLDFAST_DRILL_SECONDS", "1"))
THOROUGH = bool(os.environ.get("HOLDFAST_THOROUGH"))
LINGERING_S = 2.5
"""How long a copy of the index gathers records before it applies them, and a little."""


@asynccontextmanager
async def drilling(home: Path) -> AsyncIterator[Drill]:
    """A node under drill. At the end every shard on every disk is counted."""
    with DrillNode(home) as node:
        load = Load(node.ask, rate=RATE, seed=home.name)
        await load.begin()
        drill = Drill(node, load, seconds=SECONDS)
        yield drill
        await drill.whole()
        await asyncio.sleep(LINGERING_S)
        assert await asyncio.to_thread(node.stop) == 0
        counted = await asyncio.to_thread(audited, node)
        assert counted.packs > 0
        assert counted.faults == []
        show(drill.outcomes)


def audited(node: DrillNode) -> Audit:
    """The audit of a node that was stopped. It reads the rows from a copy, which may lag behind when the node
    stops: each start brings it up to date, and what is really wrong is wrong after every one of them."""
    for _ in range(3):
        node.start()
        threading.Event().wait(LINGERING_S)
        assert node.stop() == 0
        if not (counted := audit(node.data)).faults:
            break
    return counted


def remove(path: Path) -> None:
    """As `rm -rf`, again where the node put something into a folder that was just being emptied."""
    while path.exists():
        shutil.rmtree(path, ignore_errors=True)


def names_in(store: Path) -> list[str]:
    return [path.name for path in shard_files(store)]


def spoil(stores: list[Path], chance: random.Random) -> None:
    """A flip in each shard of these stores."""
    for store in stores:
        for path in shard_files(store):
            try:
                flip_bytes(path, 1, chance)
            except FileNotFoundError:
                continue  # the node has removed it between our look and our hand


def wrong_blocks(*slots: str) -> Callable[[Status], bool]:
    """Whether wrong blocks have been found on all of them."""

    def holds(status: Status) -> bool:
        return all(store.wrong_blocks for store in status.stores if store.slot in slots)

    return holds


async def test_disks_that_fail_under_load(tmp_path: Path) -> None:
    chance = random.Random(1)
    async with drilling(tmp_path) as drill:
        node, data = drill.node, drill.node.data

        def well(*slots: str) -> Callable[[], None]:
            return lambda: [node.tell(slot, well=True) for slot in slots] and None

        await drill.run(
            "7 a disk vanishes, an empty one comes",
            lambda: remove(data / "disk2"),
            lambda: (data / "disk2").mkdir(),
            noticed=store_is("disk2"),
        )
        await drill.run(
            "8 shards of a disk cannot be read",
            lambda: node.tell("disk3", unreadable=names_in(data / "disk3")[::8]),
            hidden=True,
        )
        well("disk3")()
        await drill.run(
            "9 a disk takes no writes",
            lambda: node.tell("disk4", write_errors=1.0),
            well("disk4"),
            noticed=is_out("disk4"),
            hidden=True,
        )
        await drill.run("9 a disk is full", lambda: node.tell("disk5", full=True), well("disk5"), hidden=True)
        await drill.run(
            "10 syncs fail", lambda: node.tell("disk6", sync_errors=0.3), well("disk6"), hidden=True
        )
        await drill.run(
            "14 a flip in each shard of a disk", lambda: spoil([data / "disk1"], chance), hidden=True
        )
        await drill.run(
            "15 flips in each shard of m disks",
            lambda: spoil([data / "disk2", data / "disk5"], chance),
            hidden=True,
        )
        await drill.run(
            "19 a disk is 20 times slower",
            lambda: node.tell("disk3", delay_s=[0.02, 0.04]),
            well("disk3"),
            # Next to disks that a busy machine slows down it may not look slow at all.
            noticed=store_is("disk3", "sitting-out") if THOROUGH else None,
        )
        await drill.run(
            "20 a disk hangs", lambda: node.tell("disk4", hang=True), well("disk4"), noticed=is_out("disk4")
        )
        for outcome in drill.outcomes:
            outcome.check()


async def test_disks_that_fail_take_the_index_on_them_along(tmp_path: Path) -> None:
    """On m disks at once, among them the one with the copy of the rows that is read."""
    async with drilling(tmp_path) as drill:
        node = drill.node

        def both(**script: object) -> Callable[[], None]:
            return lambda: [node.tell(slot, **script) for slot in ("disk1", "disk2")] and None

        well = both(well=True)
        outcome = await drill.run(
            "8 two disks cannot be read", both(read_errors=1.0), well, noticed=is_out("disk1", "disk2")
        )
        outcome.check()
        outcome = await drill.run("10 half of all syncs fail on two disks", both(sync_errors=0.5), well)
        outcome.check()
        outcome = await drill.run(
            "20 two disks hang", both(hang=True), well, noticed=is_out("disk1", "disk2")
        )
        outcome.check()


async def test_a_second_fault_during_repair_up_to_m_and_then_one_more(tmp_path: Path) -> None:
    async with drilling(tmp_path) as drill:
        node, data = drill.node, drill.node.data

        def another() -> None:
            remove(data / "disk1")
            (data / "disk1").mkdir()
            node.tell("disk4", hang=True)

        outcome = await drill.run(
            "26 a disk hangs while another heals",
            another,
            lambda: node.tell("disk4", well=True),
            noticed=store_is("disk4"),
        )
        outcome.check()

        def too_many() -> None:
            for slot in ("disk2", "disk3", "disk6"):
                node.tell(slot, vanished=True)

        def back() -> None:
            for slot in ("disk2", "disk3", "disk6"):
                node.tell(slot, well=True)

        outcome = await drill.run("26 m + 1 disks are away", too_many, back, noticed=store_is("disk6"))
        assert (outcome.wrong, outcome.lost) == ([], [])
        assert outcome.failed, "more is away than the scheme can lose"
        assert all(": 503 " in error for error in outcome.failed), outcome.failed


async def test_flips_in_more_shards_than_the_scheme_can_lose_are_an_explicit_error(tmp_path: Path) -> None:
    """Drill 15, the second half: an error that says so, no wrong byte, and all is well when one is back."""
    with DrillNode(tmp_path) as node:
        drill = Drill(node, Load(node.ask, rate=1, seed="15"), seconds=0)
        await call(node.port, "PUT", "/drill")
        body = random.Random(15).randbytes(300_000)
        await call(node.port, "PUT", "/drill/key", body=body)
        await drill.whole()
        spoiled = {
            path: path.read_bytes()
            for slot in ("disk1", "disk2", "disk3")
            for path in shard_files(node.data / slot)
            if path.stat().st_size > len(body) // 4  # else of the index's journal
        }
        assert len(spoiled) == 3
        for path, content in spoiled.items():
            path.write_bytes(content[:4096] + bytes(len(content) - 4096))
        answer = await call(node.port, "GET", "/drill/key")
        assert answer.status == 500
        assert b"The object is damaged" in answer.body
        summary = await drill.verify()
        assert (summary.lost, summary.packs) == (1, 1)
        path, content = next(iter(spoiled.items()))
        path.write_bytes(content)
        answer = await call(node.port, "GET", "/drill/key")
        assert (answer.status, answer.body) == (200, body)
        await drill.verify()
        await drill.whole()
        assert (await drill.verify()).whole == 1


async def test_power_cuts_and_disks_that_change_while_the_node_is_down(tmp_path: Path) -> None:
    async with drilling(tmp_path) as drill:
        node, data = drill.node, drill.node.data
        images = tmp_path / "images"
        shutil.copytree(data / "disk6", images / "disk6")

        await drill.restarting(
            "11 power cut, m disks lied about syncs", lie(node, "disk2", "disk3"), kill(node)
        )

        def torn() -> None:
            node.kill()
            for slot in ("disk4", "disk5"):
                for path in shard_files(data / slot)[::2]:
                    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            tear_last_frame(data / "disk1" / "index")

        await drill.restarting("13 power cut, torn writes", nothing, torn)

        for harm in (Harm.FLIP, Harm.ZERO, Harm.TRUNCATE):

            def spoil_members(harm: Harm = harm) -> None:
                node.kill()
                for number in (1, 2):
                    for path in (data / f"disk{number}" / "index").iterdir():
                        content = path.read_bytes()
                        if content:
                            path.write_bytes(harmed(content, harm, 0, len(content)) or b"")

            await drill.restarting(f"16 {harm.value} in two of five index members", nothing, spoil_members)

        def old_image() -> None:
            node.stop()
            remove(data / "disk6")
            shutil.copytree(images / "disk6", data / "disk6")

        await drill.restarting(
            "17 an old image of a disk",
            nothing,
            old_image,
            sees=store_is("disk6", "stale"),
            then=lambda: empty(data / "disk6"),
        )

        def swap() -> None:
            (data / "disk2").rename(data / "aside")
            (data / "disk5").rename(data / "disk2")
            (data / "aside").rename(data / "disk5")

        def stop_and_swap() -> None:
            node.stop()
            swap()

        await drill.restarting(
            "18 two disks swapped", nothing, stop_and_swap, sees=store_is("disk2", "swapped"), then=swap
        )

        def foreign() -> None:
            node.stop()
            identity = data / "disk3" / "holdfast-store.json"
            told = json.loads(identity.read_text())
            (data / "right").mkdir()
            (data / "disk3").rename(data / "right" / "disk3")
            (data / "disk3").mkdir()
            identity.write_text(json.dumps(told | {"cluster": "another"}))

        def right() -> None:
            remove(data / "disk3")
            (data / "right" / "disk3").rename(data / "disk3")

        await drill.restarting(
            "18 a disk of somebody else", nothing, foreign, sees=store_is("disk3", "foreign"), then=right
        )
        for outcome in drill.outcomes:
            outcome.check()


def nothing() -> None:
    """Before the end of the process all is well."""


def kill(node: DrillNode) -> Callable[[], None]:
    return node.kill


def lie(node: DrillNode, *slots: str) -> Callable[[], None]:
    def begin() -> None:
        for slot in slots:
            node.tell(slot, lies=True)

    return begin


def empty(path: Path) -> None:
    remove(path)
    path.mkdir()


def tear_last_frame(member: Path) -> None:
    """The last sector of the last frame that was written never came to the medium."""
    path = max(path for path in member.iterdir() if path.name.startswith("log-"))
    content = path.read_bytes()
    (zeros,) = [region for region in index_regions(path.name, content) if region.name == "zeros to come"]
    if zeros.start > 512:
        path.write_bytes(content[: zeros.start - 512] + bytes(512) + content[zeros.start :])
