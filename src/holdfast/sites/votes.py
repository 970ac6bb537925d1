"""Votes: three registers that say which of two sites serves, and how long that may be believed.

A register holds one vote and knows compare-and-set; it has no clock, starts no timer, and may be restarted at
any moment. There are three of them: one in each site's index, one with the witness. What must hold:

- a register's holder only changes together with a higher epoch, and `(epoch, count)` only ever grows;
- whoever renews believes in a vote for `LEASE_S` by its own clock, from *before* the request was sent;
- whoever takes somebody else's vote has seen it unchanged for `WAIT_S` by its own clock, from *after* the
  answer that showed it first, and sets the register expecting exactly what it saw. So if it succeeds, the
  last renewal is at least that old, and what its holder believed is over, as long as the clocks' rates are
  within `DRIFT`.

Two of three votes are needed, and any two such pairs have a register in common; so at no moment two sites
have what they need, however late, lost, repeated or out of order messages are."""

from msgspec import Struct

DRIFT = 0.01
"""How far the rate of a machine's clock may be from that of true time. Real ones stay below 0.0005."""

LEASE_S = 5.0
WAIT_S = 5.25
RENEW_S = 1.0
LOOK_S = 0.5
ANSWER_S = 1.0
"""After this a question counts as not answered, and another one may be asked. What was asked may still
happen."""

assert WAIT_S / (1 + DRIFT) > LEASE_S / (1 - DRIFT), "who waits must outlast who believes"
assert RENEW_S + 2 * ANSWER_S < LEASE_S, "a question or two that are lost must not end a lease"

WITNESS = "witness"
MAJORITY = 2


class Vote(Struct, frozen=True, array_like=True):
    """What a register holds. `agent` is the process that wrote it: only that one may hand it over. `count`
    grows with each renewal, so that no two states of a register are equal."""

    epoch: int
    holder: str
    agent: str
    count: int

    @property
    def position(self) -> tuple[int, int]:
        """Where the register stands; it only grows."""
        return (self.epoch, self.count)


class Register:
    """One register as a site knows it, by what was asked and answered. Times are the site's own."""

    __slots__ = ("_given", "asked", "believed_until", "heard", "since", "vote")

    def __init__(self) -> None:
        self.vote: Vote | None = None
        self.since = 0.0
        """When the answer came that showed this vote first."""
        self.heard = 0.0
        """When the last question was sent that found it so."""
        self.believed_until = 0.0
        """Until when it may be counted on as our own."""
        self.asked: float | None = None
        """When the question under way was sent."""
        self._given = (-1, -1)

    def is_busy(self, now: float) -> bool:
        """Whether an answer is still waited for."""
        return self.asked is not None and now - self.asked < ANSWER_S

    def is_held_by(self, site: str) -> bool:
        """Whether it was last seen to be `site`'s."""
        return self.vote is not None and self.vote.holder == site

    def is_stale(self) -> bool:
        """Whether it was seen unchanged for so long that nobody can believe in it any more."""
        return self.vote is not None and self.heard - self.since >= WAIT_S

    def answered(self, sent: float, vote: Vote, now: float) -> None:
        """What a question found. Answers may come late, twice, and in any order."""
        if self.asked is not None and sent >= self.asked:
            self.asked = None
        if self.vote is None or vote.position > self.vote.position:
            self.vote, self.since, self.heard = vote, now, sent
        elif vote.position == self.vote.position:
            self.heard = max(self.heard, sent)

    def won(self, sent: float, vote: Vote, now: float) -> None:
        """It was set to `vote`, which is ours."""
        self.answered(sent, vote, now)
        # What was offered to the other site may become its at any moment, however old the belief in it is.
        if vote.position > self._given:
            self.believed_until = max(self.believed_until, sent + LEASE_S)

    def give(self) -> None:
        """It is about to be offered to the other site: from now on it is not counted on, unless it is
        renewed by what the offer excludes."""
        assert self.vote is not None
        self._given = self.vote.position
        self.believed_until = 0.0
