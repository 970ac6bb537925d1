"""The lock on the data folder: one node at a time, and a note that never outlives its node."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.base.errors import Busy
from holdfast.node.runtime import LOCK_NAME, RUNTIME_NAME, DataLock, Runtime, read_runtime

RUNTIME = Runtime("http://127.0.0.1:9000", "us-east-1", os.getpid(), 1.0)

HOLD = """
import sys
from pathlib import Path
from holdfast.node.runtime import DataLock, Runtime
lock = DataLock(Path(sys.argv[1]))
lock.publish(Runtime("http://127.0.0.1:9", "us-east-1", 1, 1.0))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_node_on_the_same_data_is_told_who_has_it(tmp_path: Path) -> None:
    lock = DataLock(tmp_path)
    lock.publish(RUNTIME)
    with pytest.raises(Busy, match=rf"process {os.getpid()}, at http://127\.0\.0\.1:9000"):
        DataLock(tmp_path)
    lock.release()
    DataLock(tmp_path).release()


def test_the_note_is_believed_only_while_the_node_lives(tmp_path: Path) -> None:
    assert read_runtime(tmp_path) is None
    assert read_runtime(tmp_path / "nowhere") is None
    lock = DataLock(tmp_path)
    assert read_runtime(tmp_path) is None
    lock.publish(RUNTIME)
    assert read_runtime(tmp_path) == RUNTIME
    lock.release()
    assert read_runtime(tmp_path) is None
    (tmp_path / RUNTIME_NAME).write_text("left by a crash")
    assert read_runtime(tmp_path) is None


def test_asking_does_not_turn_away_a_node_that_starts(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).touch()
    assert read_runtime(tmp_path) is None
    DataLock(tmp_path).release()


def test_a_node_that_was_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            with pytest.raises(Busy):
                DataLock(tmp_path)
            assert read_runtime(tmp_path) is not None
        finally:
            other.send_signal(signal.SIGKILL)
    assert read_runtime(tmp_path) is None
    DataLock(tmp_path).release()
