"""How often a store fails, for those that fail now and then. Pure.

Failures in a row find a store that is broken; one that fails every third call never has many in a row, and
yet costs its clients a rebuild each time. So the share of failures is kept, too, with a memory that fades by
half every `HALF_LIFE_S`: two sums, no window, the same effort for a call a second and ten thousand. A share
is believed from `ERRORS_MIN` failures on (faded ones count by what is left of them), is too much from
`SHARE_SUSPECT`, and is forgiven below `SHARE_CLEAR`: two thresholds, so that a share in between does not make
a store come and go.
"""

HALF_LIFE_S = 3.0
ERRORS_MIN = 2.5
SHARE_SUSPECT = 0.20
SHARE_CLEAR = 0.10

assert SHARE_CLEAR < SHARE_SUSPECT


class ErrorRate:
    """Failures and successes of one kind of call, the newest counting most."""

    __slots__ = ("_at", "_errors", "_successes")

    def __init__(self) -> None:
        self._errors = 0.0
        self._successes = 0.0
        self._at = 0.0

    def failed(self, now: float, *, age_s: float = 0.0) -> None:
        """A call failed; one that was answered by its deadline alone tells of `age_s` ago."""
        self._fade(now)
        self._errors += 0.5 ** (age_s / HALF_LIFE_S)

    def succeeded(self, now: float) -> None:
        """A call succeeded."""
        self._fade(now)
        self._successes += 1.0

    def clear(self) -> None:
        """Forget everything."""
        self._errors = self._successes = 0.0

    def share(self, now: float) -> float:
        """The share of failures, 0.0 to 1.0."""
        self._fade(now)
        total = self._errors + self._successes
        return self._errors / total if total > 0.0 else 0.0

    def too_high(self, now: float) -> bool:
        """Whether it fails too often to be relied on."""
        return self.share(now) >= SHARE_SUSPECT and self._errors >= ERRORS_MIN

    def is_clear(self, now: float) -> bool:
        """Whether it fails no more than anybody."""
        return self.share(now) < SHARE_CLEAR or self._errors < 0.5

    def _fade(self, now: float) -> None:
        if now <= self._at:
            return
        left = 0.5 ** ((now - self._at) / HALF_LIFE_S)
        self._errors *= left
        self._successes *= left
        self._at = now
