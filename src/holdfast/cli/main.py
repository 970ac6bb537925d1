"""The commands.

Each one reads its options, calls the room that does the work, and shows what came out. What must hold:
an expected error is one sentence on stderr and the exit code of its kind (`holdfast.cli.exits`), never a
traceback; a traceback means that it is our own mistake.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from holdfast import __version__
from holdfast.base.clock import SystemClock
from holdfast.base.errors import HoldfastError, InvalidInput
from holdfast.base.randomness import SystemRandomness
from holdfast.cli import balance, bucket, index, keys, node, store
from holdfast.cli.exits import Exit, as_ours, sentence
from holdfast.cli.options import ConfigOption, DataOption, JsonOption, read_config
from holdfast.node.config import Given, StorePlace

app = typer.Typer(
    name="holdfast",
    help="S3 storage that keeps running while its parts fail.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_USAGE_ERROR = 2

app.add_typer(store.app, name="store")
app.add_typer(bucket.app, name="bucket")
app.add_typer(balance.app, name="balance")
app.add_typer(node.app, name="node")
app.add_typer(node.cluster_app, name="cluster")
app.add_typer(index.app, name="index")
app.add_typer(keys.app, name="keys")


@app.command()
def serve(
    data: DataOption = None,
    store: Annotated[
        list[Path] | None,
        typer.Option("--store", help="A store's directory; say it once for each (default six in --data)."),
    ] = None,
    scheme: Annotated[
        str | None, typer.Option("--scheme", help="How new buckets are protected, as rs-4-2 or mirror-3.")
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="This node's name in its cluster (default the host's).")
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on (default 127.0.0.1).")
    ] = None,
    port: Annotated[int | None, typer.Option("--port", help="Port to listen on (default 9000).")] = None,
    config: ConfigOption = None,
) -> None:
    """Run a node: serve S3 until Ctrl-C."""
    from holdfast.cli.serving import serve_until_stopped

    given = Given(
        data=data,
        stores=tuple(StorePlace(path=path) for path in store) if store else None,
        scheme=scheme,
        name=name,
        host=host,
        port=port,
    )
    serve_until_stopped(read_config(config, given), os.environ, SystemClock(), SystemRandomness())


@app.command()
def status(
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds.")] = False,
) -> None:
    """Show how the running node, its stores and its packs are."""
    from holdfast.cli.asking import show_status

    show_status(read_config(config, Given(data=data)), SystemClock(), as_json=json, watch=watch)


@app.command()
def credentials(data: DataOption = None, config: ConfigOption = None) -> None:
    """Print what a shell has to be told, so that S3 clients find the node: eval "$(holdfast credentials)"."""
    from holdfast.cli.asking import show_credentials

    show_credentials(read_config(config, Given(data=data)))


@app.command()
def verify(data: DataOption = None, config: ConfigOption = None, json: JsonOption = False) -> None:
    """Read every shard of every pack and say what is whole, degraded or lost."""
    from holdfast.cli.asking import show_verification

    raise typer.Exit(show_verification(read_config(config, Given(data=data)), SystemClock(), as_json=json))


@app.command()
def events(
    data: DataOption = None,
    config: ConfigOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", help="The newest so many (default 50; all with --since).")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--since", help="From then on: 15m, 12h, 7d, or 2026-01-31T12:00 (UTC).")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what happens from now on.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON for programs, one event a line.")] = False,
) -> None:
    """Show what happened: changes of stores, the index, chores."""
    from holdfast.cli.events import show_events

    shown = show_events(
        read_config(config, Given(data=data)),
        SystemClock(),
        limit=limit,
        since=since,
        follow=follow,
        as_json=json,
    )
    asyncio.run(shown)


@app.command()
def chores(
    action: Annotated[str | None, typer.Argument(help="pause or resume, with the name of a chore.")] = None,
    chore: Annotated[str | None, typer.Argument(help="The chore to pause or resume.")] = None,
    data: DataOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it again every two seconds.")] = False,
) -> None:
    """Show what runs behind: state, progress, rate and time left; or let one rest."""
    from holdfast.cli.chores import show_chores

    show_chores(
        read_config(config, Given(data=data)), SystemClock(), action, chore, as_json=json, watch=watch
    )


@app.command()
def uptime(
    data: DataOption = None,
    config: ConfigOption = None,
    bucket: Annotated[str | None, typer.Option("--bucket", help="Only requests for this bucket.")] = None,
    operation: Annotated[
        str | None, typer.Option("--operation", help="Only this operation of S3, as GetObject.")
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", help="The figure of one store, by its slot, as disk1.")
    ] = None,
    window: Annotated[str, typer.Option("--window", help="How far back, as 90m, 12h, 30d or 4w.")] = "30d",
    objective: Annotated[
        float, typer.Option("--objective", help="The availability that is promised, in percent.")
    ] = 99.99,
    json: JsonOption = False,
) -> None:
    """Show the availability that clients really got, whether the node runs or not."""
    from holdfast.cli.uptime import show_uptime

    show_uptime(
        read_config(config, Given(data=data)),
        SystemClock(),
        bucket=bucket,
        operation=operation,
        store=store,
        window=window,
        objective_percent=objective,
        as_json=json,
    )


@app.command()
def recover(
    data: DataOption = None,
    store: Annotated[
        list[Path] | None,
        typer.Option("--store", help="A store's directory; say it once for each (default as for serve)."),
    ] = None,
    config: ConfigOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would come of it, and write nothing.")
    ] = False,
    incarnation: Annotated[
        str, typer.Option("--incarnation", help="Which index to make again, if there are several.")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="Go back to the journal although the index can be opened.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option("--peer", help="A node that lends its stores, as n2=10.0.0.2:9100; once for each."),
    ] = None,
    lend: Annotated[
        bool, typer.Option("--lend", help="Lend this node's stores to the recovery on another node.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Make a lost index again from what lies on the stores; no node may be running."""
    from holdfast.cli.recovering import lend_and_tell, recover_and_show
    from holdfast.node.borrowing import read_peer
    from holdfast.node.recovering import Wanted

    stores = tuple(StorePlace(path=path) for path in store) if store else None
    given = Given(data=data, stores=stores, scheme="raid0" if store and len(store) == 1 else None)
    if lend:
        if dry_run or force or incarnation or peer or json:
            raise InvalidInput(
                "--lend goes with no other option of recover:", hint="say those on the node that recovers."
            )
        lend_and_tell(read_config(config, given))
        return
    peers = tuple(read_peer(text) for text in peer or ())
    wanted = Wanted(dry_run=dry_run, force=force, incarnation=incarnation, peers=peers)
    recover_and_show(read_config(config, given), wanted, os.environ, as_json=json)


@app.command()
def up(
    nodes: Annotated[int | None, typer.Option("--nodes", help="How many nodes (default 3).")] = None,
    regions: Annotated[
        int | None, typer.Option("--regions", help="In how many regions they are said to be (default 3).")
    ] = None,
    port: Annotated[
        int, typer.Option("--port", help="Port of the first balancer (default 9000, or one that is free).")
    ] = 9000,
    directory: Annotated[
        Path, typer.Option("--dir", help="Folder for all of it (default ./holdfast-cluster).")
    ] = Path("holdfast-cluster"),
) -> None:
    """Run a whole cluster on this machine until Ctrl-C: etcd, nodes, balancers."""
    from holdfast.cli.upping import up_until_stopped

    home = directory.absolute()
    asyncio.run(up_until_stopped(home, nodes, regions, port, SystemClock(), SystemRandomness()))


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(f"holdfast {__version__}")


def main() -> None:
    """The `holdfast` program."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command; return its exit code."""
    try:
        app(arguments, prog_name="holdfast")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else Exit.FINE
        return 64 if code == _USAGE_ERROR else code
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has gone; there is nobody to tell, and that is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FINE
    except HoldfastError as error:
        return _told(error)
    except OSError as error:
        ours = as_ours(error)
        if ours is None:
            raise
        return _told(ours)
    return Exit.FINE


def _told(error: HoldfastError) -> int:
    typer.echo(f"holdfast: {sentence(error)}", err=True)
    return error.exit_code
