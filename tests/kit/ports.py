"""Ports for servers that take them later than they are chosen, or again after a crash."""

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

_GIVEN_AWAY = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 at which nobody listens now, and which the kernel gives to nobody that asks for any:
    neither a client's connection nor another test's server takes one before it is used."""
    first, last = map(int, _GIVEN_AWAY.read_text().split())
    ports = [*range(10_000, first), *range(last + 1, 65_536)]
    found: list[int] = []
    with ExitStack() as stack:
        while len(found) < count:
            listener = stack.enter_context(socket.socket())
            with suppress(OSError):
                port = random.choice(ports)
                listener.bind(("127.0.0.1", port))
                found.append(port)
    return found
