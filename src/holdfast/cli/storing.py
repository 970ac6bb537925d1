"""`holdfast store`: the stores of a running node, and changing them while it runs."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec
import typer
from msgspec.structs import replace
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError, Unavailable
from holdfast.base.wording import counted
from holdfast.cli.client import NodeClient
from holdfast.cli.output import console, duration, show, size, styled
from holdfast.node.bucket_report import bucket_sentence
from holdfast.node.config import Config
from holdfast.node.node_commands import NODES_PATH, NodeList
from holdfast.node.status import NodeStatus
from holdfast.node.stores import STORES_PATH, Done, DrainStatus, StoreList

COMMAND_TIMEOUT_S = 600.0
"""Commands look at the rows of all packs first, and may copy a part of the index."""

OTHER_TIMEOUT_S = 60.0
ASKED_AT_ONCE = 16

T = TypeVar("T")


def show_stores(config: Config, clock: Clock, *, as_json: bool) -> None:
    """Print all slots, of all nodes where there are several."""
    client = NodeClient(config, clock)
    found = decoded(client.ask(STORES_PATH, timeout_s=COMMAND_TIMEOUT_S), StoreList)
    if config.cluster is not None:
        found = _of_all_nodes(config, clock, client, found)
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        show(console(), stores_view(found))


def _of_all_nodes(config: Config, clock: Clock, client: NodeClient, own: StoreList) -> StoreList:
    """The lists of all nodes as one: each knows its own stores, and is asked."""
    nodes = decoded(client.ask(NODES_PATH), NodeList)

    def ask(node: NodeStatus) -> StoreList | str:
        if node.name == nodes.asked:
            return own
        if node.state == "silent" or not node.client:
            return f"it is {node.state}"
        try:
            other = NodeClient(config, clock, node.client)
            return decoded(other.ask(STORES_PATH, timeout_s=OTHER_TIMEOUT_S), StoreList)
        except HoldfastError as error:
            return error.message

    with ThreadPoolExecutor(max_workers=ASKED_AT_ONCE) as together:
        answers = list(zip(nodes.nodes, together.map(ask, nodes.nodes), strict=True))
    return joined([(node.name, answer) for node, answer in answers])


def joined(answers: Sequence[tuple[str, StoreList | str]]) -> StoreList:
    """One list of those of several nodes; in the place of one there may be why a node has none."""
    lists = [(name, one) for name, one in answers if isinstance(one, StoreList)]
    return StoreList(
        tuple(replace(line, node=name) for name, one in lists for line in one.stores),
        max((one.uneven for _, one in lists), default=0.0),
        any(one.rebalancing for _, one in lists),
        sum(one.bytes_moved for _, one in lists if one.rebalancing),
        sum(one.bytes_to_move for _, one in lists if one.rebalancing),
        tuple(f"{name}: {remark}" for name, one in lists for remark in one.remarks),
        tuple((name, why) for name, why in answers if isinstance(why, str)),
    )


def command_stores(
    config: Config,
    clock: Clock,
    action: str,
    asked: Mapping[str, str],
    *,
    file: Path | None,
    as_json: bool,
) -> None:
    """Have the node do something to its stores, and print what it did. `file` is the configuration file in
    use, which should say the same from now on."""
    given = sorted((name, value) for name, value in asked.items() if value)
    query = urlencode(given, quote_via=quote, safe="-_.~")
    raw = NodeClient(config, clock).ask(
        f"{STORES_PATH}/{action}", query, method="POST", timeout_s=COMMAND_TIMEOUT_S
    )
    if as_json:
        typer.echo(msgspec.json.format(raw).decode())
        return
    done = decoded(raw, Done)
    for line in [*done.sentences, *_to_write(action, done, file)]:
        typer.echo(line)


def _to_write(action: str, done: Done, file: Path | None) -> list[str]:
    """What to change in the configuration file, so that it says what is."""
    if file is None or not done.path:
        return []
    match action:
        case "add":
            labels = [f'{name} = "{value}"' for name, value in _labels(done) if value not in ("", "local")]
            where = done.lines or (f'path = "{done.path}"',)
            table = ["[[store]]", f'slot = "{done.slot}"', *where, *labels]
            return [f"It is there after a restart, too. So that {file} says it, add:", "", *table]
        case "replace":
            return [
                f"It is there after a restart, too. If {file} names {done.slot}, change its path there:",
                "",
                *(done.lines or (f'path = "{done.path}"',)),
            ]
        case "remove":
            return [f"If {file} names {done.slot}, take it out there; until then it is left out by itself."]
    return []


def _labels(done: Done) -> list[tuple[str, str]]:
    return [("region", done.region), ("zone", done.zone), ("host", done.host)]


def stores_view(stores: StoreList) -> RenderableType:
    """The table of stores, and below it what goes on."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    numbers = ("FILL", "HELD", "SHARDS", "FREE")
    several = any(line.node for line in stores.stores)
    for name in (*(["NODE"] if several else []), "STORE", "STATE", *numbers, "INDEX", "LABELS", "WHERE"):
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=name in numbers)
    for line in stores.stores:
        table.add_row(
            *([line.node] if several else []),
            line.slot,
            styled(line.state),
            "-" if line.fill is None else f"{100 * line.fill:.1f} %",
            size(line.bytes_held),
            str(line.shards),
            size(line.bytes_free),
            "yes" if line.holds_index else "",
            f"{line.region}/{line.zone}/{line.host}",
            f"{line.path} ({line.reason})" if line.reason else line.path,
        )
    parts: list[RenderableType] = [table]
    named = [(f"{line.node}/{line.slot}" if several else line.slot, line) for line in stores.stores]
    parts += [Text(f"{name} {_drain_sentence(line.drain)}") for name, line in named if line.drain]
    parts += [Text(f"{name}: {bucket_sentence(line.bucket)}.") for name, line in named if line.bucket]
    parts += [Text(f"{name} is a spare.") for name, line in named if line.spare]
    if stores.rebalancing:
        moved, whole = size(stores.bytes_moved), size(stores.bytes_to_move)
        parts.append(Text(f"Rebalancing: {moved} of {whole} moved."))
    parts += [Text(f"Note: {remark}") for remark in stores.remarks]
    parts += [Text(f"The stores of {name} are not shown: {why}") for name, why in stores.unasked]
    return Group(*parts)


def _drain_sentence(drain: DrainStatus) -> str:
    what = f"was replaced by {drain.replaced_by} and is" if drain.replaced_by else "is"
    if drain.empty:
        return f"{what} empty: it {'goes by itself' if drain.replaced_by else 'can be removed'}."
    verb = "is" if drain.shards_left == 1 else "are"
    left = (
        f"{what} being emptied: {counted(drain.shards_left, 'shard')} ({size(drain.bytes_left)}) {verb} left"
    )
    if drain.seconds_left is not None and drain.rate_bytes_s >= 1:
        left += f", {size(int(drain.rate_bytes_s))}/s, about {duration(drain.seconds_left)}"
    if drain.stuck:
        left += f"; {counted(drain.stuck, 'pack')} cannot be moved now ({drain.reason})"
    return f"{left}."


def decoded(raw: bytes, kind: type[T]) -> T:
    """A node's answer. Raises Unavailable when it is of another kind."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise Unavailable(
            f"The node's answer cannot be understood ({error}).",
            hint="Is it of another version? See `holdfast version`, or use --json.",
        ) from None
