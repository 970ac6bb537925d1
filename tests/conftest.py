"""Runs `async def` tests: on a real loop, or, marked `virtual`, on a loop whose clock is virtual.

And what makes runs alike, however busy the machine is: examples of Hypothesis are the same each time (others
with HOLDFAST_THOROUGH) and may take as long as they do; a run for which the disk has too little room says so
before it begins, instead of failing wherever it is when the disk is full; what tests start ends with them,
however they end; and tests that passed leave no large files behind (to remove their folders, too, would take
longer than it is worth).
"""

import asyncio
import inspect
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.kit import keeper
from tests.kit.virtual import run_virtual

settings.register_profile(
    "steady",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=not os.environ.get("HOLDFAST_THOROUGH"),
)
settings.load_profile("steady")

WITHOUT_NODES = ("tests/unit", "tests/conformance", "tests/simulation")
ROOM_BYTES = 4 << 30
"""For tests with real nodes: what these keep free of their disks, and what tests write at the same time."""


LEFT_BYTES = 64 << 10
FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    keeper.begin()
    if hasattr(config, "workerinput") or all(arg.startswith(WITHOUT_NODES) for arg in config.args):
        return
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < ROOM_BYTES:
        pytest.exit(
            f"Tests with real nodes need {ROOM_BYTES >> 30} GiB in {folder}, and {free >> 20} MiB are free: "
            "make room, or set TMPDIR to a folder that has it.",
            returncode=pytest.ExitCode.USAGE_ERROR,
        )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[FAILED] = True
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    yield
    home = getattr(item, "funcargs", {}).get("tmp_path")
    if home is None or item.stash.get(FAILED, False):
        return
    for folder, _, names in os.walk(home):
        for name in names:
            with suppress(OSError):
                if (path := Path(folder, name)).lstat().st_blocks * 512 > LEFT_BYTES:
                    path.unlink()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    wanted: dict[str, Any] = {name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames}
    if pyfuncitem.get_closest_marker("virtual"):
        run_virtual(pyfuncitem.obj(**wanted))
    else:
        asyncio.run(pyfuncitem.obj(**wanted))
    return True
