"""Who holds which records, and from when on they are acknowledged. Pure.

Events go in as calls, actions come out as values; the shell (`log.py`) performs them. What must hold:

- a sequence is acknowledged only when a majority of the newest membership has synced it, and only
  together with a record of this epoch (a record of an earlier epoch that lies on a majority may still be
  cut by a later one; Raft, section 5.4.2). It never goes back.
- a member has at most one append under way; so its frames are synced in order.
- a member that failed is out until it is attached anew at a sequence it is known to hold.
- when so many members have promised a later epoch that a majority cannot be had any more, this process
  is fenced, for good.
"""

from enum import Enum
from typing import NamedTuple

from holdfast.index.sqlite.recovery import majority


class Standing(Enum):
    """Where a member stands."""

    CURRENT = "current"
    OUT = "out"
    REFUSING = "refusing"


class Send(NamedTuple):
    """Append what follows `after` to `member`."""

    member: str
    after: int


class Acked(NamedTuple):
    """Everything up to and with `sequence` is acknowledged."""

    sequence: int


class Dropped(NamedTuple):
    """`member` is out; its append, if one hangs, is no longer waited for."""

    member: str
    reason: str


class FencedOff(NamedTuple):
    """Somebody with a later epoch has taken over."""

    epoch: int


Action = Send | Acked | Dropped | FencedOff


class _Progress:
    __slots__ = ("held", "reason", "sending_since", "standing")

    def __init__(self) -> None:
        self.standing = Standing.OUT
        self.held = 0
        self.sending_since: float | None = None
        self.reason = "not attached yet"


class Replication:
    """One epoch of the log. `first_own` is the sequence of this epoch's first record."""

    def __init__(self, members: tuple[str, ...], tip: int, *, overdue_s: float) -> None:
        self.members = members
        self.tip = tip
        self.first_own = tip + 1
        self.acked = 0
        self.fenced_by: int | None = None
        self._overdue_s = overdue_s
        self._progress = {name: _Progress() for name in members}

    def progress(self, member: str) -> tuple[Standing, int, str]:
        """(standing, last sequence it holds, why it is out) of a member or learner."""
        progress = self._progress.get(member)
        return (
            (progress.standing, progress.held, progress.reason) if progress else (Standing.OUT, 0, "unknown")
        )

    def current(self) -> list[str]:
        """Members that take part, first those that hold most."""
        names = [name for name, progress in self._progress.items() if progress.standing is Standing.CURRENT]
        return sorted(names, key=lambda name: -self._progress[name].held)

    def reachable(self) -> bool:
        """Whether a majority takes part, so that what is proposed now can be expected to be acknowledged."""
        present = sum(self._progress[name].standing is Standing.CURRENT for name in self.members)
        return self.fenced_by is None and present >= majority(len(self.members))

    def losses_survivable(self) -> int:
        """How many more members may go."""
        present = sum(self._progress[name].standing is Standing.CURRENT for name in self.members)
        return max(0, present - majority(len(self.members)))

    def proposed(self, sequence: int, now: float, members: tuple[str, ...] | None = None) -> list[Action]:
        """A record was made; with `members` it sets the membership, which counts from now on."""
        assert sequence == self.tip + 1
        self.tip = sequence
        if members is not None:
            changed = set(members) ^ set(self.members)
            assert len(changed) <= 1, "membership changes by one at a time"
            self.members = members
            for name in members:
                self._progress.setdefault(name, _Progress())
        return self._send_all(now)

    def attached(self, member: str, held: int, now: float) -> list[Action]:
        """`member` takes records again and verifiably holds everything up to `held`."""
        assert held <= self.tip
        progress = self._progress.setdefault(member, _Progress())
        progress.standing, progress.held, progress.reason = Standing.CURRENT, held, ""
        progress.sending_since = None
        return [*self._send(member, now), *self._acknowledge()]

    def synced(self, member: str, through: int, now: float) -> list[Action]:
        """An append ended well."""
        progress = self._progress[member]
        if progress.standing is not Standing.CURRENT:
            return []
        assert progress.held <= through <= self.tip
        progress.held, progress.sending_since = through, None
        return [*self._acknowledge(), *self._send(member, now)]

    def failed(self, member: str, reason: str) -> list[Action]:
        """An append, or anything else, went wrong: the member is out."""
        progress = self._progress.setdefault(member, _Progress())
        if progress.standing in (Standing.OUT, Standing.REFUSING):
            progress.reason = reason
            return []
        progress.standing, progress.reason, progress.sending_since = Standing.OUT, reason, None
        return [Dropped(member, reason)]

    def refused(self, member: str, epoch: int) -> list[Action]:
        """The member has promised `epoch`, later than ours, to somebody else."""
        actions = self.failed(member, f"has promised epoch {epoch} to another process")
        self._progress[member].standing = Standing.REFUSING
        left = sum(self._progress[name].standing is not Standing.REFUSING for name in self.members)
        if left < majority(len(self.members)) and self.fenced_by is None:
            self.fenced_by = epoch
            actions.append(FencedOff(epoch))
        return actions

    def tick(self, now: float) -> list[Action]:
        """Drop members whose append is overdue."""
        actions: list[Action] = []
        for name, progress in self._progress.items():
            since = progress.sending_since
            if since is not None and now - since > self._overdue_s:
                actions += self.failed(name, f"no answer for {self._overdue_s:g} s")
        return actions

    def forget(self, member: str) -> list[Action]:
        """A member that was removed, or a learner that is given up."""
        assert member not in self.members
        actions = self.failed(member, "removed")
        self._progress.pop(member, None)
        return actions

    def _send_all(self, now: float) -> list[Action]:
        return [action for name in self._progress for action in self._send(name, now)]

    def _send(self, member: str, now: float) -> list[Action]:
        progress = self._progress[member]
        idle = progress.standing is Standing.CURRENT and progress.sending_since is None
        if not idle or progress.held >= self.tip or self.fenced_by is not None:
            return []
        progress.sending_since = now
        return [Send(member, progress.held)]

    def _acknowledge(self) -> list[Action]:
        if self.fenced_by is not None:
            return []
        # Whoever is out is not counted, although it may still hold what it synced: it may be gone for good.
        held = sorted(
            (
                progress.held if progress.standing is Standing.CURRENT else 0
                for progress in (self._progress[name] for name in self.members)
            ),
            reverse=True,
        )
        sequence = held[majority(len(self.members)) - 1]
        if sequence < self.first_own or sequence <= self.acked:
            return []
        self.acked = sequence
        return [Acked(sequence)]
