"""Joins a namespace to a bridge packet by packet, and loses, delays, doubles some on their way, as told.

Run by `tests/kit/network.py` with the process that holds the namespace and the name of its interface, and
the same of the bridge. Both ends are TAP devices, for which the kernel completes checksums and cuts what is
too large for a packet. Each line on standard input is what happens from then on. Bounded: of packets that
wait, no more than a slow router would hold; more are lost, as they would be there.
"""

import asyncio
import fcntl
import json
import os
import random
import struct
import sys

from tests.kit.network import enter

TUNSETIFF = 0x400454CA
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
FRAME_BYTES_MAX = 1 << 16
WAITING_MAX = 5_000
AT_ONCE = 64


class Relay:
    """Two ends, and what happens between them."""

    def __init__(self, ends: tuple[int, int]) -> None:
        self._loop = asyncio.get_running_loop()
        self._chance = random.Random(23)
        self._waiting = 0
        self.script = {"loss": 0.0, "delay_s": 0.0, "jitter_s": 0.0, "twice": 0.0}
        for source, sink in (ends, ends[::-1]):
            self._loop.add_reader(source, self._pass, source, sink)

    def _pass(self, source: int, sink: int) -> None:
        script = self.script
        for _ in range(AT_ONCE):
            try:
                frame = os.read(source, FRAME_BYTES_MAX)
            except BlockingIOError:
                return
            if self._chance.random() < script["loss"]:
                continue
            for _ in range(1 + (self._chance.random() < script["twice"])):
                late_s = script["delay_s"] + script["jitter_s"] * self._chance.random()
                if not late_s:
                    _put(sink, frame)
                elif self._waiting < WAITING_MAX:
                    self._waiting += 1
                    self._loop.call_later(late_s, self._put_late, sink, frame)

    def _put_late(self, sink: int, frame: bytes) -> None:
        self._waiting -= 1
        _put(sink, frame)


def _put(sink: int, frame: bytes) -> None:
    try:
        os.write(sink, frame)
    except OSError:
        return  # the interface is not up, or its queue is full: lost, as on a wire


def _tap(pid: int, name: str) -> int:
    enter(pid)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH14x", name.encode(), IFF_TAP | IFF_NO_PI))
    return descriptor


async def _main(part: int, name: str, bridge: int, port: str) -> None:
    relay = Relay((_tap(part, name), _tap(bridge, port)))
    loop, over = asyncio.get_running_loop(), asyncio.Event()

    def told() -> None:
        lines = os.read(0, 1 << 16)
        if not lines:
            over.set()
        for line in lines.splitlines():
            relay.script = json.loads(line)

    loop.add_reader(0, told)
    print("joined", flush=True)  # noqa: T201
    await over.wait()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]))
