"""Clients that do what clients do, by chance, and tell the book of everything.

Some keys are shared by all clients, some belong to one client alone, who repeats what failed under the
same request id, as the SDKs do.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import RequestId
from holdfast.objects import errors as e
from holdfast.objects import model as m
from tests.simulation.book import TOKEN, Book, Open
from tests.simulation.contents import ClientGone, SimulatedBody, etag_of, etag_of_parts, make_bytes
from tests.simulation.history import ANYTHING, NOTHING, SOMETHING, Need, Sort
from tests.simulation.node import SimulatedNode
from tests.simulation.world import Crashed, World

T = TypeVar("T")

SHARED_KEYS = ("a", "b", "dir/a", "dir/b", "dir/c", "é/ü", "zz")
OWN_KEYS = ("one", "two", "three")
TRIES = 4


class Failed(Exception):
    """No acknowledgement; what it was about may or may not have happened."""

    def __init__(self, *, crashed: bool = False) -> None:
        super().__init__()
        self.crashed = crashed


class Client:
    """One of several, each a task."""

    def __init__(self, world: World, book: Book, number: int, buckets: tuple[str, ...]) -> None:
        self._world = world
        self._book = book
        self._number = number
        self._buckets = buckets
        self._chance = world.chance(f"client {number}")
        self._tokens = 0
        self.pause_s = (0.0, 0.05)
        self.bytes_max = 1 << 20
        self.keys: tuple[str, ...] = SHARED_KEYS
        self._actions: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (24, self.put),
            (10, self.put_own),
            (24, self.get),
            (8, self.get_range),
            (4, self.head),
            (5, self.create),
            (4, self.replace),
            (9, self.delete),
            (3, self.delete_several),
            (7, self.copy),
            (2, self.copy_onto_itself),
            (6, self.list_some),
            (5, self.multipart),
            (2, self.broken_put),
        ]

    async def work(self, requests: int) -> None:
        """So many actions, with pauses."""
        total = sum(weight for weight, _ in self._actions)
        for _ in range(requests):
            at = self._chance.below(total)
            for weight, action in self._actions:
                if at < weight:
                    await action()
                    break
                at -= weight
            least, most = self.pause_s
            await self._world.clock.sleep(least + (most - least) * self._chance.fraction())

    # Requests

    async def put(self) -> None:
        """An unconditional PUT of a shared key."""
        await self._put(*self._shared(), self._size())

    async def put_own(self) -> None:
        """A PUT of a key that nobody else writes, repeated until it is answered."""
        bucket = self._pick(self._buckets)
        key = f"own/{self._number}/{self._pick(OWN_KEYS)}"
        await self._put(bucket, key, self._size(), tries=TRIES)

    async def create(self) -> None:
        """A PUT if nothing is there."""
        bucket, key = self._shared()
        conditions = m.Conditions(if_none_match=("*",))
        await self._put(bucket, key, self._size(), conditions, NOTHING, SOMETHING)

    async def replace(self) -> None:
        """A PUT if a certain version is there."""
        bucket, key = self._shared()
        etag = await self._some_etag(bucket, key)
        if etag:
            conditions = m.Conditions(if_match=(etag,))
            need, refused = Need(Sort.ETAG, etag), Need(Sort.OTHER_ETAG, etag)
            await self._put(bucket, key, self._size(), conditions, need, refused)

    async def broken_put(self) -> None:
        """A PUT whose client goes away or sends other bytes than it says: must leave nothing."""
        bucket, key = self._shared()
        data = make_bytes(self._token(), self._size())
        clock = self._world.clock
        if self._chance.below(2):
            body = SimulatedBody(data, clock, breaks_at=self._chance.below(len(data) + 1))
        else:
            body = SimulatedBody(data, clock, md5=bytes(16))
        put = m.PutObject(bucket=bucket, key=key, body=body, metadata=((TOKEN, "broken"),))
        open_ = self._begin(bucket, key, "broken put")
        try:
            await self._send(open_, len(data), lambda node: node.objects.put_object(put))
        except (e.BadDigest, ClientGone, Failed):
            return
        raise AssertionError("a broken body was acknowledged")

    async def get(self) -> None:
        """All of an object."""
        await self._read(*self._any_key())

    async def get_range(self) -> None:
        """A part of an object, the three ways to ask for it."""
        first = self._chance.below(self.bytes_max)
        ranges = ((first, first + self._chance.below(100_000)), (first, None), (None, 1 + first))
        await self._read(*self._any_key(), range_=self._pick(ranges))

    async def head(self) -> None:
        """What is there, without its bytes."""
        await self._look(*self._any_key())

    async def delete(self) -> None:
        """One key; sometimes only a certain version."""
        bucket, key = self._any_key() if self._chance.below(3) == 0 else self._shared()
        if key.startswith("own/") and not key.startswith(f"own/{self._number}/"):
            return
        if self._chance.below(4):
            await self._delete(bucket, [m.DeleteKey(key=key)])
        elif etag := await self._some_etag(bucket, key):
            await self._delete(bucket, [m.DeleteKey(key=key, if_match=(etag,))])

    async def delete_several(self) -> None:
        """Some keys at once."""
        bucket = self._pick(self._buckets)
        keys = [key for key in SHARED_KEYS if self._chance.below(2)]
        if keys:
            await self._delete(bucket, [m.DeleteKey(key=key) for key in keys])

    async def copy(self) -> None:
        """Within a bucket, or to one with another scheme."""
        await self._copy(*self._any_key(), *self._shared())

    async def copy_onto_itself(self) -> None:
        """The way to change metadata."""
        bucket, key = self._shared()
        await self._copy(bucket, key, bucket, key)

    async def list_some(self) -> None:
        """One page."""
        bucket = self._pick(self._buckets)
        prefix = self._pick(("", "", "dir/", "own/"))
        after = self._pick(("", "", "b", "dir/a"))
        request = m.ListObjects(bucket=bucket, prefix=prefix, after=after, limit=1 + self._chance.below(20))
        await self.list_page(request)

    async def list_page(self, request: m.ListObjects) -> m.Listing | None:
        """A page without a delimiter."""
        open_ = self._begin(request.bucket, "", "list")
        try:
            listing = await self._send(open_, 0, lambda node: node.objects.list_objects(request))
        except Failed:
            return None
        self._book.listed(open_, self._world.tick(), request, listing)
        return listing

    async def multipart(self) -> None:
        """An upload in parts: completed, aborted, or left lying."""
        bucket, key = self._shared()
        token = self._token()
        least = self._world.settings.part_bytes_min
        sizes = [least + self._chance.below(least * 4) for _ in range(self._chance.below(4))]
        sizes.append(1 + self._chance.below(least))
        parts = [make_bytes(f"{token}.{number}", size) for number, size in enumerate(sizes)]
        etags = [etag_of(part) for part in parts]
        etag = self._book.promise(f"{bucket}/{key}", token, b"".join(parts), etag_of_parts(etags))
        create = m.CreateUpload(bucket=bucket, key=key, metadata=((TOKEN, token),))
        try:
            upload = await self._send(
                self._begin(bucket, key, "create upload"), 0, lambda node: node.objects.create_upload(create)
            )
            for number, part in enumerate(parts, 1):
                if self._chance.below(8) == 0:
                    other = make_bytes(f"{token}.other", least)
                    await self._upload(upload, number, other, etag_of(other))
                await self._upload(upload, number, part, etags[number - 1])
            if self._chance.below(5) == 0:
                await self._send(
                    self._begin(bucket, key, "abort"),
                    0,
                    lambda node: node.objects.abort_upload(bucket, key, upload.upload),
                )
                return
        except Failed:
            return
        if self._chance.below(8) == 0:
            return
        complete = m.CompleteUpload(
            bucket=bucket,
            key=key,
            upload=upload.upload,
            parts=tuple(m.CompletePart(number, part) for number, part in enumerate(etags, 1)),
        )
        open_ = self._begin(bucket, key, "complete")
        try:
            stored = await self._send(open_, sum(sizes), lambda node: node.objects.complete_upload(complete))
        except Failed as failed:
            self._book.doubts(open_, token, crashed=failed.crashed)
            return
        assert stored.etag == etag
        self._book.wrote(open_, self._world.tick(), token)

    # How they go

    async def _upload(self, upload: m.Upload, number: int, data: bytes, etag: str) -> None:
        def send(node: SimulatedNode) -> Awaitable[m.Stored]:
            body = SimulatedBody(data, self._world.clock)
            return node.objects.upload_part(
                m.UploadPart(
                    bucket=upload.bucket, key=upload.key, upload=upload.upload, number=number, body=body
                )
            )

        open_ = self._begin(upload.bucket, upload.key, "part")
        stored = await self._send(open_, len(data), send)
        assert stored.etag == etag

    async def _put(
        self,
        bucket: str,
        key: str,
        size: int,
        conditions: m.Conditions = m.NO_CONDITIONS,
        need: Need = ANYTHING,
        refused: Need = NOTHING,
        tries: int = 1,
    ) -> None:
        token = self._token()
        data = make_bytes(token, size)
        etag = self._book.promise(f"{bucket}/{key}", token, data)
        open_ = self._begin(bucket, key, "put")
        request = RequestId(token if tries > 1 else "")
        pause_s = 0.002 * self._chance.below(3)

        def send(node: SimulatedNode) -> Awaitable[m.Stored]:
            return node.objects.put_object(
                m.PutObject(
                    bucket=bucket,
                    key=key,
                    body=SimulatedBody(data, self._world.clock, pause_s=pause_s),
                    metadata=((TOKEN, token),),
                    conditions=conditions,
                    request=request,
                )
            )

        for again in reversed(range(tries)):
            try:
                stored = await self._send(open_, size, send, slack_s=pause_s * (size // (1 << 18) + 1))
            except Failed as failed:
                if again:
                    await self._world.clock.sleep(0.5)
                    continue
                self._book.doubts(open_, token, need, crashed=failed.crashed)
            except e.PreconditionFailed:
                self._book.saw(open_, self._world.tick(), refused)
            except e.NoSuchKey:
                self._book.saw(open_, self._world.tick(), NOTHING)
            else:
                assert stored.etag == etag
                self._book.wrote(open_, self._world.tick(), token, need)
            return

    async def _some_etag(self, bucket: str, key: str) -> str:
        """That of what is there; sometimes of what was there once, perhaps."""
        known = [one.etag for one in self._book.versions.values() if one.where == f"{bucket}/{key}"]
        if known and self._chance.below(3) == 0:
            return known[self._chance.below(len(known))]
        record = await self._look(bucket, key)
        return "" if record is None else record.etag

    async def _look(self, bucket: str, key: str) -> m.VersionRecord | None:
        open_ = self._begin(bucket, key, "head")
        read = m.ReadObject(bucket=bucket, key=key)
        try:
            view = await self._send(open_, 0, lambda node: node.objects.head_object(read))
        except e.NoSuchKey:
            self._book.saw(open_, self._world.tick(), NOTHING)
            return None
        except Failed:
            return None
        self._book.read(open_, self._world.tick(), view.record, None, 0)
        return view.record

    async def _read(
        self, bucket: str, key: str, range_: tuple[int | None, int | None] | None = None
    ) -> bytes | None:
        open_ = self._begin(bucket, key, "get")
        read = m.ReadObject(bucket=bucket, key=key, range_=range_)

        async def take(node: SimulatedNode) -> tuple[m.ObjectView, bytes]:
            view = await node.objects.read_object(read)
            if view.body is None:
                assert view.whole is not None
                return view, bytes(view.whole)
            return view, b"".join([bytes(piece) async for piece in view.body()])

        try:
            view, data = await self._send(open_, 0, take)
        except e.NoSuchKey:
            self._book.saw(open_, self._world.tick(), NOTHING)
            return None
        except e.InvalidRange as error:
            if range_ is None or (range_[0] or 0) < int(str(error.facts["size"])):
                raise
            return None
        except Failed:
            return None
        assert len(data) == view.length
        if range_ is None:
            assert view.length == view.record.size
        self._book.read(open_, self._world.tick(), view.record, data, view.first)
        return data

    async def read_all(self, bucket: str, key: str) -> bytes | None:
        """All bytes of an object, or None when nothing is there."""
        return await self._read(bucket, key)

    async def _delete(self, bucket: str, wanted: list[m.DeleteKey]) -> None:
        opens = [self._begin(bucket, key.key, "delete") for key in wanted]
        try:
            results = await self._send(
                opens[0], 0, lambda node: node.objects.delete_objects(bucket, wanted, RequestId(""))
            )
        except Failed as failed:
            for open_, key in zip(opens, wanted, strict=True):
                self._book.doubts(open_, None, _found(key), crashed=failed.crashed)
            return
        tick = self._world.tick()
        for open_, key, result in zip(opens, wanted, results, strict=True):
            if result.error is None:
                self._book.wrote(open_, tick, None, _found(key))
            elif isinstance(result.error, e.PreconditionFailed):
                assert key.if_match is not None
                self._book.saw(open_, tick, Need(Sort.OTHER_ETAG, key.if_match[0]))
            elif isinstance(result.error, e.NoSuchKey):
                self._book.saw(open_, tick, NOTHING)
            else:
                self._book.tell(open_, self._world.clock.monotonic(), 0, repr(result.error))
                self._book.doubts(open_, None, _found(key), crashed=False)

    async def _copy(self, source_bucket: str, source: str, bucket: str, key: str) -> None:
        token = self._token()
        open_ = self._begin(bucket, key, "copy")
        reads = self._begin(source_bucket, source, "copy from")
        self._book.promise_copy(open_.key, token, reads.key)
        copy = m.CopyObject(
            source_bucket=source_bucket,
            source_key=source,
            bucket=bucket,
            key=key,
            replace=True,
            metadata=((TOKEN, token),),
        )
        try:
            stored = await self._send(open_, 0, lambda node: node.objects.copy_object(copy))
        except e.NoSuchKey:
            self._book.saw(reads, self._world.tick(), NOTHING)
            return
        except Failed as failed:
            self._book.doubts(open_, token, crashed=failed.crashed)
            return
        self._book.learn(token, stored.etag)
        tick = self._world.tick()
        self._book.saw(reads, tick, Need(Sort.ONE_OF, self._book.same_bytes(stored.etag)))
        self._book.wrote(open_, tick, token)

    async def _send(
        self,
        open_: Open,
        size: int,
        request: Callable[[SimulatedNode], Awaitable[T]],
        slack_s: float = 0.0,
    ) -> T:
        world, book = self._world, self._book
        world.trace.note(self._number, open_.what, open_.key, size)
        began = world.clock.monotonic()
        error, refused = "", False
        try:
            return await world.call(request)
        except Crashed:
            error = "crashed"
            raise Failed(crashed=True) from None
        except (e.ConditionalConflict, e.TooBusy) as raised:
            error = repr(raised)
            raise Failed from raised
        except e.InvalidInput:
            refused = True
            raise
        except HoldfastError as raised:
            error = repr(raised)
            raise Failed from raised
        finally:
            now = world.clock.monotonic()
            world.trace.note(self._number, open_.what, open_.key, error or "answered")
            open_.at = began
            book.tell(open_, now, size, error, slack_s, refused=refused)

    # Chance

    def _begin(self, bucket: str, key: str, what: str) -> Open:
        return self._book.begin(f"{bucket}/{key}", what, self._world.tick(), self._world.clock.monotonic())

    def _token(self) -> str:
        self._tokens += 1
        return f"v{self._number}.{self._tokens}"

    def _pick(self, among: tuple[T, ...]) -> T:
        return among[self._chance.below(len(among))]

    def _shared(self) -> tuple[str, str]:
        return self._pick(self._buckets), self._pick(self.keys)

    def _any_key(self) -> tuple[str, str]:
        known = sorted(key for key in self._book.histories if not key.endswith("/"))
        if not known or self._chance.below(4) == 0:
            return self._shared()
        bucket, _, key = known[self._chance.below(len(known))].partition("/")
        return bucket, key

    def _size(self) -> int:
        dice = self._chance.below(20)
        if dice == 0:
            return 0
        if dice < 12:
            return 1 + self._chance.below(20_000)
        if dice < 18:
            return 1 + self._chance.below(200_000)
        return 1 + self._chance.below(self.bytes_max)


def _found(key: m.DeleteKey) -> Need:
    return Need(Sort.ETAG, key.if_match[0]) if key.if_match else ANYTHING
