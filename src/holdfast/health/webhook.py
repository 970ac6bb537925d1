"""Delivers events to a URL: in order, at least once, from where it was when the process ended.

The queue is the index itself: a cursor, a row of its own, says which event is next, and moves only after the
receiver has answered 2xx. So a receiver that is away for a day gets what it missed when it returns, as far as
the events still exist, and is told how many do not. A batch may come twice, after a crash between the answer
and the cursor; its numbers say so. What must hold: delivering never holds up anything else, at most one batch
is under way, and failing is slow: the wait doubles from `RETRY_FIRST_S` to `RETRY_MAX_S`, less a random half.
"""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from holdfast import __version__
from holdfast.base.clock import Clock
from holdfast.base.errors import Bug, Damaged, HoldfastError, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.health.event_log import EventLog
from holdfast.health.events import Event
from holdfast.health.posting import Poster, PostFailed
from holdfast.index.port import ABSENT, Committed, Expect, Index, Transaction

CURSOR = b"events-sent"
FORMAT = 1
BATCH_MAX = 50
RETRY_FIRST_S = 1.0
RETRY_MAX_S = 60.0
LOOK_EVERY_S = 5.0
SIGNATURE_HEADER = "x-holdfast-signature"


class WebhookStatus(Struct, frozen=True):
    """How delivering goes. `host` is all that is told of the URL. `waiting` events are not delivered yet;
    `missed` were removed before they could be. Counts are from the start of the node."""

    host: str
    waiting: int = 0
    delivered: int = 0
    missed: int = 0
    failing_for_s: float | None = None
    last_error: str = ""


class _Cursor(Struct, frozen=True, array_like=True):
    format: int
    next: int


class Batch(Struct, frozen=True):
    """What is posted, as JSON. `missed` events before the first were removed before they could be sent."""

    events: tuple[Event, ...]
    missed: int = 0


def sign(secret: str, body: bytes) -> str:
    """The value of SIGNATURE_HEADER: an HMAC of the body, as hex."""
    return f"sha256={hmac.digest(secret.encode(), body, hashlib.sha256).hex()}"


def retry_after_s(failures: int, chance: float) -> float:
    """How long to wait after so many failures in a row; `chance` from 0 to 1 spreads those who wait."""
    whole = min(RETRY_FIRST_S * 2.0 ** min(failures - 1, 16), RETRY_MAX_S)
    return whole * (0.5 + 0.5 * chance)


class Webhook:
    """Delivers what `log` has written to `index`; of `kinds` alone, if any are named. Of several nodes one
    delivers: `is_our_turn` says whether it is this one."""

    def __init__(
        self,
        log: EventLog,
        index: Index,
        poster: Poster,
        clock: Clock,
        randomness: Randomness,
        *,
        url: str,
        secret: str = "",
        kinds: Sequence[str] = (),
        is_our_turn: Callable[[], Awaitable[bool]] | None = None,
    ) -> None:
        self._is_our_turn = is_our_turn
        self._log = log
        self._index = index
        self._poster = poster
        self._clock = clock
        self._randomness = randomness
        self._host = urlsplit(url).netloc
        self._secret = secret
        self._kinds = frozenset(kinds)
        self._cursor: _Cursor | None = None
        self._revision = ABSENT
        self._waiting = self._delivered = self._missed = 0
        self._failures = 0
        self._failing_since = 0.0
        self._last_error = ""
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Deliver until closed."""
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Stop; what was not delivered waits for the next start."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._poster.close()

    def status(self) -> WebhookStatus:
        """How it goes."""
        return WebhookStatus(
            self._host,
            self._waiting,
            self._delivered,
            self._missed,
            self._clock.monotonic() - self._failing_since if self._failures else None,
            self._last_error if self._failures else "",
        )

    async def _run(self) -> None:
        while True:
            self._log.written.clear()
            try:
                while await self.step():
                    pass
                self._failures = 0
            except Exception as error:
                self._failed(error)
                wait_s = retry_after_s(self._failures, self._randomness.fraction())
                await self._clock.sleep(wait_s)
                continue
            try:
                # Others may write events, too.
                await asyncio.wait_for(self._log.written.wait(), LOOK_EVERY_S)
            except TimeoutError:
                continue

    def _failed(self, error: Exception) -> None:
        if not isinstance(error, HoldfastError) or isinstance(error, Bug):
            # A mistake of ours is seen in the log, and delivering goes on trying all the same.
            asyncio.get_running_loop().call_exception_handler(
                {"message": "delivering events failed", "exception": error}
            )
        if not self._failures:
            self._failing_since = self._clock.monotonic()
        self._failures += 1
        self._last_error = str(error)

    async def step(self) -> bool:
        """Deliver one batch; False when there is none. Raises PostFailed, Unavailable."""
        if self._is_our_turn is not None and not await self._is_our_turn():
            self._cursor, self._revision, self._waiting = None, ABSENT, 0
            return False
        cursor = self._cursor or await self._find_cursor()
        page = await self._log.page(cursor.next - 1, BATCH_MAX)
        head = await self._log.head()
        ahead = head.next - cursor.next
        self._waiting = max(0, ahead - head.skipped if ahead > head.skipped else ahead)
        if not page.events:
            return False
        missed = page.events[0].number - cursor.next
        if missed >= head.skipped:
            missed -= head.skipped  # nobody was given those
        wanted = tuple(event for event in page.events if not self._kinds or event.kind in self._kinds)
        if wanted or missed:
            await self._send(Batch(wanted, missed))
        self._failures = 0
        self._delivered += len(wanted)
        self._missed += missed
        self._waiting = max(0, self._waiting - missed - len(page.events))
        await self._move(_Cursor(FORMAT, page.events[-1].number + 1))
        return page.more

    async def _send(self, batch: Batch) -> None:
        body = msgspec.json.encode(batch)
        headers = {"content-type": "application/json", "user-agent": f"holdfast/{__version__}"}
        if self._secret:
            headers[SIGNATURE_HEADER] = sign(self._secret, body)
        status = await self._poster.post(body, headers)
        if not 200 <= status < 300:
            raise PostFailed(f"It answered {status}.")

    async def _find_cursor(self) -> _Cursor:
        """Where we were; the first time, at what happens from now on."""
        (row,) = await self._index.get([CURSOR])
        if row is None:
            self._revision = ABSENT
            await self._move(_Cursor(FORMAT, (await self._log.head()).next))
            if self._cursor is None:
                raise Unavailable("It is not known where delivering begins.")
            return self._cursor
        try:
            self._cursor = msgspec.msgpack.decode(row.value, type=_Cursor)
        except msgspec.MsgspecError as error:
            raise Damaged(f"The row {CURSOR!r} cannot be understood: {error}") from None
        self._revision = row.revision
        return self._cursor

    async def _move(self, cursor: _Cursor) -> None:
        """Remember what is next. If that does not work, or somebody else delivers as well, the row is read
        again, and the batch may come twice."""
        change = Transaction((Expect(CURSOR, self._revision),), ((CURSOR, msgspec.msgpack.encode(cursor)),))
        self._cursor, self._revision = None, ABSENT
        (outcome,) = await self._index.commit([change])
        if isinstance(outcome, Committed):
            self._cursor, self._revision = cursor, outcome.revision


async def forget_cursor(index: Index) -> None:
    """Without a webhook nothing is owed: a later one begins with what happens then."""
    (row,) = await index.get([CURSOR])
    if row is not None:
        await index.commit([Transaction((Expect(CURSOR, row.revision),), (), (CURSOR,))])
