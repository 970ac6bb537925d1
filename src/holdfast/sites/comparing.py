"""Rows of both sites side by side, a page at a time: for what was never copied, and what the feed did not
tell.

A page is read at the active, then the same keys here; what differs is put, what the active does not have is
deleted, and packs are made known or buried as the feed would have had it. Attempts for one part are taken
all together, in the order in which they came: where one of them differs all are put anew, with moments from
1 on, which are older than whatever comes after. Reading is apart from deciding; `steps` is pure."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from msgspec import Struct

from holdfast.base.ids import PackId
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.model import PackRow
from holdfast.packs.rows import decode_row
from holdfast.sites.folding import BYTES_MAX, WEIGHT_MAX, weight
from holdfast.sites.rows import PACKS, PARTS, arrival, at_moment, only_rows, pack_of, part_number, span_after
from holdfast.sites.source import Source

PAGE = 500


class Page(Struct, frozen=True):
    """The rows of both sites after some key, up to `copied`."""

    copied: bytes
    theirs: Sequence[Row]
    ours: Sequence[Row]


class Step(Struct):
    """What one transaction is to do; then all keys up to `copied` are alike. `moments` is how many attempts
    for one part have moments from 1 on: the index must be beyond that."""

    copied: bytes
    rows: dict[bytes, bytes | None]
    packs: dict[PackId, PackRow | None]
    moments: int = 0


async def read_page(source: Source, index: Index, copied: bytes, limit: int = PAGE) -> Page | None:
    """The next page, of about `limit` rows; None at the end."""
    span = span_after(copied)
    if span is None:
        return None
    start, end = span
    while True:
        theirs = await source.page(start, end, limit)
        if len(theirs) < limit:
            break
        cut = _whole_groups(theirs)
        if cut:
            theirs, end = theirs[:cut], _end_of_group(theirs[cut - 1].key)
            break
        limit *= 2  # one part with very many attempts
    ours: list[Row] = []
    at = start
    while some := only_rows(await index.scan(at, end, limit=limit)):
        ours += some
        at = some[-1].key + b"\0"
    return Page(end, theirs, ours)


def _whole_groups(rows: Sequence[Row]) -> int:
    """How many rows there are before the last group, which may go on."""
    if not rows[-1].key.startswith(PARTS):
        return len(rows)
    last = part_number(rows[-1].key)
    return next((at + 1 for at in range(len(rows) - 1, -1, -1) if part_number(rows[at].key) != last), 0)


def _end_of_group(key: bytes) -> bytes:
    """Beyond all attempts for the part, those included that come while the page is being copied."""
    return prefix_end(part_number(key) + b"/") if key.startswith(PARTS) else key + b"\0"


def steps(page: Page) -> Iterator[Step]:
    """What makes our rows theirs, in as many transactions as it needs. The last one ends at the page's
    end."""
    step = Step(b"", {}, {})
    size = 0
    for last, change in _differences(page.theirs, page.ours):
        more = sum(len(key) + len(value or b"") for key, value in change.rows.items())
        rows, packs = len(step.rows) + len(change.rows), len(step.packs) + len(change.packs)
        if step.copied and (weight(rows, packs) > WEIGHT_MAX or size + more > BYTES_MAX):
            yield step
            step, size = Step(b"", {}, {}), 0
        size += more
        step.copied = last
        step.rows |= change.rows
        step.packs |= change.packs
        step.moments = max(step.moments, change.moments)
    step.copied = page.copied
    yield step


def _differences(theirs: Sequence[Row], ours: Sequence[Row]) -> Iterator[tuple[bytes, Step]]:
    there = {group: list(rows) for group, rows in groupby(theirs, _group)}
    here = {group: list(rows) for group, rows in groupby(ours, _group)}
    for group in sorted(there.keys() | here.keys()):
        rows, own = there.get(group, []), here.get(group, [])
        last = max(row.key for row in (*rows, *own))
        if group.startswith(PARTS):
            last = _end_of_group(last)
        change = Step(last, {}, {})
        if group.startswith(PACKS):
            if not own:
                change.packs[pack_of(group)] = decode_row(rows[0].value)
            elif not rows:
                change.packs[pack_of(group)] = None
        elif group.startswith(PARTS):
            _attempts(rows, own, change)
        elif not rows:
            change.rows[group] = None
        elif not own or own[0].value != rows[0].value:
            change.rows[group] = rows[0].value
        if change.rows or change.packs:
            yield last, change


def _group(row: Row) -> bytes:
    return part_number(row.key) if row.key.startswith(PARTS) else row.key


def _attempts(rows: Sequence[Row], own: Sequence[Row], change: Step) -> None:
    there, here = _in_order(rows), _in_order(own)
    if there == here:
        return
    for row in own:
        change.rows[row.key] = None
    for moment, (key, value) in enumerate(there, start=1):
        change.rows[key] = at_moment(value, moment)
    change.moments = len(there)


def _in_order(rows: Sequence[Row]) -> list[tuple[bytes, bytes]]:
    return [(row.key, at_moment(row.value, 0)) for row in sorted(rows, key=arrival)]
