"""One node at a time has the word to stop, and who only asks takes it from nobody."""

import asyncio

import pytest

from holdfast.base.errors import Unavailable
from holdfast.cluster.members import Member, Sight
from holdfast.cluster.rows import FORMAT, STOPPING_ROW, NodeRow, encode, node_row
from holdfast.cluster.stopping import CLAIM_S, Stopping
from holdfast.index.memory import Fault, MemoryIndex, Mishap
from holdfast.index.port import Transaction
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual


def member(name: str, boot: str) -> Member:
    row = NodeRow(FORMAT, "", boot, "", (1,), "", "", "r", "z", "h", False, False, (), 0)
    return Member(name, row, 1, None, Sight.ALIVE, 0.0)


MEMBERS = {name: member(name, "1") for name in ("a", "b", "c")}


async def test_of_two_that_ask_at_once_one_hears_yes() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    asked = [Stopping(index, clock, name, "1") for name in "abc"]
    heard = await asyncio.gather(*[one.claim(MEMBERS) for one in asked])
    assert heard.count("") == 1
    first = "abc"[heard.index("")]
    assert {other for other in heard if other} == {first}
    assert await asked[heard.index("")].claim(MEMBERS) == "", "who may may ask again"


async def test_of_two_that_claim_it_for_the_same_node_both_have_it() -> None:
    clock = VirtualClock()
    a = Stopping(MemoryIndex(clock), clock, "a", "1")
    assert await asyncio.gather(a.claim(MEMBERS), a.claim(MEMBERS), a.claim(MEMBERS)) == ["", "", ""]


async def test_who_only_asks_changes_nothing() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    asked = [Stopping(index, clock, name, "1") for name in "abc"]
    for _ in range(3):
        assert await asyncio.gather(*[one.holder(MEMBERS) for one in asked]) == ["", "", ""]
    assert await index.get([STOPPING_ROW]) == [None]

    a, b, _ = asked
    assert await a.claim(MEMBERS) == ""
    before = await index.get([STOPPING_ROW])
    await clock.sleep(CLAIM_S / 2)
    assert await asyncio.gather(*[one.holder(MEMBERS) for one in asked]) == ["", "a", "a"]
    await clock.sleep(CLAIM_S + 1)
    assert await b.holder(MEMBERS) == "", "asking, even by the one that has it, does not make it last longer"
    assert await index.get([STOPPING_ROW]) == before


async def test_the_word_goes_on_when_that_node_is_back_or_gone_or_never_stopped() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    a, b = Stopping(index, clock, "a", "1"), Stopping(index, clock, "b", "1")
    assert await a.claim(MEMBERS) == ""
    assert await b.claim(MEMBERS) == "a"
    assert await b.claim(MEMBERS | {"a": member("a", "2")}) == "", "it is back, as another process"

    assert await a.claim(MEMBERS) == "b"
    assert await a.claim({"a": MEMBERS["a"]}) == "", "it was removed"

    c = Stopping(index, clock, "c", "1")
    assert await c.claim(MEMBERS) == "a"
    await clock.sleep(CLAIM_S - 1)
    assert await c.claim(MEMBERS) == "a"
    await a.claim(MEMBERS)
    await clock.sleep(CLAIM_S - 1)
    assert await c.claim(MEMBERS) == "a", "it has asked again since"
    await clock.sleep(CLAIM_S + 1)
    assert await c.claim(MEMBERS) == ""


async def test_a_restart_that_was_not_seen_yet_gives_nobody_else_the_word() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    now = MEMBERS | {"a": member("a", "2")}

    async def register(name: str, boot: str) -> None:
        row = encode(member(name, boot).row)
        await index.commit([Transaction((), ((node_row(name), row),))])

    await register("a", "1")
    b = Stopping(index, clock, "b", "1")
    assert await Stopping(index, clock, "a", "1").claim(MEMBERS) == ""
    await register("a", "2")
    assert await b.claim(MEMBERS) == "a", "that a was ready was said by the process that has stopped"

    assert await Stopping(index, clock, "a", "2").claim(now) == ""
    assert await b.claim(MEMBERS) == "a", "a was told so as the process that b has not seen yet"
    assert await b.claim(now) == "a"
    await register("a", "3")
    assert await b.claim(MEMBERS | {"a": member("a", "3")}) == ""


@pytest.mark.parametrize("landed", [True, False])
async def test_an_answer_that_is_lost_is_looked_up(landed: bool) -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    index.faults.append(Fault(Mishap.APPLIED if landed else Mishap.NOT_APPLIED))
    a = Stopping(index, clock, "a", "1")
    if landed:
        assert await a.claim(MEMBERS) == ""
    else:
        with pytest.raises(Unavailable):
            await a.claim(MEMBERS)
