"""Whether to ask a provider again, and when.

Waits double and are drawn anew between nothing and all of themselves, so that many callers that were refused
together do not come back together. Repeats are paid from a budget that only successes fill: a provider that
refuses everything gets hardly more requests than without repeats. What must hold: no wait ends behind the
caller's deadline, and the budget is never below nothing nor above its most.

Pure: chance is handed in, and whoever asks does the waiting.
"""

from msgspec import Struct


class RetryLimits(Struct, frozen=True):
    """`first_s` is the most that the first wait takes, `most_s` the most of any. Each success earns the part
    `earned` of a repeat, up to `budget`."""

    attempts: int = 4
    first_s: float = 0.05
    most_s: float = 2.0
    budget: float = 10.0
    earned: float = 0.1


class Retries:
    """The budget of one store. It begins full."""

    def __init__(self, limits: RetryLimits) -> None:
        assert limits.attempts >= 1
        assert 0 < limits.first_s <= limits.most_s
        assert 0 <= limits.earned <= 1 <= limits.budget
        self._limits = limits
        self._left = limits.budget

    @property
    def left(self) -> float:
        """How many repeats can be paid."""
        return self._left

    def succeeded(self) -> None:
        """A call went well."""
        self._left = min(self._limits.budget, self._left + self._limits.earned)

    def wait_s(self, attempt: int, left_s: float, chance: float) -> float | None:
        """How long to wait after attempt number `attempt` (from 1) failed, with `left_s` until the deadline;
        None to give up. `chance` is between 0 and 1. A wait is paid for."""
        assert attempt >= 1
        assert 0 <= chance < 1
        if attempt >= self._limits.attempts or self._left < 1:
            return None
        most_s: float = min(self._limits.most_s, self._limits.first_s * 2 ** (attempt - 1))
        wait_s = chance * most_s
        if wait_s >= left_s:
            return None
        self._left -= 1
        return wait_s
