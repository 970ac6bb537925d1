"""An index in etcd as one end of a copy.

Frozen is a gate that nobody takes away, because it goes with a lease that this process renews: whoever wants
to commit waits for it. Moved and filling are states of the meta row, which every commit and every read
compares.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import NoReturn

from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.copying import END, FIRST, PAGE_ROWS, Kind, Moved, Standing
from holdfast.index.etcd import wire
from holdfast.index.etcd.address import parse_address
from holdfast.index.etcd.connections import Connections
from holdfast.index.etcd.index import EtcdIndex, EtcdOptions
from holdfast.index.etcd.lane import Lane
from holdfast.index.etcd.leasing import EtcdLeases
from holdfast.index.etcd.opening import explained
from holdfast.index.etcd.reading import Reader
from holdfast.index.etcd.schema import (
    FORMAT,
    Gate,
    Keys,
    Known,
    Meta,
    Revisions,
    decode_gate,
    decode_meta,
    encode_meta,
)
from holdfast.index.port import Committed, Row, Transaction

LEASE_S = 15.0
RENEWALS = 5
"""So often within it."""
ROWS_AT_ONCE = 100
BYTES_AT_ONCE = 512 << 10
UNDER_WAY = 8


class EtcdEnd:
    """An index in etcd, open or not. Made by `etcd_end`; both a source and a target."""

    def __init__(
        self,
        connections: Connections,
        keys: Keys,
        name: str,
        clock: Clock,
        randomness: Randomness,
        options: EtcdOptions,
    ) -> None:
        self.name = name
        self._connections = connections
        self._keys = keys
        self._clock = clock
        self._randomness = randomness
        self._options = options
        self.lease_s = LEASE_S
        self._gate = 0
        self._filling = ""
        """The incarnation that this process fills."""
        self._filled = 0
        """The revision of etcd at which it held all rows."""
        self._renewing: asyncio.Task[None] | None = None

    async def _known(self) -> Known | None:
        found, _ = await self._connections.call(
            wire.RANGE,
            wire.range_request(self._keys.meta),
            lambda data: wire.ranged(wire.Message(data)).found,
        )
        return Known(decode_meta(found[0].value), found[0].modified) if found else None

    async def standing(self) -> Standing:
        """As `copying` says."""
        async with explained(self._connections):
            known = await self._known()
        if known is None:
            return Standing(Kind.EMPTY)
        meta = known.meta
        return Standing(Kind(meta.state), meta.incarnation, meta.other, meta.where)

    async def _must_know(self) -> Known:
        known = await self._known()
        if known is None:
            raise Unavailable(f"{self.name} was emptied meanwhile.")
        return known

    # As a source

    async def freeze(self) -> int:
        """As `copying` says."""
        known = await self._must_know()
        if known.meta.state == Kind.OPEN.value:
            await self._close_gate(known)
        return Revisions(known.meta.base).port(await self._newest() + 1) - 1

    async def _newest(self) -> int:
        """The revision of etcd now."""
        newest, _ = await self._connections.call(
            wire.RANGE,
            wire.range_request(self._keys.meta),
            lambda data: wire.ranged(wire.Message(data)).revision,
        )
        return newest

    async def _close_gate(self, known: Known) -> None:
        leases = EtcdLeases(self._connections, self._keys, known, self._clock, _never, _never)
        lease = await leases.grant(self.lease_s)
        owner = f"copy/{self._randomness.token(8).hex()}"
        lane = Lane(owner, self._connections, self._keys, known, self._clock)
        deadline = self._clock.monotonic() + self._connections.patience_s
        while not self._gate:
            self._gate, other = await lane.put_gate(Gate(owner, 0.0), lease)
            if other is not None:
                if not decode_gate(other.value).patience_s:
                    raise Unavailable(f"{self.name} is being copied already.", hint="Wait for that to end.")
                await lane.wait_for_gate(other, deadline)
        self._renewing = asyncio.create_task(self._renew(leases, lease), name="holdfast index copy")

    async def _renew(self, leases: EtcdLeases, lease: int) -> None:
        with suppress(HoldfastError):
            while await leases.renew(lease):
                await self._clock.sleep(self.lease_s / RENEWALS)

    async def pages(self) -> AsyncIterator[list[Row]]:
        """As `copying` says."""
        reader = Reader(self._connections, self._keys, await self._must_know(), 1)
        start = FIRST
        while page := await reader.scan(start, END, PAGE_ROWS, b"", 0):
            yield [row for row in page if isinstance(row, Row)]
            start = page[-1].key + b"\0"

    async def move(self, moved: Moved) -> None:
        """As `copying` says."""
        assert self._gate, "it was frozen"
        known = await self._must_know()
        gone = replace(known.meta, state=Kind.MOVED.value, other=moved.incarnation, where=moved.where)
        request = wire.txn_request(
            [
                wire.compare_modified(self._keys.meta, wire.Is.EQUAL, known.modified),
                wire.compare_modified(self._keys.gate, wire.Is.EQUAL, self._gate),
            ],
            [wire.put_op(self._keys.meta, encode_meta(gone))],
        )
        await self._connections.call(wire.TXN, request, wire.txned)
        if (await self._must_know()).meta != gone:
            raise Fenced(
                f"{self.name} was not frozen all the time: nothing was moved.", hint="Copy it again."
            )

    # As a target

    async def fill(
        self, incarnation: str, source: str, revision: int, pages: Callable[[], AsyncIterator[list[Row]]]
    ) -> None:
        """As `copying` says."""
        known = await self._known()
        meta = Meta(FORMAT, incarnation, revision, whole=False, state=Kind.FILLING.value, other=source)
        request = wire.txn_request(
            [wire.compare_modified(self._keys.meta, wire.Is.EQUAL, known.modified if known else 0)],
            [
                wire.delete_op(self._keys.gate),
                wire.delete_op(self._keys.lanes, self._keys.lanes_end),
                wire.delete_op(self._keys.rows, self._keys.all_end),
                wire.put_op(self._keys.meta, encode_meta(meta)),
            ],
        )
        await self._connections.call(wire.TXN, request, wire.txned)
        known = await self._must_know()
        if known.meta != meta:
            raise Fenced(f"Somebody else writes into {self.name}.")
        self._filling = incarnation
        index = EtcdIndex(
            self._connections, self._keys, known, self._clock, self._randomness, self._options, lasting=False
        )
        try:
            await _write(index, pages())
        finally:
            await index.close()

    async def filled_at(self) -> int:
        """The revision that the index is at, once it holds all rows: its feed can be followed from there."""
        self._filled = await self._newest()
        return Revisions((await self._must_know()).meta.base).port(self._filled + 1) - 1

    async def finish(self) -> None:
        """As `copying` says."""
        known = await self._must_know()
        is_ours = self._filling in ("", known.meta.incarnation)
        if is_ours and known.meta.state == Kind.FILLING.value:
            opened = replace(known.meta, state=Kind.OPEN.value, other="", filled=self._filled)
            request = wire.txn_request(
                [wire.compare_modified(self._keys.meta, wire.Is.EQUAL, known.modified)],
                [wire.put_op(self._keys.meta, encode_meta(opened))],
            )
            await self._connections.call(wire.TXN, request, wire.txned)
            known = await self._must_know()
        if not is_ours or known.meta.state != Kind.OPEN.value:
            raise Fenced(f"Somebody else writes into {self.name}.")

    async def close(self) -> None:
        """Let go; a source that was not moved thaws."""
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        if self._gate:
            request = wire.txn_request(
                [wire.compare_modified(self._keys.gate, wire.Is.EQUAL, self._gate)],
                [wire.delete_op(self._keys.gate)],
            )
            with suppress(HoldfastError):
                await self._connections.call(wire.TXN, request, wire.txned, patience_s=1.0)
        await self._connections.close()


async def _write(index: EtcdIndex, pages: AsyncIterator[list[Row]]) -> None:
    """Rows, many at a time, some commits under way."""
    under_way: set[asyncio.Task[None]] = set()

    async def put(rows: list[tuple[bytes, bytes]]) -> None:
        (outcome,) = await index.commit([Transaction((), tuple(rows))])
        if not isinstance(outcome, Committed):
            raise Unavailable(f"Rows could not be written: {outcome}.", hint="Copy again.")

    async with asyncio.TaskGroup() as tasks:
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        async for page in pages:
            for row in page:
                batch.append((row.key, row.value))
                size += len(row.key) + len(row.value)
                if len(batch) < ROWS_AT_ONCE and size < BYTES_AT_ONCE:
                    continue
                if len(under_way) >= UNDER_WAY:
                    _, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                under_way.add(tasks.create_task(put(batch)))
                batch, size = [], 0
        if batch:
            tasks.create_task(put(batch))


async def _never(_: object) -> NoReturn:
    raise AssertionError("this lease has no row")


async def etcd_end(
    address: str, name: str, *, clock: Clock, randomness: Randomness, options: EtcdOptions | None = None
) -> EtcdEnd:
    """The index at `address`, whatever state it is in. Raises InvalidInput."""
    options = options or EtcdOptions()
    parsed = parse_address(address)
    connections = Connections(
        parsed,
        clock,
        patience_s=options.patience_s,
        call_timeout_s=options.call_timeout_s,
        hedge_after_s=options.hedge_after_s,
        tls=options.tls,
    )
    return EtcdEnd(connections, Keys(parsed.namespace), name, clock, randomness, options)
