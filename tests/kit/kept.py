"""An index in memory whose journal and snapshots go to memory stores, and what can be made of them again."""

import asyncio
from collections.abc import Sequence

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.index.memory import MemoryIndex, MemoryRows
from holdfast.index.port import KEY_BYTES_MAX, Row, Transaction
from holdfast.packs.named import NamedPacks, find_names
from holdfast.recovery.journal import Journal
from holdfast.recovery.loading import Loaded, load, newest_lineage
from holdfast.recovery.names import PREFIX
from holdfast.recovery.scratch import Scratch
from holdfast.recovery.snapshot import Snapshots
from holdfast.recovery.upkeep import Upkeep
from holdfast.scheme import Scheme
from tests.kit.rig import Rig, build_rig

INCARNATION = "ab" * 16
RS = Scheme(4, 2)
Rows = dict[bytes, tuple[bytes, int]]
_END = b"\xff" * KEY_BYTES_MAX


class Kept:
    """One life of a node after the other over the same rows and stores. `states` are the rows at every
    revision there was."""

    def __init__(self, *, seed: int = 1, stores: int = 6, scheme: Scheme = RS, young: bool = True) -> None:
        self.rig: Rig = build_rig(stores, seed=seed)
        self.scheme = scheme
        self.rows = MemoryRows(INCARNATION)
        self.states: dict[int, Rows] = {0: {}}
        self.told: list[str] = []
        self.young = young
        self.live()

    def live(self, *, journal_bytes_min: int = 2_000, page_bytes: int = 1_000) -> None:
        """Begin a life; the one before is fenced."""
        rig = self.rig
        self.index = MemoryIndex(rig.clock, self.rows)
        self.packs = NamedPacks(
            rig.attached,
            rig.packs.writer._topology,
            rig.health,
            rig.clock,
            rig.randomness,
            lambda: self.scheme,
        )
        self.journal = Journal(self.index, self.packs, rig.clock, rig.randomness, self.told.append)
        self.snapshots = Snapshots(
            self.index,
            self.packs,
            self.journal,
            rig.clock,
            rig.randomness,
            journal_bytes_min=journal_bytes_min,
            page_bytes=page_bytes,
        )
        self.upkeep = Upkeep(self.packs, self.journal, self.writable, rig.clock, rig.randomness)

    def writable(self) -> frozenset[StoreId]:
        return frozenset(self.rig.attached)

    async def commit(self, *transactions: Transaction) -> None:
        for transaction in transactions:
            await self.index.commit([transaction])
            self.states[self.rows.revision] = self.now()

    def now(self) -> Rows:
        """The rows as they are."""
        found = self.rows.scan(b"", _END, 1_000_000, b"", 0)
        return {row.key: (row.value, row.revision) for row in found if isinstance(row, Row)}

    async def run_all(self) -> None:
        """Let the journal catch up and every snapshot that is due end."""
        idle = 0
        while idle < 2:
            worked = await self.journal.step()
            worked = await self.snapshots.step() or worked or self.snapshots._making is not None
            idle = 0 if worked else idle + 1

    async def loaded(self) -> tuple[Loaded, Rows]:
        """What can be made again from the stores that are attached now."""
        scratch = Scratch(None)
        try:
            names = await find_names(self.rig.attached, PREFIX)
            lineage = newest_lineage(names, "")
            loaded = await load(self.rig.attached, names, lineage, scratch, self.told.append)
            return loaded, {row.key: (row.value, row.revision) for row in scratch.scan(b"")}
        finally:
            scratch.close()

    def blobs(self) -> dict[StoreId, set[str]]:
        return {store: set(memory._blobs) for store, memory in self.rig.memories.items()}


def put(key: str, value: bytes) -> Transaction:
    return Transaction((), ((key.encode(), value),))


def delete(key: str) -> Transaction:
    return Transaction((), (), (key.encode(),))


async def cut(work: "Sequence[asyncio.Task[object]]") -> None:
    """End tasks where they are, as a crash does."""
    for task in work:
        task.cancel()
    for result in await asyncio.gather(*work, return_exceptions=True):
        assert result is None or isinstance(result, bool | HoldfastError | asyncio.CancelledError), result
