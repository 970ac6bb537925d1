"""Collecting: a pack of which all is dead dies, and its shards give their space back.

`dead` rows are written in the transaction that let the bytes go; `share` rows say that a copy still needs
them. A pack dies when its `dead` rows add up to all its object bytes and no `share` row is left: its row
is replaced by a `buried` row with the shards to remove, in one transaction that expects the pack row at the
revision that was looked at. Dead rows are read before shares: once all owners are gone nobody can share
from them any more, and whoever shares from a sharer has a row of its own before that one goes. No clock,
no counter that could be wrong twice: what adds up to more than there is kills nothing. A pack that is being
read is left for the next round, so that a reader is not cut off by whoever replaces what it reads. Space
comes back with whole packs only; packs that are partly dead are told to whoever compacts them.

Packs of which something was let go since the last look come first, so that their space comes back soon. All
`dead` rows are walked as well, for what a crash or a busy pack left behind, the more seldom, the more there
are: millions of rows of packs that live on cost a small share of the time, not all of it.
"""

from collections.abc import Callable, Collection

from holdfast.base.errors import Bug
from holdfast.base.ids import PackId
from holdfast.base.wording import counted
from holdfast.chores.chore import Progress
from holdfast.index.port import Committed, Expect, Index, Row, Transaction, prefix_end
from holdfast.objects.rows import decode_dead
from holdfast.packs.disposal import Disposal, encode_burial, shards_of
from holdfast.packs.layout import Layout
from holdfast.packs.model import PackRow, buried_row, debt_row, pack_row
from holdfast.packs.rows import PackRows, decode_row

PAGE = 1000
PACKS_AT_ONCE = 16
PAGES_AT_ONCE = 25
INTERVAL_S = 2.0
REST_PACK_S = 0.01
REST_ROW_S = 0.000_05
"""How long to rest from walking, for each pack and each row that the last walk looked at."""

BURY_DELETES_MAX = 400
"""Dead rows that one transaction removes; the rest go in later ones, the pack being gone already."""


PartlyDead = Callable[[PackId, PackRow, int], None]
"""Told of a pack that lives on, and how many of its bytes are dead."""


class Collect:
    """Folds `dead` rows into packs, a few packs at a time. `let_go` answers once for each pack of which
    something was let go."""

    name = "collect"
    interval_s = INTERVAL_S

    def __init__(
        self,
        index: Index,
        rows: PackRows,
        in_use: Callable[[PackId], bool],
        partly_dead: PartlyDead = lambda pack, row, dead_bytes: None,
        let_go: Callable[[], Collection[PackId]] = tuple,
    ) -> None:
        self._index = index
        self._rows = rows
        self._in_use = in_use
        self._partly_dead = partly_dead
        self._let_go = let_go
        self._first: list[PackId] = []
        self._dying: dict[PackId, tuple[PackRow, Transaction]] = {}
        self._next = b"dead/"
        self._packs_walked = self._rows_walked = 0
        self._resting = 0
        self._dead_bytes = 0
        self.dead_bytes = 0
        self.collected = 0
        self.reclaimed_bytes = 0

    def progress(self) -> Progress:
        """Bytes that came back since the start."""
        detail = (
            f"{counted(self.collected, 'pack')} died; {self.dead_bytes} bytes of objects are dead in others"
        )
        return Progress(self.reclaimed_bytes, None, "bytes", detail)

    async def step(self) -> bool:
        """Look at some packs that have dead bytes; False when there are none to look at now. Those that die
        die in one commit, each in a transaction of its own: a round of the index costs more than looking."""
        if not self._first and self._next == b"dead/":
            self._first = list(self._let_go())
            if self._resting > 0 and not self._first:
                self._resting -= 1
                return False
        try:
            if self._first:
                for pack in self._first[:PACKS_AT_ONCE]:
                    await self._look(pack)
                return True
            return await self._walk()
        finally:
            del self._first[:PACKS_AT_ONCE]
            await self._bury()

    async def _walk(self) -> bool:
        """The next packs that have dead bytes; False at the end."""
        for _ in range(PACKS_AT_ONCE):
            first = await self._scan(self._next, prefix_end(b"dead/"), 1)
            if not first:
                self._end_walk()
                return False
            name = first[0].key.split(b"/", 2)[1]
            self._next = prefix_end(b"dead/" + name + b"/")
            self._packs_walked += 1
            dead, rows = await self._look(PackId(bytes.fromhex(name.decode())))
            self._dead_bytes += dead
            self._rows_walked += rows
        return True

    def _end_walk(self) -> None:
        rest_s = self._packs_walked * REST_PACK_S + self._rows_walked * REST_ROW_S
        self._resting = int(rest_s / INTERVAL_S)
        self.dead_bytes = self._dead_bytes
        self._next = b"dead/"
        self._packs_walked = self._rows_walked = self._dead_bytes = 0

    async def _look(self, pack: PackId) -> tuple[int, int]:
        """Choose a pack to be buried if all of it is dead; how many of its bytes are dead and stay, by how
        many rows."""
        name = pack.hex().encode()
        prefix = b"dead/" + name + b"/"
        dead_bytes = 0
        keys: list[bytes] = []
        start = prefix
        while page := await self._scan(start, prefix_end(prefix), PAGE):
            dead_bytes += sum(decode_dead(row.value).size for row in page)
            keys += [row.key for row in page]
            start = page[-1].key + b"\0"
        (found,) = await self._index.get([pack_row(pack)])
        if found is None:
            await self._forget(keys)
            return 0, 0
        row = decode_row(found.value)
        if dead_bytes > row.object_bytes:
            raise Bug(f"Pack {pack.hex()} has {row.object_bytes} bytes, of which {dead_bytes} are dead.")
        if dead_bytes < row.object_bytes:
            self._partly_dead(pack, row, dead_bytes)
            return dead_bytes, len(keys)
        shares = b"share/" + name + b"/"
        if not keys or self._in_use(pack):
            return dead_bytes, len(keys)
        if await self._scan(shares, prefix_end(shares), 1):
            self._partly_dead(pack, row, dead_bytes)
            return dead_bytes, len(keys)
        (debt,) = await self._index.get([debt_row(pack)])
        # The pack's own transactions move the debt row only together with the pack row, so that the
        # expectation of the pack row covers both.
        deletes = [pack_row(pack), *([debt_row(pack)] if debt else []), *keys[:BURY_DELETES_MAX]]
        kept = row if self._rows.is_shared else None
        burial = (buried_row(pack), encode_burial(shards_of(pack, row), kept))
        expects = (Expect(pack_row(pack), found.revision),)
        self._dying[pack] = row, Transaction(expects, (burial,), tuple(deletes))
        return 0, 0

    async def _bury(self) -> None:
        """Bury those that were chosen, but for any that somebody has begun to read."""
        dying, self._dying = self._dying, {}
        dying = {pack: one for pack, one in dying.items() if not self._in_use(pack)}
        if not dying:
            return
        outcomes = await self._index.commit([change for _, change in dying.values()])
        for (pack, (row, _)), outcome in zip(dying.items(), outcomes, strict=True):
            self._rows.forget(pack)
            if isinstance(outcome, Committed):
                self.collected += 1
                self.reclaimed_bytes += len(row.places) * Layout(row.scheme.k, row.stored_bytes).shard_bytes

    async def _forget(self, keys: list[bytes]) -> None:
        """Remove dead rows of a pack that is gone."""
        for start in range(0, len(keys), BURY_DELETES_MAX):
            await self._index.commit([Transaction((), (), tuple(keys[start : start + BURY_DELETES_MAX]))])

    async def _scan(self, start: bytes, end: bytes, limit: int) -> list[Row]:
        return [row for row in await self._index.scan(start, end, limit=limit) if isinstance(row, Row)]


class Sweep:
    """Removes the shards that the index has declared dead for good."""

    name = "sweep"
    interval_s = 2.0

    def __init__(self, disposal: Disposal) -> None:
        self._disposal = disposal
        self._buried = b""
        self._trash = b""
        self.removed = 0

    async def step(self) -> bool:
        """A page of each list, and more of them as long as there was nothing to remove: what is at stores
        that are away must not hold up what others have room to give back for."""
        buried = trash = 0
        for _ in range(PAGES_AT_ONCE):
            buried, self._buried = await self._disposal.sweep_buried(self._buried)
            trash, self._trash = await self._disposal.sweep_trash(self._trash)
            self.removed += buried + trash
            if buried + trash or not (self._buried or self._trash):
                break
        return buried + trash > 0
