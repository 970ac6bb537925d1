"""What is opened to read a whole copy is closed again, whatever becomes of who wanted it read."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable

import pytest

from holdfast.index.sqlite.copy_dumping import Dumping
from holdfast.index.sqlite.copy_place import CopyOverdue
from holdfast.index.sqlite.runner import ThreadRunner

PATIENCE_S = 60.0


class Connections:
    """Files of a copy whose connections are counted. Opening one waits for `gate`."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.asked = threading.Event()
        self.opened = 0
        self.closed = 0

    def connect(self) -> sqlite3.Connection:
        self.asked.set()
        assert self.gate.wait(PATIENCE_S)
        self.opened += 1
        counted = self

        class Counted(sqlite3.Connection):
            def close(self) -> None:
                counted.closed += 1
                super().close()

        return sqlite3.connect(":memory:", factory=Counted)

    def witness(self) -> None:
        raise AssertionError("nobody reads from it")

    def remove(self) -> None:
        raise AssertionError("nobody throws it away")


async def _all(dumping: Dumping) -> None:
    async for _ in dumping.blocks():
        pass


@pytest.mark.parametrize("read", [Dumping.add_up, _all])
async def test_who_gives_up_while_a_copy_is_being_opened_leaves_no_connection(
    read: Callable[[Dumping], "asyncio.Future[None]"],
) -> None:
    files, runner = Connections(), ThreadRunner("test")
    dumping = Dumping(files, runner, PATIENCE_S)
    task = asyncio.ensure_future(read(dumping))
    await asyncio.to_thread(files.asked.wait, PATIENCE_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    closing = runner.close(dumping.close)
    files.gate.set()
    assert closing is not None
    async with asyncio.timeout(PATIENCE_S):
        await closing
    assert (files.opened, files.closed) == (1, 1)


async def test_who_waited_too_long_for_it_leaves_none_either() -> None:
    files, runner = Connections(), ThreadRunner("test")
    dumping = Dumping(files, runner, 0.05)
    with pytest.raises(CopyOverdue):
        await dumping.add_up()
    closing = runner.close(dumping.close)
    files.gate.set()
    assert closing is not None
    async with asyncio.timeout(PATIENCE_S):
        await closing
    assert (files.opened, files.closed) == (1, 1)
