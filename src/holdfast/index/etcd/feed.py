"""The change feed: a watch of etcd, put together into commits of the port.

etcd tells the changes of one of its revisions one by one; the lane's row among them says how many
transactions of the port they are and which deletes belong to which. A delete of a row without a lane's is a
lease that ran out.

What must hold: a commit is told whole or not at all, each once, in order, without gaps; who asks for more
than etcd remembers is told so.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Protocol

import grpc.aio

from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, InvalidInput, Unavailable
from holdfast.index.etcd import wire
from holdfast.index.etcd.connections import Compacted, Connections, Stream, judge
from holdfast.index.etcd.lane import check_meta
from holdfast.index.etcd.schema import Keys, Known, Revisions, decode_frame, decode_row
from holdfast.index.port import Change

SILENCE_S = 3.0
"""After so long without an event it is asked whether there should have been one."""

PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 1.0


class Grouping:
    """Events in, whole commits out. Pure."""

    def __init__(self, keys: Keys, known: Known) -> None:
        self._keys = keys
        self._known = known
        self._revisions = Revisions(known.meta.base)
        self._open: list[wire.Event] = []

    def add(self, events: Iterable[wire.Event]) -> list[Change]:
        """What is complete now; `events` are one message. Raises Fenced, Damaged."""
        changes: list[Change] = []
        for event in events:
            if self._open and event.modified != self._open[0].modified:
                changes.extend(self._close())
            self._open.append(event)
        if self._open and self._complete():
            changes.extend(self._close())
        return changes

    def _complete(self) -> bool:
        puts = 0
        expected = 0
        for event in self._open:
            if event.value is None:
                continue
            if event.key.startswith(self._keys.rows):
                puts += 1
            elif event.key.startswith(self._keys.lanes):
                expected = decode_frame(event.value).puts
        return puts >= expected

    def _close(self) -> list[Change]:
        """The commits of the revision whose events are all there."""
        events, self._open = self._open, []
        modified = events[0].modified
        frame = None
        puts: dict[int, list[tuple[bytes, bytes]]] = {}
        deletes: list[bytes] = []
        for event in events:
            if event.key.startswith(self._keys.rows):
                key = event.key[len(self._keys.rows) :]
                if event.value is None:
                    deletes.append(key)
                    continue
                row = decode_row(key, event.value, modified, self._revisions)
                puts.setdefault(self._revisions.etcd(row.revision)[1], []).append((key, row.value))
            elif event.key.startswith(self._keys.lanes):
                frame = decode_frame(event.value) if event.value is not None else None
            elif event.key == self._keys.meta:
                check_meta(
                    [] if event.value is None else [wire.KeyValue(event.key, event.value, 0, modified, 0)],
                    self._known,
                )
        told = sum(map(len, puts.values()))
        if told != (frame.puts if frame is not None else 0):
            raise Damaged(f"etcd told revision {modified} in part, or somebody else writes into the index.")
        if frame is None:
            return [Change(self._revisions.port(modified), (), tuple(deletes))] if deletes else []
        mine: dict[int, list[bytes]] = {0: deletes} if frame.deletes is None else {}
        for place, key in frame.deletes or ():
            mine.setdefault(place, []).append(key)
        return [
            Change(
                self._revisions.port(modified, place),
                tuple(puts.get(place, ())),
                tuple(mine.get(place, ())),
            )
            for place in range(frame.count)
        ]


class Newest(Protocol):
    """Tells the newest revision of etcd at which something was committed."""

    async def __call__(self) -> int: ...


class Feed:
    """All watches of one index."""

    def __init__(
        self,
        connections: Connections,
        keys: Keys,
        known: Known,
        clock: Clock,
        newest: Newest,
        check: Callable[[], None],
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._known = known
        self._clock = clock
        self._newest = newest
        self._check = check
        self._revisions = Revisions(known.meta.base)
        self._closed = asyncio.Event()

    async def changes(self, after: int) -> AsyncIterator[Change]:
        """As the port says."""
        start = await self._begin(after)
        pause = PAUSE_FIRST_S
        at = damaged = 0
        while True:
            self._check()
            endpoints = self._connections.endpoints
            endpoint = endpoints[at % len(endpoints)] if at else self._connections.preferred
            watch = _Watch(self._connections.stream(endpoint, wire.WATCH), Grouping(self._keys, self._known))
            try:
                watch.begin(wire.watch_request(self._keys.all, self._keys.all_end, start))
                while (changes := await self._next(watch, start)) is not None:
                    start = max(start, watch.told)
                    for change in changes:
                        if change.revision > after:
                            after, pause, damaged = change.revision, PAUSE_FIRST_S, 0
                            yield change
            except Damaged:
                damaged += 1
                if damaged > len(endpoints):
                    raise
            except grpc.aio.AioRpcError as error:
                judge(error.code(), error.details() or "")
            except (grpc.aio.UsageError, asyncio.InvalidStateError):
                self._check()
            finally:
                watch.end()
            at += 1
            self._check()
            await self._clock.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX_S)

    async def _begin(self, after: int) -> int:
        """The revision of etcd to watch from. Raises InvalidInput for what the feed cannot tell."""
        newest, _ = await self._connections.call(
            wire.RANGE,
            wire.range_request(self._keys.meta),
            lambda data: wire.ranged(wire.Message(data)),
        )
        check_meta(newest.found, self._known)
        last = self._revisions.port(newest.revision + 1) - 1
        if after > last:
            raise InvalidInput(f"The index is at most at revision {last}, before {after}.")
        start, _ = self._revisions.etcd(after)
        if start >= self._known.modified:
            return start
        filled = self._known.meta.filled
        # Between that and its opening nobody committed.
        if not self._known.meta.whole and not 0 < filled <= start:
            raise InvalidInput(
                "The change feed does not reach back to before the index was copied here.",
                hint="Compare and copy instead.",
            )
        return self._known.modified

    async def _next(self, watch: "_Watch", start: int) -> list[Change] | None:
        """The commits of the next message. None when the watch ended, or should have told something and did
        not."""
        while True:
            closed = asyncio.ensure_future(self._closed.wait())
            try:
                await asyncio.wait(
                    (closed, watch.read), timeout=SILENCE_S, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                closed.cancel()
            if self._closed.is_set():
                raise Unavailable("The index is closed.")
            self._check()
            if not watch.read.done():
                if await self._newest() > watch.told:
                    return None
                continue
            message = watch.take()
            if not isinstance(message, bytes):
                return None
            told = wire.watched(message)
            if told.compacted:
                raise Compacted(
                    f"The change feed reaches back to revision {self._revisions.port(told.compacted)}, "
                    f"not to {self._revisions.port(start)}.",
                    hint="Compare and copy instead.",
                )
            if told.canceled:
                if "permission" in told.reason:
                    raise InvalidInput(f"etcd refuses a watch: {told.reason}.", hint="Mend the user's role.")
                return None
            changes = watch.grouping.add(told.events)
            if told.events:
                watch.told = told.events[-1].modified
            elif watch.begun:
                watch.told = max(watch.told, told.revision)  # nothing happened up to there
            watch.begun = True
            return changes

    def close(self) -> None:
        """Fail whoever waits."""
        self._closed.set()


class _Watch:
    """A stream with one read under way. `told` is the revision of etcd up to which all is told."""

    def __init__(self, stream: Stream, grouping: Grouping) -> None:
        self._stream = stream
        self.grouping = grouping
        self.told = 0
        self.begun = False
        self.read: asyncio.Future[object] = asyncio.get_running_loop().create_future()

    def begin(self, request: bytes) -> None:
        """Ask, and begin to read: nobody waits for the asking alone, which may never end when the index is
        closed meanwhile, or the member hangs."""
        self.read = asyncio.ensure_future(self._ask(request))

    async def _ask(self, request: bytes) -> object:
        await self._stream.write(request)
        return await self._stream.read()

    def take(self) -> object:
        """What was read; the next read is begun. Raises the driver's errors."""
        message = None if self.read.cancelled() else self.read.result()
        if isinstance(message, bytes):
            self.read = asyncio.ensure_future(self._stream.read())
        return message

    def end(self) -> None:
        self.read.cancel()
        self._stream.cancel()
