"""The commands `holdfast bucket list|scheme`."""

from typing import Annotated

import typer

from holdfast.base.clock import SystemClock
from holdfast.cli.options import ConfigOption, DataOption, JsonOption, read_config
from holdfast.node.config import Given

app = typer.Typer(help="The buckets of the running node and their schemes.", no_args_is_help=True)


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
