"""Opening the log: look at all members, choose, claim an epoch, copy, and serve.

The order is what makes it safe: the epoch is claimed on a majority *before* the scan that decides, so that
nothing an older process could still acknowledge is missed; all of the chosen chain is on a majority, and a
record of the new epoch, too, before anything is read or acknowledged.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.sqlite.chain import Chain
from holdfast.index.sqlite.folder import MemberFailed
from holdfast.index.sqlite.log import Log
from holdfast.index.sqlite.member import MemberRefused
from holdfast.index.sqlite.records import (
    HASH_BYTES,
    INCARNATION_BYTES,
    NO_HASH,
    Founding,
    Kind,
    founding_body,
    make_record,
    revision_after,
)
from holdfast.index.sqlite.recovery import Choice, Verdict, choose
from holdfast.index.sqlite.scan import Scan
from holdfast.index.sqlite.seat import LogOptions, MemberAccess, Seat

_CLAIMS_MAX = 5
_Ask = Callable[[Seat], Coroutine[Any, Any, None]]


async def open_log(
    accesses: Sequence[MemberAccess], clock: Clock, randomness: Randomness, options: LogOptions
) -> Log:
    """The log that the members hold, or a new one when all of them are there and hold nothing.

    Raises Unavailable when no majority of the newest membership can vote, naming what is missing and where
    it was looked for; Fenced when others keep claiming later epochs.
    """
    opening = _Opening(accesses, clock, randomness, options)
    try:
        return await opening.run()
    except BaseException:
        for seat in opening.seats.values():
            seat.let_go()
        raise


class _Opening:
    def __init__(
        self, accesses: Sequence[MemberAccess], clock: Clock, randomness: Randomness, options: LogOptions
    ) -> None:
        self.seats = {access.name: Seat(access) for access in accesses}
        assert len(self.seats) == len(accesses), "members have names of their own"
        self._clock = clock
        self._randomness = randomness
        self._options = options
        self._instance = randomness.token(HASH_BYTES)
        self._scans: dict[str, Scan] = {}
        self._failed: dict[str, str] = {}

    async def run(self) -> Log:
        await self._ask_all(list(self.seats), self._look)
        choice = self._choose()
        if choice.verdict is Verdict.NEW:
            await self._found()
            await self._ask_all(list(self.seats), self._look)
            choice = self._choose()
        epoch, choice = await self._claim(choice)
        return await self._serve(epoch, choice)

    async def _look(self, seat: Seat) -> None:
        self._scans[seat.name] = await seat.open(self._options)

    async def _ask_all(self, names: Sequence[str], ask: _Ask) -> None:
        """Ask all at once. Wait for all of them a while, and not longer than the patience; who has not
        answered by then is taken as missing."""
        tasks = {name: asyncio.ensure_future(self._one(name, ask)) for name in names}
        try:
            waiting = set(tasks.values())
            end = self._clock.monotonic() + self._options.patience_s
            graceful = False
            while waiting and (left := end - self._clock.monotonic()) > 0:
                done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
                if not graceful and self._choose_quietly().verdict is Verdict.CHOSEN:
                    graceful = True
                    end = min(end, self._clock.monotonic() + self._options.grace_s)
        finally:
            for name, task in tasks.items():
                if not task.done():
                    self._failed[name] = f"{self.seats[name].access.place} has not answered in time"
                    task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    async def _one(self, name: str, ask: _Ask) -> None:
        self._scans.pop(name, None)
        self._failed.pop(name, None)
        try:
            await ask(self.seats[name])
        except MemberRefused:
            self._scans.pop(name, None)
            raise
        except (HoldfastError, OSError) as error:
            self._scans.pop(name, None)
            self._failed[name] = str(error)

    def _choose_quietly(self) -> Choice:
        return choose(tuple(self.seats), self._scans, self._failed)

    def _choose(self) -> Choice:
        choice = self._choose_quietly()
        if choice.verdict is Verdict.TOO_FEW:
            missing = "; ".join(
                f"{name} at {self.seats[name].access.place}: {why}"
                if name in self.seats
                else f"{name}: not configured"
                for name, why in choice.wanting
            )
            have = len(choice.voters)
            of = len(choice.members) or len(self.seats)
            raise Unavailable(
                f"The index needs {of // 2 + 1} of its {of} members and has {have}.",
                hint=f"Bring back: {missing}.",
                missing=[name for name, _ in choice.wanting],
            )
        return choice

    async def _found(self) -> None:
        """Begin a new log on all members: only when each of them holds its first record does any vote."""
        incarnation = self._randomness.token(INCARNATION_BYTES)
        epoch = max((scan.promised for scan in self._scans.values()), default=0) + 1
        founding = Founding(incarnation, tuple(self.seats))
        record = make_record(Kind.FOUNDING, epoch, 1, 0, NO_HASH, founding_body(founding))

        def begin(seat: Seat) -> None:
            member = seat.member
            assert member is not None
            member.found(incarnation)
            member.claim(epoch, self._instance)
            member.start(1, NO_HASH)
            member.append([record])

        def join(seat: Seat) -> None:
            assert seat.member is not None
            seat.member.joined()

        seats = list(self.seats.values())
        await asyncio.gather(*(seat.ask(partial(begin, seat), self._options.bulk_s) for seat in seats))
        await asyncio.gather(*(seat.ask(partial(join, seat), self._options.bulk_s) for seat in seats))

    async def _claim(self, choice: Choice) -> tuple[int, Choice]:
        """Promise an epoch that is later than all, on a majority, and only then look again and choose."""
        for _ in range(_CLAIMS_MAX):
            epoch = max(scan.promised for scan in self._scans.values()) + 1
            claimed = {
                name
                for name, scan in self._scans.items()
                if scan.incarnation == choice.incarnation and (scan.votes or name in choice.voters)
            }
            again = [*claimed, choice.source] if choice.source not in claimed else list(claimed)
            try:
                await self._ask_all(again, partial(self._claim_one, epoch, frozenset(claimed)))
            except MemberRefused:
                await self._ask_all(list(self.seats), self._look)
                choice = self._choose()
                continue
            choice = self._choose()
            if claimed.issuperset(choice.voters):
                return epoch, choice
        raise Fenced("Others keep claiming the index.", hint="Start only one node on this data.")

    async def _claim_one(self, epoch: int, claimed: frozenset[str], seat: Seat) -> None:
        member = seat.member
        if member is None:
            raise MemberFailed(f"{seat.access.place} is not open.", place=seat.access.place)
        if seat.name in claimed:
            await seat.ask(lambda: member.claim(epoch, self._instance), self._options.bulk_s)
        self._scans[seat.name] = await seat.ask(member.scan, self._options.bulk_s)

    async def _serve(self, epoch: int, choice: Choice) -> Log:
        scan = self._scans[choice.source]
        assert scan.base is not None
        source = self.seats[choice.source]
        chain = Chain(scan.base, [entry.hash for entry in scan.entries], self._options.tail_bytes)
        log = Log(
            self.seats,
            scan.base,
            chain,
            epoch,
            self._instance,
            choice.members,
            source,
            self._clock,
            self._options,
        )
        try:
            log.revision = scan.base.revision
            if scan.entries:
                last = await log.read_unacknowledged(chain.tip - 1)
                log.revision = revision_after(last[-1])
            self._bring_up(log, choice, self._scans)
            await log.reachable(self._options.patience_s)
            record = log.append(Kind.EPOCH, b"")
            log.send(record)
            await log.acknowledged(record.sequence, self._options.patience_s)
        except BaseException:
            await log.close()
            raise
        log.start_ticking()
        return log

    def _bring_up(self, log: Log, choice: Choice, scans: Mapping[str, Scan]) -> None:
        for name in choice.members:
            seat = self.seats.get(name)
            if seat is None or name not in scans:
                continue
            # A damaged source is made anew only when others hold what it has.
            if name != choice.source or name in choice.voters:
                log.bring_up(seat, scans[name])
