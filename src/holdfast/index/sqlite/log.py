"""The log: performs what `replication` decides, on members that may hang, fail and come back.

One process, one epoch. What must hold: only acknowledged records leave this module, in order, without
gaps (`on_acked`, `read`); a member counts only from the moment it verifiably holds everything up to where
it was attached; nothing here waits for a member without a time limit.

A member is brought up in the background: opened afresh, scanned, claimed for this epoch, given what it
lacks (from the last record where its chain agrees with ours, or from a copied checkpoint), and only then
counted. One that failed a sync is cut back to what it had surely synced before.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, InvalidInput, Unavailable
from holdfast.index.port import MemberStatus
from holdfast.index.sqlite import checkpoint as ckpt
from holdfast.index.sqlite.bring_up import catch_up
from holdfast.index.sqlite.chain import Chain
from holdfast.index.sqlite.checkpoint import Base
from holdfast.index.sqlite.folder import MemberFailed, MemberFull
from holdfast.index.sqlite.member import Member, MemberDamaged, MemberRefused
from holdfast.index.sqlite.records import HASH_BYTES, Kind, Record, make_record, members_body
from holdfast.index.sqlite.recovery import majority
from holdfast.index.sqlite.replication import Acked, Action, Dropped, FencedOff, Replication, Send, Standing
from holdfast.index.sqlite.runner import ended
from holdfast.index.sqlite.scan import Scan
from holdfast.index.sqlite.seat import LogOptions, MemberAccess, Seat

_FRESH_STEPS = 1.5
_CLOSE_S = 1.0


class Log:
    """An opened log. Made by `opening.open_log`."""

    def __init__(
        self,
        seats: dict[str, Seat],
        base: Base,
        chain: Chain,
        epoch: int,
        instance: bytes,
        members: tuple[str, ...],
        source: Seat,
        clock: Clock,
        options: LogOptions,
    ) -> None:
        assert len(instance) == HASH_BYTES
        self.incarnation = base.incarnation
        self.epoch = epoch
        self.revision = 0
        self.replication = Replication(members, chain.tip, overdue_s=options.overdue_s)
        self.on_acked: Callable[[list[Record]], None] = lambda records: None
        self.on_change: Callable[[], None] = lambda: None
        self._seats = seats
        self.chain = chain
        self.instance = instance
        self._source: Seat | None = source
        self._clock = clock
        self.options = options
        self._closed = False
        self._ticking: asyncio.Task[None] | None = None
        self._next_reattach = 0.0
        self._next_check = 0.0
        self._confirmed: dict[str, float] = {}
        self._fresh_until = 0.0
        self._acked_before = chain.tip
        self._membership = asyncio.Lock()
        self._membership_at = 0
        self._waiting: set[asyncio.Future[None]] = set()

    # What is known

    @property
    def acked(self) -> int:
        """The last acknowledged sequence; everything up to it is there to stay."""
        return self.replication.acked

    @property
    def tip(self) -> int:
        """The last sequence, acknowledged or not."""
        return self.chain.tip

    def wanted(self) -> int:
        """The sequence up to which a member has to hold everything before it counts: all that is
        acknowledged, and before anything is in this epoch, all of the chosen chain."""
        return max(self.acked, self.replication.first_own - 1)

    def hash_at(self, sequence: int) -> bytes | None:
        """The hash of a record, if it is still known."""
        return self.chain.hash_at(sequence)

    def check(self) -> None:
        """Raises Fenced, or Unavailable after `close`."""
        if self.replication.fenced_by is not None:
            raise Fenced(
                "Another process has taken over the index.",
                hint="Stop this one; only one node may serve an embedded index.",
                epoch=self.replication.fenced_by,
            )
        if self._closed:
            raise Unavailable("The index is closed.")

    def statuses(self) -> tuple[MemberStatus, ...]:
        """Of each member, and of copies that are on the way to become one."""
        found = []
        for name in dict.fromkeys((*self.replication.members, *self._seats)):
            standing, held, reason = self.replication.progress(name)
            seat = self._seats.get(name)
            place = seat.access.place if seat else "not configured"
            if name not in self.replication.members:
                if seat and seat.task:
                    found.append(MemberStatus(name, "behind", f"{place}: being copied to, not a member yet"))
            elif standing is Standing.CURRENT:
                behind = held < self.acked
                found.append(MemberStatus(name, "behind" if behind else "current", place))
            elif seat is None:
                found.append(MemberStatus(name, "absent", "a member of the log, but not configured"))
            elif seat.task is not None and seat.member is not None:
                found.append(MemberStatus(name, "behind", f"{place}: being brought up"))
            else:
                found.append(MemberStatus(name, "out", f"{place}: {reason}"))
        return tuple(found)

    def log_bytes(self) -> tuple[int, int]:
        """The largest (bytes of log since its checkpoint, bytes of that checkpoint) of any current member."""
        seats = [self._seats[name] for name in self.replication.current() if name in self._seats]
        return max(((seat.log_bytes, seat.checkpoint_bytes) for seat in seats), default=(0, 0))

    # Writing

    def append(self, kind: Kind, body: bytes, revisions: int = 0) -> Record:
        """Make the next record and send it out. It is durable when `on_acked` says so."""
        self.check()
        previous = self.chain.hash_at(self.chain.tip)
        assert previous is not None
        record = make_record(kind, self.epoch, self.chain.tip + 1, self.revision, previous, body)
        self.revision += revisions
        self.chain.add(record)
        return record

    def send(self, record: Record, members: tuple[str, ...] | None = None) -> None:
        """Hand a record that `append` made to the members."""
        self._perform(self.replication.proposed(record.sequence, self._clock.monotonic(), members))

    async def acknowledged(self, sequence: int, timeout_s: float) -> None:
        """Wait until `sequence` is acknowledged. Raises Unavailable, Fenced."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.acked < sequence:
                    self.check()
                    await self._next_event()
        except TimeoutError:
            raise Unavailable(
                "No majority of the index log's members answers.", hint=self.whats_missing()
            ) from None

    async def _next_event(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await future
        finally:
            self._waiting.discard(future)

    def whats_missing(self) -> str:
        """One sentence that names the members that are not there and where they were looked for."""
        gone = [f"{status.name} ({status.detail})" for status in self.statuses() if status.state != "current"]
        return f"Missing: {'; '.join(gone)}." if gone else ""

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(member, after):
                    self._send(member, after)
                case Acked(sequence):
                    self._acknowledge(sequence)
                case Dropped(member, _):
                    self._drop(member)
                case FencedOff():
                    self._wake()
                    self.on_change()

    def _send(self, name: str, after: int) -> None:
        seat = self._seats[name]
        member = seat.member
        records = self.chain.after(after, self.chain.tip, self.options.piece_bytes)
        if not records or member is None:
            # It lags behind what is kept in memory: it has to be brought up from another member.
            self._perform(self.replication.failed(name, "fell too far behind"))
            return

        def work() -> tuple[int, int, bool]:
            return member.append(records), member.log_bytes, member.wants_spare()

        begun = self._clock.monotonic()
        seat.submit(work).add_done_callback(lambda future: self._sent(seat, member, begun, future))

    def _sent(
        self, seat: Seat, member: Member, begun: float, future: asyncio.Future[tuple[int, int, bool]]
    ) -> None:
        if seat.member is not member or self._closed:
            return
        if future.cancelled() or (error := future.exception()) is not None:
            self._went_wrong(seat, None if future.cancelled() else error)
            return
        through, seat.log_bytes, spare = future.result()
        self._confirm(seat.name, begun)
        self._perform(self.replication.synced(seat.name, through, self._clock.monotonic()))
        if spare and seat.member is member and seat.runner is not None and not seat.runner.busy:
            self._background(seat, member, member.prepare_spare)

    def _background(self, seat: Seat, member: Member, call: Callable[[], None]) -> None:
        begun = self._clock.monotonic()

        def done(future: asyncio.Future[None]) -> None:
            ours = seat.member is member and not self._closed and not future.cancelled()
            if ours and (error := future.exception()) is not None:
                self._went_wrong(seat, error)
            elif ours and call == member.check:
                self._confirm(seat.name, begun)

        seat.submit(call).add_done_callback(done)

    def _confirm(self, name: str, begun: float) -> None:
        """A member said, after `begun`, that nobody has claimed a later epoch."""
        self._confirmed[name] = begun
        times = sorted((self._confirmed.get(name, 0.0) for name in self.replication.members), reverse=True)
        fresh_until = times[majority(len(times)) - 1] + _FRESH_STEPS * self.options.reattach_s
        if fresh_until > self._fresh_until:
            self._fresh_until = fresh_until
            self._wake()

    def is_fresh(self) -> bool:
        """Whether a majority said lately that this process is still the one. False after it was stopped."""
        return self._clock.monotonic() < self._fresh_until

    async def refresh(self, timeout_s: float) -> None:
        """Ask the members whether this process is still the one. Raises Fenced. When no majority answers in
        time, nobody else can have one either, as far as can be told from here: reading goes on."""
        self._check_idle()
        try:
            async with asyncio.timeout(timeout_s):
                while not self.is_fresh():
                    self.check()
                    await self._next_event()
        except TimeoutError:
            self._fresh_until = self._clock.monotonic() + self.options.reattach_s
        self.check()

    def _went_wrong(self, seat: Seat, error: BaseException | None) -> None:
        if isinstance(error, MemberRefused):
            epoch = error.facts.get("epoch")
            assert isinstance(epoch, int)
            self._perform(self.replication.refused(seat.name, epoch))
        else:
            self._perform(self.replication.failed(seat.name, str(error or "given up")))

    def _drop(self, name: str) -> None:
        seat = self._seats.get(name)
        if seat is None:
            return
        # What a failed sync left in the page cache proves nothing: only what was synced before it counts.
        seat.trusted = self.replication.progress(name)[1]
        self.on_change()

    def _acknowledge(self, sequence: int) -> None:
        first = self._acked_before + 1
        self._acked_before = sequence
        while first <= sequence:
            records = self.chain.after(first - 1, sequence, 1 << 62)
            assert records, "what was not acknowledged before is in memory"
            self.on_acked(records)
            first = records[-1].sequence + 1
        self.chain.trim(sequence)
        self._wake()

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()

    # Reading

    def recent(self, after: int, bytes_max: int) -> list[Record] | None:
        """Acknowledged records behind `after` from memory; None when they have to be read from a member."""
        return self.chain.after(after, self.acked, bytes_max)

    async def read(self, after: int) -> list[Record]:
        """Acknowledged records behind `after`, some of them, from memory or from a member.

        Raises InvalidInput when the log does not reach back that far, Unavailable when nobody answers.
        """
        return await self.read_through(after, self.acked, None)

    async def read_unacknowledged(self, after: int) -> list[Record]:
        """As `read`, up to the tip: for the start, which makes it acknowledged."""
        return await self.read_through(after, self.chain.tip, None)

    async def reachable(self, timeout_s: float) -> None:
        """Wait until a majority takes part. Raises Unavailable, Fenced."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.replication.reachable():
                    self.check()
                    await self._next_event()
        except TimeoutError:
            raise Unavailable(
                "No majority of the index log's members can be brought up.", hint=self.whats_missing()
            ) from None

    async def read_through(self, after: int, through: int, besides: Seat | None) -> list[Record]:
        """Records behind `after`, some of them, acknowledged or not, from memory or from another member than
        `besides`. Raises InvalidInput, Unavailable."""
        found = self.chain.after(after, through, self.options.piece_bytes)
        if found is not None:
            return found
        if after < self.chain.low:
            raise _begins_behind(after)
        reaches_back = True
        for seat in self._sources(besides):
            member = seat.member
            assert member is not None
            try:
                work = partial(member.read, after, through, self.options.piece_bytes)
                records = await seat.ask(work, self.options.bulk_s)
            except (MemberFailed, MemberDamaged) as error:
                self._perform(self.replication.failed(seat.name, str(error)))
                continue
            if records and records[-1].hash == self.chain.hash_at(records[-1].sequence):
                return records
            # It has a checkpoint in the place of these records.
            reaches_back = False
        if not reaches_back:
            raise _begins_behind(after)
        raise Unavailable("No member of the index log can be read.", hint=self.whats_missing())

    def _sources(self, besides: Seat | None) -> list[Seat]:
        seats = [self._seats[name] for name in self.replication.current() if name in self._seats]
        if self._source is not None and self._source not in seats:
            seats.append(self._source)
        return [seat for seat in seats if seat is not besides and seat.member is not None]

    async def sequence_at(self, revision: int) -> int:
        """A sequence behind which all changes beyond `revision` lie. Raises InvalidInput, Unavailable."""
        tail = self.chain.after(self.chain.tip - 1, self.chain.tip, 1)
        if tail and tail[0].revision <= revision:
            return tail[0].sequence - 1
        for seat in self._sources(None):
            member = seat.member
            assert member is not None
            try:
                found = await seat.ask(partial(member.sequence_at, revision), self.options.bulk_s)
            except MemberFailed as error:
                self._perform(self.replication.failed(seat.name, str(error)))
                continue
            if found is not None and found >= self.chain.low:
                return found
        raise InvalidInput(
            f"The change feed does not reach back to revision {revision}.", hint="Compare and copy instead."
        )

    async def checkpoint_blocks(self, besides: Seat | None = None) -> AsyncIterator[tuple[Base, int, bytes]]:
        """(base, number, raw) of every block of the newest checkpoint that can be read, its end last; nothing
        when the log begins at its beginning. When a member fails in the middle, it begins again with
        block 0 of the next one's. Raises Unavailable."""
        for seat in self._sources(besides):
            member = seat.member
            assert member is not None
            base = member.base
            if base is None or self.chain.hash_at(base.sequence) != base.hash:
                continue
            if base.sequence == 0:
                return
            number, at, ended = 0, ckpt.HEAD_BYTES, False
            try:
                while not ended:
                    raw, at = await seat.ask(
                        partial(member.checkpoint_block, at, number), self.options.bulk_s
                    )
                    ended = ckpt.parse_end(raw, base) is not None
                    yield base, number, raw
                    number += 1
            except (MemberFailed, MemberDamaged) as error:
                self._perform(self.replication.failed(seat.name, str(error)))
                continue
            return
        raise Unavailable("No checkpoint of the index can be read.", hint=self.whats_missing())

    # Members that come and go

    def bring_up(self, seat: Seat, scan: Scan | None) -> None:
        """Attach `seat` in the background; a scan that was just made saves another one."""
        if seat.task is None and not self._closed:
            seat.task = asyncio.get_running_loop().create_task(self._bring_up(seat, scan))
            seat.task.add_done_callback(lambda _: self._brought_up(seat))

    def _brought_up(self, seat: Seat) -> None:
        seat.task = None
        self.on_change()
        self._wake()

    async def _bring_up(self, seat: Seat, scan: Scan | None) -> None:
        try:
            if scan is None:
                scan = await seat.open(self.options)
            held = await catch_up(self, seat, scan)
            seat.trusted = None
            self._perform(self.replication.attached(seat.name, held, self._clock.monotonic()))
        except MemberRefused as error:
            self._went_wrong(seat, error)
            seat.let_go()
        except (HoldfastError, OSError) as error:
            self._perform(self.replication.failed(seat.name, str(error)))
            if seat is not self._source:
                seat.let_go()

    async def checkpoint(self, base: Base, blocks: "CheckpointSource") -> None:
        """Write a checkpoint to every current member and drop the segments that it replaces. `blocks`
        gives the raw blocks, its end last. Members that fail on the way are dropped as always; one that is
        full keeps what it had."""
        seats = [self._seats[name] for name in self.replication.current()]
        writing: dict[Seat, Member] = {seat: seat.member for seat in seats if seat.member is not None}

        async def do(call: Callable[[Member], None]) -> None:
            pending: list[tuple[Seat, Member, asyncio.Future[None]]] = []
            for seat, member in tuple(writing.items()):
                if seat.member is not member:
                    del writing[seat]
                    continue
                pending.append((seat, member, seat.submit(partial(call, member))))
            if not pending:
                return
            await asyncio.wait([future for *_, future in pending], timeout=self.options.bulk_s)
            for seat, member, future in pending:
                if not future.done():
                    del writing[seat]
                    self._perform(self.replication.failed(seat.name, "writing a checkpoint takes too long"))
                elif isinstance(error := future.exception(), MemberFull):
                    # It has its older one and the log behind that: no reason to do without it.
                    del writing[seat]
                    if seat.member is member:
                        self._background(seat, member, member.abandon_checkpoint)
                elif error is not None:
                    del writing[seat]
                    self._went_wrong(seat, error)

        try:
            await do(lambda member: member.begin_checkpoint(base))
            while writing and (raw := await blocks()) is not None:
                await do(partial(_add_block, raw))
        except BaseException:
            for seat, member in writing.items():
                if seat.member is member:
                    self._background(seat, member, member.abandon_checkpoint)
            raise
        await do(Member.end_checkpoint)
        for seat, member in writing.items():
            seat.log_bytes, seat.checkpoint_bytes = member.log_bytes, member.checkpoint_bytes
        if writing:
            # Members that are behind this now have to be copied; nobody needs older hashes.
            self.chain.forget_before(base.sequence)

    async def replace(self, old: str, access: MemberAccess) -> None:
        """Put a new member in the place of `old`: copied first, then added, then `old` is removed, so that
        every majority on the way overlaps the one before. Can be asked again after any interruption."""
        async with self._membership:
            await self._membership_settled()
            members, new = self.replication.members, access.name
            if old not in members and new in members:
                return
            if old not in members:
                raise InvalidInput(f"{old!r} is not a member of the index log.", hint=f"Members: {members}.")
            if new not in members:
                seat = self._seats.get(new)
                if seat is None:
                    seat = self._seats[new] = Seat(access)
                await self._await_copy(seat)
                await self._set_members((*members, new))
            await self._expel(old)

    async def drop(self, name: str) -> None:
        """Go on without a member, for good. Raises InvalidInput when the others are too few, Unavailable."""
        async with self._membership:
            await self._membership_settled()
            if name in self.replication.members:
                self._needs_not(name, len(self.replication.members) - 1)
                await self._expel(name)

    async def _expel(self, name: str) -> None:
        await self._set_members(tuple(member for member in self.replication.members if member != name))
        self._perform(self.replication.forget(name))
        gone = self._seats.pop(name, None)
        if gone is not None:
            gone.let_go()
        self.on_change()

    def reopen(self, name: str) -> None:
        """The place of a member is another one from now on: let go of the old one, and copy to the new.
        Raises InvalidInput when the others are no majority without it."""
        self._needs_not(name, len(self.replication.members))
        self._perform(self.replication.failed(name, "it moves to another place"))
        self.bring_up(self._seats[name], None)

    def _needs_not(self, name: str, members: int) -> None:
        present = len(set(self.replication.current()) & set(self.replication.members) - {name})
        if present < majority(members):
            message = f"Without {name!r} the index has {present} of {members} members:"
            raise InvalidInput(message, hint="bring others back first.")

    async def _await_copy(self, seat: Seat) -> None:
        self.bring_up(seat, None)
        while seat.task is not None:
            await self._next_event()
        standing, _, reason = self.replication.progress(seat.name)
        if standing is not Standing.CURRENT:
            self._perform(self.replication.forget(seat.name))
            self._seats.pop(seat.name)
            raise Unavailable(f"{seat.access.place} cannot become a member:", hint=reason)

    async def _set_members(self, members: tuple[str, ...]) -> None:
        record = self.append(Kind.MEMBERS, members_body(members))
        self._membership_at = record.sequence
        self.send(record, members)
        await self._membership_settled()

    async def _membership_settled(self) -> None:
        """Wait until the last change is acknowledged. Two that are not need not have overlapping majorities:
        those of {a, b, c} and {b, c, d} can miss each other. Raises Unavailable, Fenced."""
        await self.acknowledged(self._membership_at, self.options.patience_s)

    # Time

    def start_ticking(self) -> None:
        """Watch for overdue members and bring back those that are out, until `close`."""
        self._source = None
        now = self._clock.monotonic()
        self._next_reattach = self._next_check = now
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    async def _tick(self) -> None:
        step_s = min(self.options.overdue_s, self.options.reattach_s) / 4
        while self.replication.fenced_by is None:
            now = self._clock.monotonic()
            self._perform(self.replication.tick(now))
            if now >= self._next_check:
                self._next_check = now + self.options.reattach_s / 2
                self._check_idle()
            if now >= self._next_reattach:
                self._next_reattach = now + self.options.reattach_s
                self._reattach()
            await self._clock.sleep(step_s)

    def _check_idle(self) -> None:
        """Notice members that vanished, and a newer process, although nobody writes."""
        for name in self.replication.current():
            seat = self._seats[name]
            if seat.member is not None and seat.runner is not None and not seat.runner.busy:
                self._background(seat, seat.member, seat.member.check)

    def _reattach(self) -> None:
        for name in self.replication.members:
            seat = self._seats.get(name)
            if (
                seat is None
                or seat.task is not None
                or self.replication.progress(name)[0] is not Standing.OUT
            ):
                continue
            # A call that still hangs there would hang the next runner, too, and each costs a thread.
            if not seat.hangs:
                self.bring_up(seat, None)

    async def close(self) -> None:
        """Let go of everything; never waits for a hung member."""
        self._closed = True
        tasks = [seat.task for seat in self._seats.values() if seat.task is not None]
        if self._ticking is not None:
            tasks.append(self._ticking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await ended([seat.let_go() for seat in self._seats.values()], _CLOSE_S)
        self._wake()


def _begins_behind(after: int) -> InvalidInput:
    return InvalidInput(f"The index log begins behind record {after}.", hint="Compare and copy instead.")


def _add_block(raw: bytes, member: Member) -> None:
    member.add_checkpoint_block(raw)


CheckpointSource = Callable[[], Awaitable[bytes | None]]
