"""A node among others: registers, beats, looks. The shell round `cluster.members`.

One task beats each second, another looks at all rows twice a second; they share nothing but the index. What
must hold: a node whose name another data folder has does not start; one that was removed, or whose rows
another process of it has taken over, is fenced and says so; and after an outcome that is unknown the row is
read anew before it is built on.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, Unavailable
from holdfast.cluster.members import BEAT_EVERY_S, LOOK_EVERY_S, Changed, Member, Members, is_ready
from holdfast.cluster.rows import (
    BEATS,
    FORMAT,
    NODES,
    BeatRow,
    NodeRow,
    RemovedRow,
    all_of,
    beat_row,
    decode,
    encode,
    node_row,
    removed_row,
    rows_of,
)
from holdfast.index.port import ABSENT, Committed, Conflict, Expect, Index, Row, Transaction

TRIES = 5
NODES_MAX = 1000


class Presence:
    """This node as others see it, and others as it sees them. `describe` makes the row of now, `reading` is
    what the next beat says of reads (see `BeatRow`); both are asked before a beat is sent, not after.
    `on_change` is told of each change of a member, `on_fenced` once, when this process is no longer the
    node."""

    def __init__(
        self,
        name: str,
        uuid: str,
        boot: str,
        index: Index,
        clock: Clock,
        *,
        describe: Callable[[], NodeRow],
        reading: Callable[[], int],
        on_change: Callable[[Changed], None],
        on_fenced: Callable[[Fenced], None],
    ) -> None:
        self.name = name
        self.boot = boot
        self._uuid = uuid
        self._index = index
        self._clock = clock
        self._describe = describe
        self._reading = reading
        self._on_change = on_change
        self._on_fenced = on_fenced
        self._members = Members()
        self._row: NodeRow | None = None
        self._revision = ABSENT
        self._begun: float | None = None
        self._count = 0
        self._due = asyncio.Event()
        self._fenced: Fenced | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def members(self) -> Mapping[str, Member]:
        """All nodes, this one included, as of the last look."""
        return self._members.all

    @property
    def is_ready(self) -> bool:
        """Whether this node may be sent requests."""
        return self._fenced is None and is_ready(self._begun, self._clock.aging())

    # The beginning and the end

    async def check(self) -> None:
        """Raises Fenced when the name is another's. Changes nothing."""
        row, removed = await self._index.get([node_row(self.name), removed_row(self.name)])
        self._judge(row, removed)

    def _judge(self, row: Row | None, removed: Row | None) -> NodeRow | None:
        if removed is not None and decode(RemovedRow, removed.value).uuid == self._uuid:
            raise self._was_removed()
        found = decode(NodeRow, row.value) if row is not None else None
        if found is not None and found.uuid != self._uuid:
            where = f", at {found.peer}" if found.peer else ""
            raise Fenced(
                f"There is a node {self.name!r} in this cluster already{where}, with another data folder.",
                hint=f"Give this one another name; or, if that one is lost, say "
                f"`holdfast node remove {self.name}` on a node that runs.",
            )
        return found

    def _was_removed(self) -> Fenced:
        return Fenced(
            f"Node {self.name} was removed from the cluster.",
            hint="To take it back with what its stores hold, say on a node that runs "
            f"`holdfast node remove --cancel {self.name}`, then start it; to begin anew, empty its data "
            "folder and its stores.",
        )

    async def register(self) -> None:
        """Be a member from now on, and the only process of this node. What an earlier one has under way ends
        with its fences (`cluster.fences`). Raises Fenced, Unavailable."""
        key, left = node_row(self.name), removed_row(self.name)
        for _ in range(TRIES):
            there, removed = await self._index.get([key, left])
            found = self._judge(there, removed)
            if found is not None and found.boot == self.boot:
                # An outcome that was not known, and is.
                self._row, self._revision = found, _revision(there)
                break
            row, began = self._describe(), self._clock.aging()
            puts = ((key, encode(row)), (beat_row(self.name), encode(self._beat())))
            expects = (Expect(key, _revision(there)), Expect(left, _revision(removed)))
            deletes = (left,) if removed is not None else ()
            (outcome,) = await self._index.commit([Transaction(expects, puts, deletes)])
            if isinstance(outcome, Committed):
                self._row, self._begun = row, began
                self._revision = outcome.revision
                break
        else:
            raise Unavailable(
                f"Whether node {self.name} is registered stayed unknown.", hint="Start it again."
            )
        await self._look()

    def start(self) -> None:
        """Beat and look until closed."""
        assert self._row is not None
        self._tasks = [
            asyncio.create_task(self._beat_on(), name="holdfast beat"),
            asyncio.create_task(self._look_on(), name="holdfast look"),
        ]

    def announce(self) -> None:
        """Something in this node's row is another: beat now."""
        self._due.set()

    async def close(self) -> None:
        """Stop. The rows stay: others see this node fall silent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    # Beating

    def _beat(self) -> BeatRow:
        self._count += 1
        return BeatRow(FORMAT, self.boot, self._count, self._reading(), self.is_ready)

    async def _beat_on(self) -> None:
        due = self._clock.monotonic()
        while self._fenced is None:
            try:
                await self.beat()
            except Fenced as error:
                self._stop(error)
            except HoldfastError:
                pass  # the index is away: it says so itself, and readiness follows from the clock
            due = max(due + BEAT_EVERY_S, self._clock.monotonic())
            await self._wait_until(due)

    async def _wait_until(self, due: float) -> None:
        sleeping = asyncio.create_task(self._clock.sleep(max(0.0, due - self._clock.monotonic())))
        told = asyncio.create_task(self._due.wait())
        try:
            await asyncio.wait({sleeping, told}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            told.cancel()
        self._due.clear()

    async def beat(self) -> None:
        """One beat, with this node's row where it is another. Raises Fenced, and the index's errors."""
        began, row = self._clock.aging(), self._describe()
        puts: tuple[tuple[bytes, bytes], ...] = ((beat_row(self.name), encode(self._beat())),)
        if row != self._row:
            puts = (*puts, (node_row(self.name), encode(row)))
        expects = (Expect(node_row(self.name), self._revision),)
        (outcome,) = await self._index.commit([Transaction(expects, puts)])
        if isinstance(outcome, Committed):
            self._begun = began
            if row != self._row:
                self._row, self._revision = row, outcome.revision
        elif isinstance(outcome, Conflict):
            await self._find_again()

    async def _find_again(self) -> None:
        """The row is not as we know it: written by a beat of ours whose outcome was unknown, or by others."""
        (row,) = await self._index.get([node_row(self.name)])
        if row is None:
            raise self._was_removed()
        found = decode(NodeRow, row.value)
        if found.boot != self.boot:
            raise Fenced(f"Another process is node {self.name} now.", hint="Stop one of them.")
        self._row, self._revision = found, row.revision

    def _stop(self, error: Fenced) -> None:
        if self._fenced is None:
            self._fenced = error
            self._on_fenced(error)

    # Looking

    async def _look_on(self) -> None:
        while True:
            with suppress(HoldfastError):  # who was not looked at is not silent for that
                await self._look()
            await self._clock.sleep(LOOK_EVERY_S)

    async def _look(self) -> None:
        nodes = await self._index.scan(*all_of(NODES), limit=NODES_MAX)
        beats = await self._index.scan(*all_of(BEATS), limit=NODES_MAX)
        changes = self._members.look(
            rows_of(nodes, NodeRow), rows_of(beats, BeatRow), self._clock.monotonic()
        )
        for change in changes:
            self._on_change(change)


def _revision(row: Row | None) -> int:
    return row.revision if row is not None else ABSENT
