"""The command `holdfast index copy`."""

import asyncio
from collections.abc import Iterator
from typing import Annotated

import msgspec
import typer

from holdfast.base.clock import SystemClock
from holdfast.base.randomness import SystemRandomness
from holdfast.cli.options import ConfigOption, DataOption, JsonOption, read_config
from holdfast.index.copying import Copied, Step
from holdfast.node.config import Given
from holdfast.node.index_copying import copy_between

app = typer.Typer(help="The index: copy it from one engine to another.", no_args_is_help=True)

TELLS = {
    Step.FROZEN: "the old index is frozen: writes wait",
    Step.FILLED: "all rows are written",
    Step.PROVEN: "what is there is what was read",
    Step.MOVED: "the new index is the truth from here on",
}

_NAMES = (
    "etcd://host1,host2, postgres://user@host/database, or embedded: of the node that is configured here."
)


@app.callback()
def index() -> None:
    """Keeps `copy` a word of its own."""


@app.command()
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help=_NAMES)],
    target: Annotated[str, typer.Argument(metavar="TO", help="Likewise; it must be empty.")],
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Copy the index to another engine; the old one is fenced once all of it is there."""

    def done(step: Step) -> None:
        if step in TELLS and not json:
            typer.echo(f"  {TELLS[step]}", err=True)

    copied = asyncio.run(
        copy_between(
            source, target, read_config(config, Given(data=data)), SystemClock(), SystemRandomness(), done
        )
    )
    if json:
        typer.echo(msgspec.json.format(msgspec.json.encode(copied)).decode())
        return
    for line in sentences_of(copied):
        typer.echo(line)


def sentences_of(copied: Copied) -> Iterator[str]:
    """What came of it, for a person. Pure."""
    if copied.sum is None:
        yield f"Nothing was left to do: the index is in {copied.target} ({copied.incarnation}) already."
    else:
        yield (
            f"{copied.sum.rows} rows, {copied.sum.bytes} bytes, digest {copied.sum.digest}: the same in "
            f"{copied.source} and {copied.target}."
        )
        yield f"The index is {copied.incarnation} in {copied.target} now; {copied.source} is fenced."
    if "://" in copied.target:
        yield f'Say index = "{copied.target}" in the configuration of each node (with the password, if any).'
    else:
        yield "Take `index` out of the node's configuration."
