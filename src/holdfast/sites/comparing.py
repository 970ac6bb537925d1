"""Rows of both sites side by side, a page at a time: for what was never copied, and what no feed told.

Of each page both sites make a digest; only where it differs the active's rows are fetched. What differs is
put, what the active does not have is deleted, and packs are made known or buried as the feed would have had
it. Attempts for one part are taken all together, in the order in which they came: where one of them differs
all are put anew, with moments from 1 on, which are older than whatever comes after. Reading is apart from
deciding: `steps` and `diverged` are pure.
"""

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from holdfast.base.ids import PackId
from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.model import PackRow
from holdfast.packs.rows import decode_row
from holdfast.sites.digests import alike, all_rows, digest, end_of_group, groups
from holdfast.sites.folding import BYTES_MAX, WEIGHT_MAX, weight
from holdfast.sites.rows import PACKS, PARTS, at_moment, pack_of, span_after
from holdfast.sites.source import Source

PAGE = 500


class Page(Struct, frozen=True):
    """The rows of both sites after some key, up to `copied`; none where they are alike."""

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
    there = await source.survey(start, end, limit)
    ours = await all_rows(index, start, there.stop, limit)
    if digest(ours) == there.digest:
        return Page(there.stop, (), ())
    return Page(there.stop, await their_rows(source, start, there.stop, limit), ours)


async def read_group(source: Source, index: Index, group: bytes) -> Page:
    """The rows of one group alone."""
    start, stop = (
        (group + b"/", prefix_end(group + b"/")) if group.startswith(PARTS) else (group, group + b"\0")
    )
    return Page(stop, await their_rows(source, start, stop), await all_rows(index, start, stop, PAGE))


async def their_rows(source: Source, start: bytes, stop: bytes, limit: int = PAGE) -> list[Row]:
    """All rows of a page at the active, in calls of `limit` rows."""
    found: list[Row] = []
    while some := await source.page(start, stop, limit):
        found += some
        start = some[-1].key + b"\0"
    return found


def steps(page: Page) -> Iterator[Step]:
    """What makes our rows theirs, in as many transactions as it needs. The last one ends at the page's
    end."""
    step = Step(b"", {}, {})
    size = 0
    for last, change in _differences(groups(page.theirs), groups(page.ours)):
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


def _differences(
    there: Mapping[bytes, list[Row]], here: Mapping[bytes, list[Row]]
) -> Iterator[tuple[bytes, Step]]:
    for group in sorted(there.keys() | here.keys()):
        rows, own = there.get(group, []), here.get(group, [])
        if list(alike(rows)) == list(alike(own)):
            continue
        last = max(row.key for row in (*rows, *own))
        change = Step(last, {}, {})
        if group.startswith(PACKS):
            if not own:
                change.packs[pack_of(group)] = decode_row(rows[0].value)
            elif not rows:
                change.packs[pack_of(group)] = None
        elif group.startswith(PARTS):
            last = end_of_group(last)
            change.rows |= {row.key: None for row in own}
            change.rows |= {row.key: at_moment(row.value, at) for at, row in enumerate(rows, start=1)}
            change.moments = len(rows)
        else:
            change.rows[group] = rows[0].value if rows else None
        yield last, change


class Look(Struct, frozen=True):
    """A page as it was at both sites, ours after all that the active had committed when theirs was read."""

    theirs: Mapping[bytes, list[Row]]
    ours: Mapping[bytes, list[Row]]


def diverged(first: Look, second: Look) -> list[bytes]:
    """Groups that are different at the two sites although nothing of them is on its way: they differ in
    both looks, and neither site has touched them in between. Pure.

    Why that is proof: theirs was the same all the time between the two looks, since no revision comes twice
    and no pack comes back; ours was made from a state of the active in that time, or was wrong."""
    found = []
    for group in sorted(first.theirs.keys() | first.ours.keys()):
        theirs, ours = first.theirs.get(group, []), first.ours.get(group, [])
        if list(alike(theirs)) == list(alike(ours)):
            continue
        still = second.theirs.get(group, []), second.ours.get(group, [])
        if _identity(theirs) == _identity(still[0]) and _identity(ours) == _identity(still[1]):
            found.append(group)
    return found


def _identity(rows: Sequence[Row]) -> list[tuple[bytes, int]]:
    """What tells whether rows were touched. Chores touch rows of packs, which come and go once."""
    return [(row.key, 0 if row.key.startswith(PACKS) else row.revision) for row in rows]
