"""How many requests a server takes on at once, by how long its event loop takes to come round. Pure.

What is under way shares one loop: the more it is, the later each turn ends, and with it everything that waits
for a turn, also to hear that there is no room, and to be asked whether the node is well. A server that has
more to do than it can does not become faster by beginning more of it; so the bound follows what turns take.
It halves while turns are late twice in a row, and grows by an eighth with each that is early: as in TCP, so
that it settles where turns are just short enough. What must hold: it is never more than was configured, nor
less than `LEAST` (or what was configured), which no machine is too slow for; and a single late turn, which
may be another process's doing, changes nothing.
"""

LEAST = 64
LOOK_EVERY_S = 0.1
_LATE_IN_A_ROW = 2


class Admission:
    """`most` is the bound that was configured, `late_s` what a turn may take."""

    def __init__(self, most: int, late_s: float) -> None:
        self._most = most
        self._least = min(LEAST, most)
        self._late_s = late_s
        self._late = 0
        self.limit = most

    def looked(self, late_s: float, in_flight: int) -> None:
        """A look came `late_s` after it was due, with so many requests under way."""
        self._late = self._late + 1 if late_s > self._late_s else 0
        if self._late >= _LATE_IN_A_ROW:
            self.limit = max(self._least, min(self.limit, in_flight) // 2)
            self._late = 0
        elif late_s < self._late_s / 2:
            self.limit = min(self._most, self.limit + self.limit // 8 + 1)
