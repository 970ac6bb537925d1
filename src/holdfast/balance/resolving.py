"""Names of nodes become addresses here: Envoy is given addresses only.

Names are looked up again and again, because addresses of machines change. A name that cannot be found for a
while keeps the address it had.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Iterable

from msgspec.structs import replace

from holdfast.balance.view import Endpoint, View, view_of
from holdfast.base.clock import Clock

AGAIN_S = 5.0


class Resolver:
    """Knows the addresses of names, and those that have none."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, str] = {}
        self._due: dict[str, float] = {}
        self.unknown: tuple[str, ...] = ()

    async def resolve(self, view: Iterable[Endpoint]) -> View:
        """The view with addresses; names that have none are left out, and told in `unknown`."""
        found, unknown = [], []
        for endpoint in view:
            address = await self._address(endpoint.host)
            if address:
                found.append(replace(endpoint, host=address))
            else:
                unknown.append(endpoint.host)
        self.unknown = tuple(unknown)
        return view_of(found)

    async def _address(self, host: str) -> str:
        if _is_address(host):
            return host
        now = self._clock.monotonic()
        if now >= self._due.get(host, now):
            self._due[host] = now + AGAIN_S
            try:
                answers = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except OSError:
                answers = []
            addresses = sorted(str(answer[4][0]) for answer in answers)
            if addresses and self._known.get(host) not in addresses:
                self._known[host] = addresses[0]
        return self._known.get(host, "")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
