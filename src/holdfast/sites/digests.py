"""What must be the same at both sites, as a digest: rows in pages that begin and end at the same keys.

Of packs it is what they hold, not where; of attempts for one part the order in which they came, not the
moments. Pages are never cut between attempts for one part. Pure but for `survey`, which reads one."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import groupby

from msgspec import Struct

from holdfast.index.port import Index, Row, prefix_end
from holdfast.packs.rows import decode_row
from holdfast.sites.rows import PACKS, PARTS, arrival, at_moment, only_rows, part_number

DIGEST_BYTES = 16


class Survey(Struct, frozen=True):
    """Rows from some key up to `stop`, which is beyond the last: how many, and their digest."""

    stop: bytes
    rows: int
    digest: bytes


def group_of(row: Row) -> bytes:
    """The key, or for an attempt of a part what it has in common with the others."""
    return part_number(row.key) if row.key.startswith(PARTS) else row.key


def groups(rows: Sequence[Row]) -> dict[bytes, list[Row]]:
    """Rows in key order by group, those of one in the order in which they came."""
    return {
        group: sorted(some, key=arrival) if group.startswith(PARTS) else list(some)
        for group, some in groupby(rows, group_of)
    }


def end_of_group(key: bytes) -> bytes:
    """Beyond all attempts for the part, those included that come while the page is being looked at."""
    return prefix_end(part_number(key) + b"/") if key.startswith(PARTS) else key + b"\0"


def whole_groups(rows: Sequence[Row]) -> int:
    """How many rows there are before the last group, which may go on."""
    if not rows[-1].key.startswith(PARTS):
        return len(rows)
    last = part_number(rows[-1].key)
    return next((at + 1 for at in range(len(rows) - 1, -1, -1) if part_number(rows[at].key) != last), 0)


def alike(rows: Sequence[Row]) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each row of a group, as they must be at both sites."""
    for row in rows:
        if row.key.startswith(PACKS):
            pack = decode_row(row.value)
            yield row.key, b"%d %d" % (pack.payload_bytes, pack.object_bytes)
        elif row.key.startswith(PARTS):
            yield row.key, at_moment(row.value, 0)
        else:
            yield row.key, row.value


def digest(rows: Sequence[Row]) -> bytes:
    """Of rows in key order."""
    total = blake2b(digest_size=DIGEST_BYTES)
    for some in groups(rows).values():
        for key, value in alike(some):
            total.update(len(key).to_bytes(4, "little") + len(value).to_bytes(4, "little") + key + value)
    return total.digest()


async def survey(index: Index, start: bytes, end: bytes, limit: int) -> Survey:
    """About `limit` rows from `start`, or all up to `end`."""
    while True:
        rows = only_rows(await index.scan(start, end, limit=limit))
        if len(rows) < limit:
            return Survey(end, len(rows), digest(rows))
        if cut := whole_groups(rows):
            return Survey(end_of_group(rows[cut - 1].key), cut, digest(rows[:cut]))
        limit *= 2  # one part with very many attempts


async def all_rows(index: Index, start: bytes, end: bytes, limit: int) -> list[Row]:
    """All rows of a page, in calls of `limit` rows."""
    found: list[Row] = []
    while some := only_rows(await index.scan(start, end, limit=limit)):
        found += some
        start = some[-1].key + b"\0"
    return found
