"""The standby's way: the active's rows in the order of its commits, and their bytes before them.

What must hold:

- one transaction takes over one or several commits of the active, in order, and moves the checkpoint that
  it expects as it was; so a crash at any moment leaves a place to go on from, and whatever is still on its
  way lands at most once;
- every transaction expects the site's state as the follower was given it: once the site is no standby any
  more, nothing of this reaches its index, however late;
- a row that names a pack comes with or after the pack's own row, and that after the pack is durable here.
  Only where the active itself has the pack no more it is left out, and then the standby is not whole until
  it has passed the moment at which that was seen;
- once it is whole it stays a state that the active had, at each moment.

Rows that were never copied, or of which the feed does not tell any more, are compared page by page
(`comparing`), while the feed goes on.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress

from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.errors import Busy, Fenced, HoldfastError
from holdfast.base.ids import PackId
from holdfast.index.port import ABSENT, Committed, Expect, Index, Row, Transaction, Unknown
from holdfast.packs.disposal import encode_burial, shards_of
from holdfast.packs.model import PackRow, buried_row, debt_row, pack_row
from holdfast.packs.rows import decode_row
from holdfast.sites import comparing
from holdfast.sites.feed import Feed, FeedCut, PackFetcher
from holdfast.sites.folding import Folded
from holdfast.sites.landing import Landing
from holdfast.sites.rows import (
    CHECKPOINT_ROW,
    FORMAT,
    PARTS,
    Checkpoint,
    arrival,
    at_moment,
    decode_checkpoint,
    encode_checkpoint,
)
from holdfast.sites.source import Source

UNKNOWN_PAUSE_S = 0.05
LOOK_S = 0.5
LOOKS_MAX = 1000

Puts = dict[bytes, bytes | None]
Packs = Mapping[PackId, PackRow | None]


class Follower:
    """Makes `index` follow `source`, with packs in `landing`. `state` is what must hold of the site's own
    state."""

    def __init__(
        self,
        index: Index,
        source: Source,
        landing: Landing,
        clock: Clock,
        state: Expect,
        *,
        page: int = comparing.PAGE,
    ) -> None:
        self._page = page
        self._index = index
        self._source = source
        self._clock = clock
        self._state = state
        self._fetcher = PackFetcher(source, landing)
        self._looks: deque[tuple[float, int]] = deque(maxlen=LOOKS_MAX)
        self._revision = ABSENT
        self._to_mend: deque[bytes] = deque()
        self.checkpoint: Checkpoint | None = None
        self.caught_up: float | None = None
        """When, by `aging`, the standby last had every row there was."""

    @property
    def bytes_awaited(self) -> int:
        """Of packs that the feed has told and that are not durable here."""
        return self._fetcher.bytes_awaited

    def mend(self, groups: Iterable[bytes]) -> None:
        """Put rows of these groups anew, as the active has them: they were found to be different."""
        self._to_mend.extend(groups)

    async def run(self) -> None:
        """Follow for ever. Raises Unavailable when the active or the index cannot answer, Busy when somebody
        else follows as well, Fenced when the site is no standby any more; after the first two it may be run
        again."""
        await self._begin()
        looking = asyncio.get_running_loop().create_task(self._look())
        try:
            while True:
                try:
                    await self._follow()
                except FeedCut:
                    # The feed does not reach back to where we are: what it would have told is compared
                    # instead.
                    await self._begin_copy(await self._source.incarnation())
        finally:
            looking.cancel()
            await self._fetcher.close()

    async def _begin(self) -> None:
        await self._reload()
        incarnation = await self._source.incarnation()
        if self.checkpoint is None or self.checkpoint.incarnation != incarnation:
            await self._begin_copy(incarnation)

    async def _begin_copy(self, incarnation: str) -> None:
        revision = await self._source.revision()
        await self._commit(Checkpoint(FORMAT, incarnation, revision, revision, b""), {}, (), ())

    async def _reload(self) -> None:
        (found,) = await self._index.get([CHECKPOINT_ROW])
        self._revision = ABSENT if found is None else found.revision
        self.checkpoint = None if found is None else decode_checkpoint(found.value)

    async def _look(self) -> None:
        """Ask how far the active is, so that one can say how far behind we are."""
        while True:
            asked = self._clock.aging()
            with suppress(HoldfastError):  # then we are behind for as long as it cannot be asked
                self._looks.append((asked, await self._source.revision()))
            await self._clock.sleep(LOOK_S)

    async def _follow(self) -> None:
        checkpoint = self._here
        feed = Feed(self._source, checkpoint.revision, self._fetcher, lambda key: self._here.covers(key))
        try:
            while True:
                feed.check()
                if feed.ahead:
                    await self._take(feed)
                if self._here.copied is not None:
                    await self._copy_page()
                elif self._to_mend:
                    await self._mend_one()
                elif not feed.ahead:
                    await feed.wait()
        finally:
            await feed.close()

    @property
    def _here(self) -> Checkpoint:
        assert self.checkpoint is not None
        return self.checkpoint

    # From the feed

    async def _take(self, feed: Feed) -> None:
        folded = Folded(self._here)
        count = 0
        for change in feed.ahead:
            if not folded.add(change):
                break
            count += 1
        await self._apply(folded.rows, folded.packs, replace(self._here, revision=folded.revision))
        for _ in range(count):
            feed.ahead.popleft()
        feed.taken()

    # From pages

    async def _copy_page(self) -> None:
        checkpoint = self._here
        assert checkpoint.copied is not None
        page = await comparing.read_page(self._source, self._index, checkpoint.copied, self._page)
        if page is None:
            await self._apply({}, {}, replace(checkpoint, copied=None))
            return
        await self._put_alike(page, copies=True)

    async def _mend_one(self) -> None:
        await self._put_alike(
            await comparing.read_group(self._source, self._index, self._to_mend.popleft()), copies=False
        )

    async def _put_alike(self, page: comparing.Page, *, copies: bool) -> None:
        """Make our rows of a page theirs. They are younger than the checkpoint, so we are whole once it is
        there."""
        whole = await self._source.revision()
        for step in comparing.steps(page):
            while self._index.status().revision < step.moments:
                await self._apply({}, {}, self._here)
            after = replace(self._here, whole=max(whole, self._here.whole))
            if copies:
                after = replace(after, copied=step.copied)
            await self._apply(step.rows, step.packs, after, in_place=True)

    # Into the index

    async def _apply(self, rows: Puts, packs: Packs, after: Checkpoint, *, in_place: bool = False) -> None:
        """Change rows and packs and move on. `in_place`: moments of parts are ours already."""
        while True:
            puts: Puts = dict(rows) if in_place else await self._with_own_moments(rows)
            expects: list[Expect] = []
            gone = await self._place(packs, puts, expects)
            whole = max(after.whole, await self._source.revision()) if gone else after.whole
            if await self._commit(
                replace(after, whole=whole),
                {key: value for key, value in puts.items() if value is not None},
                [key for key, value in puts.items() if value is None],
                expects,
            ):
                break
        for pack in packs:
            self._fetcher.forget(pack)

    async def _with_own_moments(self, rows: Puts) -> Puts:
        """An attempt of a part that is here keeps the moment that it has here, whatever the active calls
        it."""
        parts = [key for key, value in rows.items() if value is not None and key.startswith(PARTS)]
        changed = dict(rows)
        for key, own in zip(parts, await self._index.get(parts) if parts else (), strict=True):
            value = rows[key]
            assert value is not None
            changed[key] = at_moment(value, 0 if own is None else arrival(own))
        return changed

    async def _place(self, packs: Packs, puts: Puts, expects: list[Expect]) -> bool:
        """Add what makes packs known or buries them here; whether one was not to be had any more."""
        keys = [key for pack in packs for key in (pack_row(pack), buried_row(pack))]
        found = iter(await self._index.get(keys) if keys else ())
        gone = False
        for pack, row in packs.items():
            own, grave = next(found), next(found)
            if row is None:
                if own is not None:
                    _bury(pack, own, puts, expects)
            elif own is None:
                landed = await self._fetcher.landed(pack, row.payload_bytes)
                if landed is not None and grave is not None:
                    await self._check_dead(pack)
                if landed is None or grave is not None:
                    gone = True
                    continue
                assert not landed.transaction.deletes
                expects.extend(landed.transaction.expects)
                puts.update(landed.transaction.puts)
        return gone

    async def _check_dead(self, pack: PackId) -> None:
        """A pack that was buried here was buried at the active, too, or it would be missed for ever."""
        key = pack_row(pack)
        if await self._source.page(key, key + b"\0", 1):
            raise Busy(
                f"Pack {pack.hex()} was declared dead here, and the active site has it.",
                hint="It is copied once its grave is filled in.",
            )

    async def _commit(
        self,
        after: Checkpoint,
        puts: Mapping[bytes, bytes],
        deletes: Sequence[bytes],
        expects: Sequence[Expect],
    ) -> bool:
        """Move on to `after`. False: a row was not as it was read, and nothing has changed."""
        value = encode_checkpoint(after)
        transaction = Transaction(
            (self._state, Expect(CHECKPOINT_ROW, self._revision), *expects),
            ((CHECKPOINT_ROW, value), *puts.items()),
            tuple(deletes),
        )
        (outcome,) = await self._index.commit([transaction])
        while isinstance(outcome, Unknown):
            await self._clock.sleep(UNKNOWN_PAUSE_S)
            (outcome,) = await self._index.commit([transaction])
        if isinstance(outcome, Committed):
            self._moved(after, outcome.revision)
            return True
        state, here = await self._index.get([self._state.key, CHECKPOINT_ROW])
        if here is not None and here.revision != self._revision and here.value == value:
            self._moved(after, here.revision)  # by an attempt whose answer was lost
            return True
        if (ABSENT if state is None else state.revision) != self._state.revision:
            raise Fenced("This site is no standby any more.", hint="Its role has changed.")
        if (ABSENT if here is None else here.revision) != self._revision:
            raise Busy("Somebody else follows the active site, too.", hint="One of the two goes on.")
        return False

    def _moved(self, after: Checkpoint, revision: int) -> None:
        self.checkpoint, self._revision = after, revision
        while self._looks and self._looks[0][1] <= after.revision and after.is_whole:
            self.caught_up = self._looks.popleft()[0]


def _bury(pack: PackId, own: Row, puts: Puts, expects: list[Expect]) -> None:
    row = decode_row(own.value)
    expects.append(Expect(own.key, own.revision))
    puts[own.key] = None
    puts[debt_row(pack)] = None
    puts[buried_row(pack)] = encode_burial(shards_of(pack, row), row)
