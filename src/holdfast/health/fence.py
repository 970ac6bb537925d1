"""Slowness, judged against peers: a fence that an ordinary latency does not cross. Pure.

How slow is slow depends on the disks, the load and the hour, so no number will do; but stores that hold the
shards of the same packs get the same work at the same time. Tukey's fence (Exploratory Data Analysis,
1977) calls a value far out when it lies more than 1.5 times the width of the middle half above the upper
quartile. Latencies spread by factors rather than by amounts, so it is taken over logarithms: when the
peers agree, the fence is near; when they scatter, as under noise, it moves away by itself. Two bounds keep it
sensible: the fence is never nearer than `SLOW_FACTOR` times the upper quartile, since being a little slower
than twins is no illness, nor lower than `SLOW_FLOOR_S`, since nobody notices.

One answer proves nothing. A store is slow when it was beyond the fence in `VOTES` looks, each with answers of
its own that are newer than the look before, without one ordinary look between, over `RUN_S` at least
(`SlowRun`). A chance of one in a hundred for a single look is then one in a million, and a store that is
really slow has no luck to hope for. A call that is still outstanding votes with the age it has reached.
"""

from collections import deque
from collections.abc import Sequence
from math import exp, log

SLOW_FACTOR = 5.0
SLOW_FLOOR_S = 0.004
REACH = 1.5
PEERS_MIN = 2
VOTES = 3
RUN_S = 0.45
SAMPLES_KEPT = 32


def upper_fence(peers: Sequence[float]) -> float | None:
    """The latency beyond which a store is slow, from what its peers typically need, all in seconds; None
    with fewer than PEERS_MIN of them."""
    if len(peers) < PEERS_MIN:
        return None
    logs = sorted(log(max(seconds, 1e-9)) for seconds in peers)
    last = len(logs) - 1
    # Of few peers one may be slow, too, and must not hide the other; of two, neither can be left out.
    upper = logs[max(len(logs) // 2, last * 3 // 4)]
    lower = logs[last // 4]
    return max(exp(upper + REACH * (upper - lower)), SLOW_FACTOR * exp(upper), SLOW_FLOOR_S)


class Lately:
    """The newest latencies of one store and one operation, with when they ended. Of a store that is far away
    there are two for each call: what it is judged by, and what it is a yardstick with."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float, float]] = deque(maxlen=SAMPLES_KEPT)

    def add(self, at: float, seconds: float, own: float | None = None) -> None:
        """A call that took `seconds` ended at `at`, not before those that were told earlier. `own` is what it
        is judged by, where that is less."""
        self._samples.append((at, seconds, seconds if own is None else own))

    def clear(self) -> None:
        """Forget everything."""
        self._samples.clear()

    def typical(self, after: float, *, lenient: bool) -> float | None:
        """The median of the calls that ended after `after`, None without any; by what it is judged by when
        `lenient`, else as a yardstick. Of two, the quicker one when `lenient`, else the slower one: in doubt
        a store is innocent, and its peers are no better."""
        found: list[float] = []
        for at, seconds, own in reversed(self._samples):
            if at <= after:
                break
            found.append(own if lenient else seconds)
        if not found:
            return None
        found.sort()
        return found[(len(found) - 1) // 2 if lenient else len(found) // 2]


class SlowRun:
    """Looks in a row at which a store was beyond the fence."""

    __slots__ = ("_began", "votes")

    def __init__(self) -> None:
        self.votes = 0
        self._began = 0.0

    def beyond(self, now: float) -> None:
        """It was beyond the fence, by fresh evidence."""
        if not self.votes:
            self._began = now
        self.votes += 1

    def end(self) -> None:
        """It was ordinary, or nothing of it is believed."""
        self.votes = 0

    def proven(self, now: float) -> bool:
        """Whether it is slow."""
        return self.votes >= VOTES and now - self._began >= RUN_S
