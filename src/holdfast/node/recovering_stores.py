"""The stores of one node while no node runs: found, attached, and told of a new index.

For `holdfast recover` and for who lends it stores. What must hold: nothing is initialised, and no store of
another cluster is taken; a store that cannot be used is told of with the reason; and what the stores have
noted is in the data folder, too.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, Unavailable
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.node.cluster import Cluster, Slot, assign_slots, cluster_from, read_cluster, write_cluster
from holdfast.node.config import Config, StorePlace
from holdfast.node.config_cloud import Bucket, StorePath
from holdfast.node.config_cluster import read_secrets
from holdfast.node.ground import Directories
from holdfast.node.keeper import Held
from holdfast.node.placing import place_stores
from holdfast.recovery.report import StoreFound
from holdfast.stores.identity import Expected, Identity, Noted
from holdfast.stores.port import Attachment, Store
from holdfast.topology import Location

ATTACH_TIMEOUT_S = 30.0
USED = "used"


class OwnFound:
    """What a node has. `held` are the stores that can be used, by slot; `found` is what is told of all."""

    def __init__(self, config: Config, clock: Clock, randomness: Randomness) -> None:
        self._config = config
        self._ground = Directories(
            config, clock, randomness, self._secrets, timeout_s=ATTACH_TIMEOUT_S, writes_keys=False
        )
        self.held: dict[str, Held] = {}
        self.cluster = Cluster("", {})
        self.found: list[StoreFound] = []

    def _secrets(self) -> tuple[bytes, ...]:
        cluster = self._config.cluster
        return read_secrets(cluster.secret_file) if cluster is not None else ()

    async def open(self, stack: AsyncExitStack) -> None:
        """Find and attach them; they are closed by `stack`. Raises Unavailable (none can be used), Fenced."""
        known = read_cluster(self._config.data) or Cluster("", {})
        places = place_stores(self._config.stores, known).places
        seen: dict[StorePath, Identity] = {}
        trouble: dict[StorePath, str] = {}
        for place in places:
            try:
                found = await self._ground.inspect(place.path)
            except HoldfastError as error:
                trouble[place.path] = str(error)
                continue
            if found.identity is not None:
                seen[place.path] = found.identity
            else:
                trouble[place.path] = found.problem or ("empty" if found.exists else "not there")
        slots: dict[StorePath, str] = {place.path: place.slot for place in places if place.slot}
        self.cluster = self._cluster_of(seen, slots)
        named = {place.path: place for place in assign_slots(places, self.cluster, seen)}
        stack.callback(self._ground.rings.close)
        # The directories first: they have the keys of what is sealed.
        for place in sorted(places, key=lambda place: isinstance(place.path, Bucket)):
            await self._attach(named[place.path], seen.get(place.path), trouble.get(place.path, ""), stack)
        if not self.held:
            listed = "; ".join(f"{found.path}: {found.state}" for found in self.found)
            raise Unavailable("None of the stores can be used.", hint=f"{listed}.")

    @property
    def stores(self) -> dict[StoreId, Store]:
        """Those that can be used."""
        return {held.id: held.store for held in self.held.values() if held.id and held.store is not None}

    @property
    def locations(self) -> list[Location]:
        """Where those are."""
        return [
            Location(held.id, held.place.region, held.place.zone, held.place.host, held.device)
            for held in self.held.values()
            if held.id is not None
        ]

    def slots(self) -> set[str]:
        """All that there should be."""
        slots = {name for name, slot in self.cluster.slots.items() if slot.store is not None}
        return slots | {found.slot for found in self.found}

    def noted(self) -> set[str]:
        """The incarnations of the index that stores and data folder know."""
        opened = [held.opened for held in self.held.values() if held.opened is not None]
        seen = {store.identity.noted.incarnation for store in opened if store.identity.noted is not None}
        return (seen | {self.cluster.incarnation}) - {""}

    async def note(self, incarnation: str, revision: int, members: tuple[str, ...]) -> list[str]:
        """Have all of them note a new index, and the data folder. Sentences about those that do not."""
        noted = Noted(incarnation, revision)
        failed: list[str] = []

        async def tell(held: Held) -> None:
            assert held.opened is not None
            line = self.cluster.slots.get(held.place.slot) or Slot("")
            slot = replace(
                line,
                path=str(held.place.path),
                store=held.opened.id,
                noted=None,
                device=held.device,
                mounted=held.mounted,
                bucket=held.place.path if isinstance(held.place.path, Bucket) else None,
            )
            try:
                await held.opened.note_revision(incarnation, revision, timeout_s=ATTACH_TIMEOUT_S)
                slot = replace(slot, noted=noted)
            except HoldfastError as error:
                failed.append(f"{held.place.slot} does not take note of the new index: {error}")
            self.cluster = self.cluster.with_slot(held.place.slot, slot)

        await asyncio.gather(*[tell(held) for held in self.held.values()])
        self.cluster = replace(self.cluster, index=members, incarnation=incarnation)
        write_cluster(self._config.data, self.cluster)
        return failed

    def _cluster_of(self, seen: Mapping[StorePath, Identity], named: Mapping[StorePath, str]) -> Cluster:
        known, said = read_cluster(self._config.data), cluster_from(seen, named)
        if known is None and said is None:
            raise Unavailable(
                "None of these directories is a store of Holdfast.",
                hint="Name the stores with --store, or in the configuration file.",
            )
        if known is not None and said is not None and known.cluster != said.cluster:
            raise Fenced(
                f"The stores belong to cluster {said.cluster}, the data folder to {known.cluster}.",
                hint="Name the stores that belong to it, or another --data.",
            )
        cluster = known or said
        assert cluster is not None
        return cluster

    async def _attach(
        self, place: StorePlace, identity: Identity | None, trouble: str, stack: AsyncExitStack
    ) -> None:
        line = self.cluster.slots.get(place.slot)
        if identity is None:
            self.found.append(StoreFound(str(place.path), place.slot, "", trouble))
            return
        expected = Expected(
            self.cluster.cluster,
            (line.known_as if line else "") or place.slot,
            line.store if line else None,
            line.noted if line else None,
        )
        try:
            attached = await self._ground.attach(place.path, expected, initialise=False)
        except Fenced:
            raise
        except HoldfastError as error:
            self.found.append(StoreFound(str(place.path), place.slot, str(identity.store), str(error)))
            return
        opened, judgement = attached.store, attached.judgement
        if opened is None:
            state = f"{judgement.attachment.value}: {judgement.reason}"
            self.found.append(StoreFound(str(place.path), place.slot, str(identity.store), state))
            return
        stack.push_async_callback(opened.close)
        store = self._ground.dress(place.path, opened)
        held = Held(
            place, Attachment.READY, "", opened.id, opened, store, opened.device, mounted=opened.mounted
        )
        self.held[place.slot] = held
        paths = [one.place.path for one in self.held.values()]
        await self._ground.keep_keys([path for path in paths if isinstance(path, Path)])
        self.found.append(StoreFound(str(place.path), place.slot, str(identity.store), USED))
