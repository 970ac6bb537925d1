"""Which pack is healed next: that which is fewest failures away from loss. Pure.

What must hold: the queue is bounded; when it is full, what is less urgent goes out for what is more
urgent, and `let_go` says so, so that whoever walks over all rows walks again; among equals, first come
first served; a pack is in it once, with all that was said of it.
"""

from collections import OrderedDict

from msgspec import Struct, field

from holdfast.base.ids import PackId, StoreId

LEFT_UNKNOWN = 1
"""Losses that a pack is taken to survive when its row is not at hand."""


class Wound(Struct):
    """What is wrong with a pack. `left` is how many more shards it can lose; `bytes` is what has to be
    written again; `since` when it was first told of (monotonic); `condemned` shards are right in
    themselves and do not belong to the others; `liars` are stores whose shard of it was wrong after it was
    written, and how often; `tries` failed, and it is left alone until `rest_until`; `changed` says whether
    something was written, `told` what for."""

    shards: dict[int, str]
    left: int
    bytes: int
    since: float
    condemned: tuple[int, ...] = ()
    liars: dict[StoreId, int] = field(default_factory=dict)
    tries: int = 0
    rest_until: float = 0.0
    changed: bool = False
    told: str = ""

    def accuse(self, store: StoreId) -> None:
        """What was written to a store was not there afterwards, or was something else."""
        self.liars[store] = self.liars.get(store, 0) + 1


class HealQueue:
    """Packs by urgency."""

    def __init__(self, packs_max: int) -> None:
        self._packs_max = packs_max
        self._by_left: dict[int, OrderedDict[PackId, Wound]] = {}
        self._left: dict[PackId, int] = {}
        self.let_go = 0

    def __len__(self) -> int:
        return len(self._left)

    @property
    def least_left(self) -> int:
        """How many more shards the most endangered pack can lose; some, when the queue is empty."""
        return min(self._by_left, default=LEFT_UNKNOWN)

    def find(self, pack: PackId) -> Wound | None:
        """What is known to be wrong with a pack."""
        left = self._left.get(pack)
        return None if left is None else self._by_left[left][pack]

    def add(self, pack: PackId, wound: Wound) -> bool:
        """Take a pack that is not there yet; False when there is no room for one that can wait so long."""
        assert pack not in self._left
        if len(self._left) >= self._packs_max:
            most = max(self._by_left)
            if wound.left >= most:
                self.let_go += 1
                return False
            self.take(next(reversed(self._by_left[most])))
            self.let_go += 1
        self._left[pack] = wound.left
        self._by_left.setdefault(wound.left, OrderedDict())[pack] = wound
        return True

    def take(self, pack: PackId) -> Wound:
        """Take a pack out."""
        left = self._left.pop(pack)
        wounds = self._by_left[left]
        wound = wounds.pop(pack)
        if not wounds:
            del self._by_left[left]
        return wound

    def urgent(self, pack: PackId, left: int) -> None:
        """It can lose only so many more."""
        if left < self._left[pack]:
            wound = self.take(pack)
            wound.left = left
            self.add(pack, wound)

    def pop(self) -> tuple[PackId, Wound] | None:
        """Take out the most urgent one."""
        if not self._by_left:
            return None
        pack = next(iter(self._by_left[min(self._by_left)]))
        return pack, self.take(pack)

    def counts(self) -> dict[int, tuple[int, int]]:
        """Packs and bytes to write, by how many more shards they can lose."""
        return {
            left: (len(wounds), sum(wound.bytes for wound in wounds.values()))
            for left, wounds in sorted(self._by_left.items())
        }
