"""The index port over etcd.

Consensus, leases and membership are etcd's; several nodes commit side by side, and each decides nothing on
its own: every transaction of etcd compares what it expects. See `lane` for how a commit is applied once, and
`planning` for what goes together.

What must hold: a commit is answered as Unknown only when nobody could be asked within the patience what
became of it; a node that follows an index which is not the truth any more is fenced by its next call.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Fenced, HoldfastError, InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.etcd.address import parse_address
from holdfast.index.etcd.committing import Committer
from holdfast.index.etcd.connections import Connections, Tls
from holdfast.index.etcd.feed import Feed
from holdfast.index.etcd.keeping import Keeper, newest_commit
from holdfast.index.etcd.lane import Lane
from holdfast.index.etcd.leasing import EtcdLeases
from holdfast.index.etcd.opening import found_or_open
from holdfast.index.etcd.planning import Item
from holdfast.index.etcd.reading import Reader
from holdfast.index.etcd.schema import Keys, Known, Revisions
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


class EtcdOptions(Struct, frozen=True, kw_only=True):
    """`patience_s` is how long a call waits for an etcd that is away; `call_timeout_s` how long for one
    member, `hedge_after_s` how long until another is asked, too. `lanes` and `readers` are transactions of
    etcd under way at once. The feed reaches back `kept_s`, or `kept_revisions` of etcd where that is less.
    `quota_bytes` is what the members were started with; etcd does not tell."""

    patience_s: float = 30.0
    call_timeout_s: float = 2.0
    hedge_after_s: float = 0.25
    lanes: int = 4
    readers: int = 8
    batch_bytes: int = 1 << 20
    kept_s: float = 3600.0
    kept_revisions: int = 100_000
    quota_bytes: int = 2 << 30
    status_every_s: float = 1.0
    tls: Tls | None = None


class EtcdIndex:
    """Made by `open_etcd`."""

    def __init__(
        self,
        connections: Connections,
        keys: Keys,
        known: Known,
        clock: Clock,
        randomness: Randomness,
        options: EtcdOptions,
        *,
        newest: int | None = None,
        lasting: bool = True,
    ) -> None:
        """With `lasting`, it watches over etcd, and closes the connections with itself. `newest` is etcd's
        revision of the newest commit, where that is known."""
        self._connections = connections
        self._lasting = lasting
        self._known = known
        self._clock = clock
        self._options = options
        self._revisions = Revisions(known.meta.base)
        # The last place of what is there: whoever opens it next to the last who committed shows no less.
        self._revision = self._revisions.port((newest or known.modified) + 1) - 1
        self._state = IndexState.SERVING
        self._fence: Fenced | None = None
        self._closed = False
        self._process = randomness.token(8).hex()
        self._lanes_made = 0
        self._keys = keys
        self._committer = Committer(
            self._new_lane, lanes=options.lanes, batch_bytes=options.batch_bytes, tell=self._tell
        )
        self._reader = Reader(connections, keys, known, options.readers)
        self._leases = EtcdLeases(connections, keys, known, clock, self._commit_one, self._reader.get)
        self._keeper = Keeper(
            connections,
            keys,
            known,
            clock,
            own_lanes=self._process,
            kept_s=options.kept_s,
            kept_revisions=options.kept_revisions,
            quota_bytes=options.quota_bytes,
        )
        self._feed = Feed(connections, keys, known, clock, self._keeper.newest, self._check)
        self._watch = (
            asyncio.create_task(self._watch_over(), name="holdfast index watch") if lasting else None
        )

    def _new_lane(self) -> Lane:
        self._lanes_made += 1
        name = f"{self._process}.{self._lanes_made}"
        return Lane(name, self._connections, self._keys, self._known, self._clock)

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """As the port says."""
        self._check()
        if not keys:
            return []
        try:
            return await self._reader.get(keys)
        except Fenced as error:
            self._tell(error)
            raise

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, delimiter: bytes = b"", skip: int = 0
    ) -> list[Row | Prefix]:
        """As the port says."""
        self._check()
        check_scan(limit, skip)
        try:
            return await self._reader.scan(start, end, limit, delimiter, skip)
        except Fenced as error:
            self._tell(error)
            raise

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        """As the port says."""
        self._check()
        size = sum(check_all(transactions))
        if not transactions:
            return []
        return await self._committer.commit([Item(transaction) for transaction in transactions], size)

    async def _commit_one(self, item: Item) -> Outcome:
        (outcome,) = await self._committer.commit([item], 0)
        return outcome

    def changes(self, after: int) -> AsyncIterator[Change]:
        """As the port says."""
        return self._feed.changes(after)

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        """As the port says."""
        self._check()
        if not name or not holder or ttl_s <= 0:
            raise InvalidInput("A lease needs a name, a holder and a time above 0 s.")
        return await self._leases.acquire(name, holder, ttl_s)

    async def release(self, lease: Lease) -> None:
        """As the port says."""
        self._check()
        await self._leases.release(lease)

    def status(self) -> IndexStatus:
        """As the port says."""
        return IndexStatus(
            IndexState.UNAVAILABLE if self._closed else self._state,
            "etcd",
            self._known.meta.incarnation,
            self._revision,
            tuple(self._keeper.members),
            self._keeper.losses,
            self._keeper.remark,
        )

    async def close(self) -> None:
        """As the port says."""
        self._closed = True
        self._feed.close()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await self._committer.close()
        await self._reader.close()
        if self._lasting:
            await self._connections.close()

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("The index is closed.")
        if self._fence is not None:
            raise self._fence

    def _tell(self, news: int | Fenced) -> None:
        if isinstance(news, Fenced):
            self._fence, self._state = news, IndexState.FENCED
        else:
            self._revision = max(self._revision, news)

    async def _watch_over(self) -> None:
        """Learn of others' commits and of the members, and keep etcd from growing for ever."""
        while True:
            try:
                await self._keeper.look_at_members()
                newest = await self._keeper.look()
                self._revision = max(self._revision, self._revisions.port(newest))
                self._state = IndexState.SERVING
            except Fenced as error:
                self._tell(error)
                return
            except HoldfastError:
                self._state = IndexState.UNAVAILABLE
            await self._clock.sleep(self._options.status_every_s)


async def open_etcd(
    address: str, *, clock: Clock, randomness: Randomness, options: EtcdOptions | None = None
) -> EtcdIndex:
    """The index in the etcd that `address` names, made if it is not there.

    Raises InvalidInput (address, user, version, another format), Unavailable.
    """
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
    keys = Keys(parsed.namespace)
    try:
        known = await found_or_open(connections, keys, randomness)
        newest = await newest_commit(connections, keys, known)
    except BaseException:
        await connections.close()
        raise
    return EtcdIndex(connections, keys, known, clock, randomness, options, newest=newest)
