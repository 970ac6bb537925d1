"""A store of another node: the port over a PeerClient.

What must hold: at most so many calls are under way, so that a store that hangs cannot take all of the peer's
connections; large ones leave places to small ones; and whatever cannot be sent or was not answered ends in an
error of the port, by its time-out.
"""

import asyncio
from collections.abc import Sequence

import msgspec

from holdfast.base.checksums import Buffer
from holdfast.base.ids import StoreId
from holdfast.stores.peer import messages
from holdfast.stores.peer.client import PeerClient, Request
from holdfast.stores.peer.errors import PeerRefused, Refusal
from holdfast.stores.peer.room import Room
from holdfast.stores.port import Range, StoreBusy, StoreFailed, StoreOverdue, Usage, bytes_of, check_name

WIDTH = 32
WIDTH_LARGE = 16
LARGE_BYTES = 256 << 10
WAITING_MAX = 1024
_SMALL_ANSWER_BYTES = 1024
_NAME_JSON_BYTES = 131

_usage_decoder = msgspec.json.Decoder(Usage)


Pieces = list[Buffer]


class PeerStore:
    """The store `id` that the node behind `client` exports. Closing it leaves the client open."""

    def __init__(self, id: StoreId, client: PeerClient, *, width: int = WIDTH) -> None:
        assert messages.is_store_id(id), f"{id!r} is no name for a store"
        assert width >= 1
        self._id = id
        self._client = client
        self._root = f"/stores/{id}"
        self._blobs = f"/stores/{id}/blobs/"
        self._room = Room(width, WAITING_MAX)
        self._large = Room(max(1, width * WIDTH_LARGE // WIDTH), WAITING_MAX)
        self._closed = False

    @property
    def id(self) -> StoreId:
        return self._id

    @property
    def client(self) -> PeerClient:
        """The peer it lives at."""
        return self._client

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        check_name(name)
        size = bytes_of(data)
        assert size <= messages.BLOB_BYTES_MAX, "a blob that no peer takes"
        # What is empty is sent as one empty piece: a request without a content is not a put.
        pieces = [_flat(piece) for piece in data if len(piece)] or [b""]
        request = Request(
            "PUT",
            self._blobs + name,
            messages.write_reserve(reserve_share),
            content=pieces,
            content_bytes=size,
            again=False,
            store=self._id,
        )
        await self._ask(request, size, timeout_s)

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        check_name(name)
        total = 0
        for offset, length in ranges:
            assert offset >= 0
            assert length >= 1
            total += length
        if not ranges:
            return []
        if total > messages.ANSWER_BYTES_MAX or len(ranges) > messages.RANGES_MAX:
            return await self._get_in_parts(name, ranges, timeout_s, uncached)
        content = await self._read(name, ranges, total, timeout_s, uncached)
        return [content] if len(ranges) == 1 else _cut(content, ranges)

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        """Nothing of a peer can be had without waiting."""
        check_name(name)
        return None

    async def size(self, name: str, *, timeout_s: float) -> int:
        check_name(name)
        content = await self._ask(self._small("GET", self._blobs + name + "/size"), 0, timeout_s)
        try:
            return messages.size_decoder.decode(content).bytes
        except msgspec.DecodeError:
            raise self._unreadable() from None

    async def delete(self, name: str, *, timeout_s: float) -> None:
        check_name(name)
        await self._ask(Request("DELETE", self._blobs + name, again=False, store=self._id), 0, timeout_s)

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        assert limit >= 1
        assert messages.is_after(after), f"{after!r} is no name that could be listed"
        limit = min(limit, messages.LISTED_MAX)
        request = Request(
            "GET",
            f"{self._root}/blobs",
            f"after={after}&limit={limit}",
            answer_bytes=16 + limit * _NAME_JSON_BYTES,
            store=self._id,
        )
        content = await self._ask(request, 0, timeout_s)
        try:
            return messages.names_decoder.decode(content)
        except msgspec.DecodeError:
            raise self._unreadable() from None

    async def usage(self, *, timeout_s: float) -> Usage:
        content = await self._ask(self._small("GET", f"{self._root}/usage"), 0, timeout_s)
        try:
            return _usage_decoder.decode(content)
        except msgspec.DecodeError:
            raise self._unreadable() from None

    async def probe(self, *, timeout_s: float) -> None:
        await self._ask(Request("POST", f"{self._root}/probe", again=False, store=self._id), 0, timeout_s)

    async def close(self) -> None:
        self._closed = True

    def _small(self, method: str, path: str) -> Request:
        return Request(method, path, answer_bytes=_SMALL_ANSWER_BYTES, store=self._id)

    async def _get_in_parts(
        self, name: str, ranges: Sequence[Range], timeout_s: float, uncached: bool
    ) -> Pieces:
        deadline = asyncio.get_running_loop().time() + timeout_s
        parts = [bytearray(length) for _, length in ranges]
        filled, at = 0, 0
        for part in messages.split(ranges):
            left_s = deadline - asyncio.get_running_loop().time()
            total = sum(length for _, length in part)
            content = await self._read(name, part, total, left_s, uncached)
            for piece in _cut(content, part):
                parts[filled][at : at + len(piece)] = piece
                at += len(piece)
                if at == len(parts[filled]):
                    filled, at = filled + 1, 0
        return [*parts]

    async def _read(
        self, name: str, ranges: Sequence[Range], total: int, timeout_s: float, uncached: bool
    ) -> Buffer:
        query = messages.write_ranges(ranges, uncached=uncached)
        request = Request("GET", self._blobs + name, query, answer_bytes=total, store=self._id)
        content = await self._ask(request, total, timeout_s)
        if len(content) != total:
            raise self._unreadable()
        return content

    async def _ask(self, request: Request, size: int, timeout_s: float) -> Buffer:
        """Ask the peer; `size` is what moves, one way or the other."""
        if self._closed:
            raise StoreFailed(f"Store {self._id} is closed.", store=self._id)
        deadline = asyncio.get_running_loop().time() + timeout_s
        if timeout_s <= 0:
            raise self._overdue(timeout_s)
        if size <= LARGE_BYTES:
            if not self._room.take_now():
                await self._take(self._room, deadline, timeout_s)
            return await self._client.ask(request, deadline, timeout_s, self._room.give)
        if not self._large.take_now():
            await self._take(self._large, deadline, timeout_s)
        try:
            if not self._room.take_now():
                await self._take(self._room, deadline, timeout_s)
            return await self._client.ask(request, deadline, timeout_s, self._room.give)
        finally:
            self._large.give()

    async def _take(self, room: Room, deadline: float, timeout_s: float) -> None:
        try:
            if await room.take(1, deadline):
                return
        except TimeoutError:
            raise self._overdue(timeout_s) from None
        raise StoreBusy(f"Too many calls wait for store {self._id}.", store=self._id)

    def _overdue(self, timeout_s: float) -> StoreOverdue:
        return StoreOverdue(f"Store {self._id} did not answer in {timeout_s:g} s.", store=self._id)

    def _unreadable(self) -> PeerRefused:
        return PeerRefused(
            Refusal.NOT_A_PEER,
            f"Peer {self._client.node} answered with something else than was asked for.",
            store=self._id,
        )


def _flat(piece: Buffer) -> Buffer:
    """A view of single bytes, whatever the caller's view is of."""
    if isinstance(piece, memoryview) and (piece.format != "B" or piece.ndim != 1):
        return piece.cast("B")
    return piece


def _cut(content: Buffer, ranges: Sequence[Range]) -> list[Buffer]:
    view = memoryview(content)
    found: list[Buffer] = []
    at = 0
    for _, length in ranges:
        found.append(view[at : at + length])
        at += length
    return found
