"""What a cluster on one machine consists of, and the files of its parts. Pure.

The folder tells all of it: `cluster.json` has the counts and the ports, chosen once, because members of etcd
know each other by them; every part has a folder with its file, and its log in `logs`. What must hold: the
same `cluster.json` makes the same files.
"""

from pathlib import Path
from typing import NamedTuple

from msgspec import Struct

from holdfast.index.etcd.members import QUOTA_BYTES, EtcdMember, address_of, command_line

ETCD_MEMBERS = 3
BALANCERS = 2
STORES_MIN = 6
"""As many as the default scheme needs, over all nodes."""
NODES_MAX = 16
HOST = "127.0.0.1"


class Shape(Struct, frozen=True, forbid_unknown_fields=True):
    """`cluster.json`: how many nodes there are, in how many regions, and every part's port."""

    nodes: int
    regions: int
    etcd_ports: tuple[tuple[int, int], ...]
    """For clients and for peers."""
    node_ports: tuple[tuple[int, int], ...]
    """Likewise."""
    balancer_ports: tuple[int, ...]


class Part(NamedTuple):
    """One process. `stage` says what starts together; it is up once `ready_url` answers 200. `holdfast` is
    for commands of our own program, which come without its name."""

    name: str
    stage: int
    command: tuple[str, ...]
    holdfast: bool
    folder: Path
    endpoint: str
    ready_url: str


STAGES = ("etcd", "nodes", "balancers")


def members(shape: Shape, home: Path) -> tuple[EtcdMember, ...]:
    """The members of etcd."""
    return tuple(
        EtcdMember(f"e{number}", home / "etcd" / f"e{number}", client, peer)
        for number, (client, peer) in enumerate(shape.etcd_ports, start=1)
    )


def parts(shape: Shape, home: Path, etcd: str) -> tuple[Part, ...]:
    """All processes, in the order in which they start. `etcd` is its program."""
    found = members(shape, home)
    made = [
        Part(
            member.name,
            0,
            tuple(command_line(member, found, program=etcd)),
            False,
            home / "etcd",
            member.client_url,
            f"{member.client_url}/health",
        )
        for member in found
    ]
    for number, (port, _) in enumerate(shape.node_ports, start=1):
        url = f"http://{HOST}:{port}"
        folder = home / "nodes" / f"n{number}"
        made.append(Part(f"n{number}", 1, ("serve",), True, folder, url, f"{url}/-/ready"))
    for number, port in enumerate(shape.balancer_ports, start=1):
        url = f"http://{HOST}:{port}"
        folder = home / "balancers" / f"b{number}"
        made.append(Part(f"b{number}", 2, ("balance",), True, folder, url, f"{url}/-/balancer"))
    return tuple(made)


def files(shape: Shape, home: Path, known: str) -> dict[Path, str]:
    """What is written in them. The secret of the cluster is in `secret`, which is not made here; `known` is
    made of it, and what nodes know balancers by."""
    made: dict[Path, str] = {}
    stores = -(-STORES_MIN // shape.nodes) if shape.nodes < STORES_MIN else 1
    index = address_of(members(shape, home))
    for number, (port, peer_port) in enumerate(shape.node_ports, start=1):
        name = f"n{number}"
        labels = f'region = "{_region(shape, number)}"\nzone = "a"\n'
        text = (
            f'name = "{name}"\nhost = "{HOST}"\nport = {port}\nindex = "{index}"\n\n'
            f'[cluster]\nsecret_file = "../../secret"\npeer = "{HOST}:{peer_port}"\n'
            f'\n[etcd]\nquota = "{QUOTA_BYTES >> 30} GiB"\n'
        )
        for disk in range(1, max(stores, 2) + 1):
            text += f'\n[[store]]\nslot = "disk{disk}"\npath = "disk{disk}"\n{labels}'
        made[home / "nodes" / name / "holdfast.toml"] = text
    seeds = ", ".join(f'"{HOST}:{port}"' for port, _ in shape.node_ports)
    for number, port in enumerate(shape.balancer_ports, start=1):
        made[home / "balancers" / f"b{number}" / "balance.toml"] = (
            f'listen = "{HOST}:{port}"\nsecret = "{known}"\nthreads = 1\nnotice = "1 s"\n'
            f'drain = "10 s"\nseeds = [{seeds}]\n'
        )
    return made


def _region(shape: Shape, number: int) -> str:
    return f"r{(number - 1) % shape.regions + 1}"
