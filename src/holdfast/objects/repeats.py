"""Requests that are tried again: what their earlier tries earned, and that those can do nothing more.

A balancer names a request once for all its tries. Before a second try does anything it takes the request
over: it commits `request/<id>`, which every try of that request expects as it was when that try began (the
first one expects none). So from then on no earlier try can be committed, however late it comes; and what
earlier tries did is there to be read, in the head rows and, where a key or bucket was deleted since, in rows
`request/<id>/<digest>`. The reasons are in the decision record on request ids.

What must hold: of all tries of a request, those that change a key change it once; rows are forgotten only
when they are older, by this process's own clock, than any balancer's patience.
"""

import hashlib
from collections.abc import Mapping

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Busy, HoldfastError
from holdfast.base.ids import RequestId, is_repeatable
from holdfast.index.port import ABSENT, Expect, Index, Row, Transaction
from holdfast.objects import keys, rows
from holdfast.objects.commit import Committer
from holdfast.objects.rows import HeadRow, Remembered, RequestRow

FORGET_AFTER_S = 900.0
CARRY_MS = 600_000
"""What a key remembers of a write outlives it if it is younger than this, by the label that it bears."""
FORGET_STEP = 256
_TAKE_OVER_S = 10.0


class Overtaken(Busy):
    """A later try of the same request has taken over; nothing of this one was, or will be, committed."""

    def __init__(self) -> None:
        super().__init__(
            "Another try of this request has taken over.", hint="Its answer is the one that counts."
        )


class Try(Struct, frozen=True):
    """One try of a request: its id, and the revision at which it expects the request's row. `earned` is what
    earlier tries are known to have earned, by what they were about (`digest_of`): the result of a write, or
    None for a deletion."""

    request: RequestId
    fence: int = ABSENT
    earned: Mapping[bytes, Remembered | None] = {}

    def expects(self) -> tuple[Expect, ...]:
        """That no later try has taken over."""
        if not is_repeatable(self.request):
            return ()
        return (Expect(keys.request_row(self.request), self.fence),)

    def ended(self, digest: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """The row that says that this request ended what `digest` stands for."""
        return leave(self.request, digest, None)


def leave(request: str, digest: bytes, result: Remembered | None) -> tuple[tuple[bytes, bytes], ...]:
    """The row by which a later try of `request` finds its result; none where there can be no later try."""
    if not is_repeatable(request):
        return ()
    return ((keys.earned_row(request, digest), rows.encode(RequestRow(rows.FORMAT, 0, result))),)


def carry(head: HeadRow, digest: bytes, now_ms: int) -> tuple[tuple[bytes, bytes], ...]:
    """Rows for what a head row remembers when it goes."""
    found: list[tuple[bytes, bytes]] = []
    for result in rows.remember(head):
        if now_ms - result.modified_ms < CARRY_MS:
            found += leave(result.request, digest, result)
    return tuple(found)


def digest_of(*names: str) -> bytes:
    """What a result is about: a bucket, a bucket and key, or those and an upload."""
    hasher = hashlib.blake2b(digest_size=16)
    for name in names:
        encoded = name.encode("utf-8", "surrogatepass")
        hasher.update(len(encoded).to_bytes(4) + encoded)
    return hasher.hexdigest().encode()


class Repeats:
    """Takes requests over, and forgets them."""

    def __init__(self, index: Index, committer: Committer, clock: Clock) -> None:
        self._index = index
        self._committer = committer
        self._clock = clock
        self._mark: tuple[int, float] | None = None

    async def begin(self, request: RequestId, tries: int) -> Try:
        """This try, ready to be made. Raises Overtaken when a later one was here first."""
        if tries <= 1 or not is_repeatable(request):
            return Try(request)
        key = keys.request_row(request)
        backoff = self._committer.backoff(_TAKE_OVER_S)
        while True:
            (found,) = await self._index.get((key,))
            before = 1 if found is None else rows.decode_request(found.value).tries
            if before == tries:
                break  # a commit of ours whose outcome was unknown
            if before > tries:
                raise Overtaken
            row = rows.encode(RequestRow(rows.FORMAT, tries))
            revision = ABSENT if found is None else found.revision
            if (
                await self._committer.decide_one(Transaction((Expect(key, revision),), ((key, row),)))
            ).committed:
                break
            if not await backoff.wait():
                raise Overtaken
        return await self._look(request, tries)

    async def _look(self, request: RequestId, tries: int) -> Try:
        fence = ABSENT
        earned: dict[bytes, Remembered | None] = {}
        key = keys.request_row(request)
        start, end = key, keys.after_prefix(key)
        while found := await self._index.scan(start, end, limit=FORGET_STEP):
            for item in found:
                assert isinstance(item, Row)
                row = rows.decode_request(item.value)
                if item.key != key:
                    earned[item.key.rpartition(b"/")[2]] = row.result
                elif row.tries == tries:
                    fence = item.revision
                start = item.key + b"\0"
        if fence == ABSENT:
            raise Overtaken
        return Try(request, fence, earned)

    async def forget(self) -> bool:
        """For a chore: one bounded step; True when there is nothing to forget at present."""
        now = self._clock.monotonic()
        if self._mark is None:
            self._mark = (self._index.status().revision, now)
        seen, at = self._mark
        if now - at < FORGET_AFTER_S:
            return True
        old: list[Row] = []
        start, end = keys.REQUESTS, keys.after_prefix(keys.REQUESTS)
        while len(old) < FORGET_STEP and (found := await self._index.scan(start, end, limit=FORGET_STEP)):
            rows_ = [item for item in found if isinstance(item, Row)]
            old += [row for row in rows_ if row.revision <= seen]
            start = rows_[-1].key + b"\0"
        if not old:
            self._mark = (self._index.status().revision, now)
            return True
        gone = [Transaction((Expect(row.key, row.revision),), (), (row.key,)) for row in old]
        try:
            await self._committer.decide(gone)
        except HoldfastError:
            return True  # they are still there the next time
        return False
