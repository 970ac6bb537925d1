"""Bringing a member up: from whatever it holds to what the log holds.

What must hold: a member keeps its vote only while what it says it holds is true at every moment of the
copying; one of which that cannot be said (empty, damaged, half-copied) has none until it is whole.
"""

from collections.abc import AsyncIterator
from functools import partial
from typing import Protocol

from holdfast.base.errors import InvalidInput, Unavailable
from holdfast.index.sqlite.chain import Chain
from holdfast.index.sqlite.checkpoint import Base
from holdfast.index.sqlite.folder import MemberFailed
from holdfast.index.sqlite.member import Member
from holdfast.index.sqlite.records import Record
from holdfast.index.sqlite.recovery import last_common
from holdfast.index.sqlite.scan import Scan
from holdfast.index.sqlite.seat import LogOptions, Seat


class TheLog(Protocol):
    """What bringing a member up needs to know of the log and ask of its other members."""

    incarnation: bytes
    epoch: int
    instance: bytes
    chain: Chain
    options: LogOptions

    def wanted(self) -> int:
        """The sequence up to which a member has to hold everything before it counts."""
        ...

    async def read_through(self, after: int, through: int, besides: Seat | None) -> list[Record]: ...

    def checkpoint_blocks(self, besides: Seat | None = None) -> AsyncIterator[tuple[Base, int, bytes]]: ...


async def catch_up(log: TheLog, seat: Seat, scan: Scan) -> int:
    """Give an opened and scanned member what it lacks; returns the last sequence it verifiably holds then.
    The rest is in memory. Raises MemberRefused, MemberFailed, Unavailable."""
    member = seat.member
    assert member is not None
    options = log.options
    seat.foreign = scan.incarnation not in (None, log.incarnation)
    if seat.foreign:
        raise MemberFailed(
            f"{seat.access.place} belongs to another index.",
            hint="Empty it, if nothing of it is needed, and it will be used.",
            place=seat.access.place,
        )
    held = None
    if scan.votes:
        held = last_common(scan, log.chain.low, log.chain.tip, log.chain.hash_at)
        if held is not None and seat.trusted is not None and seat.trusted < held:
            held = seat.trusted if scan.hash_at(seat.trusted) is not None else None
    # Until all ends well: what a failed sync leaves in the page cache would look as if it were there.
    seat.trusted = held or 0
    if held is None:
        return await _copy_over(log, seat, member, renew=not scan.votes)
    await seat.ask(lambda: member.claim(log.epoch, log.instance), options.bulk_s)
    try:
        return await _copy_records(log, seat, member, held)
    except InvalidInput:
        # The others have a checkpoint in the place of what it lacks.
        return await _copy_over(log, seat, member, renew=False)


async def _copy_over(log: TheLog, seat: Seat, member: Member, renew: bool) -> int:
    """Copy a checkpoint and what follows it. `renew`: what is there proves nothing, and is removed;
    until the copy is whole the member does not vote. Otherwise it stays what it truthfully is until
    the checkpoint is complete."""
    options = log.options
    if not renew:
        await seat.ask(lambda: member.claim(log.epoch, log.instance), options.bulk_s)
        held = await _copy_checkpoint(log, seat, member)
        renew = not held
    else:
        held = 0
    if renew:

        def empty() -> None:
            member.found(log.incarnation)
            member.claim(log.epoch, log.instance)

        await seat.ask(empty, options.bulk_s)
        held = await _copy_checkpoint(log, seat, member)
    held = await _copy_records(log, seat, member, held)
    if renew:
        await seat.ask(member.joined, options.bulk_s)
    return held


async def _copy_records(log: TheLog, seat: Seat, member: Member, held: int) -> int:
    """Give it what follows `held`, until memory has the rest; returns the last it holds then."""
    options = log.options
    previous = log.chain.hash_at(held)
    if previous is None:
        raise Unavailable("The log moved on while a member was copied.", hint="It is tried again.")
    begin = held + 1
    target = log.wanted()
    records = await log.read_through(held, log.chain.tip, seat) if held < target else []
    await seat.ask(lambda: member.start(begin, previous), options.bulk_s)
    while held < target or log.chain.after(held, log.chain.tip, 1) is None:
        records = records or await log.read_through(held, log.chain.tip, seat)
        if not records:
            raise Unavailable("The log has a gap.", hint="It is tried again.")
        held = await seat.ask(partial(member.append, records), options.bulk_s)
        seat.trusted = held
        records = []
        target = log.wanted()
    seat.log_bytes, seat.checkpoint_bytes = member.log_bytes, member.checkpoint_bytes
    return held


async def _copy_checkpoint(log: TheLog, seat: Seat, member: Member) -> int:
    """Give it a checkpoint of another one; returns its sequence, 0 when there is none because the log
    reaches back to its beginning."""
    options = log.options

    def write(base: Base, number: int, raw: bytes) -> None:
        if number == 0:
            member.begin_checkpoint(base)
        member.add_checkpoint_block(raw)

    last = 0
    async for base, number, raw in log.checkpoint_blocks(seat):
        await seat.ask(partial(write, base, number, raw), options.bulk_s)
        last = base.sequence
    if last:
        await seat.ask(member.end_copied_checkpoint, options.bulk_s)
        seat.trusted = last
    return last
