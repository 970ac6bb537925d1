"""Packs that are found by a name instead of a row: what has to be there when the index is not.

A named pack holds one small blob (a piece of the index's journal, a page of a snapshot, a roll-up of the
ledger), cut, encoded and checked like every pack, with its name in its manifest. Its shards are called
`<name>.<pack>.<shard>.<attempt>`, so that a listing of the stores tells all there is to know, and nobody
takes them for shards of ordinary packs. What must hold:

- a name stands for one content. Writing it again with other content is a mistake of the caller; who may
  have crashed in a write uses a new name, or looks whether the old one can be read.
- a write that returned can be read from any k of its shards; one that failed may have left some, which
  `tend` and `remove` see to.
- no row, no debt and no chore of ordinary packs knows them: whoever writes names lists them, keeps those it
  wants whole (`tend`), and removes the others. Nobody else ever does.
"""

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, HoldfastError, Unavailable
from holdfast.base.ids import PackId, StoreId, parse_shard_name
from holdfast.base.randomness import Randomness
from holdfast.health import StoreHealth
from holdfast.packs.found import FoundPack, FoundReader, FoundShard, identify
from holdfast.packs.layout import choose_scheme
from holdfast.packs.manifest import encode_manifest
from holdfast.packs.model import PACK_BYTES_MAX, ManifestEntry, Receipt
from holdfast.packs.writing import Abandoned, Room, Writer, alike
from holdfast.scheme import Scheme
from holdfast.stores.port import Store
from holdfast.topology import Topology

NAME_BYTES_MAX = 80
NAME = re.compile(rf"[a-z][a-z0-9-]{{1,{NAME_BYTES_MAX - 1}}}\Z")
"""What a name looks like: no dot, so that a shard's name comes apart in one way only."""

PAGE = 500
TIMEOUT_S = 10.0


class Missing(Damaged):
    """Nothing of that name can be found."""


class Tended(Enum):
    """What looking after a name came to."""

    WHOLE = "whole"
    REWRITTEN = "rewritten"
    LESS = "less than it should be, and the stores do not allow more now"


def parse_named_shard(store: StoreId, blob: str) -> tuple[str, PackId, FoundShard] | None:
    """Name, pack and shard that a blob's name tells of; None when it is no shard of a named pack."""
    name, _, rest = blob.partition(".")
    parts = parse_shard_name(rest)
    if parts is None or not NAME.match(name):
        return None
    pack, shard, attempt = parts
    return name, pack, FoundShard(store, blob, shard, attempt)


class FoundNames:
    """What the stores hold under some names: for each name and pack, its shards. `silent` are stores that
    did not answer all that they were asked."""

    def __init__(self) -> None:
        self.shards: dict[str, dict[PackId, list[FoundShard]]] = {}
        self.silent: dict[StoreId, str] = {}

    def add(self, store: StoreId, blob: str) -> None:
        """A blob that a listing showed."""
        if (parsed := parse_named_shard(store, blob)) is not None:
            name, pack, shard = parsed
            self.shards.setdefault(name, {}).setdefault(pack, []).append(shard)

    @property
    def names(self) -> list[str]:
        """In order."""
        return sorted(self.shards)


async def find_names(stores: Mapping[StoreId, Store], prefix: str) -> FoundNames:
    """Everything under names that begin with `prefix`, from every store that answers. Raises Unavailable
    when none does."""
    found = FoundNames()

    async def ask(store: StoreId, there: Store) -> None:
        after = prefix
        try:
            while True:
                page = await there.list(after, limit=PAGE, timeout_s=TIMEOUT_S)
                ours = [blob for blob in page if blob.startswith(prefix)]
                for blob in ours:
                    found.add(store, blob)
                if len(ours) < len(page) or not page:
                    return
                after = page[-1]
        except HoldfastError as error:
            found.silent[store] = str(error)

    attached = dict(stores)
    await asyncio.gather(*[ask(store, there) for store, there in attached.items()])
    if len(found.silent) == len(attached):
        why = next(iter(found.silent.values()), "no store is attached")
        raise Unavailable("No store can be listed.", hint=f"{why}.")
    return found


async def read_found(stores: Mapping[StoreId, Store], name: str, found: FoundNames) -> bytes:
    """The content of a name, from any k shards. Raises Missing, Damaged, Unavailable."""
    error: HoldfastError = Missing(f"There is no pack named {name!r}.", name=name)
    for pack, shards in found.shards.get(name, {}).items():
        for one in await identify(stores, pack, shards):
            try:
                return await _content(name, FoundReader(stores, one), verify=False)
            except HoldfastError as raised:
                error = raised
        if isinstance(error, Missing):
            error = Unavailable(f"No shard of the pack named {name!r} can be read.", name=name)
    raise error


async def _content(name: str, reader: FoundReader, *, verify: bool) -> bytes:
    data = await (reader.verify() if verify else reader.payload())
    said = [entry.key for entry in (await reader.manifest()).entries]
    if said != [name]:
        raise Damaged(f"What is named {name!r} says that it is {said}.", name=name)
    return data


class NamedPacks:
    """Writes, reads, lists, tends and removes. `scheme` is what is promised now: k shrinks to the stores that
    can be written, m does not."""

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        topology: Callable[[], Topology],
        health: StoreHealth,
        clock: Clock,
        randomness: Randomness,
        scheme: Callable[[], Scheme],
        *,
        room: Room = alike,
    ) -> None:
        self._room = room
        self._stores = stores
        self._topology = topology
        self._health = health
        self._clock = clock
        self._randomness = randomness
        self._scheme = scheme

    async def write(self, name: str, data: Sequence[Buffer], *, reserve_share: float = 0.0) -> Receipt:
        """Write `data`, laid end to end, under a name that was not used before; at least 1 byte, at most
        PACK_BYTES_MAX. It may take `reserve_share` of the stores' reserve. Raises Unavailable when fewer
        than m + 1 stores take it."""
        assert NAME.match(name), f"{name!r} cannot name a pack"
        length = sum(map(len, data))
        assert 1 <= length <= PACK_BYTES_MAX
        writer = Writer(
            self._stores,
            self._topology,
            self._health,
            self._clock,
            self._randomness,
            _leave,
            prefix=f"{name}.",
            room=self._room,
        )
        manifest = encode_manifest([ManifestEntry("", name, "", 0, length)])
        landed = await writer.write(self._scheme(), list(data), manifest, length, reserve_share=reserve_share)
        return landed.receipt

    async def read(self, name: str) -> bytes:
        """The content of a name. Raises Missing, Damaged, Unavailable."""
        return await read_found(self._stores, name, await find_names(self._stores, f"{name}."))

    async def check(self, name: str) -> bytes:
        """The content, after every shard that there is was read from the medium; what is wrong in more
        shards than can be done without raises Damaged or Unavailable."""
        found = await find_names(self._stores, f"{name}.")
        error: HoldfastError = Missing(f"There is no pack named {name!r}.", name=name)
        for pack, shards in found.shards.get(name, {}).items():
            for one in await identify(self._stores, pack, shards):
                try:
                    return await _content(name, FoundReader(self._stores, one, uncached=True), verify=True)
                except HoldfastError as raised:
                    error = raised
        raise error

    async def list(self, prefix: str) -> list[str]:
        """Names that begin with `prefix`, in order, as far as stores answer: one that only has shards on
        stores that are away is not among them. Raises Unavailable when no store answers."""
        return (await find_names(self._stores, prefix)).names

    async def remove(self, name: str) -> int:
        """Remove every shard of a name from the stores that are there; answers how many went. A store that
        was away is seen to by removing the name again when a listing shows it."""
        found = await find_names(self._stores, f"{name}.")
        packs = found.shards.get(name, {})
        return await self._remove([shard for shards in packs.values() for shard in shards])

    async def tend(self, name: str) -> Tended:
        """Look at every shard of a name; write it anew where it lacks some that the stores allow, and remove
        what a better copy makes superfluous. Raises Missing, Damaged, Unavailable when it cannot be read."""
        found = await find_names(self._stores, f"{name}.")
        packs = found.shards.get(name, {})
        error: HoldfastError = Missing(f"There is no pack named {name!r}.", name=name)
        known = [one for pack, shards in packs.items() for one in await identify(self._stores, pack, shards)]
        for one in sorted(known, key=lambda one: (-one.losses_left, one.pack)):
            reader = FoundReader(self._stores, one, uncached=True)
            try:
                data = await _content(name, reader, verify=True)
            except HoldfastError as raised:
                error = raised
                continue
            return await self._better(name, one, reader, data, packs)
        raise error

    async def _better(
        self,
        name: str,
        one: FoundPack,
        reader: FoundReader,
        data: bytes,
        packs: Mapping[PackId, Sequence[FoundShard]],
    ) -> Tended:
        # What lies on a store that is to leave does not count: it goes with it.
        good = [shard for shard in one.shards if shard not in reader.wrong and self._room(shard.store) > 0]
        rest = [shard for pack, shards in packs.items() for shard in shards if pack != one.pack]
        promised = self._scheme()
        apart = min(len({shard.shard for shard in good}), len({shard.store for shard in good}))
        if apart - one.layout.real_data_shards >= promised.m:
            await self._remove(rest)
            return Tended.WHOLE
        writable = [store for store in self._stores if self._health.writable(store) and self._room(store) > 0]
        if choose_scheme(promised, one.layout.stored_bytes, len(writable)) is None:
            return Tended.LESS
        try:
            await self.write(name, [data])
        except Unavailable:
            return Tended.LESS
        # The old copy goes only after the new one was read from the medium.
        renewed = await find_names(self._stores, f"{name}.")
        for pack, shards in renewed.shards.get(name, {}).items():
            if pack in packs:
                continue
            for again in await identify(self._stores, pack, shards):
                if await _content(name, FoundReader(self._stores, again, uncached=True), verify=True) == data:
                    await self._remove([shard for shards in packs.values() for shard in shards])
                    return Tended.REWRITTEN
        raise Damaged(f"The pack named {name!r} cannot be read back after it was written.", name=name)

    async def _remove(self, shards: Sequence[FoundShard]) -> int:
        removed = 0
        for shard in shards:
            store = self._stores.get(shard.store)
            if store is None:
                continue
            try:
                await store.delete(shard.name, timeout_s=TIMEOUT_S)
            except HoldfastError:
                continue  # its health is told by its observer; a listing shows it again
            removed += 1
        return removed


def _leave(abandoned: Abandoned) -> None:
    """Shards of a write that was given up lie under the same name: `tend` and `remove` see them."""
