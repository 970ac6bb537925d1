"""Leases: a row of the index that goes with a lease of etcd.

The row `lease/<name>` holds the holder, its revision is the token, as everywhere. It is put under a lease of
etcd, which takes the row away when nobody has renewed it for its time. Renewing touches no row. The leader of
etcd keeps the time, and a new leader begins it anew, so that a lease may last longer than was asked for, and
never shorter: it is whole seconds, and at least one and a half of etcd's elections.
"""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

import grpc.aio
from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Unavailable
from holdfast.index.etcd import wire
from holdfast.index.etcd.connections import (
    PAUSE_FIRST_S,
    PAUSE_MAX_S,
    Connections,
    Endpoint,
    LeaseGone,
    Unanswered,
    judge,
)
from holdfast.index.etcd.lane import check_meta
from holdfast.index.etcd.planning import Item
from holdfast.index.etcd.schema import Keys, Known, Revisions, decode_row
from holdfast.index.port import (
    ABSENT,
    Committed,
    Conflict,
    Expect,
    Lease,
    Outcome,
    Row,
    Transaction,
    Unknown,
    lease_row,
)

_TRIES = 3

Commit = Callable[[Item], Awaitable[Outcome]]
Get = Callable[[Sequence[bytes]], Awaitable[list[Row | None]]]


class _Held(Struct):
    holder: str
    token: int
    lease: int


class EtcdLeases:
    """The leases of one index."""

    def __init__(
        self, connections: Connections, keys: Keys, known: Known, clock: Clock, commit: Commit, get: Get
    ) -> None:
        self._connections = connections
        self._keys = keys
        self._known = known
        self._revisions = Revisions(known.meta.base)
        self._clock = clock
        self._commit = commit
        self._get = get

    async def acquire(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        """As the port says. Raises Unavailable when several tries in a row stayed unknown."""
        key = lease_row(name)
        # Each chore that another node does asks every second, all at once: gets share a question.
        (row,) = await self._get([key])
        if row is not None and row.value.decode() != holder:
            return None
        for _ in range(_TRIES):
            held = await self._held(key)
            if held is not None and held.holder != holder:
                return None
            if held is not None and held.lease and await self.renew(held.lease):
                return Lease(name, holder, held.token)
            lease = await self.grant(ttl_s)
            expect = Expect(key, held.token if held is not None else ABSENT)
            outcome = await self._commit(Item(Transaction((expect,), ((key, holder.encode()),)), lease))
            match outcome:
                case Committed(revision):
                    return Lease(name, holder, revision)
                case Conflict():
                    # Somebody was quicker, or the old row went away meanwhile: look again.
                    await self._revoke(lease)
                case Unknown():
                    continue
        if (held := await self._held(key)) is not None and held.holder != holder:
            return None
        raise Unavailable(f"Whether lease {name!r} was granted stayed unknown.", hint="Ask again.")

    async def release(self, lease: Lease) -> None:
        """As the port says."""
        key = lease_row(lease.name)
        held = await self._held(key)
        if held is None or held.token != lease.token:
            return
        await self._commit(Item(Transaction((Expect(key, lease.token),), (), (key,))))
        await self._revoke(held.lease)

    async def _held(self, key: bytes) -> _Held | None:
        request = wire.txn_request(
            (),
            [
                wire.range_op(wire.range_request(self._keys.meta)),
                wire.range_op(wire.range_request(self._keys.row(key))),
            ],
        )

        def read(data: bytes) -> _Held | None:
            answer = wire.txned(data)
            check_meta(answer.ranged(0), self._known)
            for kv in answer.ranged(1):
                row = decode_row(key, kv.value, kv.modified, self._revisions)
                return _Held(row.value.decode(), row.revision, kv.lease)
            return None

        answer, _ = await self._connections.call(wire.TXN, request, read)
        return answer

    async def grant(self, ttl_s: float) -> int:
        """A lease of etcd's with nothing under it yet."""
        # Granting twice leaves a lease with nothing under it, which goes by itself.
        request = wire.lease_grant_request(math.ceil(ttl_s))
        lease, _ = await self._connections.call(
            wire.LEASE_GRANT, request, lambda data: wire.Message(data).signed(2)
        )
        return lease

    async def _revoke(self, lease: int) -> None:
        if not lease:
            return
        with suppress(Unavailable, LeaseGone):  # it goes by itself
            await self._connections.call(
                wire.LEASE_REVOKE, wire.lease_request(lease), lambda data: data, patience_s=0.0
            )

    async def renew(self, lease: int) -> bool:
        """False when it has run out. Raises Unanswered."""
        deadline = self._clock.monotonic() + self._connections.patience_s
        pause = PAUSE_FIRST_S
        while True:
            why = ""
            for endpoint in self._connections.order():
                try:
                    answer = await self._renew_at(endpoint, lease)
                except (grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError) as error:
                    why = str(error) or "no answer in time"
                except grpc.aio.AioRpcError as error:
                    why = error.details() or error.code().name
                    judge(error.code(), why)
                else:
                    if isinstance(answer, bytes):
                        return wire.Message(answer).signed(3) > 0
            if self._clock.monotonic() + pause > deadline:
                raise Unanswered(f"etcd did not renew a lease: {why}.", doubtful=True)
            await self._clock.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX_S)

    async def _renew_at(self, endpoint: Endpoint, lease: int) -> object:
        stream = self._connections.stream(endpoint, wire.LEASE_KEEP_ALIVE)
        try:
            async with asyncio.timeout(self._connections.call_timeout_s):
                await stream.write(wire.lease_request(lease))
                return await stream.read()
        finally:
            stream.cancel()
