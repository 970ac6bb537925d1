"""Which site serves: what one site does about it, as a state machine.

`step` takes an event and the site's own time (a clock that runs during suspend) and answers what to do; it
does no I/O. Whoever performs the actions gives back what came of them as events, in any order, late, or
never. Each call also looks at what is due, so an event is not needed to let time pass.

    role        serves     moves on
    ACTIVE      while two  to HANDING by command; to RETURNING when it sees that the other site won an epoch
                votes are
                believed
    HANDING     never      back to ACTIVE when the other does not report in time that it has every row; else
                           it offers its votes to the other, and becomes its STANDBY once two have gone over
    STANDBY     never      to ACTIVE once it has two votes of one epoch: they were offered, or it took them,
                           which it does when two are stale and no more would be lost than is allowed
    RETURNING   never      to STANDBY by whoever has reconciled it; until then it has rows that the other
                           never had, and must not take over

The role is a row in the site's own index, changed expecting its revision, and every commit for a client
expects it; so a role takes effect for every process of the site at one moment. A role counts here when it is
committed.
"""

from enum import Enum
from itertools import pairwise
from math import inf

from msgspec import Struct

from holdfast.sites.votes import ANSWER_S, LOOK_S, MAJORITY, RENEW_S, WAIT_S, WITNESS, Register, Vote

HANDING_PATIENCE_S = 8.0
"""How long clients may be kept waiting by a planned switch before it is called off."""

BEHIND_MAX_S = 30.0
"""How far behind a standby may be to take over without being told to."""

DRAIN_S = 0.5


class Role(Enum):
    """What a site is in its pair; see above."""

    ACTIVE = "active"
    HANDING = "handing-over"
    STANDBY = "standby"
    RETURNING = "returning"


# What happened


class Heard(Struct, frozen=True):
    """A register was read: a question sent at `sent` found `vote`."""

    voter: str
    sent: float
    vote: Vote


class Cast(Struct, frozen=True):
    """A register was to be set, by a question sent at `sent`. `won`: it is `vote` now; else it was found to
    be `vote`."""

    voter: str
    sent: float
    won: bool
    vote: Vote


class Stored(Struct, frozen=True):
    """The site's role was committed to its index, at `revision`."""

    role: Role
    epoch: int
    revision: int = 0


class Followed(Struct, frozen=True):
    """How the standby follows: whether its rows are a state that the active had, and when it last knew that
    it had every row there was."""

    whole: bool
    caught_up: float


class Able(Struct, frozen=True):
    """Whether this site could serve at all: its index answers, and enough stores."""

    able: bool


class HandOver(Struct, frozen=True):
    """Somebody wants the other site to serve."""


class Drained(Struct, frozen=True):
    """The other site has every row up to `revision` of this one."""

    revision: int


class TakeOver(Struct, frozen=True):
    """Somebody wants this site to serve although it may be far behind."""


Event = Heard | Cast | Stored | Followed | Able | HandOver | Drained | TakeOver


# What to do


class Look(Struct, frozen=True):
    """Read a register. The answer names `sent`, which is before anything is sent."""

    voter: str
    sent: float


class Set(Struct, frozen=True):
    """Set a register to `vote`, expecting it to be `expected`; likewise."""

    voter: str
    sent: float
    expected: Vote
    vote: Vote


class Store(Struct, frozen=True):
    """Commit the site's role to its index, expecting the row as it was last committed."""

    role: Role
    epoch: int


class AskDrained(Struct, frozen=True):
    """Ask the other site whether it has every row up to `revision`."""

    revision: int


Action = Look | Set | Store | AskDrained


class Standing:
    """The machine of one agent (a process that acts for its site). `role`, `epoch` and `revision` are those
    of the row that it found; `agent` is a name that no other process ever has."""

    def __init__(
        self,
        site: str,
        other: str,
        agent: str,
        role: Role,
        epoch: int,
        revision: int,
        now: float,
        *,
        automatic: bool = True,
    ) -> None:
        assert len({site, other, WITNESS}) == 3
        self.role = role
        self.epoch = epoch
        self._site = site
        self._other = other
        self._agent = agent
        self._automatic = automatic
        self._registers = {voter: Register() for voter in (site, other, WITNESS)}
        self._due = dict.fromkeys(self._registers, now)
        self._storing = False
        self._able = True
        self._whole = False
        self._caught_up = now - 2 * BEHIND_MAX_S
        self._told = False
        self._fence = revision
        # Whatever was agreed on before this process began is not known to it: the switch is called off.
        self._handing_until = now
        self._offer = 0
        self._drain_due = now

    # What others ask

    def may_acknowledge(self, now: float) -> bool:
        """Whether the site may answer clients at this moment. To be asked right before each answer."""
        return self.role is Role.ACTIVE and self._believed(now) >= MAJORITY

    def votes(self) -> dict[str, Vote | None]:
        """What each register was last seen to hold, for the status."""
        return {voter: register.vote for voter, register in self._registers.items()}

    # What happens

    def step(self, event: Event | None, now: float) -> list[Action]:
        """Take in what happened, and say what to do now."""
        if event is not None:
            self._take_in(event, now)
        actions: list[Action] = []
        if not self._storing and (next_role := self._next_role(now)) is not None:
            self._storing = True
            actions.append(Store(*next_role))
        if self.role is Role.HANDING and not self._storing:
            actions += self._hand_over(now)
        if not self._offer:
            actions += self._take(now)
            actions += self._renew(now)
        return actions + self._look(now)

    def not_stored(self) -> None:
        """A role could not be committed; nothing else may be in doubt. It is tried again when it is still
        due."""
        self._storing = False

    def _take_in(self, event: Event, now: float) -> None:
        match event:
            case Heard(voter, sent, vote):
                self._registers[voter].answered(sent, vote, now)
            case Cast(voter, sent, won, vote):
                register = self._registers[voter]
                if won and vote.holder == self._site:
                    register.won(sent, vote, now)
                else:
                    register.answered(sent, vote, now)
            case Stored(role, epoch, revision):
                self._stored(role, epoch, revision, now)
            case Followed(whole, caught_up):
                self._whole, self._caught_up = whole, caught_up
            case Able(able):
                self._able = able
            case HandOver():
                if self.may_acknowledge(now) and not self._storing:
                    self._handing_until = now + HANDING_PATIENCE_S
                    self._told = True
            case Drained(revision):
                if self.role is Role.HANDING and revision == self._fence and now < self._handing_until:
                    self._offer = self._offer or 1 + max(self._epochs())
            case TakeOver():
                self._told = self.role is Role.STANDBY

    def _stored(self, role: Role, epoch: int, revision: int, now: float) -> None:
        self._storing = False
        self._told = False
        self.role, self.epoch, self._fence = role, epoch, revision
        self._offer = 0
        self._drain_due = now

    # The role

    def _next_role(self, now: float) -> tuple[Role, int] | None:
        """What the site should be, and of which epoch, if that is something else."""
        lost = self._epoch_of(self._other, now - 2 * ANSWER_S)
        if self.role in (Role.ACTIVE, Role.HANDING) and lost > self.epoch:
            # By its own offer it has lost nothing: the other had every row, and none came after.
            given = self._offer and lost == self._offer
            return (Role.STANDBY if given else Role.RETURNING), lost
        if self.role is Role.ACTIVE and self._told:
            return Role.HANDING, self.epoch
        if self.role is Role.HANDING and not self._offer and now >= self._handing_until:
            return (Role.ACTIVE, self.epoch) if self._believed(now) >= MAJORITY else None
        won = self._epoch_of(self._site)
        if self.role is Role.STANDBY and won > self.epoch and self._believed(now) >= MAJORITY:
            return Role.ACTIVE, won
        return None

    def _hand_over(self, now: float) -> list[Action]:
        if now >= self._handing_until:
            self._offer = (
                0  # votes that have not gone over are renewed, which ends the offer, and then it serves again
            )
            return []
        if not self._offer:
            if now < self._drain_due:
                return []
            self._drain_due = now + DRAIN_S
            return [AskDrained(self._fence)]
        actions: list[Action] = []
        for voter, register in self._registers.items():
            vote = register.vote
            if vote is None or vote.agent != self._agent or register.is_busy(now):
                continue
            register.give()
            actions.append(self._set(voter, register, Vote(self._offer, self._other, "", 0), now))
        return actions

    # The votes

    def _take(self, now: float) -> list[Action]:
        """Take votes that nobody can believe in, when two are to be had."""
        ours = [
            (voter, register)
            for voter, register in self._registers.items()
            if register.is_held_by(self._site) or register.is_stale()
        ]
        if len(ours) < MAJORITY or not self._wants(now):
            return []
        newest = max(self._epochs())
        has_newest = any(
            register.vote is not None and register.vote.epoch == newest and register.is_held_by(self._site)
            for register in self._registers.values()
        )
        epoch = newest if has_newest else newest + 1
        actions: list[Action] = []
        for voter, register in ours:
            vote = register.vote
            if vote is None or vote.epoch == epoch or register.is_busy(now):
                continue
            actions.append(self._set(voter, register, Vote(epoch, self._site, self._agent, 0), now))
        return actions

    def _wants(self, now: float) -> bool:
        """Whether this site should hold the lease."""
        if self.role is Role.ACTIVE:
            # Without the lease it cannot know whether the other has won meanwhile, and what it has written
            # since.
            return self._serves(now) and self._believed(now) >= MAJORITY
        if self.role is not Role.STANDBY or not self._serves(now):
            return False
        if self._told:
            return True
        alive = max(
            (register.since for register in self._registers.values() if register.is_held_by(self._other)),
            default=now,
        )
        return self._automatic and self._whole and alive - self._caught_up <= BEHIND_MAX_S

    def _renew(self, now: float) -> list[Action]:
        """Renew what is ours: while it serves or would; and what was won or handed over."""
        if self.role is Role.STANDBY:
            due = self._epoch_of(self._site) > self.epoch
        else:
            due = self.role in (Role.ACTIVE, Role.HANDING) and self._serves(now)
        if not due:
            return []
        actions: list[Action] = []
        for voter, register in self._registers.items():
            vote = register.vote
            if vote is None or not register.is_held_by(self._site):
                continue
            if register.is_busy(now) or (now < self._due[voter] and register.believed_until > now):
                continue
            self._due[voter] = now + RENEW_S
            renewed = Vote(vote.epoch, self._site, self._agent, vote.count + 1)
            actions.append(self._set(voter, register, renewed, now))
        return actions

    def _serves(self, now: float) -> bool:
        """Whether the site could serve; if not, it must not keep the other from it. Its own register is a
        row of its index."""
        own = self._registers[self._site]
        return self._able and own.vote is not None and now - own.heard < WAIT_S

    def _look(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for voter, register in self._registers.items():
            if now >= self._due[voter] and not register.is_busy(now):
                self._due[voter] = now + LOOK_S
                register.asked = now
                actions.append(Look(voter, now))
        return actions

    def _set(self, voter: str, register: Register, vote: Vote, now: float) -> Set:
        assert register.vote is not None
        register.asked = now
        return Set(voter, now, register.vote, vote)

    def _believed(self, now: float) -> int:
        return sum(register.believed_until > now for register in self._registers.values())

    def _epochs(self) -> list[int]:
        return [register.vote.epoch for register in self._registers.values() if register.vote is not None]

    def _epoch_of(self, site: str, heard_after: float = -inf) -> int:
        """The newest epoch of which `site` was seen to hold two votes, lately enough; -1 without one."""
        held = sorted(
            (
                register.vote.epoch
                for register in self._registers.values()
                if register.vote is not None and register.vote.holder == site and register.heard > heard_after
            ),
            reverse=True,
        )
        pairs = [one for one, following in pairwise(held) if one == following]
        return pairs[0] if pairs else -1
