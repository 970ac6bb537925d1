"""What `holdfast balance` and `holdfast balance status` print."""

from pathlib import Path

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from holdfast.balance.bootstrap import Files
from holdfast.balance.following import Kept, read_kept
from holdfast.balance.running import run_balancer
from holdfast.balance.settings import load_settings
from holdfast.balance.status import BalancerStatus, read_status
from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged
from holdfast.base.randomness import Randomness
from holdfast.base.supervisor import Supervisor
from holdfast.cli.output import console, duration, show
from holdfast.cluster.telling import balancer_secret
from holdfast.node.config_cluster import read_secrets

_STYLES = {"ready": "green", "draining": "yellow", "not ready": "red", "left out": "red"}


async def balance_until_stopped(
    path: Path, clock: Clock, randomness: Randomness, supervisor: Supervisor
) -> None:
    """Run a balancer; return when it has stopped. Raises what stands in its way."""
    out = console()

    def tell(sentence: str) -> None:
        typer.echo(f"holdfast: {sentence}", err=True)

    def ready(endpoint: str) -> None:
        show(out, Text(f"The balancer takes requests at {endpoint}\nCtrl-C drains and stops it."))

    await run_balancer(path, clock, randomness, supervisor, tell, ready)
    show(out, "Stopped.")


def show_secret(file: Path) -> None:
    """Print what nodes of the cluster with this secret know balancers by; of two in the file, the first."""
    typer.echo(balancer_secret(read_secrets(file)[0]))


def show_balancer(path: Path, clock: Clock, *, as_json: bool) -> None:
    """Print how the balancer that runs with this file sees the nodes."""
    settings = load_settings(path)
    status = read_status(settings.directory, tls=settings.tls is not None)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(status)).decode())
    else:
        view = balancer_view(status, known=bool(settings.secret))
        if settings.seeds:
            view = Group(view, Text(f"\n{_source(Files(settings.directory).view, clock)}"))
        show(console(), view)


def _source(path: Path, clock: Clock) -> str:
    """Who told of the nodes, and how long ago."""
    try:
        kept: Kept | None = read_kept(path)
        age_s = clock.wall() - path.stat().st_mtime if kept is not None else 0.0
    except (Damaged, OSError) as error:
        return f"Who told of the nodes is not known: {error}"
    if kept is None:
        return "No seed has told yet who the nodes are."
    return f"Told by node {kept.told_by} at {kept.asked}, {duration(max(0, int(age_s)))} ago."


def balancer_view(status: BalancerStatus, *, known: bool) -> RenderableType:
    """The same for people. `known` is whether nodes can tell that a request comes from it."""
    lines = [
        f"Balancer at {status.endpoint}, up {duration(status.uptime_s)} (Envoy {status.envoy})",
        f"{status.requests} requests, {status.active} under way, {status.connections} connections; "
        f"{status.again} second tries, {status.again_refused} refused by the budget",
    ]
    if not known:
        lines.append("No secret: nodes cannot tell a second try, so writes that a node has seen get none.")
    if not status.nodes:
        lines.append("It knows no node.")
    elif status.everybody_asked:
        lines.append("No node is ready by its looks, so all of them are asked.")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("node", "state", "where", "requests", "active", "errors"):
        table.add_column(name, justify="right" if name in {"requests", "active", "errors"} else "left")
    for node in status.nodes:
        where = "/".join(part for part in (node.region, node.zone) if part)
        further = f" (overflow {node.nearness})" if node.nearness else ""
        table.add_row(
            node.name,
            Text(node.state, style=_STYLES.get(node.state, "")),
            f"{where}{further}",
            str(node.requests),
            str(node.active),
            str(node.errors),
        )
    return Group(Text("\n".join(lines)), Text(""), table)
