"""The commands `holdfast bucket list|scheme|survive`."""

from typing import Annotated

import typer

from holdfast.base.clock import SystemClock
from holdfast.cli.options import ConfigOption, DataOption, JsonOption, read_config
from holdfast.node.config import Given

app = typer.Typer(
    help="The buckets of the running node, their schemes, and what they survive.", no_args_is_help=True
)


@app.command("list")
def list_buckets(data: DataOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show every bucket with its scheme."""
    from holdfast.cli.bucketing import show_buckets

    show_buckets(read_config(config, Given(data=data)), SystemClock(), as_json=json)


@app.command()
def scheme(
    name: Annotated[str, typer.Argument(help="The bucket.")],
    scheme: Annotated[str, typer.Argument(help="The new scheme, as mirror-3; without it, show it.")] = "",
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show how a bucket is protected, or change it while it is in use."""
    from holdfast.cli.bucketing import show_scheme

    show_scheme(read_config(config, Given(data=data)), SystemClock(), name, scheme, as_json=json)


@app.command()
def survive(
    name: Annotated[str, typer.Argument(help="The bucket.")],
    survive: Annotated[
        str, typer.Argument(help="region, zone, host or store, with :N for N of them; none ends it.")
    ] = "",
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show what a bucket was told to survive, or tell it: the scheme is chosen from the stores there are."""
    from holdfast.cli.bucketing import show_survive

    show_survive(read_config(config, Given(data=data)), SystemClock(), name, survive, as_json=json)
