"""What happened in a run, in order: a digest to compare runs by, and the last lines to understand one.

With HOLDFAST_SIM_TRACE=<file> all lines are written there.
"""

import hashlib
import os
from collections import deque
from pathlib import Path
from typing import TextIO

from holdfast.base.clock import Clock

LINES_KEPT = 60
LINES_AT_ONCE = 500


class Trace:
    """Takes notes, each with the virtual time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._digest = hashlib.sha256()
        self._last: deque[str] = deque(maxlen=LINES_KEPT)
        self._fresh: list[str] = []
        self._file: TextIO | None = None
        if path := os.environ.get("HOLDFAST_SIM_TRACE"):
            self._file = Path(path).open("w", buffering=1)  # noqa: SIM115
        self.lines = 0

    def note(self, *words: object) -> None:
        """One line."""
        line = f"{self._clock.monotonic():.6f} {' '.join(map(str, words))}"
        self._fresh.append(line)
        if len(self._fresh) >= LINES_AT_ONCE:
            self._take_in()
        self.lines += 1
        if self._file is not None:
            self._file.write(line + "\n")

    def _take_in(self) -> None:
        """Many lines at once are quicker than one by one."""
        if self._fresh:
            self._digest.update("\n".join([*self._fresh, ""]).encode())
            self._last.extend(self._fresh)
            self._fresh.clear()

    @property
    def digest(self) -> str:
        """Equal for equal runs."""
        self._take_in()
        return self._digest.hexdigest()

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()

    def tail(self) -> str:
        """The last lines."""
        self._take_in()
        return "\n".join(self._last)
