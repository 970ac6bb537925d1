"""Merge and compact: packs that are small, or mostly dead, are emptied into new, full ones.

Walks the pack rows a page at a time and collects candidates on a tray, one for each scheme, because pieces of
one scheme only share packs of that scheme. A tray that makes a full pack is moved at once
(`holdfast.objects.moving`); at the end of a walk what is left is moved if it is worth it. The packs that
were left die in the collector's hands. What is a candidate:

- small: its bytes fill less than a quarter of a pack, and its manifest less than a quarter of what a
  manifest may grow to. Left-overs are only merged into a pack of at least four times the size of the
  largest, so that each byte is moved a few times in its life, however slowly packs arrive.
- mostly dead: at least half of its bytes are. So space is at most twice what is needed, and a byte that
  is moved has freed another one.

While stores are full, only what gives back more than it takes is moved; it may use a share of the stores'
reserve. A quarter that is dead is enough then, and such packs are emptied one by one, those first of which
least is needed: the less it takes at once, the surer it finds room.

Only packs that were there in the walk before are looked at: what has just been written may be written over
soon, and recovery has to find a version's first pack, or the journal that tells of it, before a second
pack repeats it.

What must hold: memory is bounded (a tray, and the packs that are mostly dead, up to a number; the others
are found again); a pack that cannot be emptied is left alone for a while, ever longer.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from msgspec import Struct

from holdfast.base.errors import Unavailable
from holdfast.base.ids import PackId
from holdfast.base.wording import counted
from holdfast.chores.chore import Progress
from holdfast.index.port import Index, Row, prefix_end
from holdfast.objects.moving import MoveReport
from holdfast.packs.model import PACK_BYTES_MAX, PackRow, debt_row, pack_row
from holdfast.packs.rows import decode_row, promised_scheme
from holdfast.scheme import Scheme

PAGE = 250
SOURCES_MAX = 256
"""Packs that one step empties."""

MANIFEST_FULL = 512 << 10
"""A manifest of this size makes a pack full: it names about two thousand pieces."""

SMALL_SHARE = 1 / 4
DEAD_SHARE = 1 / 2
DEAD_SHARE_FULL = 1 / 4
"""While stores are full."""

GROWTH = 4
WORTH_BYTES_MIN = 16 << 10
"""A pack that stores less than this, however dead, is merged with others, or waits for them."""

WALK_EVERY_S = 10.0
WALK_EVERY_FULL_S = 2.0
WALK_EVERY_PACK_S = 0.001
DEAD_KNOWN_MAX = 10_000
RESTING_MAX = 10_000
REST_ROUNDS_MAX = 64
REST_ROUNDS_FULL = 2


class Move(Protocol):
    """`Moving.move`."""

    def __call__(
        self,
        worth: Mapping[PackId, int],
        scheme: Scheme,
        alone: frozenset[PackId],
        /,
        *,
        thrifty: bool = False,
    ) -> Awaitable[MoveReport]: ...


_PACKS = b"pack/"


class Candidate(Struct, frozen=True):
    """A pack that may be emptied. `filled` and `described` are the shares of a full pack, and of a full
    manifest, that it would take in a new one; `mostly_dead` says that it is worth it alone, if no more
    than `worth` bytes are needed of it."""

    pack: PackId
    filled: float
    described: float
    mostly_dead: bool
    worth: int

    @property
    def size(self) -> float:
        """The larger of both."""
        return max(self.filled, self.described)


def candidate(
    pack: PackId, row: PackRow, dead_bytes: int, dead_share: float = DEAD_SHARE
) -> Candidate | None:
    """Whether a pack with so many dead bytes should be emptied: `dead_share` of it is mostly dead. Pure."""
    size = row.object_bytes
    full = max(size / PACK_BYTES_MAX, row.manifest_bytes / MANIFEST_FULL)
    mostly_dead = row.stored_bytes >= WORTH_BYTES_MIN and 0 < dead_share * size <= dead_bytes
    if not mostly_dead and full >= SMALL_SHARE:
        return None
    live = max(0, size - dead_bytes)
    described = row.manifest_bytes / MANIFEST_FULL * (live / size if size else 1.0)
    # Copies may need more than what is not dead.
    worth = int(size * (1 - dead_share)) if mostly_dead else PACK_BYTES_MAX
    return Candidate(pack, live / PACK_BYTES_MAX, min(described, 1.0), mostly_dead, worth)


class Tray:
    """Candidates of one scheme that go into one new pack."""

    def __init__(self) -> None:
        self.found: list[Candidate] = []
        self._filled = self._described = 0.0

    def has_room(self, one: Candidate) -> bool:
        """Whether it would still fit."""
        return (
            len(self.found) < SOURCES_MAX
            and self._filled + one.filled <= 1.0
            and self._described + one.described <= 1.0
        )

    def add(self, one: Candidate) -> None:
        """One more."""
        self.found.append(one)
        self._filled += one.filled
        self._described += one.described


def worth_moving(found: list[Candidate]) -> list[Candidate]:
    """Of candidates that do not make a full pack: those that should be moved all the same. Pure."""
    left = sorted(found, key=lambda one: (not one.mostly_dead, one.size))
    while left and not left[-1].mostly_dead and left[-1].size * GROWTH > sum(one.size for one in left):
        left.pop()
    return left


class Compact:
    """Empties packs. `move` is `Moving.move`; `is_full` is whether stores are full."""

    name = "compact"

    def __init__(
        self,
        index: Index,
        move: Move,
        *,
        walk_every_s: float = WALK_EVERY_S,
        is_full: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_full = is_full
        self._index = index
        self._move = move
        self._walk_every_s = walk_every_s
        self._dead: OrderedDict[PackId, int] = OrderedDict()
        self._resting: OrderedDict[PackId, tuple[int, int]] = OrderedDict()
        self._trays: dict[Scheme, Tray] = {}
        self._ripe: list[tuple[Scheme, list[Candidate]]] = []
        self._next = _PACKS
        self._packs = self._found = 0
        self._round = 0
        self._known_until = self._walk_began = -1
        self._walked = 0
        self._worked = False
        self._idle_walks = 0
        self.mergeable = 0
        self.moved_bytes = 0
        self.moved_packs = 0

    @property
    def interval_s(self) -> float:
        """Between walks: longer, the more packs there are."""
        least = min(self._walk_every_s, WALK_EVERY_FULL_S) if self._is_full() else self._walk_every_s
        return max(least, self._walked * WALK_EVERY_PACK_S)

    @property
    def idle(self) -> bool:
        """Whether two walks have found nothing to do: what was new in the first was not in the second."""
        return self._idle_walks >= 2

    @property
    def pressure(self) -> float:
        """Room is wanted while stores are full."""
        return 1.0 if self._is_full() else 0.0

    def progress(self) -> Progress:
        """Packs emptied since the start."""
        return Progress(
            self.moved_packs, None, "packs", f"{counted(self.mergeable, 'pack')} small or mostly dead"
        )

    def partly_dead(self, pack: PackId, row: PackRow, dead_bytes: int) -> None:
        """The collector has looked at a pack of which some is dead. Cheap."""
        self._dead.pop(pack, None)
        if dead_bytes >= DEAD_SHARE_FULL * row.object_bytes:
            self._dead[pack] = dead_bytes
            while len(self._dead) > DEAD_KNOWN_MAX:
                self._dead.popitem(last=False)

    async def step(self) -> bool:
        """Empty a tray that is ripe, or look at a page of packs; False at the end of each walk."""
        if self._ripe:
            self._worked = True
            await self._empty(*self._ripe.pop(0))
            return True
        if self._next == _PACKS:
            self._known_until, self._walk_began = self._walk_began, self._index.status().revision
        page = await self._index.scan(self._next, prefix_end(_PACKS), limit=PAGE)
        rows = [row for row in page if isinstance(row, Row)]
        await self._look(rows)
        if len(rows) == PAGE:
            self._next = rows[-1].key + b"\0"
            return True
        for scheme, tray in self._trays.items():
            if found := worth_moving(tray.found):
                self._ripe.append((scheme, found))
        self._trays.clear()
        self.mergeable, self._walked = self._found, self._packs
        self._next, self._found, self._packs = _PACKS, 0, 0
        self._round += 1
        self._idle_walks = 0 if self._ripe or self._worked else self._idle_walks + 1
        self._worked = False
        return bool(self._ripe)

    async def _look(self, rows: list[Row]) -> None:
        found: list[tuple[Candidate, PackRow]] = []
        is_full = self._is_full()
        dead_share = DEAD_SHARE_FULL if is_full else DEAD_SHARE
        alone: list[tuple[Scheme, list[Candidate]]] = []
        for item in rows:
            pack, row = PackId(bytes.fromhex(item.key.removeprefix(_PACKS).decode())), decode_row(item.value)
            one = candidate(pack, row, self._dead.get(pack, 0), dead_share)
            self._found += one is not None
            if one is not None and item.revision <= self._known_until and not self._rests(pack):
                found.append((one, row))
        self._packs += len(rows)
        debts = await self._index.get([debt_row(one.pack) for one, _ in found])
        for (one, row), debt in zip(found, debts, strict=True):
            scheme = promised_scheme(row, debt)
            if is_full and one.mostly_dead:
                alone.append((scheme, [one]))
                continue
            tray = self._trays.get(scheme)
            if tray is not None and not tray.has_room(one):
                self._ripe.append((scheme, tray.found))
                tray = None
            if tray is None:
                tray = self._trays[scheme] = Tray()
            tray.add(one)
        self._ripe += sorted(alone, key=lambda one: one[1][0].size)

    async def _empty(self, scheme: Scheme, found: list[Candidate]) -> None:
        dead: dict[PackId, int] = {}
        for one in found:
            # Also if the step fails: they are tried again, later.
            self._rest(one.pack)
            if (known := self._dead.pop(one.pack, None)) is not None:
                dead[one.pack] = known
        found = await self._still_of(scheme, found)
        if not found:
            return
        alone = frozenset(one.pack for one in found if one.mostly_dead)
        worth = {one.pack: one.worth for one in found}
        is_full = self._is_full()
        try:
            report = await self._move(worth, scheme, alone, thrifty=is_full)
        except Unavailable:
            if is_full:
                # For want of room, which comes back with what was emptied before: soon.
                self._dead |= dead
                for one in found:
                    self._resting[one.pack] = (1, self._round + REST_ROUNDS_FULL)
            raise
        self.moved_bytes += report.bytes_moved
        self.moved_packs += len(found) - len(report.untouched)

    async def _still_of(self, scheme: Scheme, found: list[Candidate]) -> list[Candidate]:
        """Those that are there and that nobody promised another scheme since they were found. Moved
        under the old one, they would get less than their bucket wants, and nothing would say so. Schemes do
        not change while packs are emptied (`holdfast.chores.rescheme`)."""
        rows = await self._index.get(
            [key for one in found for key in (pack_row(one.pack), debt_row(one.pack))]
        )
        return [
            one
            for one, row, debt in zip(found, rows[::2], rows[1::2], strict=True)
            if row is not None and promised_scheme(decode_row(row.value), debt) == scheme
        ]

    def _rests(self, pack: PackId) -> bool:
        resting = self._resting.get(pack)
        return resting is not None and resting[1] > self._round

    def _rest(self, pack: PackId) -> None:
        tries = self._resting.pop(pack, (0, 0))[0] + 1
        self._resting[pack] = (tries, self._round + min(2**tries, REST_ROUNDS_MAX))
        while len(self._resting) > RESTING_MAX:
            self._resting.popitem(last=False)
