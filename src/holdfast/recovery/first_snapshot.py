"""The snapshot that a new index begins with: all its rows, on the stores before anybody is served.

An index that was made again has no past: its journal would begin in the middle, and be of no use until the
node had made a snapshot. Who lost it again in between would fall back to the index before, and lose what was
deleted and uploaded since. So recovery writes all rows down itself, while they stand still. What must hold:
the head is written when every page was read back from the medium, and is what was written; and a snapshot
without a head is none, so an interruption leaves nothing that anybody would believe.
"""

from collections.abc import Iterable, Iterator

from holdfast.base.checksums import Buffer
from holdfast.base.errors import Damaged
from holdfast.base.randomness import Randomness
from holdfast.index.port import Row
from holdfast.packs.named import NamedPacks
from holdfast.recovery.format import FORMAT, Head, encode_head, encode_page, first_chain
from holdfast.recovery.names import Lineage, SnapshotName
from holdfast.recovery.snapshot import PAGE_BYTES
from holdfast.stores.port import JOURNAL_SHARE


async def write_first(
    packs: NamedPacks,
    rows: Iterable[Row],
    lineage: Lineage,
    revision: int,
    ancestors: tuple[str, ...],
    written_ms: int,
    randomness: Randomness,
    *,
    page_bytes: int = PAGE_BYTES,
) -> SnapshotName:
    """Write all `rows`, in key order, as they are at `revision`; the journal goes on from there. Raises
    Unavailable when too few stores take them, Damaged when they are not what was written."""
    name = SnapshotName(lineage, revision, randomness.token(3).hex())
    pages = count = size = 0
    for found in _pages(rows, page_bytes):
        await _write(packs, name.page(pages), encode_page(name, pages, found))
        pages += 1
        count += len(found)
        size += sum(len(row.key) + len(row.value) for row in found)
    head = Head(
        FORMAT,
        *lineage,
        revision,
        revision,
        first_chain(lineage.incarnation, revision),
        pages,
        count,
        size,
        0,
        written_ms,
        ancestors,
    )
    await _write(packs, name.head, [encode_head(head)])
    return name


async def _write(packs: NamedPacks, name: str, data: list[bytes]) -> None:
    whole: Buffer = b"".join(data)
    await packs.write(name, [whole], reserve_share=JOURNAL_SHARE)
    if await packs.check(name) != whole:
        raise Damaged(f"{name} is not what was written.")


def _pages(rows: Iterable[Row], page_bytes: int) -> Iterator[list[Row]]:
    page: list[Row] = []
    size = 0
    for row in rows:
        page.append(row)
        size += len(row.key) + len(row.value)
        if size >= page_bytes:
            yield page
            page, size = [], 0
    if page:
        yield page
