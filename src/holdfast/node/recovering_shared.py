"""A lost index made again where several nodes share it: in an engine that holds none.

What must hold: an index that can be opened is not replaced unless that is asked for, and never one of another
installation; until `join` nobody can open what is written; what can be read from the engine is what was
written, row by row; and of two that write at once at most one gets to the end.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.copying import PAGE_ROWS, RECOVERY, Kind, Moved, Standing, add_up, moved_hint
from holdfast.index.port import Row
from holdfast.node.config import Config
from holdfast.node.index_copying import shared_end
from holdfast.recovery.loading import Loaded
from holdfast.recovery.scratch import Scratch

if TYPE_CHECKING:
    from holdfast.index.etcd.moving import EtcdEnd
    from holdfast.index.postgres.moving import PostgresEnd


class SharedTarget:
    """Where the index of several nodes goes."""

    set_aside: tuple[str, ...] = ()

    def __init__(
        self,
        config: Config,
        clock: Clock,
        randomness: Randomness,
        stack: AsyncExitStack,
        tell: Callable[[str], None],
    ) -> None:
        assert config.index is not None
        self._config = config
        self._address = config.index
        self._clock = clock
        self._randomness = randomness
        self._stack = stack
        self._tell = tell
        self._end: EtcdEnd | PostgresEnd | None = None
        self._source = ""

    @property
    def places(self) -> tuple[str, ...]:
        """Where the new index is."""
        return (self._address.shown,)

    async def check(self, ours: set[str], *, force: bool, dry_run: bool = False) -> None:
        """Raises InvalidInput when the engine holds an index already; `ours` are the incarnations that the
        stores know. Raises Unavailable when it does not answer, unless nothing is to be written."""
        self._end = end = await shared_end(self._address, self._config, self._clock, self._randomness)
        self._stack.push_async_callback(end.close)
        try:
            standing = await end.standing()
            rows = standing.kind is Kind.OPEN and await _has_rows(end.pages())
        except Unavailable as error:
            if not dry_run:
                raise
            self._tell(f"{end.name} cannot be asked whether it is empty: {error}")
            return
        if why := refused(standing, end.name, ours, has_rows=rows, force=force):
            raise why
        if standing.kind is Kind.FILLING:
            self._tell("an earlier recovery was broken off while it wrote; it is begun anew")
        elif rows:
            self._tell(f"the index in {end.name} is replaced, as --force says")

    def follow_log(self, scratch: Scratch, loaded: Loaded) -> tuple[Loaded, str, int]:
        """Nothing of the engine that is gone can be read on."""
        self._source = RECOVERY + loaded.lineage.incarnation
        return loaded, "", 0

    async def write(self, scratch: Scratch, incarnation: str, revision: int) -> int:
        """Fill the engine with all rows and read them back; nobody can open it yet. `scratch` has their new
        revisions then. The revision that they are at."""
        end = self._end
        assert end is not None
        self._tell(f"writing {scratch.count():,} rows to {end.name}")
        wanted = await add_up(_pages(scratch.scan(b"")))
        await end.fill(incarnation, self._source, revision, lambda: _pages(scratch.scan(b"")))

        async def read_back() -> AsyncIterator[list[Row]]:
            async for page in end.pages():
                scratch.put_rows(page)
                yield page

        found = await add_up(read_back())
        if found != wanted:
            raise Damaged(
                f"{end.name} has {found.rows} rows ({found.digest}) where {wanted.rows} ({wanted.digest}) "
                "were written.",
                hint="Does somebody else write there? Give the command again.",
            )
        return await end.filled_at()

    async def join(self) -> None:
        """From now on it can be opened."""
        assert self._end is not None
        await self._end.finish()


def refused(
    standing: Standing, name: str, ours: set[str], *, has_rows: bool, force: bool
) -> InvalidInput | None:
    """Why an index is not made again where `standing` was found; None where it may. Pure."""
    match standing.kind:
        case Kind.EMPTY:
            return None
        case Kind.FILLING if standing.other.startswith(RECOVERY):
            return None
        case Kind.FILLING:
            return InvalidInput(
                f"{name} holds a copy of an index that was not finished:",
                hint="finish it with the `holdfast index copy` that began it, or name an empty engine.",
            )
        case Kind.MOVED:
            moved = Moved(standing.other, standing.where)
            return InvalidInput(
                f"The index of {name} was moved to {moved.where} ({moved.incarnation}):",
                hint=moved_hint(moved),
            )
        case Kind.OPEN if not has_rows:
            # A node that was started too early has founded one, and was turned away.
            return None
        case Kind.OPEN if standing.incarnation in ours and force:
            return None
        case Kind.OPEN if standing.incarnation in ours:
            return InvalidInput(
                f"The index is there: {name} holds {standing.incarnation}, which these stores know.",
                hint="`holdfast serve` opens it. --force goes back to what snapshots and journal hold: what "
                "was changed since, about the last second, is given up.",
            )
        case Kind.OPEN:
            return InvalidInput(
                f"{name} is not empty: it holds index {standing.incarnation}, unknown to these stores.",
                hint="Name another engine, database or namespace, or empty that one by its own means.",
            )


async def _has_rows(pages: AsyncIterator[list[Row]]) -> bool:
    async for page in pages:
        if page:
            return True
    return False


async def _pages(rows: Iterator[Row]) -> AsyncIterator[list[Row]]:
    page: list[Row] = []
    for row in rows:
        page.append(row)
        if len(page) == PAGE_ROWS:
            yield page
            page = []
    if page:
        yield page
