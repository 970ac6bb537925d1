"""The commands `holdfast store list|add|drain|replace|remove`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.base.clock import SystemClock
from holdfast.cli.options import ConfigOption, DataOption, JsonOption, config_file, read_config
from holdfast.node.config import Given, absolute

app = typer.Typer(
    help="The stores of the running node: see, add, empty, replace, remove.", no_args_is_help=True
)

SlotArgument = Annotated[str, typer.Argument(help="The store's slot, as `holdfast store list` names it.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Accept what it costs, which is printed.")]


@app.command("list")
def list_stores(data: DataOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show every store: state, fill, what it holds, how far it is emptied."""
    from holdfast.cli.storing import show_stores

    show_stores(read_config(config, Given(data=data)), SystemClock(), as_json=json)


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="An empty directory, on a disk of its own.")],
    slot: Annotated[str, typer.Option("--slot", help="Its name here (default the next diskN).")] = "",
    region: Annotated[str, typer.Option("--region", help="What fails together.")] = "",
    zone: Annotated[str, typer.Option("--zone", help="What fails together.")] = "",
    host: Annotated[str, typer.Option("--host", help="What fails together.")] = "",
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Take an empty directory into use as a new store, at once."""
    asked = {"path": _whole(path), "slot": slot, "region": region, "zone": zone, "host": host}
    _command("add", asked, data, config, json)


@app.command()
def drain(
    slot: SlotArgument,
    cancel: Annotated[bool, typer.Option("--cancel", help="Keep it after all.")] = False,
    force: ForceOption = False,
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Move everything off a store, so that it can be removed."""
    _command("drain", {"slot": slot, "cancel": _yes(cancel), "force": _yes(force)}, data, config, json)


@app.command()
def replace(
    slot: SlotArgument,
    path: Annotated[Path, typer.Argument(help="An empty directory, which takes the slot over.")],
    force: ForceOption = False,
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Have an empty directory take the place of a store, which is copied to it or made again."""
    asked = {"slot": slot, "path": _whole(path), "force": _yes(force)}
    _command("replace", asked, data, config, json)


@app.command()
def remove(
    slot: SlotArgument,
    force: ForceOption = False,
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Let go of a store that is empty; of one that is not with --force."""
    _command("remove", {"slot": slot, "force": _yes(force)}, data, config, json)


def _command(action: str, asked: dict[str, str], data: Path | None, config: Path | None, json: bool) -> None:
    from holdfast.cli.storing import command_stores

    whole = read_config(config, Given(data=data))
    command_stores(whole, SystemClock(), action, asked, file=config_file(config), as_json=json)


def _whole(path: Path) -> str:
    return str(absolute(path, Path.cwd()))


def _yes(given: bool) -> str:
    return "yes" if given else ""
