"""Keeps the stores: attaches them, notices when one is gone, and takes it back when it returns.

One slot is one line of the configuration. What must hold: only a directory that was judged to be the
slot's own store, or an empty one, is ever written to; at most one open store stands for a slot; and an
empty directory in a slot that had a store is a store that lost everything: it gets an identity of its
own, so that nobody looks there for what the old one held; unless it is what lies below the mount point of
the slot's disk: then the disk is not mounted, and is waited for.

    attached   READY, or NEW and moved in        serves
    away       MISSING, or the disk fails         looked for every few seconds
    refused    FOREIGN, SWAPPED, STALE            untouched, looked at again every few seconds
"""

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Mapping
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.errors import Busy, Fenced, HoldfastError, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.health import StoreHealth
from holdfast.health.comparing import LOOK_S
from holdfast.health.events import Kind, Teller
from holdfast.health.prober import GRACE_S, PROBE_TIMEOUT_S, Prober, paced
from holdfast.node.cluster import (
    Cluster,
    Draining,
    Slot,
    assign_slots,
    cluster_from,
    new_cluster,
)
from holdfast.node.config import Config, StorePlace
from holdfast.node.config_cloud import Bucket, StorePath, is_bucket
from holdfast.node.ground import ATTACH_TIMEOUT_S, Directories, Ground, Opened, introduce, travelled
from holdfast.node.others import Remote
from holdfast.node.placing import place_stores
from holdfast.stores.identity import Expected, Found, Identity, Judgement, Noted, index_went_back, judge
from holdfast.stores.port import Attachment, Store, StoreFailed, Usage
from holdfast.topology import Location, Topology

GLANCE_EVERY_ROUNDS = 4
LOOK_EVERY_S = 2.5
"""How often to look for a store that is away, and how long to leave its directory alone when it went."""

Decorate = Callable[[str, Store], Store]
"""Puts the decorators of the house round the store of a slot."""


class Held(Struct):
    """A slot as it is now. `opened` is the directory itself, `store` what the house uses."""

    place: StorePlace
    attachment: Attachment = Attachment.MISSING
    reason: str = ""
    id: StoreId | None = None
    opened: Opened | None = None
    store: Store | None = None
    device: str = ""
    mounted: bool = False
    since: float = 0.0
    looked: float = 0.0
    usage: Usage | None = None
    seen: Found | None = None


class Keeper:
    """All slots of a node. `attached` is the mapping that packs use; it changes in place. `on_attached` is
    told of every store that comes, or comes back, after the start. `others` are the stores of other nodes,
    which `Peers` puts there, and into `attached`."""

    def __init__(
        self,
        config: Config,
        *,
        clock: Clock,
        randomness: Randomness,
        on_event: Teller,
        ground: Ground | None = None,
    ) -> None:
        """`ground` is the directories of this machine, unless somebody brings another."""
        self._config = config
        self._clock = clock
        self._randomness = randomness
        self._on_event = on_event
        self._ground = ground or Directories(config, clock, randomness)
        self._decorate: Decorate | None = None
        self._health: StoreHealth | None = None
        self._prober: Prober | None = None
        self._errands: dict[str, asyncio.Task[None]] = {}
        self._rounds = 0
        self.changing = asyncio.Lock()
        self.remarks: tuple[str, ...] = ()
        self.on_attached: Callable[[StoreId], None] = _nobody_asks
        self.cluster = Cluster("", {})
        self.held: dict[str, Held] = {}
        self.others: dict[StoreId, Remote] = {}
        self.cut_off_at = -math.inf
        """When this node last found that it is itself the one that is cut off (`node.peers`)."""
        self.attached: dict[StoreId, Store] = {}
        self._topology = Topology(())

    def topology(self) -> Topology:
        """All stores that are known, those that are away, too."""
        return self._topology

    async def open(self, name: str = "") -> None:
        """Find out who is there and attach whom we can. `name` is the cluster's, where somebody else says
        so: the index that it shares.

        Raises Fenced (in use by another process, or a new slot with somebody else's data), InvalidInput,
        and OSError where folders cannot be made.
        """
        known = self._ground.read_cluster()
        places, known_now, self.remarks = place_stores(self._config.stores, known or Cluster("", {}))
        seen = await self._look_at_all(places)
        named: dict[StorePath, str] = {place.path: place.slot for place in places if place.slot}
        cluster = known_now if known else cluster_from(seen, named) or new_cluster(self._randomness, name)
        if name and cluster.cluster != name:
            raise Fenced(
                f"The stores here belong to cluster {cluster.cluster}, and the index to {name}.",
                hint="Name empty directories, or the index of the cluster that they belong to.",
            )
        places = assign_slots(places, cluster, seen)
        await self._check_mounted(places, cluster, seen)
        self.cluster = cluster
        for place in places:
            if place.slot not in cluster.slots:
                self._ground.make_folder(place.path)
                self._note(place, None, None)
        self._ground.write_cluster(self.cluster)
        for place in places:
            line = self.cluster.slots[place.slot]
            self.held[place.slot] = Held(place, device=line.device, mounted=line.mounted)
        # The directories first: they have the keys of what is sealed.
        for buckets in (False, True):
            some = [held for held in self.held.values() if isinstance(held.place.path, Bucket) is buckets]
            if some:
                await asyncio.gather(*[self._attach_first(held, cluster) for held in some])
        self.remap()

    async def _check_mounted(
        self, places: Iterable[StorePlace], cluster: Cluster, seen: Mapping[StorePath, Identity]
    ) -> None:
        """An empty directory in the place of a store is taken for a new one, and the old one is given up.
        When that would be more than can be lost, it is rather that they are not mounted yet."""
        empty = []
        for place in places:
            line = cluster.slots.get(place.slot)
            if line is None or line.store is None or place.path in seen:
                continue
            try:
                found = await self._ground.inspect(place.path)
            except HoldfastError:
                continue
            if judge(found, Expected(cluster.cluster, place.slot)).attachment is Attachment.NEW:
                empty.append(str(place.path))
        if len(empty) > self._config.scheme.m:
            raise Fenced(
                f"{len(empty)} directories that held stores are empty: {', '.join(empty)}.",
                hint="Are the disks mounted? If they are lost, let at most "
                f"{self._config.scheme.m} be replaced at a time.",
            )

    async def _look_at_all(self, places: Iterable[StorePlace]) -> dict[StorePath, Identity]:
        """Who the stores say they are, as far as they can be read."""

        async def look(path: StorePath) -> Identity | None:
            try:
                return (await self._ground.inspect(path)).identity
            except HoldfastError:
                return None  # attaching it will say why

        paths = [place.path for place in places]
        seen = await asyncio.gather(*[look(path) for path in paths])
        return {path: identity for path, identity in zip(paths, seen, strict=True) if identity is not None}

    async def _attach_first(self, held: Held, known: Cluster) -> None:
        """At start, what was never part of this cluster has to be in order; what was may be away."""
        is_new = held.place.slot not in known.slots
        try:
            await self.attach(held)
        except (Fenced, InvalidInput) as error:
            if is_new or isinstance(error, Fenced):
                raise
            self._set_away(held, Attachment.MISSING, str(error))
        except HoldfastError as error:
            if is_new:
                raise
            self._set_away(held, Attachment.MISSING, str(error))
        if is_new and held.opened is None:
            raise Fenced(
                f"{held.place.path} cannot be used for slot {held.place.slot!r}: {held.reason}",
                hint="Name an empty directory.",
            )

    async def attach(self, held: Held) -> None:
        """Look at a slot's directory and attach it if it is, or may become, the slot's store."""
        place = held.place
        expected = self._expected(place.slot)
        found = await self._ground.attach(place.path, expected, initialise=False)
        if found.judgement.attachment is Attachment.NEW:
            # Nobody is expected there any more, and that is written down before somebody new moves in.
            self._note(place, None, None, device=held.device, mounted=held.mounted)
            self._ground.write_cluster(self.cluster)
            found = await self._ground.attach(place.path, self._expected(place.slot), initialise=True)
        if found.store is None:
            retired = self.cluster.retired_store(found.identity.store) if found.identity else None
            if retired is not None:
                self._set_away(held, Attachment.STALE, retired.sentence)
            else:
                self._set_away(held, found.judgement.attachment, found.judgement.reason)
            return
        await self._take(held, found.store, found.judgement)

    async def _take(self, held: Held, opened: Opened, judgement: Judgement) -> None:
        if held.opened is not None:
            await self.let_go(held)
        slot = held.place.slot
        before = self.cluster.slots[slot]
        found = (opened.id, opened.device, opened.mounted, str(held.place.path))
        if found != (before.store, before.device, before.mounted, before.path):
            self._note(
                held.place,
                opened.id,
                opened.identity.noted,
                device=opened.device,
                mounted=opened.mounted,
            )
            self._ground.write_cluster(self.cluster)
        held.opened, held.id, held.device, held.mounted = opened, opened.id, opened.device, opened.mounted
        held.attachment, held.reason = judgement.attachment, ""
        held.since = self._clock.monotonic()
        await self._ground.keep_keys(self.folders())
        if self._decorate is not None:
            self._put_to_use(held)

    def folders(self) -> list[Path]:
        """The directories of this machine that are stores now."""
        paths = [held.place.path for held in self.held.values() if held.opened is not None]
        return [path for path in paths if isinstance(path, Path)]

    def start(self, health: StoreHealth, decorate: Decorate) -> None:
        """Put the attached stores to use, under `decorate`, and tell `health` who is away."""
        self._health, self._decorate = health, decorate
        self._prober = Prober(self.attached, health, self._clock)
        now = self._clock.monotonic()
        for held in self.held.values():
            if held.opened is not None:
                self._put_to_use(held)
            elif held.id is not None:
                health.add(held.id, now)
                introduce(health, held.id, held.place.path)
                health.vanished(held.id, now, held.reason)

    def _put_to_use(self, held: Held) -> None:
        assert self._health is not None
        assert self._decorate is not None
        assert held.opened is not None
        held.store = self._decorate(held.place.slot, self._ground.dress(held.place.path, held.opened))
        self._health.add(held.opened.id, self._clock.monotonic())
        introduce(self._health, held.opened.id, held.place.path)
        self.attached[held.opened.id] = held.store
        self.remap()

    async def watch(self) -> None:
        """Look after the stores until cancelled."""
        async for _ in paced(self._clock, LOOK_S):
            await self.round()

    async def round(self) -> None:
        """One look: at everybody's health, with the probes that it asks for; now and then at the directories
        of those in use, whether they are still there, and of those that are away, whether they are again.
        What does not answer holds up nothing but the next errand to the same slot."""
        assert self._health is not None
        assert self._prober is not None
        self._rounds += 1
        failed = await self._prober.look()
        now = self._clock.monotonic()
        for held in self.held.values():
            if held.id is not None and (trip_s := travelled(held.opened)) is not None:
                self._health.travelled(held.id, trip_s, now)
            if held.store is None:
                if now - max(held.looked, held.since) >= LOOK_EVERY_S:
                    self._send(held, self._look_again)
            elif held.id is not None and isinstance(failed.get(held.id), StoreFailed):
                self._send(held, self._look_again)
            elif self._rounds % GLANCE_EVERY_ROUNDS == 1:
                self._send(held, self._glance)
        if self._errands:
            await asyncio.wait(self._errands.values(), timeout=GRACE_S)
        self._tell_health()

    async def settled(self) -> None:
        """Until nothing is under way that a round has begun, at what does answer."""
        if self._errands:
            await asyncio.wait(self._errands.values())
        self._tell_health()

    def _send(self, held: Held, errand: Callable[[Held], Coroutine[None, None, None]]) -> None:
        """Do something at a slot, unless something is being done there, or stores are being changed."""
        slot = held.place.slot
        if slot not in self._errands and not self.changing.locked():
            task = self._errands[slot] = asyncio.create_task(errand(held))
            task.add_done_callback(lambda done: self._returned(slot, done))

    async def quiet(self, slot: str) -> None:
        """Until nothing is being done at a slot; while `changing` is held, nothing else begins."""
        assert self.changing.locked()
        if (errand := self._errands.get(slot)) is not None:
            await asyncio.wait([errand])

    def _returned(self, slot: str, task: asyncio.Task[None]) -> None:
        del self._errands[slot]
        if not task.cancelled() and (error := task.exception()) is not None:
            # Our own mistake: the loop's handler says so, and the next round tries again.
            task.get_loop().call_exception_handler({"message": "an errand failed", "exception": error})

    def _tell_health(self) -> None:
        assert self._health is not None
        slots = {held.id: held.place.slot for held in self.held.values()}
        slots |= {other.id: other.slot for other in self.others.values()}
        for event in self._health.take_events():
            if event.store in slots:
                self._on_event(
                    event.reason,
                    kind=Kind.STORE,
                    subject=slots[event.store],
                    before=event.before.value,
                    after=event.after.value,
                    evidence={"store": event.store, "detector": event.detector} | event.evidence,
                )

    async def _glance(self, held: Held) -> None:
        """Look at a slot again if it is in use and its directory is not what it was: a glance that costs next
        to nothing, so that nobody waits for a probe's turn to hear that a disk was pulled."""
        assert self._health is not None
        if held.opened is None or held.id is None or not self._health.readable(held.id):
            return
        try:
            held.usage = await held.opened.usage(timeout_s=PROBE_TIMEOUT_S)
        except StoreFailed:
            await self._look_again(held)
        except HoldfastError:
            return  # busy or overdue: what probes are for

    async def _look_again(self, held: Held) -> None:
        """See whether the slot's directory is still, or again, what it should be."""
        before = held.attachment
        was, id_before = held.store, held.id
        held.looked = self._clock.monotonic()
        if held.opened is not None:
            await self._check_in_use(held, held.opened)
        else:
            await self._try_to_attach(held)
        if held.store is not None and held.store is not was:
            again = "back" if held.id == id_before else "new and empty"
            self._tell_of(held, before, again, "")
            assert held.id is not None
            self.on_attached(held.id)
        elif held.attachment is not before:
            self._tell_of(held, before, held.attachment.value, held.reason)
        if held.store is None and was is not None:
            await self._close_quietly(was)

    def _tell_of(self, held: Held, before: Attachment, after: str, reason: str) -> None:
        evidence = {"path": str(held.place.path)} | ({"store": str(held.id)} if held.id else {})
        self._on_event(
            reason,
            kind=Kind.STORE,
            subject=held.place.slot,
            before=before.value,
            after=after,
            evidence=evidence,
        )

    async def _try_to_attach(self, held: Held) -> None:
        try:
            found = await self._ground.inspect(held.place.path)
            before, held.seen = held.seen, found
            if before is not None and before.exists and found.exists and found != before:
                return  # somebody is at work in it: what is being removed must not be made again meanwhile
            await self.attach(held)
        except Fenced:
            if held.attachment is not Attachment.SWAPPED:
                self._set_away(held, Attachment.MISSING, "It is in use by another process.")
        except (HoldfastError, OSError) as error:
            self._set_away(held, Attachment.MISSING, str(error))

    async def _check_in_use(self, held: Held, opened: Opened) -> None:
        """Let go of a store whose directory is not what it was. Nothing in there is touched: somebody may be
        removing it at this moment. What is left is looked at a while later, and taken if it can be."""
        try:
            found = held.seen = await self._ground.inspect(held.place.path)
            judgement = judge(found, self._expected(held.place.slot))
            if judgement.attachment is Attachment.READY:
                await opened.usage(timeout_s=PROBE_TIMEOUT_S)
                return  # it failed, and is there: health says what it is good for
        except StoreFailed:
            if isinstance(held.place.path, Bucket):
                return  # its provider fails, which says nothing of what lies there
            judgement = Judgement(Attachment.NEW, "")
        except (Busy, OSError):
            return
        except HoldfastError as error:
            judgement = Judgement(Attachment.MISSING, str(error))
        if judgement.attachment is Attachment.NEW:
            judgement = Judgement(Attachment.MISSING, "What was in its directory is gone.")
        if held.opened is opened:
            self._set_away(held, judgement.attachment, judgement.reason)

    def _set_away(self, held: Held, attachment: Attachment, reason: str) -> None:
        if held.opened is not None or attachment is not held.attachment or not held.since:
            # Each look in vain is no new absence: how long a store is away decides when it is given up.
            held.since = self._clock.monotonic()
        held.attachment, held.reason = attachment, reason
        held.id = self.cluster.slots[held.place.slot].store
        opened, held.opened, held.store = held.opened, None, None
        if opened is not None:
            self.attached.pop(opened.id, None)
        if self._health is not None and held.id is not None and opened is not None:
            self._health.vanished(held.id, held.since, reason)
        self.remap()

    async def let_go(self, held: Held) -> None:
        """Close the store of a slot."""
        opened, store = held.opened, held.store
        assert opened is not None
        self.attached.pop(opened.id, None)
        held.opened = held.store = None
        await self._close_quietly(store or opened)

    async def _close_quietly(self, store: Store) -> None:
        try:
            await store.close()
        except HoldfastError as error:
            self._on_event(f"closing a store that is gone: {error}", kind=Kind.STORE)

    def write(self, cluster: Cluster) -> None:
        """Change what is on record; durable when it returns."""
        self.cluster = cluster
        self._ground.write_cluster(cluster)

    async def inspect(self, path: StorePath) -> Found:
        """Who lives in a directory, without touching anything. Raises what looking at a disk raises."""
        return await self._ground.inspect(path)

    def be_node(self, uuid: str) -> None:
        """Remember which node this data folder is."""
        if self.cluster.node != uuid:
            self.write(replace(self.cluster, node=uuid))

    def forget(self, store: StoreId | None) -> None:
        """A store is no longer part of the house."""
        if self._health is not None and store is not None:
            self._health.forget(store)

    def takes_new(self, slot: str) -> bool:
        """Whether new shards go to a slot, while its store is well: not when it is emptied, or a spare."""
        line = self.cluster.slots[slot]
        return line.draining is Draining.NO and (not self.held[slot].place.spare or line.stands_in_for != "")

    def count(self) -> int:
        """How many stores take something new when all are well."""
        own = sum(self.takes_new(slot) for slot in self.held)
        return own + sum(other.row.takes_new for other in self.others.values())

    def room(self, store: StoreId) -> int:
        """What a store may be given that is new, in bytes as far as that is known; 0 for one that takes
        nothing."""
        if (other := self.others.get(store)) is not None:
            return other.room
        for slot, held in self.held.items():
            if held.id == store:
                free = held.usage.bytes_free if held.usage is not None else 0
                return max(1, free) if self.takes_new(slot) else 0
        return 0

    async def note(self, incarnation: str, revision: int) -> None:
        """Have every attached store remember that the index was seen at `revision`, and remember that
        they do: one that comes back knowing less is an old copy."""
        async with self.changing:
            await self._note_all(Noted(incarnation, revision))

    async def _note_all(self, noted: Noted) -> None:
        async def tell(held: Held) -> bool:
            assert held.opened is not None
            try:
                await held.opened.note_revision(noted.incarnation, noted.revision, timeout_s=ATTACH_TIMEOUT_S)
            except HoldfastError:
                return False  # health hears of a failing store by itself
            return True

        there = [held for held in self.held.values() if held.opened is not None]
        told = await asyncio.gather(*[tell(held) for held in there])
        for held, done in zip(there, told, strict=True):
            if done and held.opened is not None:
                # What it really noted: buckets do so seldom, because it costs.
                seen = held.opened.identity.noted
                self._note(held.place, held.opened.id, seen, device=held.device, mounted=held.mounted)
        self._ground.write_cluster(self.cluster)

    async def close(self) -> None:
        """Let go of all stores."""
        errands = tuple(self._errands.values())
        for errand in errands:
            errand.cancel()
        await asyncio.gather(*errands, return_exceptions=True)
        if self._prober is not None:
            await self._prober.close()
        for held in self.held.values():
            if held.opened is not None:
                await self.let_go(held)

    def buckets(self) -> frozenset[StoreId]:
        """The stores where each request, and each byte that is read, costs money."""
        own = {held.id for held in self.held.values() if isinstance(held.place.path, Bucket) and held.id}
        return frozenset(own) | {other.id for other in self.others.values() if is_bucket(other.row.path)}

    def own(self) -> frozenset[StoreId]:
        """The stores of this node."""
        return frozenset(held.id for held in self.held.values() if held.id is not None)

    def slot_of(self, store: StoreId) -> str:
        """The slot of a store, or its own id when it has none any more."""
        if (other := self.others.get(store)) is not None:
            return other.slot
        return next((slot for slot, held in self.held.items() if held.id == store), str(store))

    def is_gone(self, store: StoreId) -> bool:
        """Whether no slot of any node, configured or not, holds this store any more: an empty one took its
        place."""
        return store not in self.others and all(slot.store != store for slot in self.cluster.slots.values())

    def ahead_of(self, incarnation: str, revision: int) -> list[str]:
        """Slots whose stores have seen a later revision than this: then the index was rolled back."""
        current = Noted(incarnation, revision)
        return [
            slot
            for slot, held in self.held.items()
            if held.opened is not None and index_went_back(held.opened.identity, current)
        ]

    def remember_index(self, members: tuple[str, ...], incarnation: str) -> None:
        """Write down where the index was begun, and which one it is."""
        if (members, incarnation) != (self.cluster.index, self.cluster.incarnation):
            self.cluster = replace(self.cluster, index=members, incarnation=incarnation)
            self._ground.write_cluster(self.cluster)

    def _expected(self, slot: str) -> Expected:
        line = self.cluster.slots[slot]
        return Expected(
            self.cluster.cluster, line.known_as or slot, line.store, line.noted, line.device, line.mounted
        )

    def _note(
        self,
        place: StorePlace,
        store: StoreId | None,
        noted: Noted | None,
        *,
        device: str = "",
        mounted: bool = False,
    ) -> None:
        line = self.cluster.slots.get(place.slot) or Slot("")
        line = replace(
            line,
            path=str(place.path),
            store=store,
            noted=noted,
            device=device,
            mounted=mounted,
            bucket=place.path if isinstance(place.path, Bucket) else None,
        )
        self.cluster = self.cluster.with_slot(place.slot, line)

    def remap(self) -> None:
        """Say anew where everybody is, after slots have changed."""
        own = [
            Location(held.id, held.place.region, held.place.zone, held.place.host, held.device)
            for held in self.held.values()
            if held.id is not None
        ]
        self._topology = Topology([*own, *[other.location for other in self.others.values()]])


def _nobody_asks(store: StoreId) -> None:
    """Until somebody wants to know of stores that come back."""
