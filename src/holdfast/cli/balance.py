"""The commands `holdfast balance` and `holdfast balance status`."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from holdfast.base.clock import SystemClock
from holdfast.base.randomness import SystemRandomness
from holdfast.base.supervisor import Supervisor
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

        supervisor = Supervisor(os.environ, os.getpid())
        asyncio.run(balance_until_stopped(config, SystemClock(), SystemRandomness(), supervisor))


@app.command()
def status(context: typer.Context, config: BalanceOption = _DEFAULT, json: JsonOption = False) -> None:
    """Show how the running balancer sees the nodes."""
    from holdfast.cli.balancing import show_balancer

    show_balancer(context.obj if config == _DEFAULT else config, SystemClock(), as_json=json)


@app.command()
def secret(
    file: Annotated[
        Path, typer.Argument(help="The file with the cluster's secret: secret_file of its nodes.")
    ],
) -> None:
    """Print what nodes know balancers by, for balance.toml; made of the cluster's secret."""
    from holdfast.cli.balancing import show_secret

    show_secret(file)
