"""Two sites, three registers and everything between them, from one seed: the lease of sites under faults.

There are no tasks and no loop: a heap of events in true time, machines that see their own clocks, whose
rates are wrong by up to what is allowed, and messages that are late, lost, doubled and out of order. A
request that timed out may still arrive. Agents crash and come back without their memory, are stopped and go
on as if nothing had been, and what a client was told is checked from outside: `acknowledged` is what both
sites said, in true time.

Rows are numbers: a site is the list of writes that it has. The active appends, the standby copies what it has
not, in order; a returning site is made a standby with what it alone had put aside.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from random import Random
from typing import NamedTuple

from holdfast.sites.standing import (
    Able,
    AskDrained,
    Cast,
    Drained,
    Event,
    Followed,
    HandOver,
    Heard,
    Look,
    Role,
    Set,
    Standing,
    Store,
    Stored,
)
from holdfast.sites.votes import DRIFT, WITNESS, Vote

SITES = ("east", "west")
STEP_S = 0.2
WRITE_S = 0.25


class Acknowledged(NamedTuple):
    """What a client was told: true time, by which site, in which epoch, which write."""

    at: float
    site: str
    epoch: int
    write: int


class Site:
    """One site: what is durable, and the process that acts for it."""

    def __init__(self, name: str, role: Role) -> None:
        self.name = name
        self.role, self.epoch, self.revision = role, 1, 1
        self.writes: list[int] = []
        self.machine: Standing | None = None
        self.boots = 0
        self.stopped = False
        self.queue: list[Callable[[], None]] = []
        self.rate, self.offset = 1.0, 0.0
        self.whole = True
        self.able = True
        self.caught_up = 0.0
        self.followed: tuple[str, int] = ("", 0)


class SiteWorld:
    """Everything, and the power to break it."""

    def __init__(self, seed: int, *, delay_s: float = 0.02, loss: float = 0.0, late: float = 0.0) -> None:
        self.random = Random(seed)
        self.now = 0.0
        self.delay_s, self.loss, self.late = delay_s, loss, late
        self.votes = {voter: Vote(1, SITES[0], "", 0) for voter in (*SITES, WITNESS)}
        self.up = dict.fromkeys(self.votes, True)
        self.cut: set[frozenset[str]] = set()
        self.sites = {name: Site(name, Role.ACTIVE if name == SITES[0] else Role.STANDBY) for name in SITES}
        self.acknowledged: list[Acknowledged] = []
        self.put_aside: list[int] = []
        self.roles: list[tuple[float, str, Role, int]] = []
        self.taken: list[tuple[str, int]] = []
        self._count = 0
        self._written = 0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        for site in self.sites.values():
            site.rate = 1 + self.random.uniform(-DRIFT, DRIFT)
            site.offset = self.random.uniform(0, 1e6)
            self.start(site.name)
            self._every(STEP_S, lambda site=site: self._turn(site))
        self._every(WRITE_S, self._follow)
        self._every(WRITE_S, self._write)

    # Time

    def at(self, when: float, action: Callable[[], None]) -> None:
        self._count += 1
        heappush(self._events, (when, self._count, action))

    def _every(self, period: float, action: Callable[[], None]) -> None:
        def again() -> None:
            action()
            self.at(self.now + period * self.random.uniform(0.5, 1.5), again)

        self.at(self.now + self.random.uniform(0, period), again)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, action = heappop(self._events)
            action()
        self.now = end

    def clock(self, site: Site) -> float:
        return self.now * site.rate + site.offset

    # Faults

    def crash(self, name: str) -> None:
        site = self.sites[name]
        site.machine, site.stopped, site.queue = None, False, []

    def start(self, name: str) -> None:
        site = self.sites[name]
        if site.machine is None:
            site.boots += 1
            agent = f"{name}-{site.boots}"
            site.caught_up, site.able = self.clock(site) - 1000, True
            site.machine = Standing(
                name, self.other(name), agent, site.role, site.epoch, site.revision, self.clock(site)
            )

    def stop(self, name: str) -> None:
        self.sites[name].stopped = True

    def go_on(self, name: str) -> None:
        """What waited for the process happens now, after the time in which nothing did."""
        site = self.sites[name]
        queue, site.queue, site.stopped = site.queue, [], False
        self.random.shuffle(queue)
        for action in queue:
            self.at(self.now, action)

    @staticmethod
    def other(name: str) -> str:
        return SITES[1 - SITES.index(name)]

    def connected(self, one: str, two: str) -> bool:
        return one == two or (self.up[one] and self.up[two] and frozenset((one, two)) not in self.cut)

    # What sites do

    def _turn(self, site: Site) -> None:
        if site.machine is None or site.stopped:
            return
        if site.role is Role.STANDBY:
            self.give(site, Followed(site.whole, site.caught_up))
        if site.able is not self.up[site.name]:
            site.able = self.up[site.name]
            self.give(site, Able(site.able))
        self.give(site, None)

    def give(self, site: Site, event: Event | None) -> None:
        if site.machine is None:
            return
        if site.stopped:
            machine = site.machine
            site.queue.append(lambda: self.give(site, event) if site.machine is machine else None)
            return
        actions = site.machine.step(event, self.clock(site))
        self.check()
        for action in actions:
            match action:
                case Look(voter, sent):
                    self._ask(site, voter, lambda v=voter, s=sent: Heard(v, s, self.votes[v]))
                case Set(voter, sent, expected, vote):
                    self._ask(site, voter, lambda v=voter, s=sent, e=expected, n=vote: self._set(v, s, e, n))
                case Store(role, epoch):
                    self._store(site, role, epoch)
                case AskDrained(revision):
                    self._ask_drained(site, revision)

    def _delay(self) -> float:
        if self.random.random() < self.late:
            return self.random.uniform(0, 8)  # long enough to arrive when everybody has forgotten it
        return self.random.expovariate(1 / self.delay_s)

    def _ask(self, site: Site, voter: str, act: Callable[[], Event]) -> None:
        machine = site.machine

        def arrive() -> None:
            if not self.connected(site.name, voter) or not self.up[voter]:
                return
            event = act()
            for _ in range(2 if self.random.random() < 0.03 else 1):
                if self.random.random() >= self.loss:
                    self.at(self.now + self._delay(), lambda: answer(event))

        def answer(event: Event) -> None:
            if site.machine is machine and self.connected(site.name, voter):
                self.give(site, event)

        for _ in range(2 if self.random.random() < 0.03 else 1):
            if self.random.random() >= self.loss:
                self.at(self.now + self._delay(), arrive)

    def _set(self, voter: str, sent: float, expected: Vote, vote: Vote) -> Event:
        won = self.votes[voter] == expected
        if won:
            assert vote.position > expected.position
            self.votes[voter] = vote
        return Cast(voter, sent, won, self.votes[voter])

    def _store(self, site: Site, role: Role, epoch: int) -> None:
        machine, expected = site.machine, site.revision
        assert machine is not None

        def commit() -> None:
            if site.revision != expected or not self.up[site.name]:
                # An agent that came later, or an index that is away: the shell asks until it knows.
                if site.machine is machine:
                    machine.not_stored()
                return
            self._become(site, role, epoch)
            if site.machine is machine:
                self.at(self.now + self._delay(), lambda: self.give_to(machine, site))

        self.at(self.now + self._delay(), commit)

    def give_to(self, machine: Standing, site: Site) -> None:
        if site.machine is machine:
            self.give(site, Stored(site.role, site.epoch, site.revision))

    def _become(self, site: Site, role: Role, epoch: int) -> None:
        if role is Role.ACTIVE and site.role is Role.STANDBY:
            self.taken.append((site.name, epoch))
        site.role, site.epoch = role, epoch
        site.revision += 1
        site.caught_up = self.clock(site) - 1000
        self.roles.append((self.now, site.name, role, epoch))

    def _ask_drained(self, site: Site, revision: int) -> None:
        other = self.sites[self.other(site.name)]
        machine, all_of_it = site.machine, len(site.writes)

        def arrive() -> None:
            fits = other.role is Role.STANDBY and len(other.writes) >= all_of_it
            if other.machine is None or other.stopped or not fits or not self.connected(*SITES):
                return
            self.at(self.now + self._delay(), answer)

        def answer() -> None:
            if site.machine is machine:
                self.give(site, Drained(revision))

        self.at(self.now + self._delay(), arrive)

    # What clients do, and the follower

    def _write(self) -> None:
        for site in self.sites.values():
            if site.machine is None or site.stopped or not self.up[site.name]:
                continue
            # The index expects the role's row; the gate is asked when the commit is durable.
            if site.role is not Role.ACTIVE or site.machine.role is not Role.ACTIVE:
                continue
            self._written += 1
            write = self._written
            site.writes.append(write)
            machine = site.machine
            self.at(
                self.now + self.random.expovariate(1 / 0.01),
                lambda s=site, m=machine, w=write: self._ack(s, m, w),
            )

    def _ack(self, site: Site, machine: Standing, write: int) -> None:
        if site.machine is not machine:
            return
        if site.stopped:
            site.queue.append(lambda: self._ack(site, machine, write))
            return
        self.check()
        if machine.may_acknowledge(self.clock(site)):
            self.acknowledged.append(Acknowledged(self.now, site.name, machine.epoch, write))

    def _follow(self) -> None:
        for site in self.sites.values():
            active = self.sites[self.other(site.name)]
            if (
                site.machine is None
                or site.stopped
                or not self.connected(*SITES)
                or self.random.random() < 0.2
            ):
                continue
            if active.role not in (Role.ACTIVE, Role.HANDING):
                continue
            if site.role is Role.STANDBY:
                assert active.writes[: len(site.writes)] == site.writes, "a standby is what the active was"
                site.writes += active.writes[len(site.writes) :][: self.random.randint(1, 5)]
                if len(site.writes) == len(active.writes):
                    site.caught_up = self.clock(site)
            elif site.role is Role.RETURNING:
                alike = 0
                while site.writes[alike : alike + 1] == active.writes[alike : alike + 1] != []:
                    alike += 1
                self.put_aside += site.writes[alike:]
                site.writes = active.writes[:alike]
                self._become(site, Role.STANDBY, site.epoch)
                self.give(site, Stored(site.role, site.epoch, site.revision))

    def hand_over(self) -> None:
        """By command, at whoever serves."""
        for site in self.sites.values():
            if site.machine is not None and not site.stopped:
                self.give(site, HandOver())

    # What must hold

    def may(self, name: str) -> bool:
        site = self.sites[name]
        return (
            site.machine is not None and not site.stopped and site.machine.may_acknowledge(self.clock(site))
        )

    def check(self) -> None:
        """Never two at one time: a site that is stopped counts, for it may have asked just before."""
        both = [
            site.name
            for site in self.sites.values()
            if site.machine is not None and site.machine.may_acknowledge(self.clock(site))
        ]
        assert len(both) < 2, f"both sites may acknowledge at {self.now}"

    def serving(self) -> str | None:
        return next((name for name in SITES if self.may(name)), None)

    def finish(self) -> None:
        """Epochs belong to one site each, and only grow; nothing that was acknowledged is forgotten in
        silence."""
        owners: dict[int, str] = {}
        newest = 0
        for one in self.acknowledged:
            assert owners.setdefault(one.epoch, one.site) == one.site, f"two sites in epoch {one.epoch}"
            assert one.epoch >= newest, "an epoch that was over"
            newest = one.epoch
        assert len({epoch for _, epoch in self.taken}) == len(self.taken), "an epoch was taken twice"
        kept = {write for site in self.sites.values() for write in site.writes} | set(self.put_aside)
        assert {one.write for one in self.acknowledged} <= kept, "an acknowledged write is nowhere"
