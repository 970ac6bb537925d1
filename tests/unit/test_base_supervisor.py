"""Whoever started the process hears how it is, in the words of sd_notify(3)."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.base.supervisor import Supervisor
from tests.kit.virtual import VirtualClock

PID = 4711


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[socket.socket]:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listening.bind(str(tmp_path / "notify"))
    listening.setblocking(False)
    with listening:
        yield listening


def words(listening: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listening.recv(4096).decode())
        except BlockingIOError:
            return found


def test_it_says_ready_and_stopping(tmp_path: Path, heard: socket.socket) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "notify")}, PID)
    supervisor.ready()
    supervisor.stopping()
    assert words(heard) == ["READY=1", "STOPPING=1"]


def test_an_abstract_socket_is_found(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0holdfast{tmp_path}")
        Supervisor({"NOTIFY_SOCKET": f"@holdfast{tmp_path}"}, PID).ready()
        assert listening.recv(64) == b"READY=1"


def test_without_a_supervisor_or_with_one_that_is_gone_nothing_happens(tmp_path: Path) -> None:
    Supervisor({}, PID).ready()
    Supervisor({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, PID).ready()


def test_one_that_does_not_read_holds_nobody_up(tmp_path: Path, heard: socket.socket) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": str(tmp_path / "notify")}, PID)
    for _ in range(10_000):
        supervisor.ready()


@pytest.mark.virtual
async def test_signs_of_life_come_three_times_as_often_as_wanted(
    tmp_path: Path, heard: socket.socket
) -> None:
    clock = VirtualClock()
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"}
    task = asyncio.create_task(Supervisor(environment, PID).stay_alive(clock))
    await clock.sleep(61)
    task.cancel()
    assert words(heard) == ["WATCHDOG=1"] * 4


@pytest.mark.virtual
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"WATCHDOG_USEC": ""},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "4712"},
    ],
)
async def test_where_none_are_wanted_there_are_none(
    tmp_path: Path, heard: socket.socket, more: dict[str, str]
) -> None:
    await Supervisor({"NOTIFY_SOCKET": str(tmp_path / "notify"), **more}, PID).stay_alive(VirtualClock())
    assert words(heard) == []
