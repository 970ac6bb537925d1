"""A bucket as a store: the port over an S3 client.

What must hold: a blob is written by one conditional request, so that no name is ever written over and nobody
sees half a blob; every call ends by its time-out; whatever may be otherwise in a moment is asked again within
the budget and before the deadline, and nothing else is; and a put that was repeated tells the truth about a
name that is taken: it may have been taken by the first attempt, whose answer was lost.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import obstore
from msgspec import Struct
from obstore.store import S3Store

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.stores.cloud.address import CloudAddress, S3Access, open_bucket
from holdfast.stores.cloud.counting import Count
from holdfast.stores.cloud.failures import AGAIN, CLIENT_ERRORS, Failure, Trouble, judge
from holdfast.stores.cloud.retrying import Retries, RetryLimits
from holdfast.stores.cloud.spans import stretches
from holdfast.stores.port import (
    NAME,
    Range,
    ShardExists,
    ShardMissing,
    ShardTruncated,
    StoreBusy,
    StoreFailed,
    StoreFull,
    StoreOverdue,
    Usage,
    check_name,
)

T = TypeVar("T")
Views = list[memoryview]
Sizes = list[tuple[str, int]]

_SHARDS = "shards"
_PROBES = "probe"
_PROBE_BYTES = 4096
_PAGE = 1000
_PAGES_AT_ONCE = 10


class CloudOptions(Struct, frozen=True):
    """`bytes_max` is what may lie in the bucket, `bytes_reserve` the part of it that is kept free. What is
    there is counted once in `count_again_s`, by listing it. At most `reads_at_once` requests are made for one
    `get`."""

    bytes_max: int = 1 << 50
    bytes_reserve: int = 1 << 30
    count_again_s: float = 86_400.0
    reads_at_once: int = 8
    retries: RetryLimits = RetryLimits()


class _Refused(Exception):
    """A request that will not go well, and why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.said)
        self.failure = failure


class CloudStore:
    """The store `id` in the bucket at `address`. It neither looks at who the store is nor bounds how many
    calls are under way."""

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
        self._id = id
        self._address = address
        self._bucket: S3Store = open_bucket(address, access)
        self._clock = clock
        self._randomness = randomness
        self._retries = Retries(self._options.retries)
        self._count = Count(self._options.count_again_s)
        self._counting = False
        self._closed = False

    @property
    def id(self) -> StoreId:
        return self._id

    @property
    def address(self) -> CloudAddress:
        """Where it is."""
        return self._address

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
        await self._create(f"{_SHARDS}/{name}", blob, timeout_s)
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
        path = f"{_SHARDS}/{name}"
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            meta = await self._call(lambda: obstore.head_async(self._bucket, path), deadline, timeout_s)
        except _Refused as refused:
            if refused.failure.trouble is not Trouble.UNTOLD:
                raise self._failed(refused.failure, name) from None
            # An answer to HEAD has no code: whether the blob is gone or its bucket, a read tells.
            await self._read(name, Range(0, 1), deadline, timeout_s)
            raise self._failed(refused.failure, name) from None
        return meta["size"]

    async def delete(self, name: str, *, timeout_s: float) -> None:
        check_name(name)
        await self._remove(f"{_SHARDS}/{name}", timeout_s)

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        assert limit >= 1
        return [name for name, _ in await self._page(after, limit, timeout_s)]

    async def usage(self, *, timeout_s: float) -> Usage:
        """From the last count, and what this node put since."""
        self._check(timeout_s)
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
        self._check(timeout_s)
        if self._bytes_free() <= 0:
            raise StoreFull(f"Store {self._id} is full.", store=self._id)
        await self._create(path, content, timeout_s)
        found = await self._read_path(path, Range(0, _PROBE_BYTES), deadline, timeout_s)
        await self._remove(path, deadline - asyncio.get_running_loop().time())
        if found != content:
            raise Damaged(f"Store {self._id} gave back other bytes than it was given.", store=self._id)

    async def prove_create_only(self, *, timeout_s: float) -> None:
        """Return when the provider was seen to refuse a name that is taken. There are some that take no
        notice of the condition and write over what is there: those must not be used. Raises InvalidInput for
        them, and else as `put`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        path = f"{_PROBES}/{self._randomness.token(16).hex()}"
        await self._create(path, b"first", timeout_s)
        try:
            await self._create(path, b"second", deadline - asyncio.get_running_loop().time())
        except ShardExists:
            return
        finally:
            await self._remove(path, max(1.0, deadline - asyncio.get_running_loop().time()))
        raise InvalidInput(
            f"The server of {self._address.url} writes over what is there, although it was told not to.",
            hint="Use a provider, or a version of its server, that knows conditional writes (If-None-Match).",
        )

    async def close(self) -> None:
        self._closed = True

    # Requests

    async def _create(self, path: str, blob: bytes, timeout_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        attempts = 0

        async def write() -> None:
            nonlocal attempts
            attempts += 1
            await obstore.put_async(self._bucket, path, blob, mode="create", use_multipart=False)

        name = path.rpartition("/")[2]
        try:
            await self._call(write, deadline, timeout_s)
        except _Refused as refused:
            if refused.failure.trouble is not Trouble.EXISTS:
                raise self._failed(refused.failure, name) from None
            if attempts == 1 or not await self._is_there(path, blob, deadline, timeout_s):
                raise self._failed(refused.failure, name) from None

    async def _is_there(self, path: str, blob: bytes, deadline: float, timeout_s: float) -> bool:
        """Whether exactly this blob is under the name."""
        try:
            meta = await self._call(lambda: obstore.head_async(self._bucket, path), deadline, timeout_s)
            if meta["size"] != len(blob):
                return False
            return not blob or await self._read_path(path, Range(0, len(blob)), deadline, timeout_s) == blob
        except _Refused as refused:
            if refused.failure.trouble in (Trouble.MISSING, Trouble.UNTOLD):
                return False
            raise self._failed(refused.failure, path.rpartition("/")[2]) from None

    async def _remove(self, path: str, timeout_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            await self._call(lambda: obstore.delete_async(self._bucket, path), deadline, timeout_s)
        except _Refused as refused:
            # A name that is not there is no error to S3. A server that says "not found" does not know the
            # request, and has deleted nothing.
            raise self._failed(refused.failure, "") from None

    async def _read_all(self, name: str, wanted: Sequence[Range], deadline: float, timeout_s: float) -> Views:
        if len(wanted) == 1:
            return [await self._read(name, wanted[0], deadline, timeout_s)]
        reads = [asyncio.ensure_future(self._read(name, each, deadline, timeout_s)) for each in wanted]
        try:
            return list(await asyncio.gather(*reads))
        finally:
            for read in reads:
                read.cancel()
            await asyncio.gather(*reads, return_exceptions=True)

    async def _read(self, name: str, range_: Range, deadline: float, timeout_s: float) -> memoryview:
        return await self._read_path(f"{_SHARDS}/{name}", range_, deadline, timeout_s)

    async def _read_path(self, path: str, range_: Range, deadline: float, timeout_s: float) -> memoryview:
        name = path.rpartition("/")[2]
        offset, length = range_
        try:
            content = await self._call(
                lambda: obstore.get_range_async(self._bucket, path, start=offset, length=length),
                deadline,
                timeout_s,
            )
        except _Refused as refused:
            raise self._failed(refused.failure, name) from None
        view = memoryview(content)
        if len(view) != length:
            raise self._failed(Failure(Trouble.BEHIND_THE_END, f"{len(view)} of {length} bytes"), name)
        return view

    async def _page(self, after: str, limit: int, timeout_s: float) -> Sizes:
        """Up to `limit` names behind `after`, with their sizes."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        offset = f"{_SHARDS}/{after}" if after else None

        async def read() -> Sizes:
            found: Sizes = []
            async for chunk in obstore.list(
                self._bucket, _SHARDS, offset=offset, chunk_size=min(limit, _PAGE)
            ):
                for each in chunk:
                    name = each["path"].removeprefix(f"{_SHARDS}/")
                    # Whatever else somebody put there is not ours.
                    if NAME.match(name):
                        found.append((name, each["size"]))
                if len(found) >= limit:
                    break
            return found[:limit]

        try:
            return await self._call(read, deadline, timeout_s)
        except _Refused as refused:
            raise self._failed(refused.failure, "") from None

    async def _go_on_counting(self, timeout_s: float) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        for _ in range(_PAGES_AT_ONCE):
            if not self._count.is_due(self._clock.monotonic()):
                return
            left_s = deadline - asyncio.get_running_loop().time()
            page = await self._page(self._count.after, _PAGE, left_s)
            self._count.page(page[-1][0] if page else "", sum(size for _, size in page))

    async def _call(self, ask: Callable[[], Awaitable[T]], deadline: float, timeout_s: float) -> T:
        """What `ask` answers, asked again where that may help. Raises _Refused, StoreOverdue, StoreFailed."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            attempt += 1
            self._check(deadline - loop.time(), timeout_s)
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await ask()
            except TimeoutError:
                raise self._overdue(timeout_s) from None
            except CLIENT_ERRORS as error:
                failure = judge(error)
            else:
                self._retries.succeeded()
                return answer
            if failure.trouble not in AGAIN:
                raise _Refused(failure)
            wait_s = self._retries.wait_s(attempt, deadline - loop.time(), self._randomness.fraction())
            if wait_s is None:
                raise _Refused(failure)
            await self._clock.sleep(wait_s)

    def _bytes_free(self) -> int:
        return self._options.bytes_max - self._options.bytes_reserve - self._count.used

    def _check(self, left_s: float, timeout_s: float | None = None) -> None:
        if self._closed:
            raise StoreFailed(f"Store {self._id} is closed.", store=self._id)
        if left_s <= 0:
            raise self._overdue(left_s if timeout_s is None else timeout_s)

    def _overdue(self, timeout_s: float) -> StoreOverdue:
        return StoreOverdue(f"Store {self._id} did not answer in {timeout_s:g} s.", store=self._id)

    def _failed(
        self, failure: Failure, name: str
    ) -> ShardMissing | ShardExists | ShardTruncated | StoreBusy | StoreFailed:
        """The port's error for what the provider said."""
        where = f"Store {self._id} ({self._address.url})"
        match failure.trouble:
            case Trouble.MISSING if name:
                return ShardMissing(f"{where} has no blob {name}.", store=self._id, name=name)
            case Trouble.EXISTS:
                return ShardExists(f"{where} has a blob {name} already.", store=self._id, name=name)
            case Trouble.BEHIND_THE_END:
                return ShardTruncated(
                    f"Blob {name} of store {self._id} ends before what was asked for.",
                    store=self._id,
                    name=name,
                )
            case Trouble.THROTTLED:
                return StoreBusy(
                    f"{where} asks for fewer requests ({failure.said}).", store=self._id, said=failure.said
                )
            case Trouble.REFUSED:
                return StoreFailed(
                    f"{where} does not take the credentials ({failure.said}).",
                    hint="Look whether they have expired, and what they allow.",
                    store=self._id,
                    said=failure.said,
                )
            case _:
                return StoreFailed(f"{where} failed ({failure.said}).", store=self._id, said=failure.said)
