"""The commands `holdfast store list|add|drain|replace|remove`."""

from pathlib import Path
from typing import Annotated

import typer

from holdfast.base.clock import SystemClock
from holdfast.cli.options import (
    ConfigOption,
    DataOption,
    ForceOption,
    JsonOption,
    config_file,
    read_config,
    yes,
)
from holdfast.node.config import Given, absolute

app = typer.Typer(
    help="The stores of the running node: see, add, empty, replace, remove.", no_args_is_help=True
)

SlotArgument = Annotated[str, typer.Argument(help="The store's slot, as `holdfast store list` names it.")]


EndpointOption = Annotated[str, typer.Option("--endpoint", help="Of a bucket that is not at Amazon.")]
BucketRegionOption = Annotated[str, typer.Option("--bucket-region", help="What requests are signed for.")]
ProfileOption = Annotated[str, typer.Option("--profile", help="Whose credentials, of ~/.aws/credentials.")]
CapacityOption = Annotated[str, typer.Option("--capacity", help="What may lie in a bucket (1 TiB).")]
PriceOption = Annotated[
    str, typer.Option("--price", help="GB-month, 1,000 puts, 1,000 gets, GB out: 0.023,0.005,0.0004,0.09.")
]
UnsealedOption = Annotated[bool, typer.Option("--unsealed", help="Let the provider read what lies there.")]


@app.command("list")
def list_stores(data: DataOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Show every store: state, fill, what it holds, how far it is emptied."""
    from holdfast.cli.storing import show_stores

    show_stores(read_config(config, Given(data=data)), SystemClock(), as_json=json)


@app.command()
def add(
    path: Annotated[
        str, typer.Argument(help="An empty directory, on a disk of its own, or s3://bucket/prefix.")
    ],
    slot: Annotated[str, typer.Option("--slot", help="Its name here (default the next diskN).")] = "",
    region: Annotated[str, typer.Option("--region", help="What fails together.")] = "",
    zone: Annotated[str, typer.Option("--zone", help="What fails together.")] = "",
    host: Annotated[str, typer.Option("--host", help="What fails together.")] = "",
    endpoint: EndpointOption = "",
    bucket_region: BucketRegionOption = "",
    profile: ProfileOption = "",
    capacity: CapacityOption = "",
    price: PriceOption = "",
    unsealed: UnsealedOption = False,
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Take an empty directory, or an empty bucket, into use as a new store, at once."""
    asked = {"path": _whole(path), "slot": slot, "region": region, "zone": zone, "host": host}
    asked |= _bucket(endpoint, bucket_region, profile, capacity, price, unsealed=unsealed)
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
    _command("drain", {"slot": slot, "cancel": yes(cancel), "force": yes(force)}, data, config, json)


@app.command()
def replace(
    slot: SlotArgument,
    path: Annotated[str, typer.Argument(help="An empty directory or bucket, which takes the slot over.")],
    endpoint: EndpointOption = "",
    bucket_region: BucketRegionOption = "",
    profile: ProfileOption = "",
    capacity: CapacityOption = "",
    price: PriceOption = "",
    unsealed: UnsealedOption = False,
    force: ForceOption = False,
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Have an empty place take over from a store, which is copied to it or made again."""
    asked = {"slot": slot, "path": _whole(path), "force": yes(force)}
    asked |= _bucket(endpoint, bucket_region, profile, capacity, price, unsealed=unsealed)
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
    _command("remove", {"slot": slot, "force": yes(force)}, data, config, json)


def _command(action: str, asked: dict[str, str], data: Path | None, config: Path | None, json: bool) -> None:
    from holdfast.cli.storing import command_stores

    whole = read_config(config, Given(data=data))
    command_stores(whole, SystemClock(), action, asked, file=config_file(config), as_json=json)


def _bucket(
    endpoint: str, bucket_region: str, profile: str, capacity: str, price: str, *, unsealed: bool
) -> dict[str, str]:
    return {
        "endpoint": endpoint,
        "bucket_region": bucket_region,
        "profile": profile,
        "capacity": capacity,
        "price": price,
        "unsealed": yes(unsealed),
    }


def _whole(path: str) -> str:
    return path if "://" in path else str(absolute(Path(path), Path.cwd()))
