"""What the simulated machine puts between the node and its parts: a plug that can be pulled, a notebook,
and a place to make the n-th call fail.

A process that has crashed does nothing more, whatever its tasks do while they are being cancelled: pulled
plugs see to that.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from typing import TypeVar
from zlib import crc32

from holdfast.base.checksums import Buffer
from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError, Unavailable
from holdfast.base.ids import PackId, StoreId, parse_shard_name, shard_name
from holdfast.base.randomness import SeededRandomness
from holdfast.index.memory import MemoryIndex, MemoryRows
from holdfast.index.port import (
    Change,
    Committed,
    Conflict,
    Index,
    IndexStatus,
    Lease,
    Outcome,
    Prefix,
    Row,
    Transaction,
    Unknown,
)
from holdfast.packs.disposal import shards_buried
from holdfast.packs.layout import Layout
from holdfast.packs.model import Place, buried_row, pack_row, trash_row
from holdfast.packs.named import parse_named_shard
from holdfast.packs.rows import decode_row
from holdfast.recovery.names import parse_piece
from holdfast.stores.port import Range, Store, StoreFailed, StoreOverdue, Usage
from tests.simulation.trace import Trace

T = TypeVar("T")

OWNERS = (b"head/", b"part/")
"""Rows by which bytes of packs belong to somebody."""

COUNTED_ATTEMPTS = 1000
"""Beyond, numbers of attempts are those that rewrites draw."""

DOUBT_S = 2.0
"""How long a transaction in doubt may be on its way."""


class Power:
    """Whether the process lives. `changing` counts the puts and deletes that it waits for."""

    def __init__(self) -> None:
        self.on = True
        self.changing = 0


class PutLog:
    """When each shard's put began, which were told to be overdue, and which came back with an old image of
    their disk: where strays come from. Looks over the shoulder of whoever deletes."""

    def __init__(self, clock: Clock, rows: MemoryRows) -> None:
        self._clock = clock
        self._rows = rows
        self.puts: dict[tuple[StoreId, str], float] = {}
        self.overdue: set[tuple[StoreId, str]] = set()
        self.returned: set[tuple[StoreId, str]] = set()
        self.deleted: set[tuple[StoreId, str]] = set()
        self.turned_away: dict[PackId, float] = {}
        """When the index last failed somebody who looked a pack up or changed it: he could not throw away
        what he had put."""
        self.sums: dict[tuple[StoreId, str], int] = {}
        self.journal_after = 0
        self.outruns_journal: Callable[[], bool] = lambda: True
        """Whether what the journal does not have yet may be deleted all the same."""
        self.wrong_shards: Callable[[list[tuple[StoreId, str]]], list[str]] = lambda shards: []
        """Which of some shards are not on their disks as they were put."""

    def began(self, store: StoreId, name: str, data: Sequence[Buffer]) -> None:
        """A put goes out; a name is used once, whoever asks."""
        assert (store, name) not in self.puts, f"{name} is written twice to {store}"
        self.puts[store, name] = self._clock.monotonic()
        self.sums[store, name] = _sum(data)

    def ended(self, store: StoreId, name: str) -> None:
        """A put was acknowledged; a piece of the journal is there with its first shard, for this book."""
        if (named := parse_named_shard(store, name)) and (piece := parse_piece(named[0])):
            self.journal_after = max(self.journal_after, piece.after)

    def is_right(self, store: StoreId, name: str, blob: bytes | None) -> bool:
        """Whether this is what was put."""
        return blob is not None and self.sums[store, name] == _sum((blob,))

    def failed(self, keys: Iterable[bytes]) -> None:
        """The index did not do what was asked about these rows, or did not say so."""
        now = self._clock.monotonic()
        for key in keys:
            kind, _, rest = key.partition(b"/")
            if kind in {b"pack", b"buried"}:
                self.turned_away[PackId(bytes.fromhex(rest.decode()))] = now

    def check_dead(self, store: StoreId, name: str) -> None:
        """Only what the index has declared dead is ever deleted, and never what a row still names."""
        self.deleted.add((store, name))
        if parse_named_shard(store, name) is not None:
            return  # no row knows of these: `until_kept` proves that none was missed
        parsed = parse_shard_name(name)
        assert parsed is not None
        pack, shard, attempt = parsed
        if (row := self._rows.get(pack_row(pack))) is not None:
            places = decode_row(row.value).places
            assert Place(shard, store, attempt) not in places, f"{name} lives, and is deleted from {store}"
        words = (buried_row(pack), trash_row(store, name))
        now = [row.revision for key in words if (row := self._rows.get(key)) is not None]
        if now and min(now) <= self.journal_after:
            return
        # It was said earlier: a grave may have grown since, or be gone, as where a commit of an earlier round
        # has landed late.
        said = self._first_said(words, (store, name))
        assert said is not None, f"{name} is deleted from {store}, and nothing says that it is dead"
        assert said <= self.journal_after or self.outruns_journal(), (
            f"{name} is deleted from {store} by revision {said}, and the journal on the stores ends at "
            f"{self.journal_after}: made again from it, the index would still need it"
        )

    def check_packs(self, transactions: Sequence[Transaction]) -> None:
        """No store has two shards of a pack. A new pack has a shard more than a read needs, at least. And a
        rewrite moves a pack's row only to shards that are right on their disks: it has read them back. Late
        shards of a first writing, which count their attempts from 0, have only been acknowledged."""
        for transaction in transactions:
            for key, value in transaction.puts:
                if not key.startswith(b"pack/"):
                    continue
                row, before = decode_row(value), self._rows.get(key)
                pack = PackId(bytes.fromhex(key.removeprefix(b"pack/").decode()))
                homes = {place.store for place in row.places}
                assert len(homes) == len(row.places), f"{pack.hex()} has two shards on one store"
                if before is None:
                    needed = Layout(row.scheme.k, row.stored_bytes).real_data_shards
                    assert len(row.places) > needed, f"{pack.hex()} begins with {len(row.places)} shards"
                    continue
                rewritten = [
                    (place.store, shard_name(pack, place.shard, place.attempt))
                    for place in set(row.places) - set(decode_row(before.value).places)
                    if place.attempt > COUNTED_ATTEMPTS
                ]
                wrong = self.wrong_shards(rewritten) if rewritten else []
                assert not wrong, f"the row of {pack.hex()} moves to {wrong}, which are wrong"

    def _first_said(self, words: tuple[bytes, bytes], shard: tuple[StoreId, str]) -> int | None:
        """The first revision that declared a shard dead."""
        for change in self._rows.changes(0, self._rows.revision):
            for key, value in change.puts:
                if key == words[1] or (
                    key == words[0] and shard in shards_buried(Row(key, value, change.revision))
                ):
                    return change.revision
        return None


class Nth:
    """Lets a number of calls pass, then has one fail: before it has taken effect or, with `after`, when it
    has. `fires` counts those that did."""

    def __init__(self) -> None:
        self.left: int | None = None
        self.fires = 0
        self.after = False

    def strikes(self) -> bool:
        """Whether this call is the one."""
        if self.left is None:
            return False
        self.left -= 1
        if self.left:
            return False
        self.left = None
        self.fires += 1
        return True


class PluggedStore:
    """A store as one process sees it."""

    def __init__(self, inner: Store, power: Power, trace: Trace, nth: Nth, log: PutLog) -> None:
        self.id = inner.id
        self._inner = inner
        self._log = log
        self._power = power
        self._trace = trace
        self._nth = nth

    async def put(
        self, name: str, data: Sequence[Buffer], *, timeout_s: float, reserve_share: float = 0.0
    ) -> None:
        self._log.began(self.id, name, data)
        self._power.changing += 1
        try:
            await self._call(
                "put",
                name,
                lambda: self._inner.put(name, data, timeout_s=timeout_s, reserve_share=reserve_share),
            )
            self._log.ended(self.id, name)
        except StoreOverdue:
            self._log.overdue.add((self.id, name))
            raise
        finally:
            self._power.changing -= 1

    async def get(
        self, name: str, ranges: Sequence[Range], *, timeout_s: float, uncached: bool = False
    ) -> list[Buffer]:
        return await self._call(
            "get", name, lambda: self._inner.get(name, ranges, timeout_s=timeout_s, uncached=uncached)
        )

    def peek(self, name: str, ranges: Sequence[Range]) -> list[Buffer] | None:
        return self._inner.peek(name, ranges) if self._power.on else None

    async def size(self, name: str, *, timeout_s: float) -> int:
        return await self._call("size", name, lambda: self._inner.size(name, timeout_s=timeout_s))

    async def delete(self, name: str, *, timeout_s: float) -> None:
        self._log.check_dead(self.id, name)
        self._power.changing += 1
        try:
            await self._call("delete", name, lambda: self._inner.delete(name, timeout_s=timeout_s))
        finally:
            self._power.changing -= 1

    async def list(self, after: str, *, limit: int, timeout_s: float) -> list[str]:
        return await self._call(
            "list", after, lambda: self._inner.list(after, limit=limit, timeout_s=timeout_s)
        )

    async def usage(self, *, timeout_s: float) -> Usage:
        return await self._call("usage", "", lambda: self._inner.usage(timeout_s=timeout_s))

    async def probe(self, *, timeout_s: float) -> None:
        # Not counted by `nth`: who probes when has nothing to do with the operation under test.
        self._check()
        await self._inner.probe(timeout_s=timeout_s)

    async def close(self) -> None:
        await self._inner.close()

    async def _call(self, what: str, name: str, call: Callable[[], Awaitable[T]]) -> T:
        self._check()
        strikes = self._nth.strikes()
        try:
            if strikes and not self._nth.after:
                raise self._injected(what)
            result = await call()
            if strikes:
                raise self._injected(what)
        except HoldfastError as error:
            self._trace.note(self.id, what, name, type(error).__name__)
            raise
        self._check()
        self._trace.note(self.id, what, name)
        return result

    def _check(self) -> None:
        if not self._power.on:
            raise StoreFailed("The process has crashed.")

    def _injected(self, what: str) -> StoreFailed:
        return StoreFailed(f"Store {self.id}: input/output error in a {what} (injected).", store=self.id)


class DoubtfulIndex(MemoryIndex):
    """An index that decides of one call some transactions, and does not say of others whether it has: while
    there is `doubt`, those that make bytes somebody's are hardly ever answered, and come to pass later or
    never. So engines do that decide transactions side by side."""

    doubt: SeededRandomness | None = None

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for number, transaction in enumerate(transactions):
            if self.doubt is None:
                return [*outcomes, *await super().commit(transactions[number:])]
            if any(key.startswith(OWNERS) for key, _ in transaction.puts) and self.doubt.below(8):
                self._check()
                if self.doubt.below(2):
                    self._later(DOUBT_S * self.doubt.fraction(), [transaction])
                outcomes.append(Unknown("It was sent, and no answer came."))
                continue
            try:
                outcomes += await super().commit([transaction])
            except Unavailable:
                if not outcomes:
                    raise  # which says that nothing was committed
                return [*outcomes, *[Unknown("The index went away.")] * (len(transactions) - number)]
        return outcomes


class NotedIndex:
    """An index whose commits are noted, and what it failed to do, in `log`. The call that `nth` strikes goes
    wrong: a commit after `spoil` has seen to it, a read as if the index were away."""

    def __init__(self, inner: Index, trace: Trace, nth: Nth, log: PutLog, spoil: Callable[[], None]) -> None:
        self._inner = inner
        self._log = log
        self._trace = trace
        self._nth = nth
        self._spoil = spoil

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        try:
            self._maybe_away()
            return await self._inner.get(keys)
        except HoldfastError:
            self._log.failed(keys)
            raise

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, delimiter: bytes = b"", skip: int = 0
    ) -> list[Row | Prefix]:
        self._maybe_away()
        return await self._inner.scan(start, end, limit=limit, delimiter=delimiter, skip=skip)

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        self._log.check_packs(transactions)
        if self._nth.strikes():
            self._spoil()
        try:
            outcomes = await self._inner.commit(transactions)
        except HoldfastError as error:
            self._trace.note("commit", _changed(transactions), type(error).__name__)
            self._log.failed(_touched(transactions))
            raise
        in_doubt = [one for one, how in zip(transactions, outcomes, strict=True) if isinstance(how, Unknown)]
        self._log.failed(_touched(in_doubt))
        self._trace.note("commit", _changed(transactions), " ".join(map(_outcome, outcomes)))
        return outcomes

    def changes(self, after: int) -> AsyncIterator[Change]:
        return self._inner.changes(after)

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        return await self._inner.acquire(name, holder, ttl_s=ttl_s)

    async def release(self, lease: Lease) -> None:
        await self._inner.release(lease)

    def status(self) -> IndexStatus:
        return self._inner.status()

    async def close(self) -> None:
        await self._inner.close()

    def _maybe_away(self) -> None:
        if self._nth.strikes():
            raise Unavailable("The index is away (injected).")


def _outcome(outcome: Outcome) -> str:
    if isinstance(outcome, Committed):
        return f"={outcome.revision}"
    return f"conflict:{_short(outcome.key)}" if isinstance(outcome, Conflict) else "unknown"


def _sum(data: Sequence[Buffer]) -> int:
    found = 0
    for piece in data:
        found = crc32(piece, found)
    return found


def _touched(transactions: Sequence[Transaction]) -> Iterator[bytes]:
    for transaction in transactions:
        yield from (key for key, _ in transaction.puts)
        yield from (expect.key for expect in transaction.expects)


def _changed(transactions: Sequence[Transaction]) -> str:
    return " | ".join(
        ",".join(
            [f"+{_short(key)}" for key, _ in transaction.puts]
            + [f"-{_short(key)}" for key in transaction.deletes]
        )
        for transaction in transactions
    )


def _short(key: bytes) -> str:
    return key.decode(errors="replace").replace("\0", "~")
