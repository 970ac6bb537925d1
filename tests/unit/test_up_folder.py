"""The folder of `holdfast up`: the ports that it is given."""

import socket
from pathlib import Path

from holdfast.base.randomness import SeededRandomness
from holdfast.up.folder import Home
from holdfast.up.layout import HOST


def balancer_port(folder: Path, wanted: int) -> int:
    """The port of the first balancer of a new cluster."""
    home = Home(folder, 1, 1, wanted, SeededRandomness(str(folder)))
    home.close()
    return home.shape.balancer_ports[0]


def test_a_port_is_kept_whose_last_connections_were_closed_just_now(tmp_path: Path) -> None:
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, 0))
        listening.listen()
        wanted = int(listening.getsockname()[1])
        with socket.create_connection((HOST, wanted)) as client:
            served, _ = listening.accept()
            served.close()  # who closes first keeps the port busy for a minute
            assert client.recv(1) == b""
    assert balancer_port(tmp_path / "free", wanted) == wanted


def test_a_port_that_somebody_listens_at_is_not_taken(tmp_path: Path) -> None:
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, 0))
        listening.listen()
        wanted = int(listening.getsockname()[1])
        assert balancer_port(tmp_path / "taken", wanted) != wanted
