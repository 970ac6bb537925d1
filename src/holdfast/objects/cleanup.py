"""Work that a change left over because it would not have fitted into its one transaction.

The end of an upload leaves its part rows; the end of a version with a table leaves the bytes that the
table names. Both leave a `cleanup` row in the very transaction that ends them, and this is what works it
off, in bounded steps, each of which expects the row as it was read. What must hold: every byte is
recorded as dead exactly once, whoever does the steps, however often they crash; the parts that live on
in a version lose only their rows.
"""

from msgspec.structs import replace

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import PackId, UploadId, VersionId
from holdfast.index.port import Expect, Row, Transaction
from holdfast.objects import keys, rows
from holdfast.objects.context import Context
from holdfast.objects.heads import dead_puts
from holdfast.objects.rows import CleanupRow, DeadRow
from holdfast.objects.table import Table

STEP_PARTS = 256
STEP_DEAD = 512
"""How much one step takes on: at most so many part rows, and about so many dead rows."""

_TASKS_AT_ONCE = 16


class Cleanups:
    """Works cleanup rows off."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def work(self, steps: int) -> bool:
        """Do up to `steps` steps of whatever is left over; True when nothing is left.

        What cannot be done at present (its table is unreadable, somebody else is at it) is passed over
        and raised when nothing else went forward.
        """
        after = keys.CLEANUPS
        trouble: HoldfastError | None = None
        progress = False
        while True:
            found = await self._context.index.scan(
                after, keys.after_prefix(keys.CLEANUPS), limit=_TASKS_AT_ONCE
            )
            if not found:
                if trouble is not None and not progress:
                    raise trouble
                return trouble is None
            for item in found:
                assert isinstance(item, Row)
                after = item.key + b"\0"
                row: Row | None = item
                while row is not None:
                    if steps <= 0:
                        return False
                    steps -= 1
                    try:
                        row = await self._step(row)
                    except HoldfastError as error:
                        trouble, row = error, None
                    else:
                        progress = True

    async def begin(self, owner: str) -> None:
        """The first step of what was just left over, so that small things are done at once. Failure
        is left for later: the row stays."""
        try:
            (row,) = await self._context.index.get((keys.cleanup_row(owner),))
            if row is not None:
                await self._step(row)
        except HoldfastError:
            return

    async def _step(self, row: Row) -> Row | None:
        """One step; the row as it is afterwards, or None when it is done or somebody else's."""
        cleanup = rows.decode_cleanup(row.value)
        if cleanup.upload is not None:
            return await self._step_upload(row, cleanup, cleanup.upload)
        return await self._step_version(row, cleanup)

    async def _step_upload(self, row: Row, cleanup: CleanupRow, upload: UploadId) -> Row | None:
        chosen = {cleanup.chosen[at : at + 16] for at in range(0, len(cleanup.chosen), 16)}
        prefix = keys.parts(upload)
        found = await self._context.index.scan(prefix, keys.after_prefix(prefix), limit=STEP_PARTS + 1)
        expects = [Expect(row.key, row.revision)]
        puts: list[tuple[bytes, bytes]] = []
        deletes: list[bytes] = []
        for item in found[:STEP_PARTS]:
            assert isinstance(item, Row)
            if len(puts) >= STEP_DEAD:
                break
            _, attempt = keys.parse_part_row(item.key)
            if bytes.fromhex(attempt) not in chosen:
                sizes: dict[PackId, int] = {}
                for extent in rows.decode_part(item.value).extents:
                    sizes[extent.pack] = sizes.get(extent.pack, 0) + extent.length
                puts.extend(dead_puts(sizes, attempt, cleanup.cause))
            expects.append(Expect(item.key, item.revision))
            deletes.append(item.key)
        done = len(deletes) == len(found)
        if done:
            deletes.append(row.key)
        decided = await self._context.committer.decide_one(
            Transaction(tuple(expects), tuple(puts), tuple(deletes))
        )
        return row if decided.committed and not done else None

    async def _step_version(self, row: Row, cleanup: CleanupRow) -> Row | None:
        at, version = cleanup.extents_at, cleanup.version
        assert at is not None
        assert version is not None
        table = Table(self._context.packs, at)
        window = await table.extents(cleanup.done, STEP_DEAD)
        done = cleanup.done + len(window) >= await table.count()
        sizes: dict[PackId, int] = {}
        for extent in window:
            sizes[extent.pack] = sizes.get(extent.pack, 0) + extent.length
        if done:
            sizes[at.pack] = sizes.get(at.pack, 0) + at.length
        expects = [Expect(row.key, row.revision)]
        puts: list[tuple[bytes, bytes]] = []
        deletes: list[bytes] = []
        if cleanup.shared:
            # The table is needed until the end: its own pack is let go last.
            packs = [pack for pack in sizes if done or pack != at.pack]
            deletes.extend(keys.share_row(pack, version) for pack in packs)
        else:
            await self._add_dead(version, cleanup.cause, sizes, puts)
        if done:
            deletes.append(row.key)
        else:
            rest = replace(cleanup, done=cleanup.done + len(window))
            puts.append((row.key, rows.encode(rest)))
        decided = await self._context.committer.decide_one(
            Transaction(tuple(expects), tuple(puts), tuple(deletes))
        )
        if not decided.committed or done:
            return None
        (after,) = await self._context.index.get((row.key,))
        return after

    async def _add_dead(
        self, version: VersionId, cause: str, sizes: dict[PackId, int], puts: list[tuple[bytes, bytes]]
    ) -> None:
        """A pack may hold extents of several steps: what was recorded is added to. Only steps of this
        row write these, and each expects the row, so that nothing is added twice."""
        names = [keys.dead_row(pack, version) for pack in sizes]
        for name, found, size in zip(
            names, await self._context.index.get(names), sizes.values(), strict=True
        ):
            before = 0 if found is None else rows.decode_dead(found.value).size
            puts.append((name, rows.encode(DeadRow(rows.FORMAT, before + size, cause))))
