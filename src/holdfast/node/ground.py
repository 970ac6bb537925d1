"""What a keeper stands on: the directories and buckets of the stores, their keys, and the file that says
which stores there are.

Apart from the keeper so that a simulation can put something else in its place: the keeper's own decisions,
and those of all commands, then run on a virtual clock over disks that are pulled, swapped and put back.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from holdfast.base.clock import Clock
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.health import StoreHealth
from holdfast.node.cluster import Cluster, read_cluster, write_cluster
from holdfast.node.config import REGION_DEFAULT, Config
from holdfast.node.config_cloud import Bucket, StorePath
from holdfast.node.descriptors import files_allowed, kept_open
from holdfast.node.key_rings import KeyRings, Secrets
from holdfast.stores import cloud
from holdfast.stores.bounded import BoundedStore
from holdfast.stores.cloud import CloudOptions, CloudStore, S3Access
from holdfast.stores.directory import Attached, DirectoryOptions, DirectoryStore, attach, inspect
from holdfast.stores.identity import Expected, Found
from holdfast.stores.port import Store
from holdfast.stores.sealing import KeyRing, SealingStore

ATTACH_TIMEOUT_S = 10.0

CALLS_AT_ONCE = 64
CALLS_WAITING = 256
"""At one bucket."""

RESERVE_MAX = 1 << 30

Opened = DirectoryStore | CloudStore
AnyAttached = Attached | cloud.Attached


class Ground(Protocol):
    """See above. `path` is the whole path of a store's directory, or a bucket."""

    def read_cluster(self) -> Cluster | None:
        """What is on record; None when nothing is."""
        ...

    def write_cluster(self, cluster: Cluster) -> None:
        """Put it on record; durable when it returns."""
        ...

    def make_folder(self, path: StorePath) -> None:
        """Make a store's directory, but not what is above it: that may be a disk that is not mounted. Buckets
        are not made."""
        ...

    async def inspect(self, path: StorePath) -> Found:
        """Who lives there, without touching anything. Raises what `stores.directory.inspect` does."""
        ...

    async def attach(self, path: StorePath, expected: Expected, *, initialise: bool) -> AnyAttached:
        """Open a store, or move in. Raises what `stores.directory.attach` does."""
        ...

    def dress(self, path: StorePath, opened: Opened) -> Store:
        """What the house uses of a store that was opened: what is kept sealed is sealed and opened here."""
        ...

    async def keep_keys(self, folders: Sequence[Path]) -> None:
        """Have copies of the keys in these directories, which are stores of this node."""
        ...


class Directories:
    """Directories of this machine, and buckets; the record is in the data folder. `secrets` are the
    cluster's; without `writes_keys` keys are only read."""

    def __init__(
        self,
        config: Config,
        clock: Clock,
        randomness: Randomness,
        secrets: Secrets = tuple,
        *,
        timeout_s: float = ATTACH_TIMEOUT_S,
        writes_keys: bool = True,
    ) -> None:
        self._timeout_s = timeout_s
        self._folders: tuple[Path, ...] = ()
        self.rings = KeyRings(config.data, randomness, secrets, writes=writes_keys)
        self.rings.on_change.append(self._have_keys)
        self._sealing: WeakSet[SealingStore] = WeakSet()
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

    def make_folder(self, path: StorePath) -> None:
        if isinstance(path, Bucket):
            return
        if path.is_relative_to(self._data):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.mkdir(exist_ok=True)

    async def inspect(self, path: StorePath) -> Found:
        if isinstance(path, Bucket):
            return await cloud.inspect(
                path.address,
                access_to(path),
                clock=self._clock,
                randomness=self._randomness,
                options=options_for(path),
                timeout_s=self._timeout_s,
            )
        return await inspect(path, timeout_s=self._timeout_s)

    async def attach(self, path: StorePath, expected: Expected, *, initialise: bool) -> AnyAttached:
        if isinstance(path, Bucket):
            return await self._attach_bucket(path, expected, initialise=initialise)
        return await attach(
            path,
            expected,
            clock=self._clock,
            randomness=self._randomness,
            initialise=initialise,
            options=self._options,
            timeout_s=self._timeout_s,
        )

    async def _attach_bucket(self, bucket: Bucket, expected: Expected, *, initialise: bool) -> AnyAttached:
        ring = None
        if bucket.sealed:
            found = self.rings.obtain if initialise else self.rings.find
            ring = await found(self._folders)
        return await cloud.attach(
            bucket.address,
            access_to(bucket),
            expected,
            cloud.Sealing(bucket.sealed, tuple(key.id.hex() for key in ring.keys) if ring else ()),
            clock=self._clock,
            randomness=self._randomness,
            options=options_for(bucket),
            initialise=initialise,
            timeout_s=self._timeout_s,
        )

    def dress(self, path: StorePath, opened: Opened) -> Store:
        if not isinstance(path, Bucket):
            return opened
        store: Store = opened
        if path.sealed:
            ring = self.rings.ring
            assert ring is not None, "a sealed bucket was attached without a key"
            store = sealing = SealingStore(opened, ring, clock=self._clock, randomness=self._randomness)
            self._sealing.add(sealing)
        return BoundedStore(store, width=CALLS_AT_ONCE, waiting_max=CALLS_WAITING)

    async def keep_keys(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        await self.rings.keep(folders)

    def _have_keys(self, ring: KeyRing) -> None:
        for store in self._sealing:
            store.take(ring)


def access_to(bucket: Bucket) -> S3Access:
    """How to come to a bucket that is configured."""
    region = bucket.bucket_region or os.environ.get("AWS_REGION") or REGION_DEFAULT
    return S3Access(region, bucket.endpoint, profile=bucket.profile)


def options_for(bucket: Bucket) -> CloudOptions:
    """What a bucket may hold."""
    return CloudOptions(bytes_max=bucket.bytes_max, bytes_reserve=min(RESERVE_MAX, bucket.bytes_max // 16))


def introduce(health: StoreHealth, store: StoreId, path: StorePath) -> None:
    """Tell health what kind of store it is."""
    if isinstance(path, Bucket):
        health.is_elsewhere(store)
        health.probe_seldom(store)


def travelled(opened: Opened | None) -> float | None:
    """A round trip to a bucket that was measured since this was last asked, in seconds."""
    return opened.take_trip_s() if isinstance(opened, CloudStore) else None
