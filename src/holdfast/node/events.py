"""What happened lately, for `holdfast status` and the log: the last few, oldest first.

A repeated text is one event with a new time, so that a disk that fails a thousand times does not push
everything else out.
"""

import logging
from collections import deque

from holdfast.base.clock import Clock
from holdfast.node.status import Event

KEPT = 50

_LOG = logging.getLogger("holdfast.node")


class Events:
    """The last `KEPT` events."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=KEPT)

    def tell(self, text: str) -> None:
        """Something happened."""
        for old in self._events:
            if old.text == text:
                self._events.remove(old)
                break
        else:
            _LOG.info("%s", text)
        self._events.append(Event(self._clock.wall(), text))

    def last(self, count: int) -> tuple[Event, ...]:
        """The newest `count`, oldest of them first."""
        return tuple(self._events)[-count:]
