"""The tree of failure domains: region / zone / host / device / store.

Labels on stores make it. A domain is named by its whole path, so that two hosts called `a` in two
zones are two hosts. Directories that lie on one device share that device's domain, whatever they
are called: `device` comes from the operating system, not from the operator.
"""

from collections.abc import Iterable
from enum import Enum

from msgspec import Struct

from holdfast.base.ids import StoreId


class Level(Enum):
    """The levels of the tree, widest first."""

    REGION = "region"
    ZONE = "zone"
    HOST = "host"
    DEVICE = "device"
    STORE = "store"


LEVELS = tuple(Level)

Domain = tuple[str, ...]
"""A domain's path from the root: (region,), (region, zone), ..."""


class Location(Struct, frozen=True):
    """Where a store is."""

    store: StoreId
    region: str = "local"
    zone: str = "local"
    host: str = "local"
    device: str = ""

    def domain(self, level: Level) -> Domain:
        """The path of the domain of `level` that holds this store."""
        path = (self.region, self.zone, self.host, self.device or self.store, self.store)
        return path[: LEVELS.index(level) + 1]


class Topology:
    """All stores with their places. Immutable; a change makes a new one."""

    def __init__(self, locations: Iterable[Location]) -> None:
        self._locations = {location.store: location for location in locations}
        self._paths = {
            store: tuple(location.domain(level) for level in LEVELS)
            for store, location in self._locations.items()
        }

    @property
    def stores(self) -> tuple[StoreId, ...]:
        """All stores, in the order given."""
        return tuple(self._locations)

    def location(self, store: StoreId) -> Location | None:
        """Where `store` is, or None when it is not known."""
        return self._locations.get(store)

    def path(self, store: StoreId) -> tuple[Domain, ...]:
        """The domain of each level that holds `store`, as `LEVELS` has them; a store that is not known
        stands for itself."""
        return self._paths.get(store) or (("?", store),) * len(LEVELS)

    def domain(self, store: StoreId, level: Level) -> Domain:
        """The domain of `level` that holds `store`; one that is not known stands for itself."""
        return self.path(store)[LEVELS.index(level)]

    def count(self, level: Level) -> int:
        """How many domains there are at `level`."""
        return len({location.domain(level) for location in self._locations.values()})
