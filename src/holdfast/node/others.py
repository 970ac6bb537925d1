"""Stores of other nodes as this one sees them: values.

The owner says in its row what a store is and what may be done with it; whether it answers is for everybody to
see for himself.
"""

from msgspec import Struct

from holdfast.base.ids import StoreId
from holdfast.cluster.rows import MemberStore
from holdfast.stores.port import Store, Usage
from holdfast.topology import Location


class Remote(Struct):
    """A store of another node. `store` is what the house uses, None while it cannot be asked, and `reason`
    why; `since` is when that became so, by the clock of this process."""

    node: str
    row: MemberStore
    since: float
    store: Store | None = None
    reason: str = ""
    usage: Usage | None = None

    @property
    def id(self) -> StoreId:
        """Which store it is."""
        return self.row.store

    @property
    def slot(self) -> str:
        """What it is called here."""
        return f"{self.node}/{self.row.slot}"

    @property
    def location(self) -> Location:
        """Where it is."""
        row = self.row
        return Location(row.store, row.region, row.zone, row.host, row.device)

    @property
    def room(self) -> int:
        """What it may be given that is new, in bytes as far as is known; 0 for one that takes nothing."""
        free = self.usage.bytes_free if self.usage is not None else 0
        return max(1, free) if self.row.takes_new else 0
