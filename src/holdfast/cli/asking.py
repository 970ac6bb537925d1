"""`holdfast status`, `verify` and `credentials`: what the running node says, and what is in its folder."""

import asyncio
from collections.abc import Iterator

import msgspec
import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError, Unavailable
from holdfast.cli.client import NodeClient, read_credentials
from holdfast.cli.exits import Exit, sentence
from holdfast.cli.output import (
    console,
    exports,
    finding_view,
    show,
    status_view,
    summary_sentence,
    watching,
)
from holdfast.node import verification
from holdfast.node.config import Config
from holdfast.node.runtime import read_runtime
from holdfast.node.status import Status
from holdfast.node.verification import PackState

STATUS_PATH = "/-/status"
VERIFY_PATH = "/-/verify"
SHOWN_MAX = 20
"""Packs that are not whole, as far as a person wants to read them; those that are lost come on top."""
WATCH_INTERVAL_S = 2.0


def show_credentials(config: Config) -> None:
    """Print what a shell is to be told; of a node that does not run, where it would listen."""
    found = read_credentials(config)
    running = read_runtime(config.data)
    endpoint = f"http://{config.host}:{config.port}" if running is None else running.endpoint
    typer.echo("\n".join(exports(found, found.secret_access_key, config.region, endpoint)))


def show_status(config: Config, clock: Clock, *, as_json: bool, watch: bool) -> None:
    """Print the status once, or again and again until interrupted. Raises Unavailable without a node."""
    client = NodeClient(config, clock)
    if watch and not as_json:
        asyncio.run(_watch(config, client, clock))
        return
    while True:
        raw = client.ask(STATUS_PATH)
        if as_json:
            typer.echo(msgspec.json.format(raw).decode())
        else:
            show(console(), status_view(_decode(raw)))
        if not watch:
            return
        asyncio.run(clock.sleep(WATCH_INTERVAL_S))


async def _watch(config: Config, client: NodeClient, clock: Clock) -> None:
    with watching(console()) as update:
        while True:
            try:
                update(status_view(_decode(client.ask(STATUS_PATH))))
            except HoldfastError as error:
                # A node that is restarting is what people watch for.
                update(sentence(error))
            await clock.sleep(WATCH_INTERVAL_S)
            try:
                client = NodeClient(config, clock)
            except HoldfastError as error:
                update(sentence(error))


def _decode(raw: bytes) -> Status:
    try:
        return msgspec.json.decode(raw, type=Status)
    except msgspec.MsgspecError as error:
        raise Unavailable(
            f"The node's answer cannot be understood ({error}).",
            hint="Is it of another version? See `holdfast version`, or use --json.",
        ) from None


def show_verification(config: Config, clock: Clock, *, as_json: bool) -> Exit:
    """Have everything read and print what is not whole; how it went as an exit code."""
    lines = _lines(NodeClient(config, clock))
    findings: list[verification.PackFinding] = []
    summary: verification.Summary | None = None
    out = console()
    with Progress(
        TextColumn("{task.completed} of {task.total} packs"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=out,
        transient=True,
        disable=as_json or not out.is_terminal,
    ) as progress:
        task = progress.add_task("verify", total=None)
        for line in lines:
            match line:
                case verification.Progress():
                    progress.update(task, completed=line.packs, total=line.packs_total)
                case verification.PackFinding():
                    findings.append(line)
                    if not as_json and (len(findings) <= SHOWN_MAX or line.state is PackState.LOST):
                        show(out, finding_view(line))
                case verification.Summary():
                    summary = line
                case verification.Broken():
                    raise Unavailable(f"Verifying could not go on: {line.reason}")
    assert summary is not None, "the lines end with a summary"
    if as_json:
        document = {"summary": summary, "packs": findings}
        typer.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
    else:
        if len(findings) > SHOWN_MAX:
            show(
                out,
                f"Shown are the first {SHOWN_MAX} that are not whole and all that are lost; --json has all.",
            )
        show(out, summary_sentence(summary))
    if summary.lost:
        return Exit.DAMAGED
    return Exit.DEGRADED if summary.degraded else Exit.FINE


def _lines(client: NodeClient) -> Iterator[verification.Line]:
    (started,) = _decoded(client.ask(VERIFY_PATH, method="POST"))
    if not isinstance(started, verification.Started):
        raise Unavailable("The node did not begin to verify.", hint="Run it again.")
    while True:
        for line in _decoded(client.ask(VERIFY_PATH, f"job={started.job}")):
            yield line
            if isinstance(line, verification.Summary | verification.Broken):
                return


def _decoded(raw: bytes) -> list[verification.Line]:
    try:
        return [verification.decode_line(line) for line in raw.splitlines()]
    except msgspec.MsgspecError as error:
        raise Unavailable(
            f"The node's answer cannot be understood ({error}).",
            hint="Is it of another version? See `holdfast version`.",
        ) from None
