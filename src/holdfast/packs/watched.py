"""An index that remembers which packs' rows may still be committed by a call that has long been answered.

A commit that ended as Unknown may land later, even after the same transaction was committed by asking again,
and after the pack so made has lived and died. Its row expects that neither the pack nor its grave is
there: with both gone, it would bring the pack back without its shards, and the object of the same call with
it. So the grave of a pack in doubt has to stay (`Disposal`, `is_awaited`) for as long as this process lives;
with the process every call ends that could still land, because whoever comes after it fences it.

What must hold: every commit that names the row of a new pack goes through one of these, and a pack is in
doubt before its answer is known to anybody. Unknown outcomes are rare, so that the list stays short.
"""

from collections.abc import AsyncIterator, Sequence

from holdfast.base.errors import Unavailable
from holdfast.base.ids import PackId
from holdfast.index.port import (
    ABSENT,
    Change,
    Index,
    IndexStatus,
    Lease,
    Outcome,
    Prefix,
    Row,
    Transaction,
    Unknown,
)

_PACK = b"pack/"
LET_GO_MAX = 10_000
"""Packs that are remembered for the collector; what is forgotten it finds by walking."""


class WatchedIndex:
    """`inner`, watched for commits in doubt."""

    def __init__(self, inner: Index) -> None:
        self._inner = inner
        self._doubtful: set[PackId] = set()
        self._let_go: dict[PackId, None] = {}

    def in_doubt(self, pack: PackId) -> bool:
        """Whether the row of `pack` may still be committed although the pack is dead."""
        return pack in self._doubtful

    def let_go(self) -> list[PackId]:
        """Packs of which something was let go since the last call: a hint for the collector, no more."""
        packs, self._let_go = list(self._let_go), {}
        return packs

    def changed(self, change: Change) -> None:
        """Somebody's commit: what it let go is a hint for the collector, too."""
        self._note_let_go([Transaction((), change.puts, change.deletes)])

    async def commit(self, transactions: Sequence[Transaction]) -> list[Outcome]:
        """As the port's."""
        try:
            outcomes = await self._inner.commit(transactions)
        except Unavailable:
            raise  # nothing was committed, nor will be
        except BaseException:
            self._doubt(transactions)
            raise
        if any(isinstance(outcome, Unknown) for outcome in outcomes):
            self._doubt(
                [
                    transaction
                    for transaction, outcome in zip(transactions, outcomes, strict=True)
                    if isinstance(outcome, Unknown)
                ]
            )
        self._note_let_go(transactions)
        return outcomes

    def _note_let_go(self, transactions: Sequence[Transaction]) -> None:
        for transaction in transactions:
            names = [key for key, _ in transaction.puts if key.startswith(b"dead/")]
            names += [key for key in transaction.deletes if key.startswith(b"share/")]
            for name in names:
                if len(self._let_go) < LET_GO_MAX:
                    self._let_go[PackId(bytes.fromhex(name.split(b"/", 2)[1].decode()))] = None

    def _doubt(self, transactions: Sequence[Transaction]) -> None:
        self._doubtful.update(
            PackId(bytes.fromhex(expect.key.removeprefix(_PACK).decode()))
            for transaction in transactions
            for expect in transaction.expects
            if expect.revision == ABSENT and expect.key.startswith(_PACK)
        )

    async def get(self, keys: Sequence[bytes]) -> list[Row | None]:
        """As the port's."""
        return await self._inner.get(keys)

    async def scan(
        self, start: bytes, end: bytes, *, limit: int, delimiter: bytes = b"", skip: int = 0
    ) -> list[Row | Prefix]:
        """As the port's."""
        return await self._inner.scan(start, end, limit=limit, delimiter=delimiter, skip=skip)

    def changes(self, after: int) -> AsyncIterator[Change]:
        """As the port's."""
        return self._inner.changes(after)

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        """As the port's."""
        return await self._inner.acquire(name, holder, ttl_s=ttl_s)

    async def release(self, lease: Lease) -> None:
        """As the port's."""
        await self._inner.release(lease)

    def status(self) -> IndexStatus:
        """As the port's."""
        return self._inner.status()

    async def close(self) -> None:
        """As the port's."""
        await self._inner.close()
