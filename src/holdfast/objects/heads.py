"""The state of one key, and the transactions that change it.

Every change of a key is one transaction that expects the bucket's row and the key's head row exactly as
they were read, so that it commits on what it was decided on or not at all. What must hold:

- a version that ends leaves `dead/<pack>/<version>` for its *mark pack* (where its table lies, else its
  first extent), in the transaction that ends it, whatever becomes of its bytes. That row lives as long
  as the pack's row does.
- a transaction that creates a head row where none was expects that mark to be absent. So a creation
  whose outcome was unknown and that lands late, after its version was deleted again, is refused, and
  never brings back bytes that were given away.
- whether a write happened is told by what only it can have left: its version in the head row, or its
  mark.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.errors import Busy, HoldfastError, InvalidInput, Unavailable
from holdfast.base.ids import PackId, VersionId
from holdfast.index.port import ABSENT, PRESENT, Expect, Index, Row, Transaction
from holdfast.objects import keys, rows
from holdfast.objects.commit import Committer, Decided
from holdfast.objects.model import VersionRecord
from holdfast.objects.repeats import Overtaken
from holdfast.objects.rows import BucketRow, BucketState, CleanupRow, DeadRow, Encoded, HeadRow, Remembered
from holdfast.objects.settings import ObjectsPatience, forget
from holdfast.objects.turns import Turns
from holdfast.packs.model import pack_row
from holdfast.scheme import Scheme
from holdfast.topology import Survive, parse_survive

_BUCKETS_KNOWN_MAX = 4096


class Target(NamedTuple):
    """One key of one bucket, with the names of its rows."""

    bucket: str
    key: str
    encoded: bytes
    bucket_row: bytes
    head_row: bytes


def target(bucket: str, key: str) -> Target:
    """Raises NoSuchBucket, InvalidKey or KeyTooLong."""
    encoded = keys.encode_key(key)
    return Target(bucket, key, encoded, keys.bucket_row(bucket), keys.head_row(bucket, encoded))


class State(Struct, frozen=True):
    """What is there: the bucket, and the head row if the key exists (else its revision is ABSENT)."""

    target: Target
    bucket: BucketRow
    bucket_revision: int
    head: HeadRow | None
    head_revision: int

    @property
    def current(self) -> VersionRecord | None:
        """The version that a GET would answer with."""
        return None if self.head is None else self.head.current

    @property
    def next_order(self) -> int:
        """The order of the next version."""
        return 1 if self.head is None else self.head.order + 1

    def expects(self) -> tuple[Expect, Expect]:
        """That nothing has changed."""
        return (
            Expect(self.target.bucket_row, self.bucket_revision),
            Expect(self.target.head_row, self.head_revision),
        )


class Released(NamedTuple):
    """What ending a version puts and deletes besides its head row."""

    puts: tuple[tuple[bytes, bytes], ...] = ()
    deletes: tuple[bytes, ...] = ()


def mark_pack(record: VersionRecord) -> PackId:
    """The pack under which the end of this version is marked."""
    return record.extents_at.pack if record.extents_at is not None else record.extents[0].pack


def mark(record: VersionRecord) -> bytes:
    """Key of the mark that this version leaves when it ends."""
    return keys.dead_row(mark_pack(record), record.version)


def packs_of(record: VersionRecord) -> dict[PackId, int]:
    """Bytes of each pack that the record itself names, its table's included."""
    sizes: dict[PackId, int] = {}
    for extent in record.extents:
        sizes[extent.pack] = sizes.get(extent.pack, 0) + extent.length
    if record.extents_at is not None:
        sizes[record.extents_at.pack] = sizes.get(record.extents_at.pack, 0) + record.extents_at.length
    return sizes


def released(where: Target, record: VersionRecord, cause: str) -> Released:
    """What has to be recorded when `record`, which `where` holds, ends because of `cause`."""
    if record.extents_at is not None:
        row = CleanupRow(
            rows.FORMAT,
            cause,
            version=record.version,
            extents_at=record.extents_at,
            shared=record.shared,
            bucket=where.bucket,
            key=where.key,
        )
        empty = rows.encode(DeadRow(rows.FORMAT, 0, cause))
        return Released(((mark(record), empty), (keys.cleanup_row(record.version), rows.encode(row))))
    if record.shared:
        empty = rows.encode(DeadRow(rows.FORMAT, 0, cause))
        shares = tuple(keys.share_row(pack, record.version) for pack in packs_of(record))
        return Released(((mark(record), empty),), shares)
    return Released(dead_puts(packs_of(record), record.version, cause))


def dead_puts(sizes: dict[PackId, int], owner: str, cause: str) -> tuple[tuple[bytes, bytes], ...]:
    """Rows that say that `owner` let go so many bytes of each pack."""
    return tuple(
        (keys.dead_row(pack, owner), rows.encode(DeadRow(rows.FORMAT, size, cause)))
        for pack, size in sizes.items()
    )


def alive(record: VersionRecord) -> tuple[Expect, ...]:
    """That every pack which the record names is alive."""
    return tuple(Expect(pack_row(pack), PRESENT) for pack in packs_of(record))


def not_let_go(packs: Iterable[PackId], owner: str) -> tuple[Expect, ...]:
    """That nobody has given away what `owner` has in these packs: whoever makes bytes of a pack belong to
    somebody expects it, so that the audit of packs can end a wait without a clock."""
    return tuple(Expect(keys.dead_row(pack, owner), ABSENT) for pack in packs)


def put_transaction(
    state: State,
    encoded: Encoded,
    request: str,
    *,
    expects: tuple[Expect, ...] = (),
    puts: tuple[tuple[bytes, bytes], ...] = (),
    deletes: tuple[bytes, ...] = (),
    keep_bytes: bool = False,
) -> Transaction:
    """Makes `encoded` the current version, with the old one's bytes let go (unless the new one takes
    them over: `keep_bytes` leaves only the mark)."""
    head = state.head
    basis = (*state.expects(), Expect(mark(encoded.record), ABSENT))
    if encoded.record.scheme != state.bucket.scheme:
        # The bucket's scheme was changed after this write had begun: its packs have to be looked at.
        puts = (*puts, (keys.rescheme_row(state.target.bucket), b""))
    if head is None:
        value = rows.encode_head(encoded, request, ())
        return Transaction((*basis, *expects), ((state.target.head_row, value), *puts), deletes)
    value = rows.encode_head(encoded, request, rows.remember(head))
    if keep_bytes:
        empty = rows.encode(DeadRow(rows.FORMAT, 0, encoded.record.version))
        gone = Released(((mark(head.current), empty),))
    else:
        gone = released(state.target, head.current, encoded.record.version)
    return Transaction(
        (*basis, *expects), ((state.target.head_row, value), *gone.puts, *puts), (*gone.deletes, *deletes)
    )


def remembered(head: HeadRow | None, request: str) -> Remembered | None:
    """What the request with this id answered when it came before."""
    if head is None or not request:
        return None
    if head.request == request:
        return rows.remember(head)[0]
    return next((result for result in head.earlier if result.request == request), None)


def made(head: HeadRow | None, version: VersionId) -> bool:
    """Whether the head row knows that `version` was current once."""
    if head is None:
        return False
    return head.current.version == version or any(result.version == version for result in head.earlier)


class Claim(Struct, frozen=True):
    """What a change that met a conflict has at stake: the version it makes, where the end of that would
    be marked, the bytes of packs that are of no use if the change is refused, and whether it is certain
    that nothing that was tried before can still be committed."""

    version: VersionId
    mark: bytes
    owned: dict[PackId, int]
    certain: bool

    def refuse(self, target: Target, bucket: Row | None, head: Row | None) -> Transaction:
        """Gives the bytes back for good, on the state that made the change impossible. The mark then
        keeps an earlier attempt, whose outcome may still be open, from landing ever."""
        if bucket is None:
            basis = Expect(target.bucket_row, ABSENT)
        else:
            basis = Expect(target.head_row, ABSENT if head is None else head.revision)
        puts = dict(dead_puts(self.owned, self.version, self.version))
        puts.setdefault(self.mark, rows.encode(DeadRow(rows.FORMAT, 0, self.version)))
        packs = (Expect(pack_row(pack), PRESENT) for pack in self.owned)
        untouched = (Expect(key, ABSENT) for key in puts)
        return Transaction((basis, *packs, *untouched), tuple(puts.items()))


def _given_up() -> Unavailable:
    """What a writer is told who came so late that its bytes were taken for what a crash had left."""
    return Unavailable(
        "What was written was given up before it was committed.", hint="Send the request again."
    )


def _told(survive: str) -> Survive | None:
    """What a bucket's row says. A word of a later version says nothing here, and is no reason to refuse the
    bucket."""
    try:
        return parse_survive(survive) if survive else None
    except InvalidInput:
        return None


Propose = Callable[[State, Sequence[Row | None]], Transaction]
"""A change of a key, decided anew on each state and on the other rows it asked for. Raises what the
client is to be told instead."""


class Heads:
    """Reads the state of keys, and sees changes through."""

    def __init__(
        self,
        index: Index,
        committer: Committer,
        turns: Turns,
        patience: ObjectsPatience,
        learn: Callable[[str, Scheme, Survive | None], None] = forget,
    ) -> None:
        self._learn = learn
        self._told: set[str] = set()
        self._index = index
        self._committer = committer
        self._patience = patience
        self._buckets: dict[bytes, BucketRow] = {}
        self.turns = turns

    def bucket(self, name: str, row: Row | None) -> BucketRow:
        """A bucket's row, decoded. Raises NoSuchBucket."""
        if row is None:
            raise keys.no_such_bucket(name)
        # Every request reads a bucket's row, few rows differ: what the same bytes mean never changes.
        known = self._buckets.get(row.value)
        if known is None:
            if len(self._buckets) >= _BUCKETS_KNOWN_MAX:
                self._buckets.clear()
            known = self._buckets[row.value] = rows.decode_bucket(row.value)
        if known.survive or known.nonce in self._told:
            self._told.add(known.nonce)
            self._learn(known.nonce, known.scheme, _told(known.survive))
        return known

    def state(self, target: Target, bucket: Row | None, head: Row | None) -> State:
        """From the two rows. Raises NoSuchBucket."""
        row = self.bucket(target.bucket, bucket)
        assert bucket is not None
        if head is None:
            return State(target, row, bucket.revision, None, ABSENT)
        return State(target, row, bucket.revision, rows.decode_head(head.value), head.revision)

    async def read(self, target: Target) -> State:
        """One index call. Raises NoSuchBucket."""
        bucket, head = await self._index.get((target.bucket_row, target.head_row))
        return self.state(target, bucket, head)

    async def read_to_write(self, target: Target) -> State:
        """As `read`, and a bucket that was being deleted is active afterwards."""
        state = await self.read(target)
        return state if state.bucket.state is BucketState.ACTIVE else await self._revived(target)

    async def _revived(self, target: Target) -> State:
        backoff = self._committer.backoff(self._patience.conflict_s)
        while True:
            state = await self.read(target)
            if state.bucket.state is BucketState.ACTIVE:
                return state
            await self.revive(target.bucket, state.bucket, state.bucket_revision)
            if not await backoff.wait():
                raise Busy("The bucket is being deleted again and again.", hint="Try again.")

    async def revive(self, name: str, row: BucketRow, revision: int) -> Decided:
        """Make a bucket active that was being deleted, if it still is as it was read."""
        active = replace(row, state=BucketState.ACTIVE)
        key = keys.bucket_row(name)
        return await self._committer.decide_one(
            Transaction((Expect(key, revision),), ((key, rows.encode(active)),))
        )

    async def persist(
        self,
        target: Target,
        claim: Claim,
        propose: Propose,
        busy: Busy,
        also: tuple[bytes, ...] = (),
        before: Sequence[Transaction] = (),
    ) -> None:
        """See a change through: read (the rows `also` names as well), propose, commit, until it is done.
        What is in `before` goes into the first commit, ahead of the change.

        Raises what `propose` raises when the change is not possible any more (its bytes are then
        recorded as dead), `busy` when patience ends, and Unavailable when the bytes are gone or the
        outcome cannot be known.
        """
        async with self.turns.take(target.head_row):
            await self.persist_in_turn(target, claim, propose, busy, also, before)

    async def persist_in_turn(
        self,
        target: Target,
        claim: Claim,
        propose: Propose,
        busy: Busy,
        also: tuple[bytes, ...] = (),
        before: Sequence[Transaction] = (),
    ) -> None:
        """The same, for who has the key's turn already."""
        backoff = self._committer.backoff(self._patience.conflict_s)
        basis = (target.bucket_row, target.head_row)
        certain, conflict = claim.certain, b""
        refusal: HoldfastError | None = None
        while True:
            bucket, head, marked, *others = await self._index.get((*basis, claim.mark, *also))
            if head is not None and made(rows.decode_head(head.value), claim.version):
                return
            if marked is not None:
                if rows.decode_dead(marked.value).cause != claim.version:
                    return  # it was made, and something has replaced or moved it since
                raise refusal or _given_up()
            if claim.owned and conflict.startswith((b"pack/", b"dead/")):
                raise refusal or _given_up()
            refusal = None
            try:
                if conflict.startswith(keys.REQUESTS):
                    raise Overtaken
                state = self.state(target, bucket, head)
                if state.bucket.state is not BucketState.ACTIVE:
                    await self.revive(target.bucket, state.bucket, state.bucket_revision)
                    if not await backoff.wait():
                        raise busy
                    continue
                transaction = propose(state, others)
            except Unavailable:
                raise
            except HoldfastError as error:
                refusal = error
                if certain and not claim.owned:
                    raise
                transaction = claim.refuse(target, bucket, head)
            decided = (await self._committer.decide((*before, transaction)))[-1]
            before = ()
            if decided.committed:
                if refusal is not None:
                    raise refusal
                return
            certain = certain and decided.certain
            conflict = decided.conflict
            if refusal is not None and conflict.startswith(b"pack/"):
                raise refusal  # the pack is gone, and with it all that could still land
            if not await backoff.wait():
                raise refusal or busy
