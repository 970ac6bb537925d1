"""Finding out how a commit ended.

The index may answer Unknown: committed or not, now or later. Nothing may be answered, retried or deleted
until that is settled, and it is settled by committing the very same transaction again: its expectations
are such that both cannot commit. If the second one commits, it stands for the first. If it meets a
conflict, the first may have been what it met, so `certain` is false and the caller looks at what the
rows say: every write leaves a mark that only it can leave (a version id in the head row, its `dead` row
once it was replaced, the cause in another's `dead` row).

What must hold: `committed` is true only if the transaction is durable; with `certain`, nothing of it is
still on its way.
"""

from collections.abc import Sequence
from typing import NamedTuple

from holdfast.base.clock import Clock
from holdfast.base.errors import Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.port import Committed, Conflict, Index, Outcome, Transaction
from holdfast.objects.settings import ObjectsPatience


class Decided(NamedTuple):
    """How a transaction ended. `conflict` is the key that was not as expected when it did not commit.
    With `certain`, no earlier attempt of it can be what was met, or is still on its way."""

    committed: bool
    certain: bool
    conflict: bytes = b""


class Backoff:
    """Waits that double, with jitter, until patience ends."""

    def __init__(
        self, clock: Clock, randomness: Randomness, patience: ObjectsPatience, total_s: float
    ) -> None:
        self._clock = clock
        self._randomness = randomness
        self._wait_s = patience.backoff_first_s
        self._last_s = patience.backoff_last_s
        self._deadline = clock.monotonic() + total_s

    async def wait(self) -> bool:
        """Wait a little; False, at once, when patience has ended."""
        if self._clock.monotonic() >= self._deadline:
            return False
        await self._clock.sleep(self._wait_s * (0.5 + self._randomness.fraction() / 2))
        self._wait_s = min(self._wait_s * 2, self._last_s)
        return True


class Committer:
    """Commits, and settles what is unknown."""

    def __init__(self, index: Index, clock: Clock, randomness: Randomness, patience: ObjectsPatience) -> None:
        self._index = index
        self._clock = clock
        self._randomness = randomness
        self._patience = patience

    def backoff(self, total_s: float) -> Backoff:
        """Waits for a loop of the caller's own."""
        return Backoff(self._clock, self._randomness, self._patience, total_s)

    async def decide(self, transactions: Sequence[Transaction]) -> list[Decided]:
        """Commit all, in order; return how each ended.

        Raises Unavailable when the index is away: nothing was committed, unless the message says that
        the outcome is unknown.
        """
        decided, open_ = self._sort(await self._index.commit(transactions), range(len(transactions)), True)
        if open_:
            await self._settle(transactions, decided, open_)
        return [decided[place] for place in range(len(transactions))]

    async def decide_one(self, transaction: Transaction) -> Decided:
        """A single one."""
        return (await self.decide((transaction,)))[0]

    async def settle(self, transaction: Transaction, outcome: Outcome) -> Decided:
        """How a transaction ended that somebody else committed first, with this outcome. Raises as
        `decide`."""
        decided, open_ = self._sort((outcome,), (0,), True)
        if open_:
            await self._settle((transaction,), decided, open_)
        return decided[0]

    async def _settle(
        self, transactions: Sequence[Transaction], decided: dict[int, Decided], open_: list[int]
    ) -> None:
        backoff = self.backoff(self._patience.unknown_s)
        while open_:
            if not await backoff.wait():
                raise Unavailable(
                    "The index did not say whether the write was committed: its outcome is unknown.",
                    hint="Look at what is stored before you repeat it.",
                    unknown=True,
                )
            try:
                outcomes = await self._index.commit([transactions[place] for place in open_])
            except Unavailable:
                continue  # says nothing about the first attempt
            more, open_ = self._sort(outcomes, open_, False)
            decided.update(more)

    @staticmethod
    def _sort(
        outcomes: Sequence[Outcome], places: Sequence[int], first: bool
    ) -> tuple[dict[int, Decided], list[int]]:
        assert len(outcomes) == len(places), "the index answers every transaction"
        decided: dict[int, Decided] = {}
        open_: list[int] = []
        for place, outcome in zip(places, outcomes, strict=True):
            if isinstance(outcome, Committed):
                decided[place] = _COMMITTED if first else _COMMITTED_AT_LAST
            elif isinstance(outcome, Conflict):
                decided[place] = Decided(False, first, outcome.key)
            else:
                open_.append(place)
        return decided, open_


_COMMITTED = Decided(True, True)
_COMMITTED_AT_LAST = Decided(True, False)
