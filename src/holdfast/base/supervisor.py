"""Tells whoever started this process how it is: ready, stopping, still alive.

The protocol is that of systemd's sd_notify(3) and of others who took it over: a datagram of `NAME=value`
lines to the Unix socket that NOTIFY_SOCKET names ("@" stands for an abstract one). With WATCHDOG_USEC the
supervisor wants to hear `WATCHDOG=1` at least that often, and starts the process again when it does not: a
loop that hangs is then found from outside. What must hold: without a supervisor nothing is sent, one that
does not listen never troubles the process, and a child is not taken for who was meant (WATCHDOG_PID).
"""

import socket
from collections.abc import Mapping
from contextlib import suppress

from holdfast.base.clock import Clock

_ALIVE_IN_EACH = 3
"""So many signs of life in the time in which one is wanted: two may be late."""


class Supervisor:
    """Where to tell it; nowhere, if nobody asked."""

    def __init__(self, environment: Mapping[str, str], pid: int) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        wanted = environment.get("WATCHDOG_USEC", "")
        meant = environment.get("WATCHDOG_PID", str(pid)) == str(pid)
        self.watchdog_s = int(wanted) / 1e6 if self._address and meant and wanted.isdecimal() else 0.0
        """How often a sign of life is wanted; 0 if none is."""

    def ready(self) -> None:
        """Requests are taken."""
        self._tell("READY=1")

    def stopping(self) -> None:
        """No more requests are taken; those under way finish."""
        self._tell("STOPPING=1")

    async def stay_alive(self, clock: Clock) -> None:
        """Give signs of life as often as they are wanted, until cancelled; return if none are."""
        while self.watchdog_s:
            self._tell("WATCHDOG=1")
            await clock.sleep(self.watchdog_s / _ALIVE_IN_EACH)

    def _tell(self, words: str) -> None:
        if not self._address:
            return
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(words.encode(), self._address)
