"""Which stores have been away for so long that what they hold counts as lost.

Writing again what a store holds costs reading k times as much; a store that is only restarting, or a cable
that is put back, costs nothing. So there is patience: `PATIENCE_S`, long enough for a machine to start
anew and a person to look at a cable, short against the time in which a second disk dies. A pack that can
lose nothing more is not made to wait that long: for it, a tenth of it is enough.
"""

from collections.abc import Callable, Mapping

from holdfast.base.ids import StoreId
from holdfast.packs.layout import Layout
from holdfast.packs.model import PackRow

PATIENCE_S = 600.0
URGENT = 0.1


class Away:
    """`away_s` says for how long each store that is part of the house has been away; `known` are all that are
    part of it: what any other one held is lost."""

    def __init__(
        self,
        away_s: Callable[[], Mapping[StoreId, float]],
        known: Callable[[], frozenset[StoreId]],
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._away_s = away_s
        self._known = known
        self.patience_s = patience_s

    def now(self) -> "Absence":
        """Who is away, and who is known, at this moment."""
        return Absence(dict(self._away_s()), self._known(), self.patience_s)


class Absence:
    """A moment's view, for as many rows as one likes."""

    def __init__(self, away_s: Mapping[StoreId, float], known: frozenset[StoreId], patience_s: float) -> None:
        self.known = known
        self.away = frozenset(away_s)
        self.gone = frozenset(store for store, seconds in away_s.items() if seconds >= patience_s)
        self.gone_urgently = frozenset(
            store for store, seconds in away_s.items() if seconds >= URGENT * patience_s
        )

    def losses_left(self, row: PackRow, lost: frozenset[int] = frozenset()) -> int:
        """How many more shards a pack can lose, besides those at stores that are away or unknown."""
        there = sum(
            place.store in self.known and place.store not in self.away and place.shard not in lost
            for place in row.places
        )
        return there - Layout(row.scheme.k, row.stored_bytes).real_data_shards

    def given_up(self, left: int) -> frozenset[StoreId]:
        """Stores that a pack which can lose `left` more does not wait for any longer."""
        return self.gone_urgently if left <= 0 else self.gone

    def lost(self, row: PackRow) -> tuple[frozenset[int], int]:
        """The shards of a pack that are to be written again, and how many more it can lose."""
        left = self.losses_left(row)
        given_up = self.given_up(left)
        lost = frozenset(
            place.shard for place in row.places if place.store not in self.known or place.store in given_up
        )
        return lost, left
