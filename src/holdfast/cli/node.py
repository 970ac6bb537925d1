"""The commands `holdfast node list|can-stop|drain|remove` and `holdfast cluster status|format`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from holdfast.base.clock import SystemClock
from holdfast.cli.options import ConfigOption, DataOption, ForceOption, JsonOption, read_config, yes
from holdfast.node.config import Given

app = typer.Typer(help="The nodes of the cluster: see, stop, empty, remove.", no_args_is_help=True)
cluster_app = typer.Typer(help="The cluster as a whole.", no_args_is_help=True)

NameArgument = Annotated[str, typer.Argument(help="The node's name, as `holdfast node list` shows it.")]


@app.command("list")
def list_nodes(data: DataOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show every node of the cluster, and whether it serves."""
    from holdfast.cli.noding import show_nodes

    show_nodes(read_config(config, Given(data=data)), SystemClock(), as_json=json)


@app.command("can-stop")
def can_stop(
    claim: Annotated[
        bool, typer.Option("--claim", help="Take the word to stop: no other node has it at the same time.")
    ] = False,
    wait: Annotated[float, typer.Option("--wait", help="Ask again for so many seconds.", min=0.0)] = 0.0,
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Tell whether the node that runs here can be taken down for a while (exit code 75: not now)."""
    from holdfast.cli.noding import ask_can_stop

    whole = read_config(config, Given(data=data))
    asyncio.run(ask_can_stop(whole, SystemClock(), claiming=claim, wait_s=wait, as_json=json))


@app.command()
def drain(
    name: NameArgument,
    cancel: Annotated[bool, typer.Option("--cancel", help="Keep it after all.")] = False,
    force: ForceOption = False,
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Move everything off all stores of a node, so that it can be removed."""
    _command("drain", {"name": name, "cancel": yes(cancel), "force": yes(force)}, data, config, json)


@app.command()
def remove(
    name: NameArgument,
    cancel: Annotated[bool, typer.Option("--cancel", help="Let it join again.")] = False,
    force: ForceOption = False,
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Take a node that was stopped, or lost, out of the cluster."""
    _command("remove", {"name": name, "cancel": yes(cancel), "force": yes(force)}, data, config, json)


@cluster_app.command("status")
def cluster_status(
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds.")] = False,
) -> None:
    """Show the nodes, the stores of all of them, the index and the packs."""
    from holdfast.cli.noding import show_cluster

    show_cluster(read_config(config, Given(data=data)), SystemClock(), as_json=json, watch=watch)


@cluster_app.command("format")
def cluster_format(
    raise_it: Annotated[
        bool, typer.Option("--raise", help="Shut out versions that do not know it; no node can go back then.")
    ] = False,
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show what every node that joins must know, or raise it once an upgrade is over."""
    from holdfast.cli.noding import show_format

    show_format(read_config(config, Given(data=data)), SystemClock(), raising=raise_it, as_json=json)


def _command(action: str, asked: dict[str, str], data: Path | None, config: Path | None, json: bool) -> None:
    from holdfast.cli.noding import command_nodes

    command_nodes(read_config(config, Given(data=data)), SystemClock(), action, asked, as_json=json)
