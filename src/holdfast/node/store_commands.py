"""`holdfast store` inside the node: list, add, drain, replace, remove.

Each command is checked first, against what is there now and what would be left, and refused with what would
be lost; only then does anything change. What must hold: a store that still holds something is let go of only
with `force`, and one that cannot be read is replaced only with it while what it held could not be made again;
the index is out of a store before the store goes; and commands come one after the other.
"""

import asyncio
from collections.abc import Callable, Container, Mapping
from pathlib import Path

from msgspec.structs import replace

from holdfast.base.errors import Fenced, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.wording import counted
from holdfast.index.port import Index
from holdfast.node.changing import Changes
from holdfast.node.cluster import Draining
from holdfast.node.config import StorePlace, placed, read_label, read_slot
from holdfast.node.config_cloud import (
    BYTES_MAX_DEFAULT,
    Bucket,
    StorePath,
    is_bucket,
    lines_of,
    read_bucket,
    read_capacity,
    read_endpoint,
    read_money,
    read_profile,
)
from holdfast.node.keeper import Held, Keeper
from holdfast.node.leaving import Cost, cost_of_leaving, weaker_levels
from holdfast.node.membership import Places
from holdfast.node.stores import Done
from holdfast.scheme import Scheme
from holdfast.stores.identity import Expected, judge
from holdfast.stores.port import Attachment

KEYS_WARNING = (
    "It is sealed: whoever loses the key ring loses what lies there. "
    "Keep a copy of the ring elsewhere: `holdfast keys export FILE`."
)

Asked = Mapping[str, str]
"""What a command was given: names and values."""


class StoreCommands:
    """Carries out commands. `is_up` says which stores answer, `tell` takes what happened; `node` is this
    one's name where there are several: slots may be called `<node>/<slot>` then, and only its own are
    changed."""

    def __init__(
        self,
        keeper: Keeper,
        changes: Changes,
        membership: Places,
        index: Index,
        is_up: Callable[[StoreId], bool],
        default_scheme: Scheme,
        tell: Callable[[str], None],
        node: str = "",
    ) -> None:
        self._keeper = keeper
        self._changes = changes
        self._membership = membership
        self._index = index
        self._is_up = is_up
        self._default_scheme = default_scheme
        self._tell = tell
        self._node = node
        self._one_by_one = asyncio.Lock()

    async def do(self, action: str, asked: Asked) -> Done:
        """Carry out `add`, `drain`, `replace` or `remove`. Raises InvalidInput, Fenced, Unavailable."""
        async with self._one_by_one:
            match action:
                case "add":
                    return await self._add(asked)
                case "drain" if asked.get("cancel"):
                    return self._cancel(asked)
                case "drain":
                    return await self._drain(asked)
                case "replace":
                    return await self._replace(asked)
                case "remove":
                    return await self._remove(asked)
        raise InvalidInput(f"There is no {action!r} for stores:", hint="add, drain, replace or remove.")

    async def _add(self, asked: Asked) -> Done:
        keeper = self._keeper
        slot = read_slot(asked["slot"]) if asked.get("slot") else self._free_name()
        if slot in keeper.cluster.slots:
            raise InvalidInput(
                f"There is a slot {slot!r} already, at {keeper.cluster.slots[slot].path}.",
                hint="Name another, or none; or see `holdfast store replace`.",
            )
        in_cloud = is_bucket(asked.get("path", ""))
        region, zone, host = (
            read_label(asked.get(name) or (self._node if name == "host" and not in_cloud else "") or "local")
            for name in ("region", "zone", "host")
        )
        given = StorePlace(await self._empty_place(asked, slot), slot, region, zone, host)
        place = placed(given, Path("/")) if isinstance(given.path, Bucket) else given
        await self._changes.admit(place)
        self._membership.arrived(slot)
        self._tell(f"store {slot} was added at {place.path}")
        sentence = (
            f"{place.path} is store {slot} now. New objects go there, too; what there is spreads to it."
        )
        return Done(
            (sentence, *self._about_keys(place.path)),
            slot,
            str(place.path),
            place.region,
            place.zone,
            place.host,
            lines_of(place.path),
        )

    def _about_keys(self, path: StorePath) -> tuple[str, ...]:
        """What whoever seals must know."""
        if not isinstance(path, Bucket) or not path.sealed:
            return ()
        return (KEYS_WARNING,)

    async def _drain(self, asked: Asked) -> Done:
        keeper, slot = self._keeper, self._slot(asked)
        held, line = keeper.held[slot], keeper.cluster.slots[slot]
        forced = bool(asked.get("force"))
        if line.draining is Draining.FORCED or (line.draining is Draining.YES and not forced):
            return Done((f"{slot} is being emptied already.",), slot)
        # A node that is emptied empties all of its stores: then none of them takes what the others hold.
        others = self.others({slot, *asked.get("together", "").split(",")})
        cost = await self._cost(held, others)
        price = self._price(cost, held, others)
        if not others:
            raise InvalidInput(f"{slot} is the only store that takes anything:", hint="add another first.")
        usages = [
            store.usage for name, store in keeper.held.items() if store.id in others and name != slot
        ] + [other.usage for other in keeper.others.values() if other.id in others]
        room = sum(usage.bytes_free for usage in usages if usage is not None)
        # A store that has not been measured since it came is not taken for full.
        if None not in usages and cost.bytes_held > room:
            raise InvalidInput(
                f"{slot} holds {cost.bytes_held} bytes, and all others have room for {room}.",
                hint="Add a store first: `holdfast store add`.",
            )
        if price and not forced:
            raise InvalidInput(
                f"Without {slot} the promise could not be kept: {'; '.join(price)}.",
                hint="Add a store first, or say --force to accept that.",
            )
        # Not `line`: another store may have moved in while the rows were looked through.
        line = replace(keeper.cluster.slots[slot], draining=Draining.FORCED if forced else Draining.YES)
        keeper.write(keeper.cluster.with_slot(slot, line))
        self._tell(f"store {slot} is being emptied")
        sentences = [f"{slot} takes nothing new; {_holds(cost)} move to the other stores."]
        sentences += [f"What it costs: {'; '.join(price)}."] if price else []
        return Done((*sentences, f"Then: `holdfast store remove {slot}`."), slot)

    def _price(self, cost: Cost, held: Held, others: frozenset[StoreId]) -> list[str]:
        """What would become of the promise without a store."""
        found = [
            f"{counted(count, 'pack')} of {scheme.name} {'needs' if count == 1 else 'need'} {scheme.n} "
            f"stores and {len(others)} would be left"
            for scheme, count in cost.short.items()
        ]
        default = self._default_scheme
        if default.n > len(others) and default not in cost.short:
            found.append(
                f"new objects in {default.name} need {default.n} stores, {len(others)} would be left"
            )
        if held.id is not None:
            now = [store for store in self._keeper.topology().stores if store in others or store == held.id]
            then = [store for store in now if store in others]
            if default.n <= len(then):
                found += weaker_levels([default], self._keeper.topology(), now, then)
        return found

    def _cancel(self, asked: Asked) -> Done:
        keeper, slot = self._keeper, self._slot(asked)
        line = keeper.cluster.slots[slot]
        if line.draining is Draining.NO:
            return Done((f"{slot} is not being emptied.",), slot)
        if line.known_as:
            raise InvalidInput(
                f"{slot} was replaced: {line.known_as} is another store now.",
                hint="Wait until it is empty, then its directory can be added as a new store.",
            )
        keeper.write(keeper.cluster.with_slot(slot, replace(line, draining=Draining.NO)))
        self._tell(f"store {slot} is not emptied any more")
        return Done((f"{slot} stays, and takes new objects again.",), slot)

    async def _replace(self, asked: Asked) -> Done:
        keeper, slot = self._keeper, self._slot(asked)
        if keeper.cluster.slots[slot].known_as:
            raise InvalidInput(f"{slot} was replaced already, and goes when it is empty.")
        path = await self._empty_place(asked, slot)
        held = keeper.held[slot]
        before = str(held.place.path)
        if isinstance(path, Bucket) is not isinstance(held.place.path, Bucket):
            raise InvalidInput(
                f"{before} and {path} are not of one kind, and a part of the index may lie in a directory:",
                hint=f"add {path} with `holdfast store add`, then drain and remove {slot}.",
            )
        self._membership.check_can_do_without(slot)
        readable = held.opened is not None
        if not readable and not asked.get("force"):
            # It would be refused when it comes back: what only it still has is lost from then on.
            cost = await self._cost(held, self._others(slot))
            if cost.lost:
                raise InvalidInput(
                    f"{before} cannot be read now, and without it {', '.join(cost.sentences())}.",
                    hint="Bring it back, or other stores that are away; or say --force to accept that.",
                )
        old = await self._changes.replace(slot, path, keep=readable)
        await self._membership.moved(slot)
        self._tell(f"store {slot} was replaced: it is at {path} now")
        what = (
            f"What {before} holds is copied to it; that is {old} until it is empty, and then goes by itself."
            if old
            else f"{before} cannot be read: what it held is made again from the others."
        )
        place = held.place
        return Done(
            (f"{path} is store {slot} now. {what}",),
            slot,
            str(path),
            place.region,
            place.zone,
            place.host,
            lines_of(path),
        )

    async def _remove(self, asked: Asked) -> Done:
        keeper, forced = self._keeper, bool(asked.get("force"))
        asked = {**asked, "slot": self._own(asked.get("slot", ""))}
        if asked.get("slot") not in keeper.held and asked.get("slot", "") in keeper.cluster.slots:
            return await self._forget(asked["slot"], forced=forced)
        slot = self._slot(asked)
        held, line = keeper.held[slot], keeper.cluster.slots[slot]
        others = self._others(slot)
        cost = await self._cost(held, others)
        price = [] if line.draining is not Draining.NO else self._price(cost, held, others)
        if (cost.shards or price) and not forced:
            found = [f"it holds {_holds(cost)}"] if cost.shards else []
            if losses := cost.sentences():
                found.append(f"without it {', '.join(losses)}")
            raise InvalidInput(
                f"{slot} is still needed: {'; '.join([*found, *price])}.",
                hint=f"Run `holdfast store drain {slot}` first, or say --force to accept that.",
            )
        if len(keeper.held) == 1:
            raise InvalidInput(f"{slot} is the only store there is.")
        moved = await self._membership.leave(slot)
        path = held.place.path
        await self._changes.dismiss(slot)
        self._membership.left(slot)
        self._tell(f"store {slot} was removed")
        sentences = [f"{slot} is no longer part of this installation; {path} is left as it is."]
        if cost.shards:
            sentences += cost.once_gone("it", price)
        sentences += [moved] if moved else []
        return Done(tuple(sentences), slot, str(path))

    async def _forget(self, slot: str, *, forced: bool) -> Done:
        """A slot that the configuration does not name any more, and that is still on record."""
        store = self._keeper.cluster.slots[slot].store
        cost = Cost()
        if store is not None:
            there = frozenset(store for store in self._keeper.attached if self._is_up(store))
            cost = await cost_of_leaving(self._index, store, there, self._others(slot))
        if cost.shards and not forced:
            raise InvalidInput(
                f"{slot} held {_holds(cost)} that are not written elsewhere yet; without it "
                f"{', '.join(cost.sentences())}.",
                hint="Wait until that is done, or name it in the configuration again.",
            )
        self._changes.forget(slot)
        self._tell(f"store {slot} was removed")
        return Done((f"{slot} is no longer part of this installation.",), slot)

    # What is there

    def _slot(self, asked: Asked) -> str:
        slot = self._own(asked.get("slot", ""))
        if slot not in self._keeper.held:
            raise InvalidInput(
                f"There is no slot {slot!r}:", hint=f"there are {', '.join(self._keeper.held)}."
            )
        return slot

    def _own(self, slot: str) -> str:
        """A slot of this node as the node itself calls it. Raises InvalidInput for one of another's."""
        node, slash, rest = slot.partition("/")
        if not slash or not self._node:
            return slot
        if node != self._node:
            raise InvalidInput(f"{slot} is a store of node {node}:", hint="say this on that node.")
        return rest

    def others(self, leaving: Container[str]) -> frozenset[StoreId]:
        """Stores, of all nodes, that would take what lies on slots of this one."""
        keeper = self._keeper
        elsewhere = frozenset(
            other.id
            for other in keeper.others.values()
            if other.store is not None and other.row.takes_new and self._is_up(other.id)
        )
        return elsewhere | frozenset(
            held.id
            for name, held in keeper.held.items()
            if name not in leaving
            and held.id is not None
            and held.opened is not None
            and self._is_up(held.id)
            and keeper.takes_new(name)
        )

    def _others(self, slot: str) -> frozenset[StoreId]:
        return self.others((slot,))

    async def _cost(self, held: Held, others: frozenset[StoreId]) -> Cost:
        if held.id is None:
            return Cost()
        there = frozenset(store for store in self._keeper.attached if self._is_up(store))
        return await cost_of_leaving(self._index, held.id, there, others)

    def _free_name(self) -> str:
        cluster = self._keeper.cluster
        taken = {*cluster.slots, *(retired.slot for retired in cluster.retired)}
        return next(name for number in range(1, 10_000) if (name := f"disk{number}") not in taken)

    async def _empty_place(self, asked: Asked, slot: str) -> StorePath:
        """The directory or bucket that was named, which is there, empty and nobody's. Raises InvalidInput,
        Fenced, and what asking a provider raises."""
        path = asked_path(asked)
        for name, held in self._keeper.held.items():
            other = held.place.path
            if str(path) == str(other) and name == slot and held.attachment is Attachment.MISSING:
                continue  # the directory that is empty because a disk is not mounted there
            if str(path) == str(other):
                raise InvalidInput(f"{path} is store {name} already.")
            if _overlap(path, other):
                raise InvalidInput(f"{path} is in the way of store {name} at {other}:", hint="name another.")
        found = await self._keeper.inspect(path)
        if not found.exists:
            raise InvalidInput(f"There is no directory {path}:", hint="mount the disk or make it first.")
        cluster = self._keeper.cluster
        if found.identity is not None and (gone := cluster.retired_store(found.identity.store)):
            raise Fenced(f"{path} cannot be taken.", hint=gone.sentence)
        judgement = judge(found, Expected(cluster.cluster, slot))
        if judgement.attachment is Attachment.READY:
            raise Fenced(f"{path} belongs to slot {slot!r} of this cluster already.")
        if judgement.attachment is not Attachment.NEW:
            raise Fenced(f"{path} cannot be taken.", hint=judgement.reason)
        return path


def asked_path(asked: Asked) -> StorePath:
    """The directory or bucket that a command names. Raises InvalidInput."""
    text = asked.get("path", "")
    if is_bucket(text):
        return Bucket(
            read_bucket(text),
            endpoint=read_endpoint(asked["endpoint"]) if asked.get("endpoint") else "",
            bucket_region=read_label(asked["bucket_region"]) if asked.get("bucket_region") else "",
            profile=read_profile(asked["profile"]) if asked.get("profile") else "",
            sealed=not asked.get("unsealed"),
            bytes_max=read_capacity(asked["capacity"]) if asked.get("capacity") else BYTES_MAX_DEFAULT,
            price=read_money(asked.get("price", "")),
        )
    path = Path(text)
    if not path.is_absolute():
        raise InvalidInput(f"{text!r} is not the whole path of a directory:", hint="begin with /.")
    return path


def _overlap(path: StorePath, other: StorePath) -> bool:
    if isinstance(path, Bucket):
        return isinstance(other, Bucket) and path.overlaps(other)
    return isinstance(other, Path) and (path.is_relative_to(other) or other.is_relative_to(path))


def _holds(cost: Cost) -> str:
    value, units = float(cost.bytes_held), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{counted(cost.shards, 'shard')} ({value:.1f} {units[0]})"
