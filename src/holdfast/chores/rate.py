"""How fast something goes, lately, and how long the rest of it will take. Pure."""

from collections import deque

WINDOW_S = 60.0
APART_S = 1.0

_SAMPLES_MAX = int(WINDOW_S / APART_S) + 2


class Rate:
    """Of a count that grows; when it starts anew, so does this."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES_MAX)

    def sample(self, done: int, now: float) -> None:
        """The count is `done` now. Cheap; may be called as often as one likes."""
        samples = self._samples
        if samples and done < samples[-1][1]:
            samples.clear()
        if len(samples) >= 2 and now - samples[-2][0] < APART_S:
            samples[-1] = (now, done)
        else:
            samples.append((now, done))
        while now - samples[0][0] > WINDOW_S and len(samples) > 2:
            samples.popleft()

    def per_s(self, now: float) -> float | None:
        """A second, over the last minute; None until there is something to tell it by."""
        if not self._samples:
            return None
        began, first = self._samples[0]
        done = self._samples[-1][1]
        if now - began < APART_S or done == first:
            return None
        return (done - first) / (now - began)

    def left_s(self, total: int | None, now: float) -> float | None:
        """Seconds until the count is `total`, if it goes on like this; None where that can't be told."""
        rate = self.per_s(now)
        if rate is None or total is None:
            return None
        return max(0, total - self._samples[-1][1]) / rate
