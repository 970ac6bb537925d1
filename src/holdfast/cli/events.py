"""`holdfast events`: what happened, from the node's log of events, and what happens from now on.

What must hold: with `--follow` nothing is left out between two looks, also when the node is restarted in
between; and `--json` prints one object a line, so that it can be piped.
"""

import re
from datetime import UTC, datetime

import msgspec
import typer

from holdfast.base.clock import Clock
from holdfast.base.errors import Busy, HoldfastError, InvalidInput, Unavailable
from holdfast.cli.client import NodeClient
from holdfast.health.event_log import PAGE_MAX, Page
from holdfast.health.events import Event
from holdfast.node.config import Config

EVENTS_PATH = "/-/events"
LIMIT_DEFAULT = 50
FOLLOW_EVERY_S = 1.0
_AGE = re.compile(r"([0-9]{1,6})\s*([smhdw])\Z")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400}


async def show_events(
    config: Config, clock: Clock, *, limit: int | None, since: str | None, follow: bool, as_json: bool
) -> None:
    """Print events, oldest first; with `follow`, until interrupted. Raises Unavailable without a node."""
    if limit is not None and limit < 1:
        raise InvalidInput(f"--limit {limit} is not a number of events:", hint="at least 1.")
    from_wall = None if since is None else read_since(since, clock.wall())
    client = NodeClient(config, clock)
    if from_wall is None:
        last = LIMIT_DEFAULT if limit is None else limit
        events, after = _newest(client, last)
    else:
        events, after = _all_after(client, 0)
        events = [event for event in events if event.wall >= from_wall][-(limit or len(events) or 1) :]
    for event in events:
        _print(event, as_json=as_json)
    # Events that were shown from the node's memory have no numbers yet.
    shown_until = events[-1].wall if events and not events[-1].number else float("-inf")
    while follow:
        await clock.sleep(FOLLOW_EVERY_S)
        try:
            events, after = _all_after(client, after)
        except (Unavailable, Busy):
            # It is restarting, or its index is away: what happens meanwhile is asked for when it is back.
            client = _found_again(config, clock) or client
            continue
        for event in events:
            if event.wall > shown_until:
                _print(event, as_json=as_json)
        shown_until = float("-inf")


def read_since(text: str, now: float) -> float:
    """A moment, as seconds since 1970 UTC: an age as 90s, 15m, 12h, 7d, or a date and time as
    2026-01-31T12:00 (UTC unless it says otherwise). Raises InvalidInput."""
    if age := _AGE.match(text.strip()):
        return now - int(age[1]) * _UNITS_S[age[2]]
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise InvalidInput(
            f"--since {text!r} is not a time:", hint="as 15m, 12h, 7d, or 2026-01-31T12:00 (UTC)."
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _newest(client: NodeClient, count: int) -> tuple[list[Event], int]:
    page = _page(client, f"last={min(count, PAGE_MAX)}")
    if not page.complete:
        typer.echo("holdfast: the index is away: these are the events that the node remembers.", err=True)
    missing = count - len(page.events)
    events = list(page.events)
    if missing > 0 and events and events[0].number > 1 and count > PAGE_MAX:
        before, _ = _all_after(client, max(0, events[0].number - 1 - missing))
        events = [event for event in before if event.number < events[0].number] + events
    return events, page.after


def _all_after(client: NodeClient, after: int) -> tuple[list[Event], int]:
    events: list[Event] = []
    while True:
        page = _page(client, f"after={after}")
        events += page.events
        after = page.after
        if not page.more:
            return events, after


def _page(client: NodeClient, query: str) -> Page:
    try:
        return msgspec.json.decode(client.ask(EVENTS_PATH, query), type=Page)
    except msgspec.MsgspecError as error:
        raise Unavailable(
            f"The node's answer cannot be understood ({error}).",
            hint="Is it of another version? See `holdfast version`.",
        ) from None


def _found_again(config: Config, clock: Clock) -> NodeClient | None:
    try:
        return NodeClient(config, clock)
    except HoldfastError:
        return None


def _print(event: Event, *, as_json: bool) -> None:
    typer.echo(msgspec.json.encode(event).decode() if as_json else event_line(event))


def event_line(event: Event) -> str:
    """An event for a person."""
    moment = datetime.fromtimestamp(event.wall, UTC).strftime("%Y-%m-%d %H:%M:%S")
    came = f" (was {event.before})" if event.before and event.after else ""
    return f"{moment}  {event.text}{came}"
