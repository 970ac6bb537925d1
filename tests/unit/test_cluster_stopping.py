"""One node at a time is told that it may stop."""

import asyncio

import pytest

from holdfast.base.errors import Unavailable
from holdfast.cluster.members import Member, Sight
from holdfast.cluster.rows import FORMAT, NodeRow
from holdfast.cluster.stopping import CLAIM_S, Stopping
from holdfast.index.memory import Fault, MemoryIndex, Mishap
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
