"""What people see: the banner of `serve`, the table of `status`, the lines of `verify`.

Plain where it goes to a pipe, coloured at a terminal (Rich decides). Colours carry nothing that the words
do not say.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from io import StringIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from holdfast.base.wording import counted
from holdfast.index.port import MemberStatus
from holdfast.node.bucket_report import bucket_sentence
from holdfast.node.config_cloud import is_bucket
from holdfast.node.credentials import Credentials
from holdfast.node.status import (
    NodeState,
    NodeStatus,
    Promise,
    Status,
    StoreStatus,
    is_copy,
    promise_sentences,
)
from holdfast.node.verification import PackFinding, PackState, Summary
from holdfast.recovery.keeping import RecoveryStatus

_STYLES = {
    "online": "green",
    "healthy": "green",
    "probation": "green",
    "ready": "green",
    "degraded": "yellow",
    "stopping": "yellow",
    "draining": "yellow",
    "not ready": "yellow",
    "full": "yellow",
    "suspect": "yellow",
    "sitting-out": "yellow",
}


def console() -> Console:
    """Standard output."""
    return Console(highlight=False, soft_wrap=True)


def show(out: Console, view: RenderableType) -> None:
    """Print `view`; into a pipe or file with all it says, however wide, and no blanks at line ends."""
    if out.is_terminal:
        out.print(view)
        return
    wide = Console(highlight=False, width=_PIPE_COLUMNS, no_color=True, file=StringIO())
    with wide.capture() as captured:
        wide.print(view)
    out.file.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))
    out.file.flush()


_PIPE_COLUMNS = 500


@contextmanager
def watching(out: Console) -> Iterator[Callable[[RenderableType], None]]:
    """Shows each view in place of the one before; into a pipe or file below it, and at once."""
    if not out.is_terminal:
        yield partial(show, out)
        return
    with Live(console=out, auto_refresh=False, screen=False) as live:
        yield partial(live.update, refresh=True)


def banner(
    *,
    version: str,
    endpoint: str,
    region: str,
    credentials: Credentials,
    kept: str,
    scheme: str,
    promise: Promise,
    remarks: Sequence[str],
    private: bool,
) -> Text:
    """What `serve` prints when it takes requests. `kept` says where the credentials come from; the
    secret is shown only when the node keeps it itself, and a person alone reads it (`private`): other output
    ends in journals."""
    own = kept != "the environment"
    secret = credentials.secret_access_key if own else "$HOLDFAST_SECRET_ACCESS_KEY"
    hidden = own and not private
    paste = [
        "Paste this to try it:",
        "",
        *(f"  {line}" for line in exports(credentials, secret, region, endpoint)),
        "  aws s3 mb s3://first",
        "  aws s3 cp README.md s3://first/",
        "  aws s3 ls s3://first",
        "",
    ]
    lines = [
        f"Holdfast {version} serves S3 at {endpoint}",
        "",
        f"  access key id      {credentials.access_key_id}",
        f"  secret access key  {'`holdfast credentials` prints it' if hidden else secret}",
        f"  kept in            {kept}",
        "",
        *(() if hidden else paste),
        f"With {scheme} this layout survives the loss of:",
        *(f"  {line}" for line in promise_sentences(promise)),
        *(f"Note: {remark}" for remark in remarks),
        "",
        "Ctrl-C drains and stops.",
    ]
    return Text("\n".join(lines))


def exports(credentials: Credentials, secret: str, region: str, endpoint: str) -> list[str]:
    """What a shell is told, so that S3 clients find the node."""
    return [
        f"export AWS_ACCESS_KEY_ID={credentials.access_key_id}",
        f"export AWS_SECRET_ACCESS_KEY={secret}",
        f"export AWS_DEFAULT_REGION={region} AWS_ENDPOINT_URL={endpoint}",
    ]


def status_view(status: Status) -> RenderableType:
    """The whole status, as `zpool status` would."""
    head = Table.grid(padding=(0, 1))
    head.add_column(justify="right")
    head.add_column()
    uptime = duration(status.uptime_s)
    head.add_row("node:", f"{status.endpoint}, Holdfast {status.version}, process {status.pid}, up {uptime}")
    head.add_row("state:", styled(status.state.value))
    for number, line in enumerate(status.sentences):
        head.add_row("status:" if number == 0 else "", line)
    for number, line in enumerate(status.actions):
        head.add_row("action:" if number == 0 else "", line)
    head.add_row("scheme:", status.scheme)
    parts: list[RenderableType] = [head, Text("")]
    if status.nodes:
        parts += [nodes_view(status.nodes, asked=status.node), Text("")]
    parts += [_stores(status.stores), Text("")]
    if buckets := [
        f"{store.slot}: {bucket_sentence(store.bucket)}." for store in status.stores if store.bucket
    ]:
        parts += [*map(Text, buckets), Text("")]
    tail = Table.grid(padding=(0, 1))
    tail.add_column(justify="right")
    tail.add_column()
    tail.add_row("index:", _index(status))
    tail.add_row("packs:", _packs(status))
    oldest = status.packs.oldest_read_s
    read = "not every shard was read yet" if oldest is None else f"every shard within {duration(oldest)}"
    if any(is_bucket(store.path) for store in status.stores):
        read += "; those in buckets were seen to be there, not read"
    tail.add_row("scrub:", read)
    tail.add_row("space:", _space(status))
    if status.recovery is not None:
        tail.add_row("recovery:", _recovery(status.recovery))
    for number, line in enumerate(_losses(status)):
        tail.add_row("can still be lost:" if number == 0 else "", line)
    for number, event in enumerate(status.events):
        moment = datetime.fromtimestamp(event.wall, UTC).strftime("%Y-%m-%d %H:%M:%S")
        tail.add_row("events (UTC):" if number == 0 else "", f"{moment}  {event.text}")
    return Group(*parts, tail)


def nodes_view(nodes: Sequence[NodeStatus], asked: str) -> Table:
    """The nodes of a cluster; `asked` is the one that says all this."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("NODE", "STATE", "FOR", "STORES", "VERSION", "CLIENTS", "PEERS"):
        table.add_column(name, justify="right" if name in ("FOR", "STORES") else "left")
    for node in nodes:
        table.add_row(
            f"{node.name} (asked)" if node.name == asked else node.name,
            styled(node.state),
            duration(node.since_s),
            f"{node.stores_there} of {node.stores}",
            node.version,
            node.client,
            node.peer,
        )
    return table


def _recovery(recovery: RecoveryStatus) -> str:
    """How far a lost index could be made again."""
    behind = (
        f"{counted(recovery.behind_commits, 'commit')} behind, for {recovery.behind_s:.1f} s"
        if recovery.behind_commits
        else "up to date"
    )
    journal = f"journal at revision {recovery.journal_revision}, {behind}"
    if recovery.snapshot_revision is None or recovery.snapshot_age_s is None:
        return f"{journal}; no snapshot needed yet"
    age = duration(recovery.snapshot_age_s)
    return f"{journal}; snapshot of revision {recovery.snapshot_revision}, {age} old"


def finding_view(finding: PackFinding) -> Text:
    """One pack that is not whole."""
    text = Text(f"pack {finding.pack} ({finding.scheme}): ")
    text.append(finding.state.value, style="red" if finding.state is PackState.LOST else "yellow")
    for fault in finding.faults:
        text.append(f"\n    {fault}")
    return text


def summary_sentence(summary: Summary) -> str:
    """How the reading of everything went."""
    rate = summary.bytes_read / summary.seconds if summary.seconds > 0 else 0.0
    return (
        f"{counted(summary.packs, 'pack')}: {summary.whole} whole, {summary.degraded} degraded, "
        f"{summary.lost} lost. "
        f"{counted(summary.shards, 'shard')}, {size(summary.bytes_read)} read in {duration(summary.seconds)} "
        f"({size(int(rate))}/s)."
    )


def _stores(stores: Sequence[StoreStatus]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("STORE", "STATE", "FREE", "SIZE", "READ ERR", "WRITE ERR", "WRONG", "WHERE"):
        table.add_column(name, justify="right" if name in _NUMBERS else "left", no_wrap=name in _NUMBERS)
    for store in stores:
        table.add_row(
            store.slot,
            styled(store.state),
            size(store.bytes_free),
            size(store.bytes_total),
            str(store.read_errors),
            str(store.write_errors),
            str(store.wrong_blocks),
            f"{store.path} ({store.reason})" if store.reason else store.path,
        )
    return table


_NUMBERS = frozenset({"FREE", "SIZE", "READ ERR", "WRITE ERR", "WRONG"})


def _index(status: Status) -> str:
    index = status.index

    def told(members: Sequence[MemberStatus]) -> str:
        return ", ".join(f"{member.name.removeprefix('copy ')} {member.state}" for member in members)

    log = told([member for member in index.members if not is_copy(member)])
    copies = told([member for member in index.members if is_copy(member)])
    where = f"log at {log}" + (f"; copies at {copies}" if copies else "")
    return f"{index.engine} {index.state.value} at revision {index.revision}; {where}"


def _packs(status: Status) -> str:
    packs = status.packs
    age = f", counted {packs.counted_s_ago:.0f} s ago" if packs.counted_s_ago >= 1 else ""
    return (
        f"{counted(packs.packs, 'pack')}, {size(packs.bytes_stored)}; {packs.degraded} degraded, "
        f"{packs.unreadable} unreadable, {packs.debts} owed a rewrite, "
        f"{counted(packs.shards_missing, 'shard')} missing{age}; since the start {packs.repaired} repaired "
        f"({packs.repairs_waiting} waiting), {counted(packs.debts_paid, 'debt')} paid"
    )


def _space(status: Status) -> str:
    packs = status.packs
    return (
        f"{size(packs.bytes_dead)} deleted and not given back yet, {counted(packs.mergeable, 'pack')} small "
        f"or mostly dead; since the start {size(packs.bytes_reclaimed)} given back"
    )


def _losses(status: Status) -> list[str]:
    if status.state is NodeState.UNAVAILABLE:
        return ["nothing: too much is missing already"]
    return [
        f"{count} of {status.domains[level]} {level}{'' if status.domains[level] == 1 else 's'}"
        for level, count in status.survives.items()
        if status.domains[level] > 1 or level in ("store", "device")
    ]


def styled(word: str) -> Text:
    """A state in its colour."""
    return Text(word, style=_STYLES.get(word, "red"))


def size(count: int | None) -> str:
    """Bytes for a person."""
    if count is None:
        return "-"
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value >= 100 or units[0] == "B" else f"{value:.1f} {units[0]}"


def duration(seconds: float) -> str:
    """A time for a person."""
    whole = int(seconds)
    days, hours, minutes = whole // 86_400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
