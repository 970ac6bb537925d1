"""`holdfast chores`: what runs behind, how far it is, and letting one rest."""

import asyncio
from urllib.parse import urlencode

import msgspec
import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError, InvalidInput
from holdfast.base.wording import counted
from holdfast.chores.chore import ChoreState, ChoreStatus
from holdfast.cli.client import NodeClient
from holdfast.cli.exits import sentence
from holdfast.cli.output import console, duration, show, size, watching
from holdfast.cli.storing import decoded
from holdfast.node.chores_status import ACTIONS, CHORES_PATH, ChoresStatus, Owed
from holdfast.node.config import Config

WATCH_INTERVAL_S = 2.0

_STYLES = {
    ChoreState.WORKING: "green",
    ChoreState.IDLE: "",
    ChoreState.PAUSED: "yellow",
    ChoreState.FAILED: "red",
    ChoreState.ELSEWHERE: "",
}


def show_chores(
    config: Config, clock: Clock, action: str | None, chore: str | None, *, as_json: bool, watch: bool
) -> None:
    """Print the chores once or, with `watch`, again and again; or pause or resume one first."""
    if action is not None and (action not in ACTIONS or chore is None):
        raise InvalidInput(f"{action!r} is not all of a command:", hint="say `pause NAME` or `resume NAME`.")
    if watch and not as_json and action is None:
        asyncio.run(_watch(config, clock))
        return
    while True:
        client = NodeClient(config, clock)
        if action is None:
            raw = client.ask(CHORES_PATH)
        else:
            raw = client.ask(CHORES_PATH, urlencode({"action": action, "chore": chore or ""}), method="POST")
        if as_json:
            typer.echo(msgspec.json.format(raw).decode())
        else:
            show(console(), chores_view(decoded(raw, ChoresStatus)))
        if not watch or action is not None:
            return
        asyncio.run(clock.sleep(WATCH_INTERVAL_S))


async def _watch(config: Config, clock: Clock) -> None:
    with watching(console()) as update:
        while True:
            try:
                view: RenderableType = chores_view(
                    decoded(NodeClient(config, clock).ask(CHORES_PATH), ChoresStatus)
                )
            except HoldfastError as error:
                # A node that is restarting is what people watch for.
                view = sentence(error)
            update(view)
            await clock.sleep(WATCH_INTERVAL_S)


def chores_view(status: ChoresStatus) -> RenderableType:
    """The table of chores, and what is owed and read."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("CHORE", "STATE", "DONE", "OF", "RATE", "LEFT", "WORKED", ""):
        table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=name in _NUMBERS)
    for chore in status.chores:
        table.add_row(
            chore.name,
            Text(chore.state.value, style=_STYLES[chore.state]),
            *_progress(chore),
            duration(chore.worked_s),
            _remark(chore),
        )
    tail = Table.grid(padding=(0, 1))
    tail.add_column(justify="right")
    tail.add_column()
    heal, scrub = status.heal, status.scrub
    tail.add_row("to heal:", _owed(heal.lost or heal.waiting))
    tail.add_row(
        "healed:",
        f"{counted(heal.repaired, 'pack')}, {size(heal.bytes_written)} written since the start; "
        f"{heal.unproven} {'waits' if heal.unproven == 1 else 'wait'} to be read again",
    )
    tail.add_row("read:", _scrubbed(status))
    tail.add_row("found by scrub:", f"{counted(scrub.faults_found, 'shard')} since the start")
    return Group(table, Text(""), tail)


_NUMBERS = frozenset({"DONE", "OF", "RATE", "LEFT", "WORKED"})


def _progress(chore: ChoreStatus) -> tuple[str, str, str, str]:
    progress = chore.progress
    if progress is None:
        return "", "", "", ""

    def amount(count: float) -> str:
        return size(int(count)) if progress.unit == "bytes" else f"{count:.0f} {progress.unit}"

    return (
        amount(progress.done),
        "" if progress.total is None else amount(progress.total),
        "" if chore.rate is None else f"{amount(chore.rate)}/s",
        "" if chore.left_s is None else duration(chore.left_s),
    )


def _remark(chore: ChoreStatus) -> str:
    remarks = [chore.why or (chore.progress.detail if chore.progress else "")]
    if chore.last_error and chore.state is not ChoreState.FAILED and chore.last_error_s_ago is not None:
        remarks.append(
            f"{counted(chore.errors, 'error')}, the last {duration(chore.last_error_s_ago)} ago: "
            f"{chore.last_error}"
        )
    return "; ".join(remark for remark in remarks if remark)


def _owed(owed: tuple[Owed, ...]) -> str:
    if not owed:
        return "nothing"
    parts = [
        f"{counted(one.packs, 'pack')} ({size(one.bytes)}) that can "
        + (f"lose {one.losses_left} more" if one.losses_left > 0 else "lose nothing more")
        if one.losses_left >= 0
        else f"{counted(one.packs, 'pack')} ({size(one.bytes)}) that cannot be read until stores return"
        for one in owed
    ]
    return ", ".join(parts)


def _scrubbed(status: ChoresStatus) -> str:
    age = status.scrub.oldest_age_s
    oldest = "not every shard was read yet" if age is None else f"every shard within the last {duration(age)}"
    return f"{oldest}; {size(status.scrub.bytes_read)} since the start"
