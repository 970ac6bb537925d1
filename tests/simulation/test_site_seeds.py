"""The lease of two sites: over many seeds never two that serve, and always one where two votes can be had.

`HOLDFAST_SITE_SEEDS` says how many (a second of processor time for twelve), `HOLDFAST_SIM_FIRST` from where.
"""

import os

import pytest

from holdfast.sites.standing import Role
from holdfast.sites.votes import WITNESS, Register
from tests.simulation.site_world import SITES, SiteWorld

FIRST = int(os.environ.get("HOLDFAST_SIM_FIRST", "0"))
SEEDS = int(os.environ.get("HOLDFAST_SITE_SEEDS", "100"))
CHUNK = 25

EAST, WEST = SITES


def troubled(seed: int) -> SiteWorld:
    """Rounds of troubles with rests between them; after each rest somebody serves again."""
    world = SiteWorld(seed, delay_s=0.03, loss=(seed % 4) * 0.03, late=0.02)
    random = world.random
    places = (*SITES, WITNESS)
    world.run(3)
    for _ in range(4):
        for _ in range(random.randint(1, 6)):
            match random.randint(0, 7):
                case 0:
                    world.crash(random.choice(SITES))
                case 1:
                    world.stop(random.choice(SITES))
                case 2:
                    world.cut.add(frozenset(random.sample(places, 2)))
                case 3:
                    world.up[random.choice(places)] = False
                case 4:
                    world.hand_over()
                case 5:
                    for name in SITES:
                        world.start(name)
                case 6:
                    for name in SITES:
                        world.go_on(name)
                case 7:
                    world.cut.clear()
            world.run(random.choice((0.1, 0.5, 1.5, 4.9, 5.2, 7.0)))
        mend(world)
        world.run(20)
        serves_within(world, 20, f"seed {seed}: nobody serves although everything is well")
        world.run(10)
        lose_one(world)
        world.run(11)
        serves_within(world, 10, f"seed {seed}: the loss of one stopped the service")
        mend(world)
        world.run(10)
    world.finish()
    return world


def serves_within(world: SiteWorld, seconds: float, else_: str) -> None:
    """Somebody does, and goes on: a moment without an answer (messages are lost all the time) is no stop."""
    for _ in range(int(seconds * 10)):
        world.run(0.1)
        if world.serving() is not None and world.now - world.acknowledged[-1].at < 1:
            return
    raise AssertionError(else_)


def lose_one(world: SiteWorld) -> None:
    """A voter, a connection or an agent: any one of them."""
    places = (*SITES, WITNESS)
    match world.random.randint(0, 3):
        case 0:
            world.up[world.random.choice(places)] = False
        case 1:
            world.cut.add(frozenset(world.random.sample(places, 2)))
        case 2:
            world.crash(world.random.choice(SITES))
        case 3:
            world.stop(world.random.choice(SITES))


def mend(world: SiteWorld) -> None:
    world.cut.clear()
    world.up = dict.fromkeys(world.up, True)
    for name in SITES:
        world.go_on(name)
        world.start(name)


@pytest.mark.virtual
@pytest.mark.parametrize("first", range(FIRST, FIRST + SEEDS, CHUNK))
def test_never_two_and_soon_one(first: int) -> None:
    for seed in range(first, min(first + CHUNK, FIRST + SEEDS)):
        troubled(seed)


@pytest.mark.virtual
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("how", ["crash", "stop", "cut off"])
def test_a_site_that_is_lost_is_followed_within_ten_seconds(seed: int, how: str) -> None:
    world = SiteWorld(seed)
    world.run(10 + seed * 0.13)
    assert world.serving() == EAST
    lost = world.now
    if how == "crash":
        world.crash(EAST)
        world.up[EAST] = False
    elif how == "stop":
        world.stop(EAST)
    else:
        world.cut |= {frozenset((EAST, WEST)), frozenset((EAST, WITNESS))}
    world.run(15)
    first = next(one for one in world.acknowledged if one.site == WEST)
    assert first.at - lost < 9.0, "the balancers need a second, too"
    mend(world)
    world.run(10)
    assert world.serving() == WEST
    assert world.sites[EAST].role is Role.STANDBY, "what it alone had was put aside, and now it follows"
    world.finish()
    acknowledged = {one.write for one in world.acknowledged}
    lost_writes = acknowledged - set(world.sites[WEST].writes)
    assert lost_writes <= set(world.put_aside)


@pytest.mark.virtual
@pytest.mark.parametrize("lost", [WITNESS, WEST])
def test_the_loss_of_any_other_vote_stops_nothing(lost: str) -> None:
    world = SiteWorld(5)
    world.run(5)
    world.up[lost] = False
    if lost == WEST:
        world.crash(WEST)
    for _ in range(300):
        world.run(0.1)
        assert world.serving() == EAST
    mend(world)
    world.run(10)
    world.up[WITNESS if lost == WEST else WEST] = False
    world.run(20)
    assert world.serving() == EAST


@pytest.mark.virtual
def test_without_two_votes_nobody_serves() -> None:
    world = SiteWorld(6)
    world.run(5)
    world.up[WITNESS] = False
    world.cut.add(frozenset(SITES))
    world.run(30)
    assert world.serving() is None


@pytest.mark.virtual
@pytest.mark.parametrize("seed", range(10))
def test_a_planned_switch_loses_nothing_and_takes_moments(seed: int) -> None:
    world = SiteWorld(seed)
    world.run(5)
    begun = world.now
    world.hand_over()
    world.run(10)
    assert world.serving() == WEST
    assert world.sites[EAST].role is Role.STANDBY
    last = max(one.at for one in world.acknowledged if one.site == EAST)
    first = min(one.at for one in world.acknowledged if one.site == WEST)
    assert last < begun + 1
    assert first - begun < 8
    assert not world.put_aside
    assert {one.write for one in world.acknowledged} <= set(world.sites[WEST].writes)


@pytest.mark.virtual
def test_a_planned_switch_to_nobody_is_called_off() -> None:
    world = SiteWorld(8)
    world.run(5)
    world.cut.add(frozenset(SITES))
    world.hand_over()
    world.run(15)
    assert world.serving() == EAST
    assert not world.taken


@pytest.mark.virtual
def test_a_standby_far_behind_does_not_take_over_by_itself() -> None:
    world = SiteWorld(9)
    world.run(5)
    world.cut.add(frozenset(SITES))
    world.run(60)
    assert world.serving() == EAST
    world.crash(EAST)
    world.run(30)
    assert world.serving() is None, "a minute of writes is more than may be lost without being asked"


def _impatient(self: Register) -> bool:
    return self.vote is not None and self.heard - self.since >= 4.0


def _believing_what_was_offered(self: Register) -> None:
    """As if an offer that was not answered had not been made."""


@pytest.mark.virtual
@pytest.mark.parametrize(
    ("rule", "mistake"),
    [
        ("is_stale", _impatient),
        ("give", _believing_what_was_offered),
    ],
)
def test_mistakes_are_found(monkeypatch: pytest.MonkeyPatch, rule: str, mistake: object) -> None:
    monkeypatch.setattr(Register, rule, mistake)
    with pytest.raises(AssertionError, match=r"both sites|an epoch"):
        all_of(range(200))


def all_of(seeds: range) -> None:
    for seed in seeds:
        troubled(seed)
