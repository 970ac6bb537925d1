"""What a keeper stands on: the directories of the stores, and the file that says which stores there are.

Apart from the keeper so that a simulation can put something else in its place: the keeper's own decisions,
and those of all commands, then run on a virtual clock over disks that are pulled, swapped and put back.
"""

from pathlib import Path
from typing import Protocol

from holdfast.base.clock import Clock
from holdfast.base.randomness import Randomness
from holdfast.node.cluster import Cluster, read_cluster, write_cluster
from holdfast.node.config import Config
from holdfast.node.descriptors import files_allowed, kept_open
from holdfast.stores.directory import Attached, DirectoryOptions, attach, inspect
from holdfast.stores.identity import Expected, Found

ATTACH_TIMEOUT_S = 10.0


class Ground(Protocol):
    """See above. `path` is the whole path of a store's directory."""

    def read_cluster(self) -> Cluster | None:
        """What is on record; None when nothing is."""
        ...

    def write_cluster(self, cluster: Cluster) -> None:
        """Put it on record; durable when it returns."""
        ...

    def make_folder(self, path: Path) -> None:
        """Make a store's directory, but not what is above it: that may be a disk that is not mounted."""
        ...

    async def inspect(self, path: Path) -> Found:
        """Who lives there, without touching anything. Raises what `stores.directory.inspect` does."""
        ...

    async def attach(self, path: Path, expected: Expected, *, initialise: bool) -> Attached:
        """Open a store, or move in. Raises what `stores.directory.attach` does."""
        ...


class Directories:
    """Directories of this machine; the record is in the data folder."""

    def __init__(self, config: Config, clock: Clock, randomness: Randomness) -> None:
        self._data = config.data
        self._clock = clock
        self._randomness = randomness
        kept = kept_open(files_allowed(), len(config.stores))
        self._options = DirectoryOptions(
            bytes_reserve=config.limits.reserve_bytes, files_open_max=kept, folders_open_max=kept
        )

    def read_cluster(self) -> Cluster | None:
        return read_cluster(self._data)

    def write_cluster(self, cluster: Cluster) -> None:
        write_cluster(self._data, cluster)

    def make_folder(self, path: Path) -> None:
        if path.is_relative_to(self._data):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.mkdir(exist_ok=True)

    async def inspect(self, path: Path) -> Found:
        return await inspect(path, timeout_s=ATTACH_TIMEOUT_S)

    async def attach(self, path: Path, expected: Expected, *, initialise: bool) -> Attached:
        return await attach(
            path,
            expected,
            clock=self._clock,
            randomness=self._randomness,
            initialise=initialise,
            options=self._options,
            timeout_s=ATTACH_TIMEOUT_S,
        )
