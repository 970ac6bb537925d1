"""Stores of other nodes come and go with what their owners say, and with whether these can be reached."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from holdfast.base.ids import StoreId
from holdfast.base.randomness import SeededRandomness
from holdfast.cluster.members import Changed, Member, Sight
from holdfast.cluster.rows import FORMAT, MemberStore, NodeRow
from holdfast.health import StoreHealth, StoreState
from holdfast.health.distance import ASSUMED_S
from holdfast.node.away import away_of, is_cut_off
from holdfast.node.config import Given, StorePlace, make_config
from holdfast.node.keeper import Keeper
from holdfast.node.peers import Line, Peers
from holdfast.node.report import other_statuses
from holdfast.stores.measured import Operation
from holdfast.stores.memory import MemoryStore
from holdfast.stores.port import StoreFailed
from holdfast.topology import Level
from tests.kit.virtual import VirtualClock

pytestmark = pytest.mark.virtual

ONE, TWO = StoreId("store-one"), StoreId("store-two")


class World:
    """A node called n1 without stores of its own, and what it sees of n2, which has two."""

    def __init__(self, tmp_path: Path) -> None:
        self.clock = VirtualClock()
        config = make_config(
            [Given(data=tmp_path, stores=(StorePlace(tmp_path / "d"),), scheme="raid0")], tmp_path
        )
        self.told: list[str] = []
        self.keeper = Keeper(
            config, clock=self.clock, randomness=SeededRandomness(1), on_event=lambda text, **_: None
        )
        self.health = StoreHealth([], 2, 0.0)
        self.came: list[StoreId] = []
        self.keeper.on_attached = self.came.append
        self.reached = True
        self.far_s = 0.0
        self.dialled: list[str] = []
        self.closed = 0
        self.peers = Peers(
            "n1", self.keeper, self.health, lambda _, store: store, self._dial, self.clock, self._tell
        )
        self.member: Member | None = None

    def _tell(self, text: str, **facts: object) -> None:
        self.told.append(f"{facts.get('subject')} {facts.get('before')} {facts.get('after')}: {text}")

    def _dial(self, member: Member) -> Line:
        self.dialled.append(member.row.peer)

        async def reaches() -> bool:
            await self.clock.sleep(self.far_s)
            return self.reached

        async def close() -> None:
            self.closed += 1

        return Line(
            member.row.peer,
            member.row.uuid,
            lambda store: MemoryStore(store, clock=self.clock, randomness=SeededRandomness(2)),
            lambda: asyncio.ensure_future(reaches()),
            lambda: asyncio.ensure_future(close()),
        )

    def see(self, row: NodeRow | None, sight: Sight = Sight.ALIVE, name: str = "n2") -> None:
        after = Member(name, row, 1, None, sight, self.clock.monotonic()) if row is not None else None
        self.peers.changed(Changed(name, self.member, after))
        self.member = after

    @property
    def attached(self) -> set[str]:
        return set(self.keeper.attached)


def store(id: StoreId, slot: str, **other: object) -> MemberStore:
    return replace(MemberStore(slot, id, "local", "local", "n2", "sda", "ready"), **other)  # type: ignore[arg-type]


def row(*stores: MemberStore, peer: str = "n2:9100", protocols: tuple[int, ...] = (1,)) -> NodeRow:
    return NodeRow(FORMAT, "u2", "b2", "1", protocols, "", peer, "r", "z", "n2", False, False, stores, 0)


BOTH = row(store(ONE, "disk1"), store(TWO, "disk2", device="sdb"))


async def test_stores_of_a_member_are_used_like_own_ones(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.see(BOTH)
    assert world.attached == {ONE, TWO}
    assert world.keeper.slot_of(ONE) == "n2/disk1"
    assert world.keeper.count() == 2
    assert world.keeper.topology().count(Level.DEVICE) == 2
    assert world.keeper.topology().count(Level.HOST) == 1
    assert world.health.state(ONE) is StoreState.HEALTHY
    assert not world.keeper.is_gone(ONE)
    await world.peers.round()
    assert world.keeper.room(TWO) > 1
    assert world.came == []
    await world.peers.close()
    assert world.closed == 1


async def test_how_far_a_node_is_is_measured_at_once_and_again(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.far_s = 0.080
    world.see(BOTH)
    assert world.health.trip_s(ONE) == ASSUMED_S, "nothing is known yet"
    await world.clock.sleep(0.081)
    assert world.health.trip_s(ONE) == world.health.trip_s(TWO) == pytest.approx(0.080)
    assert world.health.has_far
    lines = other_statuses(world.keeper.others.values(), world.health)
    assert [(line.reason, line.trip_ms) for line in lines] == [("80 ms away", 80.0)] * 2
    world.far_s = 0.030
    await world.peers.round()
    assert world.health.trip_s(TWO) == pytest.approx(0.030)
    world.reached, world.far_s = False, 0.0
    await world.peers.round()
    assert world.health.trip_s(TWO) == pytest.approx(0.030), "who does not answer is not near"
    await world.peers.close()


async def test_a_store_that_comes_later_is_looked_through(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.see(row(store(ONE, "disk1")))
    world.peers.begin()
    world.see(BOTH)
    assert world.came == [TWO]


async def test_what_its_owner_says_is_away_is_away_and_stays_known(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.see(BOTH)
    world.see(row(store(ONE, "disk1", attachment="missing", reason="It was pulled."), store(TWO, "disk2")))
    assert world.attached == {TWO}
    assert world.health.state(ONE) is StoreState.DOWN
    assert world.keeper.others[ONE].reason == "It was pulled."
    assert ONE in world.keeper.topology().stores
    assert not world.keeper.is_gone(ONE)
    world.see(BOTH)
    assert world.attached == {ONE, TWO}


async def test_one_that_is_drained_takes_nothing_new(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.see(row(store(ONE, "disk1", takes_new=False, draining=True), store(TWO, "disk2")))
    assert (world.keeper.count(), world.keeper.room(ONE)) == (1, 0)
    assert world.attached == {ONE, TWO}


async def test_a_silent_node_that_answers_is_used_and_one_that_does_not_is_away(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.see(BOTH)
    world.see(BOTH, Sight.SILENT)
    await world.peers.round()
    assert world.attached == {ONE, TWO}

    world.reached = False
    await world.peers.round()
    assert world.attached == set()
    assert world.keeper.others[ONE].reason == "node n2 is silent"
    assert len(world.keeper.topology().stores) == 2
    since = world.keeper.others[ONE].since
    await world.clock.sleep(30)
    await world.peers.round()
    assert world.keeper.others[ONE].since == since  # how long it is away decides when it is given up

    world.reached = True
    await world.peers.round()
    assert world.attached == {ONE, TWO}
    world.reached = False
    await world.peers.round()
    assert world.attached == set()
    world.see(BOTH)
    assert world.attached == {ONE, TWO}


async def test_a_node_that_was_removed_takes_its_stores_along(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.see(BOTH)
    world.see(None)
    assert world.attached == set()
    assert world.keeper.topology().stores == ()
    assert world.keeper.is_gone(ONE)
    assert ONE not in world.health.stores
    assert world.told == ["n2  alive: as its beat shows", "n2 alive gone: its row was taken away"]
    await world.peers.close()


async def test_a_new_address_is_dialled_and_an_unknown_protocol_is_not(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.see(BOTH)
    world.see(row(*BOTH.stores, peer="n2:9101"))
    assert world.dialled == ["n2:9100", "n2:9101"]
    assert world.attached == {ONE, TWO}
    world.see(row(*BOTH.stores, peer="n2:9101", protocols=(99,)))
    assert world.attached == set()
    assert "speaks no version" in world.keeper.others[ONE].reason
    world.see(row(*BOTH.stores, peer=""))
    assert world.attached == set()


async def test_a_store_belongs_to_who_named_it_first_and_a_node_is_not_its_own_peer(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.see(BOTH)
    third = row(store(ONE, "disk9"))
    world.see(third, name="n3")
    assert world.keeper.slot_of(ONE) == "n2/disk1"
    world.peers.changed(Changed("n1", None, Member("n1", BOTH, 1, None, Sight.ALIVE, 0.0)))
    assert world.keeper.slot_of(ONE) == "n2/disk1"


@pytest.mark.parametrize(
    ("beating", "unanswered", "cut_off"),
    [(0, 0, False), (1, 1, True), (2, 1, False), (2, 2, True), (3, 2, True), (4, 2, False), (4, 3, True)],
)
def test_who_reaches_no_majority_of_those_that_beat_is_cut_off(
    beating: int, unanswered: int, cut_off: bool
) -> None:
    assert is_cut_off(beating, unanswered) is cut_off


async def test_a_node_that_is_cut_off_gives_up_nobodys_stores(tmp_path: Path) -> None:
    """It reaches the index, where all others beat: their copies are well, and must not be let go."""
    world = World(tmp_path)
    peers, clock, health, keeper = world.peers, world.clock, world.health, world.keeper
    n3 = row(store(StoreId("store-three"), "disk1"), peer="n3:9100")
    world.see(BOTH)
    world.see(n3, name="n3")
    for id in keeper.others:
        health.vanished(id, clock.monotonic(), "no answer")
    world.reached = False
    for _ in range(100):
        await peers.round()
        await clock.sleep(10)
    assert max(away_of(keeper, health, clock.monotonic()).values()) <= 10
    assert len([text for text in world.told if "gives up none of their stores" in text]) == 1

    # Once it is among them again, what is away still is waited for from then on.
    world.reached = True
    for _ in range(5):
        await peers.round()
        await clock.sleep(10)
    assert set(away_of(keeper, health, clock.monotonic()).values()) == {60.0}
    await peers.close()


async def test_a_node_that_can_only_doubt_what_it_does_not_reach_is_cut_off_too(tmp_path: Path) -> None:
    """No more stores are called down than the others can do without."""
    world = World(tmp_path)
    world.see(BOTH)
    world.see(row(store(StoreId("store-three"), "disk1"), peer="n3:9100"), name="n3")
    world.health.ejections_max = 1
    await world.peers.round()
    assert not world.peers.is_cut_off
    now = world.clock.monotonic()
    for id in world.keeper.others:
        for _ in range(5):
            world.health.observed(id, Operation.GET, 1.0, 0, StoreFailed("no answer"), now)
    world.health.tick(now)
    assert StoreState.SUSPECT in {world.health.state(id) for id in world.keeper.others}
    await world.peers.round()
    assert not world.peers.is_cut_off, "they answer a ping"
    world.reached = False
    await world.peers.round()
    assert world.peers.is_cut_off
    assert max(away_of(world.keeper, world.health, world.clock.monotonic()).values(), default=0.0) == 0.0
    world.reached = True
    await world.clock.sleep(10)
    await world.peers.round()
    assert not world.peers.is_cut_off
    await world.peers.close()


async def test_what_a_majority_cannot_reach_is_given_up_although_its_node_beats(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.see(BOTH)
    world.see(row(store(StoreId("store-three"), "disk1"), peer="n3:9100"), name="n3")
    for id in (ONE, TWO):
        world.health.vanished(id, world.clock.monotonic(), "no answer")
    world.reached = False
    for _ in range(100):
        await world.peers.round()
        await world.clock.sleep(10)
    assert away_of(world.keeper, world.health, world.clock.monotonic()) == {ONE: 1000.0, TWO: 1000.0}
    await world.peers.close()
