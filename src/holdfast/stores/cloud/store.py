"""A bucket as a store: the port over an S3 client.

What must hold: a blob is written by one conditional request, so that no name is ever written over and nobody
sees half a blob; every call ends by its time-out. What is asked again, and what refusals mean, is in
`requests`; who lives in a bucket in `place`.
"""

import asyncio
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.stores.cloud.address import CloudAddress, S3Access, open_bucket
from holdfast.stores.cloud.counting import Count
from holdfast.stores.cloud.place import note
from holdfast.stores.cloud.requests import PAGE, Bucket, Requests
from holdfast.stores.cloud.retrying import RetryLimits
from holdfast.stores.cloud.spans import stretches
from holdfast.stores.identity import Identity, Noted
from holdfast.stores.port import Range, ShardExists, StoreFull, Usage, check_name

Views = list[memoryview]

SHARDS = "shards"
_PROBES = "probe"
_PROBE_BYTES = 4096
_PAGES_AT_ONCE = 10


class CloudOptions(Struct, frozen=True):
    """`bytes_max` is what may lie in the bucket, `bytes_reserve` the part of it that is kept free. What is
    there is counted once in `count_again_s`, by listing it; how far the index is, is noted once in
    `note_again_s`. At most `reads_at_once` requests are made for one
    `get`."""

    bytes_max: int = 1 << 50
    bytes_reserve: int = 1 << 30
    count_again_s: float = 86_400.0
    note_again_s: float = 3600.0
    reads_at_once: int = 8
    retries: RetryLimits = RetryLimits()


class CloudStore:
    """The store `id` in a bucket. It neither looks at who the store is nor bounds how many calls are under
    way. `device` and `mounted` are what they are for all stores: a bucket is its own failure domain, and is
    never unmounted. `identity` is who moved in, where somebody looked (`attach`)."""

    mounted = False
    trip_s: float | None
    """How far away it is, in seconds, as the last probe found; None before the first."""
    _trip_s: float | None

    def __init__(
        self,
        id: StoreId,
        address: CloudAddress,
        access: S3Access,
        *,
        clock: Clock,
        randomness: Randomness,
        options: CloudOptions | None = None,
    ) -> None:
        self._options = options or CloudOptions()
        assert 0 <= self._options.bytes_reserve < self._options.bytes_max
        assert self._options.reads_at_once >= 1
        self._bucket = Bucket(
            open_bucket(address, access, clock), address, clock, randomness, self._options.retries
        )
        self._clock = clock
        self._randomness = randomness
        self._count = Count(self._options.count_again_s)
        self._counting = False
        self._noted_at = float("-inf")
        self._be(id)

    @classmethod
    def of(
        cls, bucket: Bucket, identity: Identity, clock: Clock, randomness: Randomness, options: CloudOptions
    ) -> "CloudStore":
        """The store of that identity, in a bucket that is open."""
        store = cls.__new__(cls)
        store._options, store._bucket, store._clock, store._randomness = options, bucket, clock, randomness
        store._count, store._counting = Count(options.count_again_s), False
        store._noted_at = float("-inf")
        store._be(identity.store)
        store.identity = identity
        return store

    def _be(self, id: StoreId) -> None:
        self.trip_s = self._trip_s = None
        self._id = self._bucket.store = id
        self._bucket.who = f"Store {id} ({self._bucket.address})"
        self.identity = Identity(id, "", "")
        self.device = str(self._bucket.address)

    @property
    def id(self) -> StoreId:
        return self._id

    @property
    def address(self) -> CloudAddress:
        """Where it is."""
        return self._bucket.address

    @property
    def bytes_used(self) -> int:
        """What lies there, as far as is known."""
        return self._count.used

    @property
    def requests(self) -> Requests:
        """What was asked of the provider since the store was attached; it goes on growing."""
        return self._bucket.requests

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        check_name(name)
        # A copy: the caller may reuse its buffers as soon as this ends, also by its time-out.
        blob = b"".join(data)
        reserve = round(reserve_share * self._options.bytes_reserve)
        if len(blob) > self._bytes_free() + reserve:
            raise StoreFull(
                f"Store {self._id} has no room for {len(blob)} bytes of the {self._options.bytes_max} that "
                "it may have.",
                store=self._id,
            )
        await self._bucket.create(f"{SHARDS}/{name}", blob, timeout_s)
        self._count.put(len(blob))

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        """Nothing is kept here, so that every read is `uncached`."""
        check_name(name)
        wanted, owners = stretches(ranges)
        deadline = asyncio.get_running_loop().time() + timeout_s
        found: list[memoryview] = []
        for start in range(0, len(wanted), self._options.reads_at_once):
            batch = wanted[start : start + self._options.reads_at_once]
            found += await self._read_all(name, batch, deadline, timeout_s)
        answer: list[Buffer] = []
        for (offset, length), owner in zip(ranges, owners, strict=True):
            at = offset - wanted[owner].offset
            answer.append(found[owner][at : at + length])
        return answer

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        """Nothing of a bucket can be had without waiting."""
        check_name(name)
        return None

    async def size(self, name: str, *, timeout_s: float) -> int:
        check_name(name)
        return await self._bucket.size(f"{SHARDS}/{name}", timeout_s)

    async def delete(self, name: str, *, timeout_s: float) -> None:
        check_name(name)
        await self._bucket.remove(f"{SHARDS}/{name}", timeout_s)

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        assert limit >= 1
        return [name for name, _ in await self._bucket.page(SHARDS, after, limit, timeout_s)]

    async def usage(self, *, timeout_s: float) -> Usage:
        """From the last count, and what this node put since."""
        self._bucket.check(timeout_s)
        if not self._counting:
            self._counting = True
            try:
                await self._go_on_counting(timeout_s)
            finally:
                self._counting = False
        options = self._options
        return Usage(options.bytes_max, max(0, self._bytes_free()), options.bytes_reserve)

    async def probe(self, *, timeout_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        path = f"{_PROBES}/{self._randomness.token(16).hex()}"
        content = self._randomness.token(_PROBE_BYTES)
        self._bucket.check(timeout_s)
        if self._bytes_free() <= 0:
            raise StoreFull(f"Store {self._id} is full.", store=self._id)
        began = self._clock.monotonic()
        await self._bucket.create(path, content, timeout_s)
        found = await self._bucket.read(path, Range(0, _PROBE_BYTES), deadline, timeout_s)
        await self._bucket.remove(path, deadline - asyncio.get_running_loop().time())
        # What is not the way is little at a provider: all of a probe but a third is taken for it.
        self.trip_s = self._trip_s = (self._clock.monotonic() - began) / 2
        if found != content:
            raise Damaged(f"Store {self._id} gave back other bytes than it was given.", store=self._id)

    def take_trip_s(self) -> float | None:
        """How far away it is, in seconds, if that was measured since the last time this was asked."""
        trip_s, self._trip_s = self._trip_s, None
        return trip_s

    async def prove_create_only(self, *, timeout_s: float) -> None:
        """Return when the provider was seen to refuse a name that is taken. There are some that take no
        notice of the condition and write over what is there: those must not be used. Raises InvalidInput for
        them, and else as `put`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        path = f"{_PROBES}/{self._randomness.token(16).hex()}"
        await self._bucket.create(path, b"first", timeout_s)
        try:
            await self._bucket.create(path, b"second", deadline - asyncio.get_running_loop().time())
        except ShardExists:
            return
        finally:
            await self._bucket.remove(path, max(1.0, deadline - asyncio.get_running_loop().time()))
        raise InvalidInput(
            f"The server of {self.address} writes over what is there, although it was told not to.",
            hint="Use a provider, or a version of its server, that knows conditional writes (If-None-Match).",
        )

    async def note_revision(self, incarnation: str, revision: int, *, timeout_s: float) -> None:
        """Note that the index was seen at `revision`; durable when it returns. It costs requests, so that of
        one incarnation no more than one in `note_again_s` is written: `identity` says what is. Raises as
        `put`."""
        seen, now = self.identity.noted, self._clock.monotonic()
        recent = now - self._noted_at < self._options.note_again_s
        if seen is not None and seen.incarnation == incarnation and (recent or seen.revision >= revision):
            return
        noted = await note(self._bucket, Noted(incarnation, revision), timeout_s)
        self._noted_at = now
        self.identity = replace(self.identity, noted=noted)

    async def close(self) -> None:
        self._bucket.close()

    async def _go_on_counting(self, timeout_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        for _ in range(_PAGES_AT_ONCE):
            if not self._count.is_due(self._clock.monotonic()):
                return
            left_s = deadline - asyncio.get_running_loop().time()
            page = await self._bucket.page(SHARDS, self._count.after, PAGE, left_s)
            self._count.page(page[-1][0] if page else "", sum(size for _, size in page))

    async def _read_all(self, name: str, wanted: Sequence[Range], deadline: float, timeout_s: float) -> Views:
        path = f"{SHARDS}/{name}"
        if len(wanted) == 1:
            return [await self._bucket.read(path, wanted[0], deadline, timeout_s)]
        reads = [asyncio.ensure_future(self._bucket.read(path, each, deadline, timeout_s)) for each in wanted]
        try:
            return list(await asyncio.gather(*reads))
        finally:
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)

    def _bytes_free(self) -> int:
        return self._options.bytes_max - self._options.bytes_reserve - self._count.used
