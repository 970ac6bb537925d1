"""`holdfast recover`: says what is going on, then what came of it."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec
import typer

from holdfast.base.clock import SystemClock
from holdfast.base.randomness import SystemRandomness
from holdfast.node.config import Config
from holdfast.node.lending import lend
from holdfast.node.recovering import Wanted, recover
from holdfast.recovery.applying import Told
from holdfast.recovery.report import Report

SHOWN_MAX = 20


def recover_and_show(
    config: Config, wanted: Wanted, environment: Mapping[str, str], *, as_json: bool
) -> None:
    """Recover, and print the report. Raises what stands in the way."""

    def tell(sentence: str) -> None:
        if not as_json:
            typer.echo(f"  {sentence}", err=True)

    report = asyncio.run(recover(config, wanted, environment, SystemClock(), SystemRandomness(), tell))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report)).decode())
        return
    for line in sentences_of(report):
        typer.echo(line)


def lend_and_tell(config: Config) -> None:
    """Lend this node's stores until the recovery on another one is over. Raises what stands in the way."""
    asyncio.run(lend(config, SystemClock(), SystemRandomness(), typer.echo))


def sentences_of(report: Report) -> Iterator[str]:
    """The report for a person. Pure."""
    used = [found for found in report.stores if found.state == "used"]
    yield f"Cluster {report.cluster}, {len(used)} of {len(report.stores)} stores."
    for found in report.stores:
        if found.state != "used":
            where = f"{found.slot}, {found.path}" if report.nodes else found.path
            yield f"  not used: {where}: {found.state}"
    yield from _of_nodes(report)
    yield f"Index {report.incarnation_before}:"
    if report.snapshot:
        yield (
            f"  snapshot of revision {report.snapshot_revision}, {report.snapshot_rows} rows, "
            f"written {_moment(report.snapshot_written_ms)}"
        )
    else:
        yield "  no snapshot: the journal begins at the beginning"
    yield (
        f"  journal up to revision {report.journal_revision}, {report.journal_pieces} pieces, "
        f"the last written {_moment(report.journal_written_ms)}"
    )
    if report.log_changes:
        yield f"  {report.log_changes} changes behind it were still on {report.log_member}"
    if report.gap:
        yield f"  the journal has a gap: {report.gap}"
    for line in report.passed_over:
        yield f"  passed over: {line}"
    yield from _of_packs(report)
    yield from _of_versions(
        "written after the journal's end, and there again", report.applied, report.applied_count
    )
    yield from _of_versions("found where they had been moved to", report.relocated, report.relocated_count)
    yield from _of_versions("in doubt (see what is said of each)", report.doubtful, report.doubtful_count)
    yield from _of_versions("not all of it is there", report.incomplete, report.incomplete_count)
    if report.buckets_made:
        yield f"Buckets made again for them: {', '.join(report.buckets_made)}."
    yield (
        f"{'It would hold' if report.dry_run else 'It holds'}: buckets {report.buckets}, objects "
        f"{report.objects}, open uploads {report.uploads}; {report.rows} rows at revision {report.revision}."
    )
    yield (
        f"Not known: what was deleted, copied without moving bytes, or done to uploads after "
        f"{_moment(report.missing_from_ms)} until the node stopped."
    )
    if report.dry_run:
        yield f"Nothing was written. The new index would lie on {', '.join(report.members)}."
        return
    yield f"The new index {report.incarnation} lies on {', '.join(report.members)}."
    if report.first_snapshot_failed:
        yield (
            f"  its first snapshot could not be written ({report.first_snapshot_failed}): until the node has "
            "made one, minutes after its start, what is done would be lost with it"
        )
    for path in report.set_aside:
        yield f"  set aside: {path}; remove it when all is well"
    nodes = "on each node starts it" if report.nodes else "starts the node"
    yield f"Credentials: {report.credentials}. `holdfast serve` {nodes}; then run `holdfast verify`."


def _of_nodes(report: Report) -> Iterator[str]:
    """Nothing for a node that is alone."""
    if not report.nodes:
        return
    away = [node for node in report.nodes if node.part not in ("here", "lends")]
    yield f"Nodes: {', '.join(node.name for node in report.nodes if node not in away)} take part."
    for node in away:
        stores = f"its stores {', '.join(node.stores)} were not read" if node.stores else "it has no stores"
        yield f"  without {node.name}, at {node.peer}: {node.part}; {stores}"
    if any(node.stores for node in away):
        yield (
            "  What was written in the last moment and lies mostly on those stores may not be among what is "
            "told below; and they do not know of the new index: do not let them serve with the old one."
        )


def _of_packs(report: Report) -> Iterator[str]:
    yield f"{report.packs} packs with rows, {report.shards} shards on the stores."
    if report.packs_degraded:
        yield f"  {report.packs_degraded} lack shards here; the node writes them again"
    if report.packs_short:
        named = ", ".join(report.packs_short_named[:SHOWN_MAX])
        yield f"  {report.packs_short} cannot be read from these stores: {named}"
    if report.packs_moved:
        yield f"  {report.packs_moved} had moved, and were found where they are now"
    if report.packs_added:
        yield f"  {report.packs_added} without a row were added"
    if report.packs_left or report.packs_unreadable:
        left = report.packs_left + report.packs_unreadable
        yield (
            f"  {left} without a row are left to the search for strays ({report.packs_unreadable} of them "
            "cannot be read): the node declares them dead once it has seen them for a day"
        )
        if report.packs_unreadable:
            yield "  until then they are kept: bring more stores and recover again, if something is missing"
    if report.pieces_left:
        yield f"  {report.pieces_left} pieces complete nothing: parts of uploads, or writes that failed"


def _of_versions(what: str, told: Sequence[Told], count: int) -> Iterator[str]:
    if not count:
        return
    yield f"{count} versions {what}:"
    for one in told[:SHOWN_MAX]:
        yield f"  {one.bucket}/{one.key}" + (f": {one.why}" if one.why else "")
    if count > SHOWN_MAX:
        yield f"  and {count - SHOWN_MAX} more"


def _moment(ms: int) -> str:
    if not ms:
        return "at a time that is not known"
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
