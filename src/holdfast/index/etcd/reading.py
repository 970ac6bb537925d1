"""Reads: many callers' gets as one transaction of etcd, and scans.

A get that finds no other under way goes at once. One that comes meanwhile waits until none is, or for
`BESIDE_AFTER_S`, whichever is first, and then goes with all that wait. So where etcd answers quickly, and the
processor is what there is too little of, many gets cost one transaction; where it is far away, company makes
nobody wait much longer.

Every read is linearizable: the member that answers asks the leader first how far it must have come. What
must hold: the keys of one get are of one revision, and so is a scan, however many questions it takes; and
each answer shows the meta row, so that nobody goes on reading an index that is not the truth any more.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from msgspec import Struct

from holdfast.base.errors import Damaged, HoldfastError, Unavailable
from holdfast.index.etcd import wire
from holdfast.index.etcd.connections import Compacted, Connections
from holdfast.index.etcd.lane import check_meta
from holdfast.index.etcd.schema import Keys, Known, Revisions, decode_row
from holdfast.index.port import Prefix, Row
from holdfast.index.rules import past_prefix, rolled_up

KEYS_AT_ONCE = 100
BESIDE_AFTER_S = 0.01
PAGE_ROWS_MAX = 256
PAGE_ROWS_JUMPING = 16
_TRIES = 3

T = TypeVar("T")


class _Waiting(Struct):
    keys: Sequence[bytes]
    future: asyncio.Future[list[Row | None]]


class Reader:
    """`at_once` is how many reads of etcd are under way at once."""

    def __init__(self, connections: Connections, keys: Keys, known: Known, at_once: int) -> None:
        self._connections = connections
        self._keys = keys
        self._known = known
        self._revisions = Revisions(known.meta.base)
        self._at_once = self._free = at_once
        self._queue: deque[_Waiting] = deque()
        self._keys_waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """As the port says."""
        if len(keys) > KEYS_AT_ONCE:
            return await self._again(lambda: self._get_many(keys))
        future: asyncio.Future[list[Row | None]] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(keys, future))
        self._keys_waiting += len(keys)
        self._begin()
        return await future

    def _begin(self, late: bool = False) -> None:
        while self._queue and self._free and not self._closed:
            if self._free < self._at_once and self._keys_waiting < KEYS_AT_ONCE and not late:
                break
            late = False
            self._free -= 1
            task = asyncio.create_task(self._run(self._take()), name="holdfast index read")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self._watch()

    def _watch(self) -> None:
        """See to it that nobody waits long for a place that is free."""
        wanted = bool(self._queue) and bool(self._free) and not self._closed
        if wanted and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BESIDE_AFTER_S, self._late)
        elif not wanted and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        self._begin(late=True)

    def _take(self) -> list[_Waiting]:
        taken: list[_Waiting] = []
        count = 0
        while self._queue:
            count += len(self._queue[0].keys)
            if taken and count > KEYS_AT_ONCE:
                break
            taken.append(self._queue.popleft())
        self._keys_waiting -= sum(len(call.keys) for call in taken)
        return taken

    async def _run(self, taken: list[_Waiting]) -> None:
        try:
            await self._answer(taken)
        except Damaged as error:
            # One row nobody can answer is no reason to refuse the others.
            if len(taken) == 1:
                _fail(taken, error)
            for call in taken if len(taken) > 1 else ():
                await self._alone(call)
        except asyncio.CancelledError:
            _fail(taken, Unavailable("The index is closed."))
            raise
        except Exception as error:
            _fail(taken, error)
        finally:
            self._free += 1
            self._begin()

    async def _answer(self, taken: Sequence[_Waiting]) -> None:
        wanted = list({key: None for call in taken for key in call.keys})
        _, rows = await self._read(wanted)
        for call in taken:
            if not call.future.done():
                call.future.set_result([rows.get(key) for key in call.keys])

    async def _alone(self, call: _Waiting) -> None:
        try:
            await self._answer([call])
        except HoldfastError as error:
            _fail([call], error)

    async def _read(self, wanted: Sequence[bytes], revision: int = 0) -> tuple[int, dict[bytes, Row]]:
        """The rows of some keys, and the revision at which they were so."""
        request = wire.txn_request(
            (),
            [
                wire.range_op(wire.range_request(self._keys.meta)),
                *(
                    wire.range_op(wire.range_request(self._keys.row(key), revision=revision))
                    for key in wanted
                ),
            ],
        )

        def read(data: bytes) -> tuple[int, dict[bytes, Row]]:
            answer = wire.txned(data)
            check_meta(answer.ranged(0), self._known)
            rows = {}
            for at, key in enumerate(wanted, 1):
                for kv in answer.ranged(at):
                    rows[key] = decode_row(key, kv.value, kv.modified, self._revisions)
            return answer.revision, rows

        answer, _ = await self._connections.call(wire.TXN, request, read)
        return answer

    async def _get_many(self, keys: Sequence[bytes]) -> list[Row | None]:
        wanted = list(dict.fromkeys(keys))
        revision = 0
        rows: dict[bytes, Row] = {}
        for at in range(0, len(wanted), KEYS_AT_ONCE):
            now, found = await self._read(wanted[at : at + KEYS_AT_ONCE], revision)
            revision = revision or now
            rows.update(found)
        return [rows.get(key) for key in keys]

    async def scan(
        self, start: bytes, end: bytes, limit: int, delimiter: bytes, skip: int
    ) -> list[Row | Prefix]:
        """As the port says."""
        return await self._again(lambda: self._walk(start, end, limit, delimiter, skip))

    async def _walk(
        self, start: bytes, end: bytes, limit: int, delimiter: bytes, skip: int
    ) -> list[Row | Prefix]:
        items: list[Row | Prefix] = []
        after: bytes | None = start
        revision = 0
        page = PAGE_ROWS_JUMPING if delimiter else PAGE_ROWS_MAX
        while after is not None and after < end and len(items) < limit:
            wanted = min(page, limit - len(items) + bool(delimiter))
            now, rows, more = await self._page(after, end, wanted, revision)
            revision = revision or now
            after = rows[-1].key + b"\0" if more else None
            page = min(2 * page, PAGE_ROWS_MAX)
            for row in rows:
                prefix = rolled_up(row.key, delimiter, skip)
                item = prefix or row
                if items and item == items[-1]:
                    continue
                if len(items) == limit:
                    break
                items.append(item)
            last = items[-1] if items else None
            if more and isinstance(last, Prefix) and rows[-1].key.startswith(last.key):
                # The page ended among keys that one prefix stands for: past them all.
                after = past_prefix(last.key)
                page = PAGE_ROWS_JUMPING
        return items

    async def _page(self, start: bytes, end: bytes, limit: int, revision: int) -> tuple[int, list[Row], bool]:
        request = wire.txn_request(
            (),
            [
                wire.range_op(wire.range_request(self._keys.meta)),
                wire.range_op(
                    wire.range_request(
                        self._keys.row(start), self._keys.row(end), limit=limit, revision=revision
                    )
                ),
            ],
        )
        cut = len(self._keys.rows)

        def read(data: bytes) -> tuple[int, list[Row], bool]:
            answer = wire.txned(data)
            check_meta(answer.ranged(0), self._known)
            page = wire.ranged(answer.responses[1].message(1))
            rows = [decode_row(kv.key[cut:], kv.value, kv.modified, self._revisions) for kv in page.found]
            return answer.revision, rows, page.more

        answer, _ = await self._connections.call(wire.TXN, request, read)
        return answer

    async def _again(self, work: Callable[[], Awaitable[T]]) -> T:
        """Begin anew when the revision that was read was forgotten in the middle."""
        for _ in range(_TRIES - 1):
            try:
                return await work()
            except Compacted:
                continue
        return await work()

    async def close(self) -> None:
        """Fail what waits."""
        self._closed = True
        self._watch()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while self._queue:
            call = self._queue.popleft()
            if not call.future.done():
                call.future.set_exception(Unavailable("The index is closed."))


def _fail(taken: Sequence[_Waiting], error: Exception) -> None:
    for call in taken:
        if not call.future.done():
            call.future.set_exception(error)
