"""Whom a balancer knows: the nodes that take requests, and where they are.

A view is a value. It comes from a list in the file, or from the index's rows about members; what is made
of it does not ask which.
"""

import re
from collections.abc import Iterable

from msgspec import Struct

from holdfast.base.errors import InvalidInput

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252})\Z|\[[0-9A-Fa-f:.]{2,45}\]\Z")


class Endpoint(Struct, frozen=True, order=True):
    """One node. `host` is a name or an address without brackets. One that drains finishes what it has and
    gets nothing new."""

    host: str
    port: int
    name: str = ""
    region: str = ""
    zone: str = ""
    draining: bool = False


View = tuple[Endpoint, ...]
"""All that are known, in order, each once."""


def view_of(endpoints: Iterable[Endpoint]) -> View:
    """The same view, whatever order they were told in. Of two that claim one address the first in order
    stays: a node that was given a new name has two rows for a while."""
    known: dict[tuple[str, int], Endpoint] = {}
    for endpoint in sorted(endpoints):
        known.setdefault((endpoint.host, endpoint.port), endpoint)
    return tuple(known.values())


def split_address(text: str) -> tuple[str, int]:
    """Host and port of `host:port` or `[v6]:port`. Raises InvalidInput."""
    host, colon, port = text.rpartition(":")
    if not colon or not _HOST.match(host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise InvalidInput(f"{text!r} is not an address:", hint='host and port, as "10.0.0.1:9000".')
    return host.strip("[]"), int(port)


def distance(endpoint: Endpoint, region: str, zone: str) -> int:
    """How far a node is from a balancer that is in this region and zone: 0, 1 or 2. A balancer that does not
    say where it is finds all of them equally near."""
    if not region:
        return 0
    if endpoint.region != region:
        return 2
    return 1 if zone and endpoint.zone != zone else 0
