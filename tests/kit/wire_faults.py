"""What happens to bytes on their way, by script: cut, changed, held back. For proxies and for pipes.

Positions are counted per direction from when the fault was set, over all connections. A fault happens once.
"""

from enum import Enum
from typing import NamedTuple


class Way(Enum):
    """Which way bytes go: from who connected, or back to it."""

    OUT = "out"
    BACK = "back"


class Does(Enum):
    """What a fault does at its position: end all connections, change the byte, or let nothing more pass
    on that connection that way."""

    CUT = "cut"
    FLIP = "flip"
    HOLD = "hold"


class Fault(NamedTuple):
    """One fault. `mask` is what a FLIP changes."""

    way: Way
    at: int
    does: Does
    mask: int = 0x01


class WireFaults:
    """`passing` is asked about each piece; it says what of it passes, and what happens then. The last byte of
    `flips_always` is changed wherever it goes out in one piece."""

    def __init__(self) -> None:
        self._fault: Fault | None = None
        self.flips_always = b""
        self.passed = {Way.OUT: 0, Way.BACK: 0}
        self.recorded = {Way.OUT: bytearray(), Way.BACK: bytearray()}
        self.happened = 0

    def set(self, fault: Fault | None) -> None:
        """Arm a fault, or none; counting and recording begin anew."""
        self._fault = fault
        self.passed = {Way.OUT: 0, Way.BACK: 0}
        self.recorded = {Way.OUT: bytearray(), Way.BACK: bytearray()}

    def passing(self, way: Way, piece: bytes) -> tuple[bytes, Does | None]:
        """What passes of a piece, and what then happens to its connection."""
        fault, before = self._fault, self.passed[way]
        self.passed[way] += len(piece)
        does: Does | None = None
        if self.flips_always and way is Way.OUT:
            changed = self.flips_always[:-1] + bytes([self.flips_always[-1] ^ 1])
            piece = piece.replace(self.flips_always, changed)
        if fault is not None and fault.way is way and before <= fault.at < before + len(piece):
            self._fault = None
            self.happened += 1
            at = fault.at - before
            if fault.does is Does.FLIP:
                piece = piece[:at] + bytes([piece[at] ^ fault.mask]) + piece[at + 1 :]
            else:
                piece, does = piece[:at], fault.does
        self.recorded[way] += piece
        return piece, does
