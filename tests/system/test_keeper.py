"""Nothing that tests start outlives them, even when the run is killed without a word."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.keeper import MARK
from tests.kit.process import die_with_parent, is_running, wait_until

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import subprocess, sys, time
from tests.kit import keeper
from tests.kit.etcd import running_etcd
from tests.kit.postgres import running_server

keeper.begin()
etcd = running_etcd()
server = running_server()
shell = subprocess.Popen(["sh", "-c", "setsid sleep 1000 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
asleep = shell.stdout.readline().strip()
pids = [etcd.processes[0].pid, server.pid, shell.pid, asleep]
print(*pids, etcd.members[0].data.parent, server.folder, flush=True)
time.sleep(1000)
"""


def test_what_a_run_started_ends_with_it_when_it_is_killed() -> None:
    """A server that runs under its own user, and a process in a session of its own, among it."""
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    run = subprocess.Popen(
        [sys.executable, "-c", RUN],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=die_with_parent,
    )
    assert run.stdout is not None
    *pids, etcd, postgres = run.stdout.readline().split()
    assert len(pids) == 4
    assert all(is_running(int(pid)) for pid in pids)
    assert Path(etcd).is_dir()
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    for pid in map(int, pids):
        wait_until(f"process {pid} to end", lambda pid=pid: not is_running(pid))
    for folder in map(Path, (etcd, postgres)):
        wait_until(f"{folder} to go", lambda folder=folder: not folder.exists())
