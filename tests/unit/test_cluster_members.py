"""Nodes that register, beat and look at each other: on a virtual clock, over an index in memory."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from holdfast.base.errors import Fenced, Unavailable
from holdfast.base.randomness import SeededRandomness
from holdfast.cluster.members import (
    BEAT_EVERY_S,
    BEAT_PATIENCE_S,
    LOOK_EVERY_S,
    READY_S,
    Changed,
    Members,
    Sight,
)
from holdfast.cluster.presence import Presence
from holdfast.cluster.rows import (
    FORMAT,
    BeatRow,
    NodeRow,
    RemovedRow,
    beat_row,
    decode,
    encode,
    node_row,
    removed_row,
)
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import Outcome, Row, Transaction, Unknown
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual

RANDOMNESS = SeededRandomness(1)


class MoodyIndex:
    """An index that can be away, or keep its answers to itself."""

    def __init__(self, inner: MemoryIndex) -> None:
        self._inner = inner
        self.away = False
        self.silent = 0
        """So many answers to commits are lost, after they took effect."""

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        self._check()
        return await self._inner.get(keys)

    async def scan(self, start: bytes, end: bytes, *, limit: int) -> object:
        self._check()
        return await self._inner.scan(start, end, limit=limit)

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        self._check()
        outcomes = await self._inner.commit(transactions)
        if self.silent:
            self.silent -= 1
            return [Unknown("lost") for _ in outcomes]
        return outcomes

    def _check(self) -> None:
        if self.away:
            raise Unavailable("away")


class Node:
    """One node's presence, with all that it told."""

    def __init__(self, name: str, index: MemoryIndex, clock: VirtualClock, uuid: str = "") -> None:
        self.index = MoodyIndex(index)
        self.clock = clock
        self.client = f"http://{name}:9000"
        self.changes: list[Changed] = []
        self.fenced: list[Fenced] = []
        self.uuid, self.boot = uuid or f"uuid of {name}", RANDOMNESS.token(8).hex()
        self.presence = Presence(
            name,
            self.uuid,
            self.boot,
            self.index,  # type: ignore[arg-type]
            clock,
            describe=self.row,
            reading=lambda: 0,
            on_change=self.changes.append,
            on_fenced=self.fenced.append,
        )

    def row(self) -> NodeRow:
        return NodeRow(
            FORMAT, self.uuid, self.boot, "1", (1,), self.client, "", "r", "z", "h", False, False, (), 0
        )

    async def start(self) -> "Node":
        await self.presence.check()
        await self.presence.register()
        self.presence.start()
        return self

    def sight(self, name: str) -> Sight | None:
        member = self.presence.members.get(name)
        return member.sight if member is not None else None


async def two() -> tuple[MemoryIndex, VirtualClock, Node, Node]:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    return index, clock, await Node("n1", index, clock).start(), await Node("n2", index, clock).start()


async def test_a_node_that_joins_is_known_everywhere_within_a_second() -> None:
    index, clock, one, two_ = await two()
    began = clock.monotonic()
    three = await Node("n3", index, clock).start()
    while one.sight("n3") is None or two_.sight("n3") is None:
        await clock.sleep(0.05)
    assert clock.monotonic() - began <= 1.0
    assert three.sight("n1") is Sight.ALIVE
    for node in (one, two_, three):
        await node.presence.close()


async def test_a_node_that_dies_is_silent_after_the_patience_and_alive_when_it_returns() -> None:
    index, clock, one, two_ = await two()
    await clock.sleep(20)
    assert one.sight("n2") is Sight.ALIVE
    await two_.presence.close()
    died = clock.monotonic()
    while one.sight("n2") is Sight.ALIVE:
        await clock.sleep(0.05)
    assert BEAT_PATIENCE_S - BEAT_EVERY_S <= clock.monotonic() - died <= BEAT_PATIENCE_S + 1.0
    await clock.sleep(60)
    assert one.sight("n2") is Sight.SILENT
    again = await Node("n2", index, clock, uuid=two_.uuid).start()
    await clock.sleep(2 * LOOK_EVERY_S)
    assert one.sight("n2") is Sight.ALIVE
    assert one.presence.members["n2"].row.boot == again.boot
    told = [change.after.sight if change.after else None for change in one.changes if change.name == "n2"]
    assert told == [Sight.ALIVE, Sight.SILENT, Sight.ALIVE]
    await one.presence.close()
    await again.presence.close()


async def test_what_a_node_says_of_itself_is_seen_by_others_at_once_and_only_then_written() -> None:
    index, clock, one, two_ = await two()
    await clock.sleep(5)
    (before,) = await index.get([node_row("n2")])
    await clock.sleep(5)
    (row,) = await index.get([node_row("n2")])
    assert row == before
    two_.client = "http://elsewhere:1"
    two_.presence.announce()
    await clock.sleep(LOOK_EVERY_S + 0.1)
    assert one.presence.members["n2"].row.client == "http://elsewhere:1"
    for node in (one, two_):
        await node.presence.close()


async def test_two_machines_of_one_name_do_not_both_start() -> None:
    index, clock, one, two_ = await two()
    other = Node("n2", index, clock, uuid="of another machine")
    with pytest.raises(Fenced, match="holdfast node remove n2"):
        await other.presence.check()
    with pytest.raises(Fenced, match="already"):
        await other.presence.register()
    await clock.sleep(5)
    assert not two_.fenced
    for node in (one, two_):
        await node.presence.close()


async def test_a_node_that_was_removed_does_not_come_back_by_itself() -> None:
    index, clock, one, two_ = await two()
    left = encode(RemovedRow(FORMAT, two_.uuid))
    await index.commit([Transaction((), ((removed_row("n2"), left),), (node_row("n2"), beat_row("n2")))])
    await clock.sleep(2)
    assert "remove --cancel n2" in str(two_.fenced[0])
    await two_.presence.close()
    again = Node("n2", index, clock)
    for attempt in (again.presence.check, again.presence.register):
        with pytest.raises(Fenced, match="was removed"):
            await attempt()
    # Another machine takes the name, and is what is left to know.
    other = Node("n2", index, clock, uuid="of another machine")
    await other.presence.register()
    assert await index.get([removed_row("n2")]) == [None]
    await one.presence.close()


async def test_a_node_that_was_removed_stops_and_says_why() -> None:
    index, clock, one, two_ = await two()
    gone = Transaction((), (), (node_row("n2"), beat_row("n2")))
    await index.commit([gone])
    await clock.sleep(LOOK_EVERY_S + 0.1)
    assert one.sight("n2") is None
    await clock.sleep(BEAT_EVERY_S)
    assert "was removed" in str(two_.fenced[0])
    assert not two_.presence.is_ready
    (beat,) = await index.get([beat_row("n2")])
    assert beat is None
    for node in (one, two_):
        await node.presence.close()


async def test_a_process_that_starts_ends_the_one_before_it() -> None:
    index, clock, one, two_ = await two()
    again = Node("n2", index, clock, uuid=two_.uuid)
    await again.presence.register()
    await clock.sleep(2)
    assert "Another process" in str(two_.fenced[0])
    for node in (one, two_, again):
        await node.presence.close()


async def test_a_node_is_ready_while_its_beats_arrive_and_not_a_moment_longer() -> None:
    _, clock, one, two_ = await two()
    await clock.sleep(10)
    assert one.presence.is_ready
    one.index.away = True
    cut = clock.monotonic()
    while one.presence.is_ready:
        await clock.sleep(0.05)
    assert READY_S - BEAT_EVERY_S <= clock.monotonic() - cut <= READY_S + 0.1
    assert two_.sight("n1") is Sight.ALIVE  # it stops being ready before others think it silent
    await clock.sleep(30)
    assert two_.sight("n1") is Sight.SILENT
    one.index.away = False
    await clock.sleep(1.5)
    assert one.presence.is_ready
    assert two_.sight("n1") is Sight.ALIVE
    for node in (one, two_):
        await node.presence.close()


async def test_who_could_not_look_takes_nobody_for_silent() -> None:
    _, clock, one, two_ = await two()
    await clock.sleep(5)
    one.index.away = True
    await clock.sleep(60)
    one.index.away = False
    for _ in range(40):
        await clock.sleep(0.1)
        assert one.sight("n2") is Sight.ALIVE
    for node in (one, two_):
        await node.presence.close()


async def test_answers_that_are_lost_neither_stop_a_node_nor_its_news() -> None:
    index, clock, one, two_ = await two()
    two_.index.silent = 3
    two_.client = "http://elsewhere:1"
    two_.presence.announce()
    await clock.sleep(6)
    assert not two_.fenced
    assert two_.presence.is_ready
    assert one.presence.members["n2"].row.client == "http://elsewhere:1"
    late = Node("n3", index, clock)
    late.index.silent = 1
    await late.start()
    assert late.presence.is_ready or late.presence.members["n3"].is_alive
    for node in (one, two_, late):
        await node.presence.close()


async def test_beats_of_a_boot_are_never_alike() -> None:
    index, clock, one, two_ = await two()
    seen = set()
    for _ in range(5):
        (row,) = await index.get([beat_row("n1")])
        assert row is not None
        seen.add(decode(BeatRow, row.value).count)
        await clock.sleep(BEAT_EVERY_S)
    assert len(seen) == 5
    for node in (one, two_):
        await node.presence.close()


async def test_an_index_without_rows_has_no_members() -> None:
    members = Members()
    row = NodeRow(FORMAT, "u", "b", "1", (1,), "", "", "r", "z", "h", False, False, (), 0)
    (joined,) = members.look({"n1": (row, 1)}, {}, 0.0)
    assert (joined.before, joined.after) == (None, members.all["n1"])
    # A beat that never came is silence, too; and a new boot is heard from its row on.
    assert [change.after.sight for change in members.look({"n1": (row, 1)}, {}, 1.0) if change.after] == []
    for now in (2.0, 3.0, 3.6):
        changes = members.look({"n1": (row, 1)}, {}, now)
    assert [change.after.sight for change in changes if change.after] == [Sight.SILENT]
    (anew,) = members.look({"n1": (replace(row, boot="c"), 2)}, {}, 4.0)
    assert anew.after is not None
    assert anew.after.sight is Sight.ALIVE
    (left,) = members.look({}, {}, 5.0)
    assert left.after is None
