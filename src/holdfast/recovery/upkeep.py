"""Looking after what recovery needs: small journal pieces put together, lost shards written again.

A node that changes a little each second would leave 86,400 files a day on each store; so 64 adjacent small
pieces become one, and 64 of those one again. All that is kept is read from the medium once a day, and when
stores have come or gone; what lacks shards is written anew on the stores that are there. What must hold:
the parts go only after the whole was read back.
"""

from collections.abc import Callable
from itertools import pairwise

from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, HoldfastError
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.packs.named import Missing, NamedPacks
from holdfast.recovery.format import FORMAT, Piece, decode_piece, encode_piece, encoded_changes
from holdfast.recovery.journal import Journal
from holdfast.recovery.names import (
    PREFIX,
    PieceName,
    instead_of,
    is_needed,
    lineage_of,
    parse_piece,
    to_merge,
)
from holdfast.stores.port import JOURNAL_SHARE

RUN = 64
MERGED_BYTES_MAX = 1 << 20
LEVEL_MAX = 2
MERGE_EVERY_S = 60.0
TEND_EVERY_S = 24 * 3600.0
SETTLE_S = 30.0
"""How long the stores have to be the same before what they lack is written anew."""


class Upkeep:
    """As a chore. `writable` are the stores that can be written now."""

    name = "upkeep"
    interval_s = 5.0

    def __init__(
        self,
        packs: NamedPacks,
        journal: Journal,
        writable: Callable[[], frozenset[StoreId]],
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        self._packs = packs
        self._journal = journal
        self._writable = writable
        self._clock = clock
        self._randomness = randomness
        self._stores = writable()
        self._stores_since = clock.monotonic()
        self._tended_with: frozenset[StoreId] | None = self._stores
        self._tend_at = clock.monotonic() + TEND_EVERY_S
        self._merge_at = clock.monotonic() + MERGE_EVERY_S
        self._to_tend: list[str] = []
        self._too_large: set[str] = set()
        self.merged = 0
        self.rewritten = 0
        self.lost: set[str] = set()
        """Names that cannot be read any more."""

    @property
    def unreadable(self) -> set[str]:
        """Those of them that recovery would read: a snapshot is made that does without them."""
        return {name for name in self.lost if self._is_needed(name)}

    def look_now(self) -> None:
        """Read all of it from the medium as soon as may be, not only when its day is over."""
        self._tend_at = self._clock.monotonic()

    @property
    def left_to_read(self) -> int:
        """How many names are to be read that were due; at least 1 while that has not begun."""
        return len(self._to_tend) + (self._clock.monotonic() >= self._tend_at)

    def tend_now(self) -> None:
        """Look at all that is kept, without waiting for the day to pass."""
        self._tend_at = self._clock.monotonic()

    @property
    def is_tending(self) -> bool:
        """Whether there is something left to look at."""
        return bool(self._to_tend) or self._tend_at <= self._clock.monotonic()

    async def step(self) -> bool:
        """Tend one name, or put one run of pieces together."""
        if not self._journal.is_open:
            return False
        if self._to_tend:
            await self._tend(self._to_tend.pop())
            return True
        now = self._clock.monotonic()
        if self._is_time_to_tend(now):
            self._tended_with, self._tend_at = self._stores, now + TEND_EVERY_S
            self._to_tend = await self._ours()
            return bool(self._to_tend)
        if now >= self._merge_at:
            if await self._merge():
                return True
            self._merge_at = now + MERGE_EVERY_S
        return False

    def _is_time_to_tend(self, now: float) -> bool:
        there = self._writable()
        if there != self._stores:
            self._stores, self._stores_since = there, now
        changed = self._stores != self._tended_with and now - self._stores_since >= SETTLE_S
        return changed or now >= self._tend_at

    async def _ours(self) -> list[str]:
        names = await self._packs.list(PREFIX)
        # What was removed because a snapshot does without it is no worry any more.
        self.lost.intersection_update(names)
        for gone in self._journal.sizes.keys() - set(names):
            del self._journal.sizes[gone]
        return [name for name in names if lineage_of(name) == self._journal.lineage]

    async def _tend(self, name: str) -> None:
        try:
            tended = await self._packs.tend(name)
        except Missing:
            return  # removed meanwhile
        except HoldfastError:
            if await self._is_told_by_others(name):
                # What is left of it came back with a store that was away when it was removed.
                await self._packs.remove(name)
                self.lost.discard(name)
                return
            self.lost.add(name)
            if not self._is_needed(name):
                return
            self._journal.damaged(name)
            raise
        self.lost.discard(name)
        self.rewritten += tended.value == "rewritten"

    async def _is_told_by_others(self, name: str) -> bool:
        """Whether a piece can be done without, because others that can be read tell the same."""
        piece = parse_piece(name)
        if piece is None:
            return False
        others = instead_of(piece, set(await self._packs.list(PREFIX)) - self.lost)
        try:
            for other in others:
                decode_piece(await self._packs.read(str(other)), other)
        except HoldfastError:
            return False
        return bool(others)

    def _is_needed(self, name: str) -> bool:
        snapshot = self._journal.snapshot
        return is_needed(name, snapshot.name if snapshot is not None else None)

    async def _merge(self) -> bool:
        names = await self._ours()
        pieces = [
            piece for name in names if (piece := parse_piece(name)) is not None and self._is_small(name)
        ]
        self._too_large &= set(names)
        self.lost &= set(names)
        run = to_merge(pieces, RUN, LEVEL_MAX)
        if not run:
            return False
        parts: list[Piece] = []
        size = 0
        for name in run:
            data = await self._packs.read(str(name))
            size += len(data)
            if len(data) > MERGED_BYTES_MAX // RUN:
                self._too_large.add(str(name))
                return True
            parts.append(decode_piece(data, name))
            await self._clock.sleep(0)
        for part, following in pairwise(parts):
            if following.chain_before != part.chain_after:
                raise Damaged(f"The journal's pieces do not follow from each other at {part.after}.")
        await self._write(run, parts)
        return True

    async def _write(self, run: list[PieceName], parts: list[Piece]) -> None:
        first, last = parts[0], parts[-1]
        name = run[0]._replace(
            after=last.after, level=run[0].level + 1, nonce=f"{self._randomness.below(1 << 12):03x}"
        )
        whole = Piece(
            FORMAT,
            last.lineage,
            last.incarnation,
            first.before,
            last.after,
            first.chain_before,
            last.chain_after,
            last.written_ms,
            last.began,
            first.bytes_before,
            (),
        )
        data = encode_piece(whole, [raw for part in parts for raw in encoded_changes(part)])
        await self._packs.write(str(name), [data], reserve_share=JOURNAL_SHARE)
        if await self._packs.check(str(name)) != data:
            raise Damaged(f"{name} is not what was written.")
        for part in run:
            await self._packs.remove(str(part))
        self.merged += len(run)

    def _is_small(self, name: str) -> bool:
        return name not in self._too_large and self._journal.sizes.get(name, 0) <= MERGED_BYTES_MAX // RUN
