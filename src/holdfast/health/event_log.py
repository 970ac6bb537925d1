"""Keeps events: told at once, written to the index when it can be, the oldest removed.

Telling costs nothing and waits for nobody: an event goes to memory, and a task of its own writes what has
come together, in order, a batch in one transaction. While the index is away they wait, as many as
`WAITING_MAX`; then the oldest of those go, and how many is an event itself.

What must hold: an event is written once, although the outcome of a commit may be unknown; numbers have no
gaps and grow in the order of telling; there are never more than `KEPT_MAX` rows. Who tells the same again
within `REPEAT_S` gives it a new time in memory, and no new row: a disk that fails a thousand times does not
push everything else out.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Mapping

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError, Unavailable
from holdfast.health.events import (
    EVENTS,
    HEAD,
    Event,
    Head,
    Kind,
    decode_event,
    decode_head,
    encode_event,
    encode_head,
    event_row,
    make_event,
)
from holdfast.index.port import (
    ABSENT,
    Committed,
    Expect,
    Index,
    Row,
    Transaction,
    Unknown,
    prefix_end,
)

KEPT_MAX = 10_000
WAITING_MAX = 1_000
SHOWN_MAX = 50
PAGE_MAX = 1_000
BATCH_MAX = 40
"""Events in one transaction, with as many removed: within the limits of every index."""

REMOVED_MAX = 60
REPEAT_S = 60.0
REPEATS_KNOWN = 256
RETRY_FIRST_S = 0.5
RETRY_MAX_S = 15.0

assert 2 * BATCH_MAX <= BATCH_MAX + REMOVED_MAX < 127

_LOG = logging.getLogger("holdfast.node")


class Page(Struct, frozen=True):
    """Events in order. `after` is what to ask for next; `complete` is False when the index is away, and these
    are only what this process remembers."""

    events: tuple[Event, ...]
    after: int
    more: bool = False
    complete: bool = True


class EventLog:
    """`observer` is this node's name. Told from the beginning; writes from `begin` to `close`."""

    def __init__(self, clock: Clock, observer: str = "", *, kept_max: int = KEPT_MAX) -> None:
        self._clock = clock
        self._observer = observer
        self._kept_max = kept_max
        self._shown: OrderedDict[tuple[str, ...], Event] = OrderedDict()
        self._repeats: OrderedDict[tuple[str, ...], float] = OrderedDict()
        self._waiting: deque[Event] = deque()
        self._batch: list[Event] = []
        self._lost = 0
        self._told = asyncio.Event()
        self._index: Index | None = None
        self._change: Transaction | None = None
        self._task: asyncio.Task[None] | None = None
        self.written = asyncio.Event()
        """Set whenever events were written; who waits for it clears it."""

    def tell(
        self,
        text: str,
        *,
        kind: str = Kind.NOTE,
        subject: str = "",
        before: str = "",
        after: str = "",
        evidence: Mapping[str, str] | None = None,
    ) -> None:
        """Something happened; `text` is the whole of it, or the reason of a change to `after`."""
        event = make_event(
            self._clock.wall(),
            self._observer,
            kind=kind,
            subject=subject,
            before=before,
            after=after,
            reason=text,
            evidence=evidence or {},
        )
        again = event.same in self._shown
        self._shown[event.same] = event
        self._shown.move_to_end(event.same)
        while len(self._shown) > SHOWN_MAX:
            self._shown.popitem(last=False)
        if not again:
            _LOG.info("%s", event.text)
        if self._is_new(event):
            self._enqueue(event)

    def last(self, count: int) -> tuple[Event, ...]:
        """The newest `count` that differ, oldest of them first, from memory."""
        return tuple(self._shown.values())[-count:] if count > 0 else ()

    def begin(self, index: Index) -> None:
        """Write to `index` from now on."""
        assert self._task is None
        self._index = index
        self._task = asyncio.create_task(self._write_on())

    async def close(self) -> None:
        """Write what waits if that can be done at once, and stop."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        try:
            while self._waiting or self._batch:
                await self._write_batch()
        except HoldfastError as error:
            _LOG.warning("%d events could not be kept: %s", len(self._waiting) + len(self._batch), error)

    async def head(self) -> Head:
        """Which events there are. Raises Unavailable."""
        assert self._index is not None
        (row,) = await self._index.get([HEAD])
        return decode_head(row)

    async def page(self, after: int, limit: int) -> Page:
        """Up to `limit` events with a number greater than `after`. Raises Unavailable."""
        assert self._index is not None
        limit = min(limit, PAGE_MAX)
        found = await self._index.scan(event_row(max(0, after) + 1), prefix_end(EVENTS), limit=limit + 1)
        events = tuple(decode_event(row) for row in found[:limit] if isinstance(row, Row))
        return Page(events, events[-1].number if events else after, len(found) > limit)

    async def newest(self, limit: int) -> Page:
        """The newest `limit`; from memory when the index is away."""
        try:
            head = await self.head()
            if not head.skipped:
                return await self.page(head.next - 1 - limit, limit)
            found: deque[Event] = deque(maxlen=limit)
            page = await self.page(max(head.first, head.next - head.skipped - limit) - 1, PAGE_MAX)
            found.extend(page.events)
            while page.more:
                page = await self.page(page.after, PAGE_MAX)
                found.extend(page.events)
            return Page(tuple(found), page.after)
        except HoldfastError:
            return Page(self.last(limit), 0, complete=False)

    # Writing

    def _is_new(self, event: Event) -> bool:
        now = self._clock.monotonic()
        written = self._repeats.get(event.same)
        if written is not None and now - written < REPEAT_S:
            return False
        self._repeats[event.same] = now
        self._repeats.move_to_end(event.same)
        while len(self._repeats) > REPEATS_KNOWN:
            self._repeats.popitem(last=False)
        return True

    def _enqueue(self, event: Event) -> None:
        self._waiting.append(event)
        if len(self._waiting) > WAITING_MAX:
            self._waiting.popleft()
            self._lost += 1
        self._told.set()

    async def _write_on(self) -> None:
        retry_s = RETRY_FIRST_S
        try:
            await self._remember()
        except HoldfastError as error:
            _LOG.warning("earlier events cannot be read: %s", error)
        while True:
            await self._told.wait()
            self._told.clear()
            while self._waiting or self._batch:
                try:
                    await self._write_batch()
                    retry_s = RETRY_FIRST_S
                except HoldfastError:
                    # The index is away: status says so, and what happened meanwhile waits.
                    await self._clock.sleep(retry_s)
                    retry_s = min(2 * retry_s, RETRY_MAX_S)

    async def _remember(self) -> None:
        """What was told before this process began is what people look for after a restart."""
        earlier = (await self.page((await self.head()).next - 1 - SHOWN_MAX, SHOWN_MAX)).events
        now = list(self._shown.items())
        self._shown = OrderedDict((event.same, event) for event in earlier)
        for same, event in now:
            self._shown[same] = event
            self._shown.move_to_end(same)

    async def _write_batch(self) -> None:
        """Write some of what waits. Raises Unavailable; then the very same is tried again: both expect the
        same row, so that at most one is ever committed."""
        assert self._index is not None
        if self._change is None:
            self._change = await self._next_change()
        (outcome,) = await self._index.commit([self._change])
        if isinstance(outcome, Unknown):
            raise Unavailable("Whether events were written is unknown.")
        landed = isinstance(outcome, Committed) or await self._is_there(self._change.puts[0])
        self._change = None
        if landed:
            self._batch = []
            self.written.set()

    async def _next_change(self) -> Transaction:
        """The transaction that writes the batch under the next numbers, and removes the oldest."""
        assert self._index is not None
        if self._lost and not self._batch:
            lost, self._lost = self._lost, 0
            self._waiting.appendleft(
                self._note(f"{lost} events were not kept: the index was away for too long")
            )
        while self._waiting and len(self._batch) < BATCH_MAX:
            self._batch.append(self._waiting.popleft())
        (row,) = await self._index.get([HEAD])
        head = decode_head(row)
        until = head.next + len(self._batch)
        head_then, removed = await self._without_the_oldest(head, until)
        rows = [
            (event_row(number), encode_event(event))
            for number, event in enumerate(self._batch, start=head.next)
        ]
        return Transaction(
            (Expect(HEAD, row.revision if row else ABSENT),),
            (*rows, (HEAD, encode_head(head_then))),
            removed,
        )

    async def _without_the_oldest(self, head: Head, until: int) -> tuple[Head, tuple[bytes, ...]]:
        """How it is when all up to `until` are written, and the rows that go for it."""
        assert self._index is not None
        surplus = min(until - head.first - head.skipped - self._kept_max, REMOVED_MAX)
        if surplus <= 0:
            return Head(first=head.first, next=until, skipped=head.skipped), ()
        # The rows themselves say where numbers were skipped.
        found = await self._index.scan(event_row(head.first), prefix_end(EVENTS), limit=surplus + 1)
        there = [decode_event(row).number for row in found if isinstance(row, Row)]
        first = there[surplus] if len(there) > surplus else head.next
        gone = tuple(event_row(number) for number in there[:surplus])
        skipped = max(0, head.skipped - (first - head.first - len(gone)))
        return Head(first=first, next=until, skipped=skipped), gone

    async def _is_there(self, row: tuple[bytes, bytes]) -> bool:
        assert self._index is not None
        (found,) = await self._index.get([row[0]])
        return found is not None and found.value == row[1]

    def _note(self, text: str) -> Event:
        return make_event(
            self._clock.wall(),
            self._observer,
            kind=Kind.NODE,
            subject="",
            before="",
            after="",
            reason=text,
            evidence={},
        )
