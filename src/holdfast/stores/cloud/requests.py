"""Requests to a bucket: made, asked again where that may help, counted, and refused in the port's own errors.

What must hold: every call ends by its time-out; whatever may be otherwise in a moment is asked again within
the budget and before the deadline, and nothing else is; and a put that was repeated tells the truth about a
name that is taken: it may have been taken by the first attempt, whose answer was lost.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import obstore
from msgspec import Struct
from obstore.store import S3Store

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.stores.cloud.address import CloudAddress
from holdfast.stores.cloud.failures import AGAIN, CLIENT_ERRORS, Failure, Trouble, judge
from holdfast.stores.cloud.retrying import Retries, RetryLimits
from holdfast.stores.port import (
    NAME,
    Range,
    ShardExists,
    ShardMissing,
    ShardTruncated,
    StoreBusy,
    StoreFailed,
    StoreOverdue,
)

T = TypeVar("T")
E = TypeVar("E", bound=HoldfastError)
Sizes = list[tuple[str, int]]

PAGE = 1000

THROTTLED_MAX = 4
"""So many calls in a row may be told to come later; who only ever says that has failed."""


class Requests(Struct):
    """What was asked of a provider, repeats and refusals included. `puts` are the dear ones: those that
    write, and listings; `gets` those that read or look; `bytes_out` is what came from there."""

    puts: int = 0
    gets: int = 0
    deletes: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


class Refused(Exception):
    """A request that will not go well, and why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.said)
        self.failure = failure


class Bucket:
    """What can be asked of a bucket. Names are whole paths below its prefix; `who` is what errors
    call it, `store` the store in it."""

    def __init__(
        self,
        client: S3Store,
        address: CloudAddress,
        clock: Clock,
        randomness: Randomness,
        limits: RetryLimits,
    ) -> None:
        self._client = client
        self._address = address
        self._clock = clock
        self._randomness = randomness
        self._retries = Retries(limits)
        self._closed = False
        self._throttled = 0
        self.who = str(address)
        self.store: StoreId | None = None
        self.requests = Requests()

    @property
    def address(self) -> CloudAddress:
        """Where it is."""
        return self._address

    def close(self) -> None:
        """Nothing is asked any more."""
        self._closed = True

    async def create(self, path: str, blob: bytes, timeout_s: float) -> None:
        """Write a name that is not there. Raises ShardExists, and what the provider refuses."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        attempts = 0

        async def write() -> None:
            nonlocal attempts
            attempts += 1
            self.requests.puts += 1
            self.requests.bytes_in += len(blob)
            await obstore.put_async(self._client, path, blob, mode="create", use_multipart=False)

        name = _last(path)
        try:
            await self.ask(write, deadline, timeout_s)
        except Refused as refused:
            if refused.failure.trouble is not Trouble.EXISTS:
                raise self.failed(refused.failure, name) from None
            if attempts == 1 or not await self._is_there(path, blob, deadline, timeout_s):
                raise self.failed(refused.failure, name) from None

    async def _is_there(self, path: str, blob: bytes, deadline: float, timeout_s: float) -> bool:
        """Whether exactly this blob is under the name."""
        try:
            if await self._head(path, deadline, timeout_s) != len(blob):
                return False
            return not blob or await self.read(path, Range(0, len(blob)), deadline, timeout_s) == blob
        except (ShardMissing, ShardTruncated):
            return False
        except Refused as refused:
            if refused.failure.trouble in (Trouble.MISSING, Trouble.UNTOLD):
                return False
            raise self.failed(refused.failure, _last(path)) from None

    async def remove(self, path: str, timeout_s: float) -> None:
        """Have a name gone."""
        deadline = asyncio.get_running_loop().time() + timeout_s

        async def remove() -> None:
            self.requests.deletes += 1
            await obstore.delete_async(self._client, path)

        try:
            await self.ask(remove, deadline, timeout_s)
        except Refused as refused:
            # A name that is not there is no error to S3. A server that says "not found" does not know the
            # request, and has deleted nothing.
            raise self.failed(refused.failure, "") from None

    async def read(self, path: str, range_: Range, deadline: float, timeout_s: float) -> memoryview:
        """A range of what is there."""
        offset, length = range_

        async def read() -> memoryview:
            self.requests.gets += 1
            found = await obstore.get_range_async(self._client, path, start=offset, length=length)
            view = memoryview(found)
            self.requests.bytes_out += len(view)
            return view

        try:
            view = await self.ask(read, deadline, timeout_s)
        except Refused as refused:
            raise self.failed(refused.failure, _last(path)) from None
        if len(view) != length:
            raise self.failed(Failure(Trouble.BEHIND_THE_END, f"{len(view)} of {length} bytes"), _last(path))
        return view

    async def read_small(self, path: str, most: int, timeout_s: float) -> bytes:
        """All of what is there, which has at most so many bytes; the begin of what has more."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        size = await self.size(path, timeout_s)
        if not size:
            return b""
        return bytes(await self.read(path, Range(0, min(size, most)), deadline, timeout_s))

    async def size(self, path: str, timeout_s: float) -> int:
        """Length of what is there."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        try:
            return await self._head(path, deadline, timeout_s)
        except Refused as refused:
            if refused.failure.trouble is not Trouble.UNTOLD:
                raise self.failed(refused.failure, _last(path)) from None
            # An answer to HEAD has no code: whether the blob is gone or its bucket, a read tells.
            await self.read(path, Range(0, 1), deadline, timeout_s)
            raise self.failed(refused.failure, _last(path)) from None

    async def _head(self, path: str, deadline: float, timeout_s: float) -> int:
        async def head() -> int:
            self.requests.gets += 1
            return (await obstore.head_async(self._client, path))["size"]

        return await self.ask(head, deadline, timeout_s)

    async def page(self, folder: str, after: str, limit: int, timeout_s: float) -> Sizes:
        """Up to `limit` names in a folder behind `after`, with their sizes; what is no name of ours is left
        out."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        offset = f"{folder}/{after}" if after else None

        async def read() -> Sizes:
            found: Sizes = []
            async for chunk in obstore.list(self._client, folder, offset=offset, chunk_size=min(limit, PAGE)):
                self.requests.puts += 1
                for each in chunk:
                    name = each["path"].removeprefix(f"{folder}/")
                    if NAME.match(name):
                        found.append((name, each["size"]))
                if len(found) >= limit:
                    break
            else:
                self.requests.puts += 1
            return found[:limit]

        try:
            return await self.ask(read, deadline, timeout_s)
        except Refused as refused:
            raise self.failed(refused.failure, "") from None

    async def first(self, limit: int, timeout_s: float) -> list[str]:
        """A few of all names there are, whoever made them."""
        deadline = asyncio.get_running_loop().time() + timeout_s

        async def read() -> list[str]:
            self.requests.puts += 1
            async for chunk in obstore.list(self._client, None, chunk_size=limit):
                return [each["path"] for each in chunk][:limit]
            return []

        try:
            return await self.ask(read, deadline, timeout_s)
        except Refused as refused:
            raise self.failed(refused.failure, "") from None

    async def ask(self, ask: Callable[[], Awaitable[T]], deadline: float, timeout_s: float) -> T:
        """What `ask` answers, asked again where that may help. Raises Refused, StoreOverdue, StoreFailed."""
        loop = asyncio.get_running_loop()
        attempt = 0
        while True:
            attempt += 1
            self.check(deadline - loop.time(), timeout_s)
            try:
                async with asyncio.timeout_at(deadline):
                    answer = await ask()
            except TimeoutError:
                raise self._overdue(timeout_s) from None
            except CLIENT_ERRORS as error:
                failure = judge(error)
            else:
                self._retries.succeeded()
                self._throttled = 0
                return answer
            if failure.trouble not in AGAIN:
                self._throttled = 0
                raise Refused(failure)
            wait_s = self._retries.wait_s(attempt, deadline - loop.time(), self._randomness.fraction())
            if wait_s is None:
                self._throttled += failure.trouble is Trouble.THROTTLED
                raise Refused(failure)
            await self._clock.sleep(wait_s)

    def check(self, left_s: float, timeout_s: float | None = None) -> None:
        """Raise StoreFailed once it is closed, StoreOverdue where no time is left."""
        if self._closed:
            raise self._told(StoreFailed(f"{self.who} is closed."))
        if left_s <= 0:
            raise self._overdue(left_s if timeout_s is None else timeout_s)

    def _overdue(self, timeout_s: float) -> StoreOverdue:
        return self._told(StoreOverdue(f"{self.who} did not answer in {timeout_s:g} s."))

    def _told(self, error: E) -> E:
        if self.store is not None:
            error.facts["store"] = self.store
        return error

    def failed(self, failure: Failure, name: str) -> HoldfastError:
        """The port's error for what the provider said."""
        return self._told(self._failed(failure, name))

    def _failed(
        self, failure: Failure, name: str
    ) -> ShardMissing | ShardExists | ShardTruncated | StoreBusy | StoreFailed:
        where, said = self.who, failure.said
        match failure.trouble:
            case Trouble.MISSING if name:
                return ShardMissing(f"{where} has no blob {name}.", name=name)
            case Trouble.EXISTS:
                return ShardExists(f"{where} has a blob {name} already.", name=name)
            case Trouble.BEHIND_THE_END:
                return ShardTruncated(f"Blob {name} of {where} ends before what was asked for.", name=name)
            case Trouble.THROTTLED if self._throttled <= THROTTLED_MAX:
                return StoreBusy(f"{where} asks for fewer requests ({said}).", said=said)
            case Trouble.REFUSED:
                return StoreFailed(
                    f"{where} does not take the credentials ({said}).",
                    hint="Look whether they have expired, and what they allow.",
                    said=said,
                )
            case _:
                return StoreFailed(f"{where} failed ({said}).", said=said)


def _last(path: str) -> str:
    return path.rpartition("/")[2]
