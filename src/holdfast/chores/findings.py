"""Damage that was found at a node which does not do the repairs: on record until it is mended.

Reads find what is wrong wherever they happen; the queue of repairs is in the memory of the node that holds
their lease. So the others write `finding/<pack>/<shard>` rows, and that node takes them up. A report is no
proof: a reader may have gone by an old row, so what the pack's row does not name any more is not even written
down, and `Repair` looks again. What must hold: a row goes only when the repair has ended, or there was
nothing to mend; and who takes over takes all of them up anew. What is in memory is bounded; what it loses is
found by the next read.
"""

from collections import OrderedDict
from collections.abc import Callable

import msgspec
from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.ids import PackId
from holdfast.chores.repair import Repair
from holdfast.index.port import PRESENT, Expect, Index, Row, Transaction, prefix_end
from holdfast.packs.model import pack_row
from holdfast.packs.rows import decode_row

PAGE = 100
REPORTS_MAX = 5000
TOLD_S = 60.0
"""How long nothing more is said of a shard of which something was said."""

WHAT_CHARACTERS_MAX = 200
_FINDINGS = b"finding/"
_FORMAT = 1


class FindingRow(Struct, frozen=True, array_like=True):
    """`finding/<pack>/<shard>`: what is wrong, in words, and which node found it."""

    format: int
    what: str
    node: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(FindingRow)


def finding_row(pack: PackId, shard: int) -> bytes:
    """The key of what was found about a shard (-1: not one alone)."""
    return _FINDINGS + f"{pack.hex()}/{shard}".encode()


class Findings:
    """Of one node: tells of what it found, or takes up what all have. `repairs_here` is whether the lease of
    repairs is this node's."""

    name = "findings"
    interval_s = 1.0

    def __init__(
        self, index: Index, repair: Repair, repairs_here: Callable[[], bool], clock: Clock, node: str
    ) -> None:
        self._index = index
        self._repair = repair
        self._repairs_here = repairs_here
        self._clock = clock
        self._node = node
        self._found: OrderedDict[tuple[PackId, int], str] = OrderedDict()
        self._told: OrderedDict[tuple[PackId, int], float] = OrderedDict()
        self._taken: dict[bytes, int] = {}
        self._tenure = 0

    def report(self, pack: PackId, shard: int, what: str) -> None:
        """Something is wrong with a shard. Cheap; called from reads."""
        if self._repairs_here():
            self._repair.report(pack, shard, what)
            return
        told = self._told.get((pack, shard))
        if told is not None and self._clock.monotonic() - told < TOLD_S:
            return
        if len(self._found) < REPORTS_MAX:
            self._found[pack, shard] = what

    async def step(self) -> bool:
        """Write some findings down; take some up where repairs are done."""
        more = await self._tell() if self._found else False
        return (self._repairs_here() and await self._take_up()) or more

    async def _tell(self) -> bool:
        some = [self._found.popitem(last=False) for _ in range(min(PAGE, len(self._found)))]
        packs = list(dict.fromkeys(pack for (pack, _), _ in some))
        found = await self._index.get([pack_row(pack) for pack in packs])
        named: dict[PackId, set[int]] = {}
        for pack, row in zip(packs, found, strict=True):
            if row is not None:
                named[pack] = {-1, *(place.shard for place in decode_row(row.value).places)}
        now = self._clock.monotonic()
        changes = []
        for (pack, shard), what in some:
            self._told[pack, shard] = now
            if shard in named.get(pack, ()):
                finding = FindingRow(_FORMAT, what[:WHAT_CHARACTERS_MAX], self._node)
                put = (finding_row(pack, shard), _encoder.encode(finding))
                changes.append(Transaction((Expect(pack_row(pack), PRESENT),), (put,)))
        while len(self._told) > REPORTS_MAX:
            self._told.popitem(last=False)
        if changes:
            # Whatever becomes of it: what is still wrong is found again.
            await self._index.commit(changes)
        return bool(self._found)

    async def _take_up(self) -> bool:
        """Report what is new, and remove what has been dealt with."""
        if self._tenure != self._repair.tenure:
            self._taken, self._tenure = {}, self._repair.tenure
        start, new = _FINDINGS, False
        while True:
            page = await self._index.scan(start, prefix_end(_FINDINGS), limit=PAGE)
            rows = [row for row in page if isinstance(row, Row)]
            ended = []
            for row in rows:
                pack, shard = _parse(row.key)
                if self._taken.get(row.key) == row.revision:
                    if not self._repair.has(pack):
                        ended.append(row)
                elif self._repair.has_room:
                    self._taken[row.key] = row.revision
                    self._repair.report(pack, shard, _decoder.decode(row.value).what)
                    new = True
            if ended:
                await self._index.commit(
                    [Transaction((Expect(row.key, row.revision),), (), (row.key,)) for row in ended]
                )
                for row in ended:
                    self._taken.pop(row.key, None)
            if len(rows) < PAGE:
                return new
            start = rows[-1].key + b"\0"


def _parse(key: bytes) -> tuple[PackId, int]:
    _, pack, shard = key.decode().split("/")
    return PackId(bytes.fromhex(pack)), int(shard)
