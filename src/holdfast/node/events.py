"""The node's events: the log, the address under which it is read, and the webhook that is told of them.

`GET /-/events` answers a page as JSON: `after=N` the events that follow number N, `last=N` the newest N,
`limit=N` at most so many. While the index is away it answers what this process remembers, and says so.
"""

import contextlib

import msgspec

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError, InvalidInput
from holdfast.base.randomness import Randomness
from holdfast.chores.lease import ChoreLease
from holdfast.health.event_log import PAGE_MAX, EventLog
from holdfast.health.posting import HttpPoster
from holdfast.health.webhook import Webhook, WebhookStatus, forget_cursor
from holdfast.index.port import Index
from holdfast.node.config import EventsSettings
from holdfast.node.status import Event
from holdfast.s3.face import AdminAnswer, AdminRequest

NUMBER_MAX = 1 << 62
WEBHOOK_LEASE = "webhook"


class Events(EventLog):
    """All that a node tells."""

    def __init__(self, clock: Clock, settings: EventsSettings | None = None, observer: str = "") -> None:
        super().__init__(clock, observer)
        self._settings = settings or EventsSettings()
        self._webhook: Webhook | None = None

    async def serve(self, index: Index, clock: Clock, randomness: Randomness, *, holder: str = "") -> None:
        """The index is there: write to it, and begin to deliver. `holder` is this process where there are
        several: then those that have a webhook take turns, and the cursor stays for them."""
        self.begin(index)
        settings = self._settings
        turns = ChoreLease(WEBHOOK_LEASE, holder, index, clock) if holder else None
        if not settings.webhook:
            if turns is not None:
                return
            with contextlib.suppress(HoldfastError):  # the next start tries again
                await forget_cursor(index)
        else:
            self._webhook = Webhook(
                self,
                index,
                HttpPoster(settings.webhook),
                clock,
                randomness,
                url=settings.webhook,
                secret=settings.secret,
                kinds=settings.kinds,
                is_our_turn=turns.hold if turns is not None else None,
            )
            self._webhook.begin()

    async def stop(self) -> None:
        """Write what waits, and let go. What was not delivered is, after the next start."""
        if self._webhook is not None:
            await self._webhook.close()
        await self.close()

    def shown(self, count: int) -> tuple[Event, ...]:
        """The last few, for the status."""
        return tuple(Event(event.wall, event.text) for event in self.last(count))

    def webhook_status(self) -> WebhookStatus | None:
        """How delivering goes; None without a webhook."""
        return self._webhook.status() if self._webhook is not None else None

    async def answer(self, request: AdminRequest) -> AdminAnswer:
        """`/-/events`."""
        limit = _number(request, "limit", PAGE_MAX)
        if "after" in request.query:
            page = await self.page(_number(request, "after", 0), limit)
        else:
            page = await self.newest(_number(request, "last", limit))
        return AdminAnswer(200, msgspec.json.encode(page))


def _number(request: AdminRequest, name: str, default: int) -> int:
    text = request.query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or not int(text[:20]) <= NUMBER_MAX:
        raise InvalidInput(f"{name}={text[:40]!r} is not a number:", hint="whole and not negative.")
    return min(int(text), PAGE_MAX) if name != "after" else int(text)
