"""The embedded index: the port over the log and its copies.

The log is the truth (`log`, `opening`); the newest rows are in memory (`live`), the others in SQLite
(`copies`). A commit gathers with others while a round is in flight, is decided in order against
everything decided before it, and is answered when a majority has synced it. A read asks memory first,
then a copy, and judges what the copy said by what is in memory at that moment.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

import msgspec
from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.leases import ProcessLeases
from holdfast.index.port import (
    Change,
    IndexState,
    IndexStatus,
    Lease,
    Outcome,
    Prefix,
    Row,
    Transaction,
)
from holdfast.index.rules import check_all, check_scan
from holdfast.index.sqlite.copies import Copies
from holdfast.index.sqlite.copy_place import CopyAccess, CopyOptions
from holdfast.index.sqlite.live import LiveRows
from holdfast.index.sqlite.log import Log
from holdfast.index.sqlite.opening import open_log
from holdfast.index.sqlite.records import (
    RECORD_BYTES_MAX,
    Kind,
    Record,
    changes_body,
    changes_of,
    revision_after,
)
from holdfast.index.sqlite.rounds import Call, Rounds
from holdfast.index.sqlite.seat import LogOptions, MemberAccess

_ROUND_BYTES_MAX = RECORD_BYTES_MAX // 2
_ROUND_TRANSACTIONS_MAX = 1024
_ROUNDS_IN_FLIGHT_MAX = 2
_LIVE_ROWS_MAX = 100_000
_EXPIRY_STEP_S = 0.1


class IndexOptions(Struct, frozen=True, kw_only=True):
    """`patience_s`: how long a commit or scan waits before it says Unknown or raises Unavailable.
    `checkpoint_bytes_min`: a checkpoint is made when the log since the last one is larger than this and
    than that one. `checkpoint_rest_s`: how long nothing is tried after one that did not help, because a
    member is full or a copy failed. `refresh_s`: how long a read waits, after the process stood still, to
    learn from the members whether it was replaced meanwhile. `open_s`: how long opening may take to
    read, and if need be build, a first copy."""

    patience_s: float = 5.0
    open_s: float = 600.0
    refresh_s: float = 0.5
    checkpoint_bytes_min: int = 64 << 20
    checkpoint_check_s: float = 1.0
    checkpoint_rest_s: float = 30.0
    log: LogOptions = LogOptions()
    copies: CopyOptions = CopyOptions()


async def open_index(
    *,
    members: Sequence[MemberAccess],
    copies: Sequence[CopyAccess],
    clock: Clock,
    randomness: Randomness,
    options: IndexOptions | None = None,
) -> "SqliteIndex":
    """Open the index whose log is kept by `members` (an odd number, 2f + 1, survives the loss of any f); a
    new one is begun when all of them are there and empty.

    `copies` are the places where copies of the rows may lie, the preferred ones first; as many as
    `options.copies.kept` are used at a time (f + 1 if it does not say, or fewer if there are fewer places).

    Raises Unavailable when no majority of the members is there, naming what is missing and where it was
    looked for; InvalidInput for an unusable choice of members; Fenced when others keep claiming it.
    """
    options = options or IndexOptions()
    if not members or len({member.name for member in members}) != len(members) or not copies:
        raise InvalidInput("The index needs members with names of their own, and a place for a copy.")
    if options.copies.kept is None:
        kept = len(members) // 2 + 1
        options = msgspec.structs.replace(options, copies=msgspec.structs.replace(options.copies, kept=kept))
    log = await open_log(members, clock, randomness, options.log)
    index = SqliteIndex(log, copies, clock, options)
    try:
        await index.start()
    except BaseException:
        await index.close()
        raise
    return index


class SqliteIndex:
    """The port. Made by `open_index`."""

    def __init__(self, log: Log, copies: Sequence[CopyAccess], clock: Clock, options: IndexOptions) -> None:
        self._log = log
        self._clock = clock
        self._options = options
        self._live = LiveRows(log.acked)
        self._copies = Copies(copies, log, self._live, clock, options.copies, options.patience_s)
        self._rounds = Rounds()
        self._leases = ProcessLeases(self, clock)
        self._revision = log.revision
        self._sent = self._acked = log.acked
        self._events: set[asyncio.Future[None]] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._checkpointing = asyncio.Lock()
        self._closed = False

    async def start(self) -> None:
        """Begin to serve: once a copy can answer."""
        self._log.on_acked = self._on_acked
        self._log.on_change = self._on_change
        await self._copies.start(self._options.open_s)
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._decide()),
            loop.create_task(self._expire()),
            loop.create_task(self._watch_log_size()),
        ]

    # Reading

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        self._check()
        if not self._log.is_fresh():
            await self._log.refresh(self._options.refresh_s)
        acked = self._live.acked
        rows = [entry.row for key in keys if (entry := acked.get(key)) is not None]
        if len(rows) == len(keys):
            return rows
        return await self._copies.get(keys)

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, delimiter: bytes = b"", skip: int = 0
    ) -> list[Row | Prefix]:
        self._check()
        check_scan(limit, skip)
        if not self._log.is_fresh():
            await self._log.refresh(self._options.refresh_s)
        return await self._copies.scan(start, end, limit, delimiter, skip, self._options.patience_s)

    async def changes(self, after: int) -> AsyncIterator[Change]:
        self._check()
        if after > self._revision:
            raise InvalidInput(f"The index is at revision {self._revision}, before {after}.")
        sequence = None
        while True:
            self._check()
            if after == self._revision:
                await self._event()
                continue
            if sequence is None:
                sequence = await self._log.sequence_at(after)
            for record in await self._log.read(sequence):
                sequence = record.sequence
                for number, (puts, deletes) in enumerate(changes_of(record), record.revision + 1):
                    if number > after:
                        after = number
                        yield Change(number, puts, deletes)

    # Writing

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        self._check()
        sizes = check_all(transactions)
        if not transactions:
            return []
        future: asyncio.Future[list[Outcome]] = asyncio.get_running_loop().create_future()
        deadline = self._clock.monotonic() + self._options.patience_s
        self._rounds.add(Call(transactions, sizes, future, deadline))
        if self._events:
            self._happened()
        return await future

    async def _decide(self) -> None:
        """One round after the other, for ever."""
        while not self._closed:
            try:
                if self._may_send():
                    await self._round()
                else:
                    await self._event()
            except Fenced:
                return
            except Unavailable:
                # No copy can be read. Whoever waits keeps waiting, up to the patience.
                await self._clock.sleep(_EXPIRY_STEP_S)

    def _may_send(self) -> bool:
        log = self._log
        return (
            bool(self._rounds)
            and log.tip - log.acked < _ROUNDS_IN_FLIGHT_MAX
            and log.replication.reachable()
            and len(self._live.acked) < _LIVE_ROWS_MAX
        )

    async def _round(self) -> None:
        gathered = self._rounds.gather(_ROUND_BYTES_MAX, _ROUND_TRANSACTIONS_MAX)
        transactions = [
            transaction
            for call, taken in gathered
            for transaction in call.transactions[len(call.decisions) : len(call.decisions) + taken]
        ]
        live = self._live
        unknown = dict.fromkeys(
            expect.key
            for transaction in transactions
            for expect in transaction.expects
            if not live.knows(expect.key)
        )
        live.hold()
        try:
            keys = list(unknown)
            rows = await self._copies.get(keys) if keys else []
            self._log.check()
            # Calls that expired while the copy was asked have been answered and must not be decided.
            if any(call.refused for call, _ in gathered):
                return
            log = self._log
            sequence = log.tip + 1
            made = live.decide(transactions, dict(zip(keys, rows, strict=True)), sequence, log.revision)
        finally:
            live.release()
        if made.changes:
            record = log.append(Kind.TRANSACTIONS, changes_body(made.changes), len(made.changes))
            assert record.sequence == sequence
            live.stage(sequence, made.entries)
            self._rounds.decided(gathered, made.decisions, self._acked)
            log.send(record)
        else:
            self._rounds.decided(gathered, made.decisions, self._acked)

    def _on_acked(self, records: list[Record]) -> None:
        size = 0
        for record in records:
            self._acked = record.sequence
            self._live.acknowledge(record.sequence)
            size += len(record.raw)
        self._revision = revision_after(records[-1])
        for record in records:
            self._rounds.acknowledged(record.sequence)
        self._copies.acknowledged(size)
        self._happened()

    def _on_change(self) -> None:
        self._happened()
        if self._log.replication.fenced_by is not None and not self._closed:
            self._end("Another process has taken over the index.")
            self._tasks.append(asyncio.get_running_loop().create_task(self._copies.close()))

    def _end(self, reason: str) -> None:
        error: HoldfastError = Unavailable("The index is closed.")
        try:
            self._check()
        except HoldfastError as found:
            error = found
        self._rounds.end(self._acked, error, reason)

    async def _expire(self) -> None:
        while True:
            await self._clock.sleep(_EXPIRY_STEP_S)
            missing = Unavailable(
                "The index has no majority of its members or no copy that can be read.",
                hint=self._log.whats_missing(),
            )
            self._rounds.expire(
                self._clock.monotonic(), self._acked, missing, "not acknowledged by a majority in time"
            )
            self._copies.expire()
            self._happened()

    def _happened(self) -> None:
        for future in self._events:
            if not future.done():
                future.set_result(None)
        self._events.clear()

    async def _event(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._events.add(future)
        try:
            await future
        finally:
            self._events.discard(future)

    # Checkpoints

    async def _watch_log_size(self) -> None:
        while True:
            await self._clock.sleep(self._options.checkpoint_check_s)
            if self._wants_checkpoint():
                # A copy or a member that fails is dropped and says so; this is tried again.
                with contextlib.suppress(HoldfastError, OSError):
                    await self.checkpoint()
                if self._wants_checkpoint():
                    await self._clock.sleep(self._options.checkpoint_rest_s)

    def _wants_checkpoint(self) -> bool:
        log_bytes, checkpoint_bytes = self._log.log_bytes()
        return log_bytes > max(self._options.checkpoint_bytes_min, checkpoint_bytes)

    async def checkpoint(self) -> None:
        """Write a checkpoint to every member now, and drop what it replaces. Raises Unavailable, Damaged."""
        self._check()
        async with self._checkpointing:
            await self._checkpoint()

    async def _checkpoint(self) -> None:
        dump = self._copies.dump(lambda access: access.new_runner("dump"))
        try:
            base, first = await anext(dump)
            waiting: list[bytes | None] = [first]

            async def blocks() -> bytes | None:
                if waiting:
                    return waiting.pop()
                found = await anext(dump, None)
                return None if found is None else found[1]

            await self._log.checkpoint(base, blocks)
        finally:
            await dump.aclose()

    # The rest of the port

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        return await self._leases.acquire(name, holder, ttl_s=ttl_s)

    async def release(self, lease: Lease) -> None:
        await self._leases.release(lease)

    async def replace_member(self, old: str, new: MemberAccess) -> None:
        """Put `new` in the place of the member `old`, which may be gone. Raises InvalidInput when `old` is no
        member, Unavailable when `new` cannot be copied to; can be asked again after any interruption."""
        self._check()
        await self._log.replace(old, new)

    @property
    def members(self) -> tuple[str, ...]:
        """The members of the log now."""
        return self._log.replication.members

    async def drop_member(self, name: str) -> None:
        """Go on without a member of the log; see `Log.drop`."""
        self._check()
        await self._log.drop(name)

    def reopen_member(self, name: str) -> None:
        """A member's place is another one now; see `Log.reopen`."""
        self._check()
        if name in self.members:
            self._log.reopen(name)

    def add_copy(self, access: CopyAccess) -> None:
        """One more place where a copy of the rows may lie."""
        self._copies.add(access)

    async def remove_copy(self, name: str) -> None:
        """No copy lies there any more. Raises Unavailable when no other one can be made."""
        await self._copies.remove(name)

    def status(self) -> IndexStatus:
        state = IndexState.SERVING
        try:
            self._check()
        except Fenced:
            state = IndexState.FENCED
        except Unavailable:
            state = IndexState.UNAVAILABLE
        replication = self._log.replication
        if state is IndexState.SERVING and not replication.reachable():
            state = IndexState.UNAVAILABLE
        return IndexStatus(
            state,
            "sqlite",
            self._log.incarnation.hex(),
            self._revision,
            (*self._log.statuses(), *self._copies.statuses()),
            replication.losses_survivable(),
        )

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._end("The index was closed.")
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._copies.close()
        await self._log.close()
        self._happened()

    def _check(self) -> None:
        self._log.check()
        if self._closed:
            raise Unavailable("The index is closed.")
