"""Silence, judged by what is ordinary for the one who is silent: the phi accrual failure detector. Pure.

A time-out is a guess about somebody else's speed, made once and for everybody. Phi accrual (Hayashibara,
Défago, Yared and Katayama, 2004) remembers the gaps between answers instead and asks how unlikely the
present gap is: with F the distribution of the gaps seen so far, phi = -log10(1 - F(silence)). Phi 1 is wrong
one time in ten, phi 8 one time in a hundred million. F is taken as normal, with the mean of the gaps plus
a pause that is forgiven to everybody, and a spread that is never believed to be less than a minimum: a
few hundred quick answers must not turn a hiccup into a death.

A gap counts only while an answer is owed. Who was asked nothing is not silent, and a store that had a
thousand calls a second and then none is idle, not dead. So silence begins with the first question that has
no answer, begins again with each answer while others are outstanding, and goes on when a question's own
deadline passes. For who should speak without being asked (a peer's heartbeat), say `asked` after each
`answered`.
"""

from collections import deque
from math import erfc, log10, sqrt

GAPS_KEPT = 200
PHI_MAX = 99.0
"""What is told when the chance is too small for a number."""

_CHANCE_MIN = 10.0**-PHI_MAX


class PhiAccrual:
    """Suspicion of one who should answer. All times are seconds on the caller's monotonic clock.
    `pause_s` is forgiven on top of the mean gap; `spread_min_s` is the least standard deviation."""

    __slots__ = (
        "_gaps",
        "_missed",
        "_outstanding",
        "_owed_since",
        "_pause_s",
        "_spread_min_s",
        "_squares",
        "_sum",
    )

    def __init__(self, *, pause_s: float, spread_min_s: float) -> None:
        assert pause_s >= 0.0
        assert spread_min_s > 0.0
        self._pause_s = pause_s
        self._spread_min_s = spread_min_s
        self._gaps: deque[float] = deque()
        self._sum = 0.0
        self._squares = 0.0
        self._outstanding = 0
        self._owed_since: float | None = None
        self._missed = False

    def asked(self, now: float) -> None:
        """An answer is owed from now on."""
        self._outstanding += 1
        if self._owed_since is None:
            self._owed_since = now

    def answered(self, now: float) -> None:
        """One answer came, to whichever question."""
        if self._owed_since is not None:
            self._learn(max(0.0, now - self._owed_since))
        self._outstanding = max(0, self._outstanding - 1)
        self._missed = False
        self._owed_since = now if self._outstanding else None

    def unanswered(self) -> None:
        """A question's own deadline has passed: nobody waits for it any more, but it was owed."""
        self._outstanding = max(0, self._outstanding - 1)
        self._missed = True

    def withdrawn(self) -> None:
        """A question was taken back, or answered by somebody else: it says nothing."""
        self._outstanding = max(0, self._outstanding - 1)
        if not self._outstanding and not self._missed:
            self._owed_since = None

    def heard(self, now: float) -> None:
        """It was heard of in another way, or we could not have heard it: silence begins anew."""
        self._missed = False
        self._owed_since = now if self._outstanding else None

    def silent_s(self, now: float) -> float:
        """How long an answer has been owed; 0.0 when none is."""
        return 0.0 if self._owed_since is None else max(0.0, now - self._owed_since)

    def phi(self, now: float) -> float:
        """How unlikely this silence is, from 0.0 to PHI_MAX."""
        if self._owed_since is None:
            return 0.0
        count = len(self._gaps)
        mean = self._sum / count if count else 0.0
        variance = self._squares / count - mean * mean if count else 0.0
        spread = max(sqrt(max(0.0, variance)), self._spread_min_s)
        chance = 0.5 * erfc((now - self._owed_since - mean - self._pause_s) / (spread * sqrt(2.0)))
        return -log10(chance) if chance > _CHANCE_MIN else PHI_MAX

    def _learn(self, gap: float) -> None:
        self._gaps.append(gap)
        self._sum += gap
        self._squares += gap * gap
        if len(self._gaps) > GAPS_KEPT:
            old = self._gaps.popleft()
            self._sum -= old
            self._squares -= old * old
