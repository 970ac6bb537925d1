"""Audit: bytes that nobody owns, and that nobody let go, are found and let go.

Walks all packs, one a step, and asks `holdfast.objects.auditing` of each. That is safe at any moment; but a
writer that is still under way would be turned away. So only packs are looked at that were there when the
walk before began, hours ago: the wait is a courtesy, not what safety rests on.
"""

from collections.abc import Awaitable, Callable

from holdfast.base.clock import Clock
from holdfast.base.ids import PackId
from holdfast.base.wording import counted
from holdfast.chores.chore import Progress
from holdfast.index.port import Index, Row, prefix_end
from holdfast.objects.auditing import AuditReport
from holdfast.packs.errors import PackGone

PAGE = 100
WALK_EVERY_S = 6 * 3600.0
_PACKS = b"pack/"


class Audit:
    """Audits packs. `look` is `Auditing.audit`."""

    name = "audit"
    interval_s = 5.0

    def __init__(
        self,
        index: Index,
        look: Callable[[PackId], Awaitable[AuditReport]],
        clock: Clock,
        *,
        walk_every_s: float = WALK_EVERY_S,
    ) -> None:
        self._index = index
        self._look = look
        self._clock = clock
        self._walk_every_s = walk_every_s
        self._page: list[Row] = []
        self._next = _PACKS
        self._next_walk = clock.monotonic()
        self._known_until = self._walk_began = -1
        self._looked = 0
        self.walks = 0
        self.found_bytes = 0

    def progress(self) -> Progress:
        """Packs looked at since the start."""
        detail = f"{counted(self.walks, 'walk')} done; {self.found_bytes} bytes that nobody owned were found"
        return Progress(self._looked, None, "packs", detail)

    async def step(self) -> bool:
        """Look at one pack; False at the end of each walk, and until the next one is due."""
        if not self._page and not await self._turn_page():
            return False
        row = self._page.pop(0)
        if row.revision > self._known_until:
            return True
        self._looked += 1
        try:
            report = await self._look(PackId(bytes.fromhex(row.key.removeprefix(_PACKS).decode())))
        except PackGone:
            return True
        self.found_bytes += report.bytes_found
        return True

    async def _turn_page(self) -> bool:
        if self._next == _PACKS:
            now = self._clock.monotonic()
            if now < self._next_walk:
                return False
            self._next_walk = now + self._walk_every_s
            self._known_until, self._walk_began = self._walk_began, self._index.status().revision
        found = await self._index.scan(self._next, prefix_end(_PACKS), limit=PAGE)
        self._page = [row for row in found if isinstance(row, Row)]
        if self._page:
            self._next = self._page[-1].key + b"\0"
            return True
        self._next = _PACKS
        self.walks += 1
        return False
