"""The commands `holdfast balance` and `holdfast balance status`."""

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from holdfast.base.clock import SystemClock
from holdfast.cli.options import JsonOption

app = typer.Typer(help="Run a balancer (Envoy) before the nodes, until Ctrl-C.", invoke_without_command=True)

BalanceOption = Annotated[
    Path, typer.Option("--config", help="The balancer's configuration file (default ./balance.toml).")
]
_DEFAULT = Path("balance.toml")


@app.callback()
def balance(context: typer.Context, config: BalanceOption = _DEFAULT) -> None:
    """Run a balancer (Envoy) before the nodes, until Ctrl-C."""
    context.obj = config
    if context.invoked_subcommand is None:
        from holdfast.cli.balancing import balance_until_stopped

        asyncio.run(balance_until_stopped(config, SystemClock()))


@app.command()
def status(context: typer.Context, config: BalanceOption = _DEFAULT, json: JsonOption = False) -> None:
    """Show how the running balancer sees the nodes."""
    from holdfast.cli.balancing import show_balancer

    show_balancer(context.obj if config == _DEFAULT else config, as_json=json)
