"""How much chores give way to clients. Pure: what clients met and `now` in, how long to rest out.

After each small piece of work a chore rests k times as long as the piece took. k is 0 while no client is
there; else it follows what clients feel: each request that ends is compared with what is ordinary for its
kind, and kept as a ratio in one of two windows, by whether a chore worked meanwhile or not:

    quiet         the request met no chore: what is ordinary now
    overlapped    a chore worked while it was under way

Every `LOOK_S`, the tails of the two windows are compared. Where overlapped requests are slower than quiet
ones by more than `SLOWER_MAX`, k grows by half; where they are hardly slower, it shrinks a little. With
larger k fewer requests meet a chore at all, so that what all clients together feel is less than what is
measured here. Nothing is compared with fixed times: on a slow disk, or under high load, everybody is slow.

Several chores share what one alone may take, by weight. A chore may *press* (0 to 1): somebody waits for it
to end, or there is no room left, or it was put off for long. While one does, k stays below
`RESTS_MAX_PRESSED`, and it gets most of what all may take. That is a floor which clients can feel, but not in
their p99: chores work a twenty-fifth of the time then, in small pieces, so that one request in a hundred
waits for most of a piece.

What must hold: k stays within bounds, so that clients are never alone for ever, and chores never as well as
alone; whoever is urgent (a pack that can lose nothing more) rests at most `URGENT_RESTS` times its work.
"""

from bisect import bisect_left
from collections import deque

from msgspec import Struct

RESTS_FIRST = 4.0
RESTS_MIN = 1.0
RESTS_MAX = 64.0
RESTS_MAX_PRESSED = 24.0
URGENT_RESTS = 1.0

WEIGHT_PRESSED = 9.0
"""How much more of what all may take goes to a chore that presses with all its might."""

IDLE_S = 0.5
"""Clients are gone when no request was under way for so long."""

LOOK_S = 0.5
SLOWER_MAX = 1.2
SLOWER_LITTLE = 1.08
GROW = 1.5
SHRINK = 0.9

TAIL = 0.95
WINDOW = 200
SAMPLES_MIN = 20
FORGET_S = 30.0
KINDS_MAX = 128

_EWMA = 0.05
_SIZES = (16 << 10, 128 << 10, 1 << 20, 8 << 20, 64 << 20)

assert RESTS_MIN <= RESTS_FIRST <= RESTS_MAX_PRESSED <= RESTS_MAX
assert URGENT_RESTS <= RESTS_MIN


class _Kind(Struct):
    """What is ordinary for requests of one kind: a slow mean of those that met no chore."""

    seconds: float
    count: int = 1


class Throttle:
    """One for all chores of a node."""

    def __init__(self, now: float) -> None:
        self.rests = RESTS_FIRST
        self._pressures: list[float] = []
        self._working = 0
        self._worked_until = float("-inf")
        self._clients_until = float("-inf")
        self._looked = now
        self._kinds: dict[tuple[str, int], _Kind] = {}
        self._quiet: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._overlapped: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self._fresh = 0

    # What clients met

    def request(self, operation: str, size: int, seconds: float, now: float) -> None:
        """A client's request has ended well; it moved `size` bytes. Cheap."""
        self._clients_until = max(self._clients_until, now + IDLE_S)
        met = self._working > 0 or self._worked_until > now - seconds
        self._fresh += met
        key = (operation, bisect_left(_SIZES, size))
        kind = self._kinds.get(key)
        if kind is None:
            if not met and len(self._kinds) < KINDS_MAX:
                self._kinds[key] = _Kind(seconds)
            return
        if not met:
            kind.count += 1
            kind.seconds += max(_EWMA, 1 / kind.count) * (seconds - kind.seconds)
        if kind.count >= SAMPLES_MIN and kind.seconds > 0:
            (self._overlapped if met else self._quiet).append((now, seconds / kind.seconds))

    def clients(self, under_way: int, now: float) -> None:
        """So many requests are under way."""
        if under_way:
            self._clients_until = now + IDLE_S

    # What chores do

    def enter(self, pressure: float = 0.0) -> None:
        """A chore has something to do, and presses so much. It shares with others what one alone may take."""
        assert 0.0 <= pressure <= 1.0
        self._pressures.append(pressure)
        self.begin()

    def leave(self, now: float, pressure: float = 0.0) -> None:
        """It is done."""
        self.end(now)
        self._pressures.remove(pressure)

    def begin(self) -> None:
        """A chore begins a piece of work."""
        self._working += 1

    def end(self, now: float) -> None:
        """It ended."""
        assert self._working > 0
        self._working -= 1
        self._worked_until = now

    def rest_s(self, worked_s: float, now: float, *, urgent: bool = False, pressure: float = 0.0) -> float:
        """How long to rest after a piece of work that took `worked_s`."""
        return worked_s * self.factor(now, urgent=urgent, pressure=pressure)

    def factor(self, now: float, *, urgent: bool = False, pressure: float = 0.0) -> float:
        """How many times as long as it worked a chore rests now that presses so much."""
        if now >= self._clients_until:
            return 0.0
        self._look(now)
        if urgent:
            return URGENT_RESTS
        pressures = self._pressures or [pressure]
        rests = min(self.rests, rests_max(max(pressures)))
        return rests * max(1.0, sum(map(_weight, pressures)) / _weight(pressure))

    def is_idle(self, now: float) -> bool:
        """Whether no client is there."""
        return now >= self._clients_until

    def _look(self, now: float) -> None:
        if now - self._looked < LOOK_S or self._fresh < SAMPLES_MIN:
            return
        self._looked, self._fresh = now, 0
        quiet, overlapped = _tail(self._quiet, now), _tail(self._overlapped, now)
        # With nothing quiet to compare with, more rest makes quiet moments.
        if quiet is None or (overlapped is not None and overlapped > SLOWER_MAX * quiet):
            self.rests = min(self.rests * GROW, RESTS_MAX)
        elif overlapped is None or overlapped < SLOWER_LITTLE * quiet:
            self.rests = max(self.rests * SHRINK, RESTS_MIN)


def rests_max(pressure: float) -> float:
    """How much chores rest at most while one presses so much: what they may take grows evenly with it."""
    least, most = 1 / RESTS_MAX, 1 / RESTS_MAX_PRESSED
    return 1 / (least + pressure * (most - least))


def _weight(pressure: float) -> float:
    return 1.0 + pressure * WEIGHT_PRESSED


def _tail(window: deque[tuple[float, float]], now: float) -> float | None:
    recent = sorted(ratio for at, ratio in window if now - at < FORGET_S)
    if len(recent) < SAMPLES_MIN:
        return None
    return recent[int(TAIL * (len(recent) - 1))]
