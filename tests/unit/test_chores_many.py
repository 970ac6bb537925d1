"""What one process took for granted of its chores, and several may not (decision 28), case by case."""

import pytest

from holdfast.base.errors import Fenced, Unavailable
from holdfast.chores.lease import COURTESY_S, TTL_S
from holdfast.chores.runner import SETTINGS_S, ChoreRunner
from holdfast.chores.sharing import OF_EACH_NODE, TOGETHER
from holdfast.chores.strays import STRAY_AGE_S, WALK_EVERY_S, FindStrays
from holdfast.cluster.fences import ROTATE_AT_LAST_S, OwnFences
from holdfast.cluster.others import ClusterOthers
from holdfast.index.memory import MemoryIndex, MemoryRows
from holdfast.recovery.journal import HEARD_S, Journal
from tests.kit.kept import INCARNATION, Kept, put
from tests.kit.rig import Rig, build_rig
from tests.kit.virtual import VirtualClock
from tests.unit.test_chores_strays import blobs, graves, uncommitted

pytestmark = pytest.mark.virtual


class Counting:
    """Counts its steps, and how often the lease came and went."""

    interval_s = 1.0

    def __init__(self, name: str) -> None:
        self.name = name
        self.steps = self.taken = self.handed = 0

    async def step(self) -> bool:
        self.steps += 1
        return False

    def took_over(self) -> None:
        self.taken += 1

    def handed_over(self) -> None:
        self.handed += 1


class Node:
    """The chores of one of several nodes."""

    def __init__(self, clock: VirtualClock, index: MemoryIndex, holder: str, *names: str) -> None:
        self.chores = {name: Counting(name) for name in names}
        self.reaches_others = True
        self.runner = ChoreRunner(
            list(self.chores.values()),
            clock,
            lambda *_: None,
            index=index,
            holder=holder,
            shared=True,
            reaches_others=lambda: self.reaches_others,
        )


async def two_nodes(*names: str) -> tuple[VirtualClock, MemoryIndex, Node, Node]:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    one, other = Node(clock, index, "a", *names), Node(clock, index, "b", *names)
    one.runner.start()
    await clock.sleep(2)
    other.runner.start()
    await clock.sleep(20)
    return clock, index, one, other


async def test_chores_that_know_of_each_other_are_all_done_by_the_same_node() -> None:
    clock = VirtualClock()
    index = MemoryIndex(clock)
    # The first asks for one of each lease only; the other for all, and would get what is free.
    one, other = Node(clock, index, "a", "journal", "repair"), Node(clock, index, "b", *TOGETHER)
    one.runner.start()
    await clock.sleep(2)
    other.runner.start()
    await clock.sleep(20)
    assert all(chore.steps for chore in one.chores.values())
    assert not [name for name in TOGETHER if other.runner.is_here(name) or other.chores[name].steps]
    await one.runner.close()
    await clock.sleep(TTL_S + 10)
    assert all(other.runner.is_here(name) and other.chores[name].steps for name in TOGETHER)
    await other.runner.close()


async def test_a_node_that_is_cut_off_leaves_to_others_what_needs_their_stores() -> None:
    names = ("journal", "repair", "absent", "scrub", "debts", "drain", "cleanup")
    kept = {"journal", "cleanup"}
    clock, _, one, other = await two_nodes(*names)
    assert {name for name in names if one.runner.is_here(name)} == set(names)
    one.reaches_others = False
    # Well before a lease would have run out.
    await clock.sleep(TTL_S / 3)
    assert {name for name in names if one.runner.is_here(name)} == kept
    assert {name for name in names if other.runner.is_here(name)} == set(names) - kept
    assert other.chores["repair"].taken == 1
    assert one.chores["repair"].handed == 1
    worked = one.chores["repair"].steps
    await clock.sleep(10 * COURTESY_S)
    assert one.chores["repair"].steps == worked, "as long as somebody has it who reaches the others"

    # It is one of them again, and takes what becomes free.
    one.reaches_others, other.reaches_others = True, False
    await clock.sleep(TTL_S / 3)
    assert {name for name in names if one.runner.is_here(name)} == set(names)
    for node in (one, other):
        await node.runner.close()


async def test_where_all_are_cut_off_the_work_goes_on_in_turns_and_goes_to_the_first_that_is_not() -> None:
    clock, _, one, other = await two_nodes("repair")
    one.reaches_others = other.reaches_others = False
    steps = []
    for _ in range(8):
        before = one.chores["repair"].steps + other.chores["repair"].steps
        await clock.sleep(COURTESY_S / 2)
        steps.append(one.chores["repair"].steps + other.chores["repair"].steps - before)
    assert steps[0] <= 1
    assert max(steps) > COURTESY_S / 4, "somebody does what can be done"
    other.reaches_others = True
    await clock.sleep(2 * COURTESY_S)
    assert other.runner.is_here("repair")
    assert not one.runner.is_here("repair")
    before = other.chores["repair"].steps
    await clock.sleep(4 * COURTESY_S)
    assert other.chores["repair"].steps > before + 3 * COURTESY_S
    for node in (one, other):
        await node.runner.close()


async def test_what_a_node_has_is_looked_after_by_each_node() -> None:
    names = tuple(OF_EACH_NODE)
    _, _, one, other = await two_nodes(*names)
    assert all(node.chores[name].steps > 5 for node in (one, other) for name in names)
    await one.runner.close()
    await other.runner.close()


async def test_who_gets_a_lease_forgets_what_he_knew_and_who_loses_it_what_was_left_to_do() -> None:
    clock, index, one, other = await two_nodes("repair")
    ours, theirs = one.chores["repair"], other.chores["repair"]
    assert (ours.steps > 5, theirs.steps) == (True, 0)
    assert theirs.handed, "nothing is left to do here"
    assert ours.taken == 1
    await one.runner.close()
    await clock.sleep(TTL_S + 10)
    assert theirs.steps
    assert theirs.taken == 1
    again = Node(clock, index, "c", "repair")
    again.runner.start()
    await clock.sleep(20)
    assert again.chores["repair"].handed
    await other.runner.close()
    await again.runner.close()


async def test_a_chore_that_is_paused_at_one_node_rests_at_all() -> None:
    clock, _, one, other = await two_nodes("scrub")
    await other.runner.pause("scrub")
    await clock.sleep(SETTINGS_S + 2)
    steps = one.chores["scrub"].steps
    assert steps > 5
    await clock.sleep(60)
    assert one.chores["scrub"].steps == steps
    await other.runner.resume("scrub")
    await clock.sleep(SETTINGS_S + 5)
    assert one.chores["scrub"].steps + other.chores["scrub"].steps > steps, "whoever has the lease now"
    await one.runner.close()
    await other.runner.close()


def writer_of(kept: Kept, index: MemoryIndex | None = None) -> Journal:
    """The journal of one of several nodes over the same rows and stores."""
    journal = Journal(index or kept.index, kept.packs, kept.rig.clock, kept.rig.randomness, kept.told.append)
    journal.began_elsewhere = lambda: 0
    return journal


async def test_the_journal_goes_on_where_another_node_left_it() -> None:
    kept = Kept()
    one, other = writer_of(kept), writer_of(kept)
    for turn in range(4):
        journal = (one, other)[turn % 2]
        journal.took_over()
        before = kept.blobs()
        await journal.step()
        assert kept.blobs() == before, "what the other one wrote is not written again"
        for number in range(3):
            await kept.commit(put(f"{turn} {number}", b"x"))
            while await journal.step():
                pass
        assert journal.position.revision == kept.rows.revision
    loaded, rows = await kept.loaded()
    assert (loaded.revision, rows) == (kept.rows.revision, kept.now())
    assert not loaded.gap


async def test_an_index_of_which_not_all_was_heard_yet_did_not_go_back() -> None:
    kept = Kept()
    one = writer_of(kept)
    await kept.commit(put("a", b"1"))
    await one.step()
    other = writer_of(kept, MemoryIndex(kept.rig.clock, MemoryRows(INCARNATION)))  # has heard nothing yet
    for _ in range(3):
        with pytest.raises(Unavailable):
            await other.step()
        await kept.rig.clock.sleep(HEARD_S / 4)
        assert not other.is_ahead
        assert not other.covers(1), "nothing is deleted meanwhile"
    other._index = kept.index
    await other.step()
    assert other.is_open


async def test_an_index_that_stays_behind_its_journal_did() -> None:
    kept = Kept()
    await kept.commit(put("a", b"1"))
    await writer_of(kept).step()
    other = writer_of(kept, MemoryIndex(kept.rig.clock, MemoryRows(INCARNATION)))
    with pytest.raises(Unavailable):
        await other.step()
    await kept.rig.clock.sleep(HEARD_S + 1)
    with pytest.raises(Fenced, match="went back"):
        await other.step()
    assert other.is_ahead


async def live(rig: Rig, finder: FindStrays, seconds: float) -> None:
    for _ in range(int(seconds / WALK_EVERY_S) + 1):
        while await finder.step():
            pass
        await rig.clock.sleep(WALK_EVERY_S)


async def test_a_shard_stays_as_long_as_a_process_that_was_there_when_it_was_seen_may_enter_it() -> None:
    rig = build_rig(seed=3)
    fences = OwnFences(rig.index, rig.clock, rig.randomness, "n1", "boot")
    await fences.open()
    ticket = fences.ticket()  # somebody of another process, who is stopped for days
    await uncommitted(rig)
    there = await blobs(rig)
    assert there
    finder = FindStrays(rig.attached, rig.index, rig.clock, ClusterOthers(rig.index, rig.clock))
    await live(rig, finder, 2 * STRAY_AGE_S)
    assert (await graves(rig), finder.found) == (0, 0)
    del ticket
    await rig.clock.sleep(ROTATE_AT_LAST_S)
    await fences.tend()
    await fences.tend()
    await live(rig, finder, 2 * STRAY_AGE_S)
    assert finder.found == there
    assert await graves(rig) == 1
