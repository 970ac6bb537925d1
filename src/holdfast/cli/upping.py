"""`holdfast up`: brings a cluster up on this machine, says how to use it, and takes it down."""

import asyncio
import shlex
import signal
from pathlib import Path

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from holdfast import __version__
from holdfast.balance.process import find_envoy
from holdfast.balance.running import TOGETHER_S
from holdfast.base.clock import Clock
from holdfast.base.randomness import Randomness
from holdfast.cli.output import console, show
from holdfast.node.config import REGION_DEFAULT
from holdfast.node.credentials import from_secret
from holdfast.up.folder import Home
from holdfast.up.layout import STAGES, parts
from holdfast.up.supervising import STATE_NAME, Supervisor, find_etcd


async def up_until_stopped(
    directory: Path,
    nodes: int | None,
    regions: int | None,
    port: int,
    clock: Clock,
    randomness: Randomness,
) -> None:
    """Run a cluster; return when it has stopped. Raises what stands in its way."""
    etcd = find_etcd()
    find_envoy()
    home = Home(directory, nodes, regions, port, randomness)
    out = console()
    try:
        with _bars() as bars:
            rows: dict[str, TaskID] = {name: bars.add_task(name, total=None) for name in STAGES}

            def progress(stage: str, up: int, total: int) -> None:
                bars.update(rows[stage], completed=up, total=total)
                if not out.is_terminal and up == total:
                    typer.echo(f"{stage}: {up} of {total} up")

            def ready() -> None:
                bars.stop()
                show(out, _banner(home))

            supervisor = Supervisor(parts(home.shape, directory, etcd), directory, clock, _tell, progress)
            await supervisor.run(_until_asked(supervisor, clock, out), ready)
    finally:
        home.close()
    show(out, "Stopped.")


def _tell(sentence: str) -> None:
    typer.echo(f"holdfast: {sentence}", err=True)


def _bars() -> Progress:
    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=Console(stderr=True))


def _until_asked(supervisor: Supervisor, clock: Clock, out: Console) -> asyncio.Event:
    """Set by the first SIGINT or SIGTERM; the second one ends all at once."""
    stopping = asyncio.Event()
    asked_at = 0.0

    def stop() -> None:
        nonlocal asked_at
        if not stopping.is_set():
            asked_at = clock.monotonic()
            show(out, "Stopping balancers, nodes, etcd. Ctrl-C again stops them at once.")
        elif clock.monotonic() - asked_at > TOGETHER_S:
            supervisor.kill_all()
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop)
    return stopping


def _banner(home: Home) -> str:
    credentials = from_secret(home.secret)
    shape = home.shape
    endpoints = [f"http://127.0.0.1:{port}" for port in shape.balancer_ports]
    return "\n".join(
        [
            f"Holdfast {__version__}: {shape.nodes} nodes in {shape.regions} regions serve S3",
            "",
            f"  balancers          {' and '.join(endpoints)} (either; they know the same nodes)",
            f"  access key id      {credentials.access_key_id}",
            f"  secret access key  {credentials.secret_access_key}",
            f"  all of it          {home.path}: what runs is in {STATE_NAME}, what it says in logs",
            "",
            "Paste this to try it:",
            "",
            f"  export AWS_ACCESS_KEY_ID={credentials.access_key_id}",
            f"  export AWS_SECRET_ACCESS_KEY={credentials.secret_access_key}",
            f"  export AWS_DEFAULT_REGION={REGION_DEFAULT} AWS_ENDPOINT_URL={endpoints[0]}",
            "  aws s3 mb s3://first",
            "  aws s3 cp README.md s3://first/",
            "",
            f"How it is: cd {shlex.quote(str(home.path / 'nodes' / 'n1'))} && holdfast status",
            "",
            "All of it is on one machine: it shows how a cluster goes on without any of its processes, not",
            "without the machine.",
            "",
            "Ctrl-C stops all of it.",
        ]
    )
