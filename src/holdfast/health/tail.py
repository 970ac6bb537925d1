"""The recent tail of a stream of latencies: what is ordinary, so that what is not can be told. Pure."""

from collections import deque

WINDOW = 256
"""Samples that are remembered: enough for a 98th percentile, few enough to forget a bad minute."""


class Tail:
    """Quantiles over the last `WINDOW` latencies, in seconds. Sorting is put off and shared."""

    __slots__ = ("_fresh", "_samples", "_sorted")

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=WINDOW)
        self._sorted: list[float] = []
        self._fresh = 0

    def add(self, seconds: float) -> None:
        """Remember one latency."""
        self._samples.append(seconds)
        self._fresh += 1

    def __len__(self) -> int:
        return len(self._samples)

    def clear(self) -> None:
        """Forget everything, as after a change of state."""
        self._samples.clear()
        self._sorted = []
        self._fresh = 0

    def quantile(self, fraction: float) -> float | None:
        """The latency that `fraction` of the samples do not exceed; None with fewer than eight.

        May be up to an eighth of the window out of date: it is asked at every read.
        """
        if len(self._samples) < 8:
            return None
        if not self._sorted or self._fresh >= WINDOW // 8:
            self._sorted = sorted(self._samples)
            self._fresh = 0
        return self._sorted[min(len(self._sorted) - 1, int(fraction * len(self._sorted)))]
