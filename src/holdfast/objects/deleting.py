"""DeleteObjects: one read and one commit for all keys, one transaction and one answer for each.

A deletion that meets another write is decided anew on what is there then. To call it done, as if it had
come just before that write, would be wrong: the write may have been conditional on what was to be deleted,
and would then stand although it was acknowledged that it is gone. What must hold: nobody is told that a
key was deleted unless it was absent, or this very deletion ended its version, which then bears its `cause`
on its mark; that settles the doubt.
"""

from collections.abc import Sequence

from msgspec import Struct

from holdfast.base.errors import HoldfastError, Unavailable
from holdfast.index.port import Transaction
from holdfast.objects import rows
from holdfast.objects.commit import Decided
from holdfast.objects.conditions import check_write
from holdfast.objects.context import Context
from holdfast.objects.heads import State, Target, mark, released, target
from holdfast.objects.keys import REQUESTS, bucket_row
from holdfast.objects.model import Conditions, DeleteKey, DeleteResult
from holdfast.objects.reading import NULL_VERSION
from holdfast.objects.repeats import Overtaken, Try, carry, digest_of
from holdfast.objects.writing import conflict_error


class _Deletion(Struct):
    """One key on its way out."""

    wanted: DeleteKey
    where: Target
    cause: str
    tried: Try
    digest: bytes
    state: State | None = None


class Deleting:
    """Deletes objects."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._heads = context.heads

    async def delete(self, bucket: str, wanted: Sequence[DeleteKey], tried: Try) -> Sequence[DeleteResult]:
        """Delete all; one result each, in order. Raises NoSuchBucket; Unavailable when nothing was."""
        results: list[DeleteResult | None] = [None] * len(wanted)
        open_: dict[int, _Deletion] = {}
        for place, one in enumerate(wanted):
            digest = digest_of(bucket, one.key)
            if digest in tried.earned:
                results[place] = DeleteResult(one.key, one.version)
                continue
            try:
                cause = self._context.randomness.token(16).hex()
                deletion = _Deletion(one, target(bucket, one.key), cause, tried, digest)
            except HoldfastError as error:
                results[place] = DeleteResult(one.key, one.version, error=error)
            else:
                open_[place] = deletion
        await self._read(bucket, open_)
        transactions: dict[int, Transaction] = {}
        taken: set[bytes] = set()
        again: list[int] = []
        for place, deletion in open_.items():
            try:
                transaction = self._propose(deletion)
            except HoldfastError as error:
                results[place] = DeleteResult(deletion.wanted.key, deletion.wanted.version, error=error)
                continue
            if transaction is None:
                results[place] = DeleteResult(deletion.wanted.key, deletion.wanted.version)
            elif deletion.where.head_row in taken:
                again.append(place)  # the same key twice in one request
            else:
                taken.add(deletion.where.head_row)
                transactions[place] = transaction
        decided = await self._context.committer.decide(tuple(transactions.values())) if transactions else ()
        for place, outcome in zip(transactions, decided, strict=True):
            results[place] = await self._finish(open_[place], outcome)
        for place in again:
            results[place] = await self._finish(open_[place], Decided(False, True))
        return [result for result in results if result is not None]

    async def _read(self, bucket: str, deletions: dict[int, _Deletion]) -> None:
        keys = [bucket_row(bucket), *(deletion.where.head_row for deletion in deletions.values())]
        bucket_, *heads = await self._context.index.get(keys)
        self._heads.bucket(bucket, bucket_)
        for deletion, head in zip(deletions.values(), heads, strict=True):
            deletion.state = self._heads.state(deletion.where, bucket_, head)

    def _propose(self, deletion: _Deletion) -> Transaction | None:
        """The transaction, or None when there is nothing to delete."""
        wanted, state = deletion.wanted, deletion.state
        assert state is not None
        if wanted.version is not None and wanted.version != NULL_VERSION:
            return None  # no such version exists without versioning, and its deletion is a success
        if wanted.if_match is not None:
            check_write(Conditions(if_match=wanted.if_match), state.current, wanted.key)
        if state.current is None:
            return None
        assert state.head is not None
        gone = released(state.target, state.current, deletion.cause)
        told = carry(state.head, deletion.digest, self._context.now_ms())
        puts = (*gone.puts, *told, *deletion.tried.ended(deletion.digest))
        expects = (*deletion.tried.expects(), *state.expects())
        return Transaction(expects, puts, (state.target.head_row, *gone.deletes))

    async def _finish(self, deletion: _Deletion, decided: Decided) -> DeleteResult:
        wanted = deletion.wanted
        try:
            if not decided.committed:
                await self._settle(deletion, decided)
        except HoldfastError as error:
            return DeleteResult(wanted.key, wanted.version, error=error)
        return DeleteResult(wanted.key, wanted.version)

    async def _settle(self, deletion: _Deletion, decided: Decided) -> None:
        """After a conflict; returns when the key is deleted or was."""
        where = deletion.where
        patience = self._context.settings.patience
        certain = decided.certain
        backoff = self._context.committer.backoff(patience.conflict_s)
        async with self._heads.turns.take(where.head_row):
            while True:
                state = deletion.state
                assert state is not None
                assert state.current is not None
                seen = state.current
                keys = (where.bucket_row, where.head_row, mark(seen))
                bucket, head, marked = await self._context.index.get(keys)
                if marked is not None and rows.decode_dead(marked.value).cause == deletion.cause:
                    return
                if decided.conflict.startswith(REQUESTS):
                    raise Overtaken
                deletion.state = state = self._heads.state(where, bucket, head)
                changed = state.current is None or state.current.version != seen.version
                if state.current is None and deletion.wanted.if_match is None:
                    return
                if changed and marked is None and not certain:
                    raise Unavailable(
                        f"Whether this request deleted {where.key!r} cannot be found out any more.",
                        hint="Look at what is stored before you repeat it.",
                        unknown=True,
                    )
                transaction = self._propose(deletion)
                if transaction is None:
                    return
                decided = await self._context.committer.decide_one(transaction)
                if decided.committed:
                    return
                certain = certain and decided.certain
                if not await backoff.wait():
                    raise conflict_error(Conditions(if_match=deletion.wanted.if_match), where.key)
