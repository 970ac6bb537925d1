"""Commits that wait, and those that were decided and wait for their acknowledgement. Pure.

What must hold: transactions are decided in the order they came; a call is answered only when every
outcome in it may be told; a call of which nothing was decided yet can still be refused whole, any other
one gets an outcome for each transaction, Unknown where it cannot be told in time.
"""

import asyncio
from collections import deque
from collections.abc import Sequence

from holdfast.index.port import Outcome, Transaction, Unknown
from holdfast.index.sqlite.live import Decision

ITEM_BYTES = 48
"""Allowed for the framing of one transaction and its items in a record."""


class Call:
    """One `commit` that waits for its answer."""

    __slots__ = ("deadline", "decisions", "future", "refused", "sizes", "transactions")

    def __init__(
        self,
        transactions: Sequence[Transaction],
        sizes: Sequence[int],
        future: "asyncio.Future[list[Outcome]]",
        deadline: float,
    ) -> None:
        self.transactions = transactions
        self.sizes = sizes
        self.future = future
        self.deadline = deadline
        self.decisions: list[Decision] = []
        self.refused = False

    @property
    def undecided(self) -> int:
        """How many of its transactions are not decided."""
        return len(self.transactions) - len(self.decisions)

    def wait_for(self) -> int:
        """The sequence after which all of it may be told."""
        return max(decision.sequence for decision in self.decisions)

    def answer(self) -> None:
        """Tell all outcomes."""
        if not self.future.done():
            self.future.set_result([decision.outcome for decision in self.decisions])

    def answer_unknown(self, acked: int, reason: str) -> None:
        """Tell what may be told, and that the rest is unknown."""
        if not self.future.done():
            outcomes: list[Outcome] = [
                decision.outcome if decision.sequence <= acked else Unknown(reason)
                for decision in self.decisions
            ]
            outcomes += [Unknown(reason)] * self.undecided
            self.future.set_result(outcomes)

    def refuse(self, error: Exception) -> None:
        """Nothing of it was sent anywhere."""
        assert not self.decisions
        self.refused = True
        if not self.future.done():
            self.future.set_exception(error)


class Rounds:
    """The queue before deciding and the waiting room after it."""

    def __init__(self) -> None:
        self._queue: deque[Call] = deque()
        self._waiting: dict[int, list[Call]] = {}

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, call: Call) -> None:
        """A call comes in."""
        self._queue.append(call)

    def gather(self, bytes_max: int, count_max: int) -> list[tuple[Call, int]]:
        """(call, how many of its transactions) for the next round, at least one transaction. A call that
        was cancelled before anything of it was decided is dropped: it has no effect."""
        gathered: list[tuple[Call, int]] = []
        size = count = 0
        for call in self._queue:
            if call.future.done() and not call.decisions:
                gathered.append((call, 0))
                continue
            taken = 0
            for at in range(len(call.decisions), len(call.transactions)):
                transaction = call.transactions[at]
                items = 1 + len(transaction.puts) + len(transaction.deletes)
                size += call.sizes[at] + ITEM_BYTES * items
                if count and (size > bytes_max or count == count_max):
                    gathered.append((call, taken))
                    return gathered
                taken += 1
                count += 1
            gathered.append((call, taken))
        return gathered

    def decided(
        self, gathered: Sequence[tuple[Call, int]], decisions: Sequence[Decision], acked: int
    ) -> None:
        """Hand out the decisions of a round; whoever has all of theirs and may be told is answered."""
        at = 0
        for call, taken in gathered:
            call.decisions += decisions[at : at + taken]
            at += taken
            if call.undecided and not (call.future.done() and not taken):
                assert call is self._queue[0]
                return
            assert call is self._queue.popleft()
            if not call.decisions:
                continue
            sequence = call.wait_for()
            if sequence <= acked:
                call.answer()
            else:
                self._waiting.setdefault(sequence, []).append(call)

    def acknowledged(self, sequence: int) -> None:
        """The record `sequence` is acknowledged."""
        for call in self._waiting.pop(sequence, ()):
            call.answer()

    def expire(self, now: float, acked: int, error: Exception, reason: str) -> None:
        """Answer whoever has waited for too long."""
        for call in [call for call in self._queue if call.deadline <= now]:
            if call.decisions:
                call.answer_unknown(acked, reason)
            else:
                self._queue.remove(call)
                call.refuse(error)
        for sequence, calls in tuple(self._waiting.items()):
            late = [call for call in calls if call.deadline <= now]
            for call in late:
                call.answer_unknown(acked, reason)
                calls.remove(call)
            if not calls:
                del self._waiting[sequence]

    def end(self, acked: int, error: Exception, reason: str) -> None:
        """Answer everybody: nothing will be decided or acknowledged any more."""
        self.expire(float("inf"), acked, error, reason)
        self._queue.clear()
