"""`holdfast node` and `holdfast cluster`: asks the node that runs here, or has it name the one to ask."""

from collections.abc import Mapping
from urllib.parse import quote, urlencode

import msgspec
import typer

from holdfast.base.clock import Clock
from holdfast.base.errors import Busy, InvalidInput
from holdfast.cli.asking import show_status
from holdfast.cli.client import NodeClient
from holdfast.cli.output import console, nodes_view, show
from holdfast.cli.storing import COMMAND_TIMEOUT_S, decoded
from holdfast.cluster.formats import ClusterFormat
from holdfast.node.can_stop import CAN_STOP_PATH, CLAIM_PATH, CanStop
from holdfast.node.config import Config
from holdfast.node.node_commands import FORMAT_PATH, NODES_PATH, NodeList
from holdfast.node.stores import Done

ASK_AGAIN_S = 2.0


def show_nodes(config: Config, clock: Clock, *, as_json: bool) -> None:
    """Print all nodes."""
    raw = NodeClient(config, clock).ask(NODES_PATH)
    if as_json:
        typer.echo(msgspec.json.format(raw).decode())
        return
    found = decoded(raw, NodeList)
    show(console(), nodes_view(found.nodes, asked=found.asked))


def show_cluster(config: Config, clock: Clock, *, as_json: bool, watch: bool) -> None:
    """Print the status, of a cluster. Raises InvalidInput where there is but one node, Unavailable where
    there is none."""
    if config.cluster is None:
        NodeClient(config, clock)  # a folder without a node says nothing about clusters
        raise InvalidInput(
            "This node is alone: its index is embedded.", hint="`holdfast status` shows how it is."
        )
    show_status(config, clock, as_json=as_json, watch=watch)


def show_format(config: Config, clock: Clock, *, raising: bool, as_json: bool) -> None:
    """Print the format of the cluster, raised first if that is wanted. Raises InvalidInput."""
    raw = NodeClient(config, clock).ask(FORMAT_PATH, method="POST" if raising else "GET")
    if as_json:
        typer.echo(msgspec.json.format(raw).decode())
        return
    found = decoded(raw, ClusterFormat)
    typer.echo(f"The cluster has format {found.format}; this version knows {found.known}.")
    if found.behind:
        told = ", ".join(f"{node.name} ({node.version})" for node in found.behind)
        typer.echo(f"Nodes that do not know {found.known}: {told}.")
    elif found.format < found.known:
        typer.echo("All nodes know it: `holdfast cluster format --raise` shuts older versions out.")


async def ask_can_stop(config: Config, clock: Clock, *, claiming: bool, wait_s: float, as_json: bool) -> None:
    """Print whether the node that runs here can be taken down, asking again for up to `wait_s`. Raises Busy
    when it cannot."""
    until = clock.monotonic() + wait_s
    path, method = (CLAIM_PATH, "POST") if claiming else (CAN_STOP_PATH, "GET")
    while True:
        client = NodeClient(config, clock)
        raw = client.ask(path, method=method, timeout_s=COMMAND_TIMEOUT_S, also=412)
        answer = decoded(raw, CanStop)
        if answer.can_stop or clock.monotonic() >= until:
            break
        await clock.sleep(min(ASK_AGAIN_S, until - clock.monotonic()))
    if as_json:
        typer.echo(msgspec.json.format(raw).decode())
    if not answer.can_stop:
        raise Busy(" ".join(["This node cannot be taken down now:", *answer.reasons]))
    if not as_json:
        typer.echo(
            "This node has the word: stop it now." if claiming else "This node can be taken down for a while."
        )


def command_nodes(
    config: Config, clock: Clock, action: str, asked: Mapping[str, str], *, as_json: bool
) -> None:
    """Have something done about a node, and print what was done: to drain itself the node is asked, to remove
    one the node that runs here."""
    client, name = NodeClient(config, clock), asked["name"]
    if action == "drain":
        found = decoded(client.ask(NODES_PATH), NodeList)
        target = next((node for node in found.nodes if node.name == name), None)
        if target is None:
            known = ", ".join(node.name for node in found.nodes)
            raise InvalidInput(f"There is no node {name!r} in this cluster:", hint=f"there are {known}.")
        if name != found.asked:
            client = NodeClient(config, clock, target.client)
    query = urlencode(
        sorted((key, value) for key, value in asked.items() if value), quote_via=quote, safe="-_.~"
    )
    raw = client.ask(f"{NODES_PATH}/{action}", query, method="POST", timeout_s=COMMAND_TIMEOUT_S)
    if as_json:
        typer.echo(msgspec.json.format(raw).decode())
        return
    for line in decoded(raw, Done).sentences:
        typer.echo(line)
