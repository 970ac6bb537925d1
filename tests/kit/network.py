"""A network of the test's own, in the kernel: each part of a cluster in a namespace, all on one bridge.

Packets are lost as on a real wire: a firewall rule drops them where they would arrive, so that whoever sent
them hears nothing, and connections hang instead of being refused. A part with `relayed` is joined by
`tests/kit/packet_relay.py`, which loses, delays, doubles and reorders its packets. The bridge is in a
namespace, too, so that nothing of it is seen outside, two tests never meet, and all of it is gone with the
processes that hold it, however the test ends.

`inside` runs a function in a part's namespace; sockets belong to the namespace of the thread that makes them.
Where the kernel does not allow namespaces, the test fails and says what it needs.
"""

import ctypes
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from tests.kit.process import die_with_parent

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {"ip": "iproute2", "nft": "nftables", "unshare": "util-linux", "nsenter": "util-linux"}
CLONE_NEWNET = 0x40000000
_SUBNET = "10.83.0"
_RULES = """
table inet drill {
    chain arriving { type filter hook input priority 0; }
}
"""

Found = TypeVar("Found")


class Namespace:
    """A namespace, held by a process that dies with the test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._holder = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "ip link set lo up && echo made && exec sleep infinity"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PATH": _path()},
            preexec_fn=die_with_parent,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "made\n":
            said = self._holder.communicate()[1]
            raise AssertionError(f"drills of the network need root and network namespaces: {said}")

    @property
    def pid(self) -> int:
        """Of the process that holds it."""
        return self._holder.pid

    @property
    def prefix(self) -> list[str]:
        """What to put before a command so that it runs in here."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--"]

    def run(self, *command: str, told: str = "") -> None:
        """Run a command in here that must succeed."""
        done = subprocess.run(
            [*self.prefix, *command],
            input=told,
            env=os.environ | {"PATH": _path()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command} in {self.name}: {done.stderr}"

    def close(self) -> None:
        """Let go of it."""
        self._holder.kill()
        self._holder.communicate()


class Part(Namespace):
    """A machine on the network."""

    def __init__(self, name: str, address: str) -> None:
        super().__init__(name)
        self.address = address
        self.relay: subprocess.Popen[str] | None = None

    def disturb(
        self, *, loss: float = 0.0, delay_s: float = 0.0, jitter_s: float = 0.0, twice: float = 0.0
    ) -> None:
        """From now on so many of its packets, both ways, are lost or come twice, and each is late by
        `delay_s` and up to `jitter_s` more, so that some overtake others. Nothing given ends it."""
        assert self.relay is not None, f"{self.name} is not relayed"
        assert self.relay.stdin is not None
        script = {"loss": loss, "delay_s": delay_s, "jitter_s": jitter_s, "twice": twice}
        self.relay.stdin.write(json.dumps(script) + "\n")
        self.relay.stdin.flush()

    def close(self) -> None:
        if self.relay is not None:
            self.relay.kill()
            self.relay.communicate()
        super().close()


class Network:
    """The bridge and what is on it. A context manager."""

    def __init__(self) -> None:
        missing = sorted(
            {package for tool, package in NEEDED.items() if shutil.which(tool, path=_path()) is None}
        )
        assert not missing, f"drills of the network need {' '.join(missing)}: `.ci/tools` installs them"
        self._bridge = Namespace("bridge")
        self._parts: list[Part] = []
        self._bridge.run("ip", "link", "add", "br0", "type", "bridge")
        self._bridge.run("ip", "link", "set", "br0", "up")

    def __enter__(self) -> "Network":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for part in self._parts:
            part.close()
        self._bridge.close()

    def part(self, name: str, *, relayed: bool = False) -> Part:
        """One more machine."""
        number = len(self._parts) + 1
        part = Part(name, f"{_SUBNET}.{number}")
        self._parts.append(part)
        port = f"port{number}"
        if relayed:
            part.relay = _relay(part, self._bridge, port)
        else:
            self._bridge.run(
                *("ip", "link", "add", port, "type", "veth"),
                *("peer", "name", "eth0", "netns", str(part.pid)),
            )
        self._bridge.run("ip", "link", "set", port, "master", "br0", "up")
        part.run("ip", "address", "add", f"{part.address}/24", "dev", "eth0")
        part.run("ip", "link", "set", "eth0", "up")
        part.run("nft", "-f", "-", told=_RULES)
        return part

    def lose(self, sent_by: Iterable[Part], on_the_way_to: Iterable[Part]) -> None:
        """What the first send no longer arrives at the second; what these send still does."""
        addresses = ", ".join(part.address for part in sent_by)
        for part in on_the_way_to:
            part.run("nft", "add", "rule", "inet", "drill", "arriving", f"ip saddr {{ {addresses} }} drop")

    def split(self, some: Iterable[Part], others: Iterable[Part]) -> None:
        """Nothing passes between them, either way."""
        some, others = list(some), list(others)
        self.lose(some, others)
        self.lose(others, some)

    def reset(self, sent_by: Iterable[Part], on_the_way_to: Iterable[Part]) -> None:
        """What the first send to the second over TCP is answered with a reset."""
        addresses = ", ".join(part.address for part in sent_by)
        rule = f"ip saddr {{ {addresses} }} meta l4proto tcp reject with tcp reset"
        for part in on_the_way_to:
            part.run("nft", "add", "rule", "inet", "drill", "arriving", rule)

    def heal(self) -> None:
        """All arrives again."""
        for part in self._parts:
            part.run("nft", "flush", "chain", "inet", "drill", "arriving")


def inside(part: Namespace, function: Callable[[], Found]) -> Found:
    """Run a function in a namespace, in a thread of its own; threads and processes that it starts are in
    there, too. What it raises is raised here."""
    found: list[Found] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            enter(part.pid)
            found.append(function())
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join()
    if raised:
        raise raised[0]
    return found[0]


def enter(pid: int) -> None:
    """This thread is in the namespace of process `pid` from now on."""
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(descriptor)


def _relay(part: Part, bridge: Namespace, port: str) -> "subprocess.Popen[str]":
    relay = subprocess.Popen(
        [sys.executable, "-m", "tests.kit.packet_relay", str(part.pid), "eth0", str(bridge.pid), port],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    assert relay.stdout is not None
    assert relay.stdout.readline() == "joined\n", f"the relay of {part.name} ended: is there /dev/net/tun?"
    return relay


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
