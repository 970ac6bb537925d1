"""`holdfast bucket`: the buckets of a running node, and changing how one is protected."""

from datetime import UTC, datetime
from urllib.parse import quote, urlencode

import msgspec
import typer
from rich.console import Group
from rich.table import Table
from rich.text import Text

from holdfast.base.clock import Clock
from holdfast.cli.client import NodeClient
from holdfast.cli.output import console, show
from holdfast.cli.storing import decoded
from holdfast.node.bucket_routes import (
    BUCKETS_PATH,
    SCHEME_PATH,
    SURVIVE_PATH,
    BucketLine,
    BucketList,
)
from holdfast.node.config import Config


def show_buckets(config: Config, clock: Clock, *, as_json: bool) -> None:
    """Print all buckets."""
    raw = NodeClient(config, clock).ask(BUCKETS_PATH)
    if as_json:
        typer.echo(msgspec.json.format(raw).decode())
        return
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("BUCKET", "SCHEME", "SURVIVES", "CREATED (UTC)"):
        table.add_column(name)
    found = decoded(raw, BucketList)
    for bucket in found.buckets:
        created = datetime.fromtimestamp(bucket.created_ms / 1000, UTC)
        table.add_row(
            bucket.name, bucket.scheme, bucket.survive or "-", created.strftime("%Y-%m-%d %H:%M:%S")
        )
    packs = ", ".join(f"{count} {scheme}" for scheme, count in sorted(found.packs.items())) or "none yet"
    show(console(), Group(table, Text(f"Packs by scheme: {packs}.")))


def show_scheme(config: Config, clock: Clock, name: str, scheme: str, *, as_json: bool) -> None:
    """Print a bucket's scheme, or change it and say what happens then."""
    raw = _asked(config, clock, SCHEME_PATH, name, "scheme", scheme)
    if as_json:
        typer.echo(msgspec.json.format(raw).decode())
        return
    bucket = decoded(raw, BucketLine)
    if not scheme:
        typer.echo(bucket.scheme)
    elif bucket.changed:
        typer.echo(f"New objects in {name} are {bucket.scheme} from now on; what is there follows.")
        typer.echo("`holdfast bucket list` shows how many packs have which scheme.")
    else:
        typer.echo(f"{name} is {bucket.scheme} already.")


def show_survive(config: Config, clock: Clock, name: str, survive: str, *, as_json: bool) -> None:
    """Print what a bucket was told to survive, or tell it and say what follows."""
    raw = _asked(config, clock, SURVIVE_PATH, name, "survive", survive)
    if as_json:
        typer.echo(msgspec.json.format(raw).decode())
        return
    bucket = decoded(raw, BucketLine)
    if not survive:
        typer.echo(f"{bucket.survive} ({bucket.scheme})" if bucket.survive else "nothing in particular")
    elif not bucket.survive:
        typer.echo(f"{name} stays {bucket.scheme}, whatever stores come and go.")
    elif bucket.changed:
        typer.echo(f"{name} survives {bucket.survive}: new objects are {bucket.scheme} from now on,")
        typer.echo("what is there follows. `holdfast bucket list` shows how many packs have which scheme.")
    else:
        typer.echo(f"{name} survives {bucket.survive}: {bucket.scheme}, as it is.")


def _asked(config: Config, clock: Clock, path: str, bucket: str, setting: str, value: str) -> bytes:
    """What the node says of a bucket's setting, which `value` changes, if there is one."""
    asked = {"bucket": bucket, setting: value} if value else {"bucket": bucket}
    query = urlencode(asked, quote_via=quote, safe="-_.~")
    return NodeClient(config, clock).ask(path, query, method="POST" if value else "GET")
