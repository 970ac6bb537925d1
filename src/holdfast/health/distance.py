"""How far away a store is: the round trip to whoever keeps it, without its medium. Pure.

A store in another region answers after tens of milliseconds, whatever its disk does. That is no illness; so
the way there is measured by something that touches no medium (a ping of its node), and taken out wherever a
store is judged against others. The least of many pings is the way itself, the rest is waiting: so the
distance is the least of the last minutes. It follows a shorter way at once, and a longer one only after
`KEPT_S`, since a node that is overloaded or on its knees answers pings late, too, and is not far for that.

What is left over of a call is judged twice, each time with a bias for the innocent. As a yardstick for others
it is what no jitter of the way explains, as the pings show it. Against its own store nothing counts that the
way may explain: once more the same way, for jitter or a packet that was sent again, and for each doubling of
what TCP sends at once after a rest (RFC 6928: ten segments, doubled with every round trip) another one.
Jitter of more than the way itself excuses nobody. What must hold: at distance nought both are the call's own
time, to the digit.
"""

from collections import deque
from math import log2

KEPT_S = 300.0
ASSUMED_S = 0.1
"""How far a store is taken to be that is not here, before the first measurement."""

DISTANCE_MAX_S = 1.0
LATEST = 16
LATEST_MIN = 8
"""With fewer pings nothing is known of how much they vary: as much as the way itself, then."""

YARDSTICK_MIN_S = 0.001
"""The way is not known better than this: what is less is no better than others."""

WINDOW_FIRST_BYTES = 14_600
NEAR_S = 0.002
"""Differences below this are those of one network, and of the machines in it: not worth a choice."""


class Distance:
    """The least round trip of the last KEPT_S to twice that, in seconds, and what the latest took more."""

    __slots__ = ("_before", "_began", "_lately", "_latest", "jitter_s", "trip_s")

    def __init__(self) -> None:
        self.trip_s = ASSUMED_S
        self.jitter_s = ASSUMED_S
        self._latest: deque[float] = deque(maxlen=LATEST)
        self._began: float | None = None
        self._lately = self._before = float("inf")

    def told(self, seconds: float, now: float) -> None:
        """A round trip that touched no medium took `seconds`."""
        if self._began is None:
            self._began = now
        elif now - self._began >= KEPT_S:
            self._before, self._lately, self._began = self._lately, float("inf"), now
        self._lately = min(self._lately, seconds)
        self.trip_s = min(self._lately, self._before, DISTANCE_MAX_S)
        self._latest.append(seconds)
        seen = len(self._latest) >= LATEST_MIN
        self.jitter_s = min(max(self._latest) - self.trip_s, self.trip_s) if seen else self.trip_s

    def yardstick_s(self, left_s: float) -> float:
        """What others are held against, of what a call took beyond the way: what no jitter explains."""
        return max(left_s - self.jitter_s, YARDSTICK_MIN_S)


def allowed_s(trip_s: float, size: int) -> float:
    """What a call that moves `size` bytes may take because of the way alone."""
    return trip_s * (2.0 + log2(1.0 + size / WINDOW_FIRST_BYTES)) if trip_s else 0.0


def nearness(trip_s: float) -> int:
    """Stores with the same number are equally near, lower ones nearer: steps of twice as far, from NEAR_S."""
    return int(log2(trip_s / NEAR_S)) + 1 if trip_s > NEAR_S else 0
