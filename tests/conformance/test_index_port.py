"""What every adapter of the index port promises, run on all of them."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.base.clock import SystemClock
from holdfast.base.errors import InvalidInput, Unavailable
from holdfast.base.randomness import SystemRandomness
from holdfast.index.etcd import open_etcd
from holdfast.index.measured import MeasuredIndex
from holdfast.index.memory import MemoryIndex
from holdfast.index.port import (
    ABSENT,
    KEY_BYTES_MAX,
    PRESENT,
    VALUE_BYTES_MAX,
    Change,
    Committed,
    Conflict,
    Expect,
    Index,
    IndexState,
    Lease,
    Prefix,
    Row,
    Transaction,
    lease_row,
)
from holdfast.index.postgres import open_postgres
from holdfast.index.sqlite import (
    CopyOptions,
    DirectoryCopy,
    DirectoryMember,
    IndexOptions,
    LogOptions,
    open_index,
)
from holdfast.sites.gate import NO_PAIR, GatedIndex
from tests.kit.etcd import running_etcd
from tests.kit.index_disks import SimDisk, SimMember, World
from tests.kit.postgres import running_server

EVERYTHING = b"\xff" * KEY_BYTES_MAX

Opened = Callable[[], AbstractAsyncContextManager[Index]]


@asynccontextmanager
async def open_memory(folder: Path) -> AsyncIterator[Index]:
    index = MemoryIndex(SystemClock())
    try:
        yield index
    finally:
        await index.close()


@asynccontextmanager
async def open_memory_slow(folder: Path) -> AsyncIterator[Index]:
    index = MemoryIndex(SystemClock(), commit_delay_s=0.001)
    try:
        yield index
    finally:
        await index.close()


class Counting:
    """An observer of commits."""

    def __init__(self) -> None:
        self.ended: list[tuple[int, bool]] = []

    def committed(self, seconds: float, transactions: int, error: BaseException | None) -> None:
        assert seconds >= 0
        self.ended.append((transactions, error is None))


@asynccontextmanager
async def open_memory_measured(folder: Path) -> AsyncIterator[Index]:
    index = MeasuredIndex(MemoryIndex(SystemClock()), Counting(), SystemClock())
    try:
        yield index
    finally:
        await index.close()


@asynccontextmanager
async def open_memory_gated(folder: Path) -> AsyncIterator[Index]:
    index = GatedIndex(MemoryIndex(SystemClock()), lambda: NO_PAIR, lambda: True)
    try:
        yield index
    finally:
        await index.close()


@asynccontextmanager
async def open_sqlite(folder: Path) -> AsyncIterator[Index]:
    for number in range(3):
        (folder / f"disk{number}").mkdir()
    index = await open_index(
        members=[DirectoryMember(f"disk{n}", folder / f"disk{n}" / "index") for n in range(3)],
        copies=[DirectoryCopy(f"disk{n}", folder / f"disk{n}" / "index") for n in range(2)],
        clock=SystemClock(),
        randomness=SystemRandomness(),
        options=IndexOptions(
            patience_s=60.0,
            log=LogOptions(segment_bytes=1 << 20, patience_s=60.0, overdue_s=60.0),
            copies=CopyOptions(kept=2, overdue_s=60.0),
        ),
    )
    try:
        yield index
    finally:
        await index.close()


@asynccontextmanager
async def open_sqlite_on_simulated_disks(folder: Path) -> AsyncIterator[Index]:
    world = World("conformance", delay_s=0.0002)
    index = await open_index(
        members=[SimMember(SimDisk(f"disk{n}"), world) for n in range(5)],
        copies=[DirectoryCopy("only", folder / "copy")],
        clock=SystemClock(),
        randomness=world.chance,
        options=IndexOptions(
            log=LogOptions(segment_bytes=32 << 10, tail_bytes=16 << 10),
            copies=CopyOptions(kept=1, linger_s=0.001, apply_bytes=1),
        ),
    )
    try:
        yield index
    finally:
        await index.close()


@asynccontextmanager
async def open_postgres_anew(folder: Path) -> AsyncIterator[Index]:
    server = running_server()
    server.run("DROP SCHEMA IF EXISTS holdfast CASCADE")
    index = await open_postgres(server.address(), clock=SystemClock(), randomness=SystemRandomness())
    try:
        yield index
    finally:
        await index.close()


@asynccontextmanager
async def open_etcd_anew(folder: Path) -> AsyncIterator[Index]:
    index = await open_etcd(running_etcd().address(), clock=SystemClock(), randomness=SystemRandomness())
    try:
        yield index
    finally:
        await index.close()


@asynccontextmanager
async def open_etcd_measured(folder: Path) -> AsyncIterator[Index]:
    async with open_etcd_anew(folder) as index:
        yield MeasuredIndex(index, Counting(), SystemClock())


ENGINES = {
    "memory": open_memory,
    "memory-slow": open_memory_slow,
    "memory-measured": open_memory_measured,
    "memory-gated": open_memory_gated,
    "sqlite": open_sqlite,
    "sqlite-simulated": open_sqlite_on_simulated_disks,
    "postgres": open_postgres_anew,
    "etcd": open_etcd_anew,
    "etcd-measured": open_etcd_measured,
}


@pytest.fixture(params=list(ENGINES))
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Opened:
    return lambda: ENGINES[request.param](tmp_path)


def put(key: bytes, value: bytes, revision: int | None = None) -> Transaction:
    return Transaction(() if revision is None else (Expect(key, revision),), ((key, value),))


async def committed(index: Index, transaction: Transaction) -> int:
    outcome = (await index.commit([transaction]))[0]
    assert isinstance(outcome, Committed), outcome
    return outcome.revision


async def take(index: Index, after: int, count: int) -> list[Change]:
    taken: list[Change] = []
    async with asyncio.timeout(60):
        async for change in index.changes(after):
            taken.append(change)
            if len(taken) == count:
                break
    return taken


async def test_what_was_put_is_read_at_its_revision(opened: Opened) -> None:
    async with opened() as index:
        revision = await committed(index, put(b"a", b"1", ABSENT))
        assert await index.get([b"b", b"a"]) == [None, Row(b"a", b"1", revision)]
        again = await committed(index, put(b"a", b"2", revision))
        assert again > revision
        assert await index.get([b"a", b"a"]) == [Row(b"a", b"2", again)] * 2
        assert await index.get([]) == []


async def test_values_and_keys_are_bytes_without_meaning(opened: Opened) -> None:
    async with opened() as index:
        pairs = [(b"\x00", b""), (b"\xff" * KEY_BYTES_MAX, b"\x00"), (b"'; --", b"x" * VALUE_BYTES_MAX)]
        for key, value in pairs:
            await committed(index, put(key, value, ABSENT))
        assert [(row.key, row.value) for row in await index.get([k for k, _ in pairs]) if row] == pairs


async def test_a_transaction_commits_only_when_all_it_expects_holds(opened: Opened) -> None:
    async with opened() as index:
        first = await committed(index, put(b"a", b"1"))
        wrong = [
            Transaction((Expect(b"a", ABSENT),), ((b"x", b""),)),
            Transaction((Expect(b"a", first + 1),), ((b"x", b""),)),
            Transaction((Expect(b"a", first), Expect(b"b", PRESENT)), ((b"x", b""),)),
            Transaction((Expect(b"b", first),), ((b"x", b""),)),
        ]
        assert await index.commit(wrong) == [
            Conflict(b"a"),
            Conflict(b"a"),
            Conflict(b"b"),
            Conflict(b"b"),
        ]
        assert await index.get([b"x"]) == [None]
        await committed(
            index, Transaction((Expect(b"a", PRESENT), Expect(b"b", ABSENT)), ((b"c", b""),), (b"a",))
        )
        assert [row and row.key for row in await index.get([b"a", b"c"])] == [None, b"c"]


async def test_in_one_call_each_is_decided_on_its_own_after_those_before_it(opened: Opened) -> None:
    async with opened() as index:
        outcomes = await index.commit(
            [
                put(b"a", b"1", ABSENT),
                put(b"a", b"2", ABSENT),
                Transaction((Expect(b"a", PRESENT),), ((b"b", b"1"),), (b"a",)),
                put(b"a", b"3", ABSENT),
                put(b"c", b"1", PRESENT),
            ]
        )
        kinds = [type(outcome) for outcome in outcomes]
        assert kinds == [Committed, Conflict, Committed, Committed, Conflict]
        revisions = [outcome.revision for outcome in outcomes if isinstance(outcome, Committed)]
        assert revisions == sorted(set(revisions))
        a, b, c = await index.get([b"a", b"b", b"c"])
        assert a == Row(b"a", b"3", revisions[2])
        assert b == Row(b"b", b"1", revisions[1])
        assert c is None


async def test_a_row_that_was_deleted_and_put_again_has_the_new_revision(opened: Opened) -> None:
    async with opened() as index:
        first = await committed(index, put(b"a", b"same"))
        await committed(index, Transaction((), (), (b"a", b"never there")))
        second = await committed(index, put(b"a", b"same", ABSENT))
        assert await index.commit([put(b"a", b"x", first)]) == [Conflict(b"a")]
        assert second > first
        assert await index.get([b"a"]) == [Row(b"a", b"same", second)]


async def test_of_many_who_expect_the_same_one_wins(opened: Opened) -> None:
    async with opened() as index:
        revision = await committed(index, put(b"hot", b""))
        for _ in range(5):
            calls = [
                index.commit([put(b"hot", b"%d" % n, revision), put(b"cold/%d" % n, b"")]) for n in range(20)
            ]
            answers = await asyncio.gather(*calls)
            assert all(isinstance(answer[1], Committed) for answer in answers)
            won = [answer[0] for answer in answers if isinstance(answer[0], Committed)]
            assert len(won) == 1
            revision = won[0].revision


async def test_counting_under_contention_loses_nothing(opened: Opened) -> None:
    async with opened() as index:
        await committed(index, put(b"count", b"0"))

        async def add() -> None:
            while True:
                row = (await index.get([b"count"]))[0]
                assert row is not None
                outcome = (await index.commit([put(b"count", b"%d" % (int(row.value) + 1), row.revision)]))[0]
                if isinstance(outcome, Committed):
                    return

        await asyncio.gather(*(add() for _ in range(25)))
        row = (await index.get([b"count"]))[0]
        assert row is not None
        assert row.value == b"25"


async def test_reads_see_every_acknowledged_commit_at_once(opened: Opened) -> None:
    async with opened() as index:

        async def client(number: int) -> None:
            revision = ABSENT
            for step in range(30):
                key, value = b"client/%d" % number, b"%d" % step
                revision = await committed(index, put(key, value, revision))
                assert await index.get([key]) == [Row(key, value, revision)]
                assert await index.scan(key, key + b"\x00", limit=2) == [Row(key, value, revision)]

        await asyncio.gather(*(client(number) for number in range(8)))


async def test_a_get_of_several_keys_is_of_one_moment(opened: Opened) -> None:
    async with opened() as index:
        keys = [b"left", b"right"]
        await committed(index, Transaction((), tuple((key, b"0") for key in keys)))
        done = False

        async def write() -> None:
            nonlocal done
            for step in range(60):
                await committed(index, Transaction((), tuple((key, b"%d" % step) for key in keys)))
            done = True

        async def read() -> None:
            latest = 0
            while not done:
                left, right = await index.get(keys)
                assert left is not None
                assert right is not None
                assert (left.value, left.revision) == (right.value, right.revision)
                assert left.revision >= latest
                latest = left.revision
                await asyncio.sleep(0)

        await asyncio.gather(write(), read(), read())


async def test_resolving_by_committing_the_same_expectation_never_commits_both(opened: Opened) -> None:
    async with opened() as index:
        for step in range(20):
            key = b"key/%d" % step
            original = asyncio.ensure_future(index.commit([put(key, b"original", ABSENT)]))
            await asyncio.sleep(0 if step % 2 else 0.0005)
            original.cancel()
            second = (await index.commit([put(key, b"second", ABSENT)]))[0]
            row = (await index.get([key]))[0]
            assert row is not None
            assert row.value == (b"second" if isinstance(second, Committed) else b"original")
            await asyncio.sleep(0.002)
            assert await index.get([key]) == [row]
            await asyncio.gather(original, return_exceptions=True)


async def test_what_is_beyond_the_limits_is_refused_and_nothing_of_the_call_committed(opened: Opened) -> None:
    async with opened() as index:
        wrong = [
            put(b"", b""),
            put(b"k" * (KEY_BYTES_MAX + 1), b""),
            put(b"k", b"v" * (VALUE_BYTES_MAX + 1)),
            Transaction((), tuple((b"%d" % n, b"v" * VALUE_BYTES_MAX) for n in range(2))),
            Transaction((), ((b"k", b"1"), (b"k", b"2"))),
            Transaction((), ((b"k", b"1"),), (b"k",)),
            Transaction((), (), (b"k", b"k")),
            Transaction((Expect(b"k", -2),), ()),
            Transaction((Expect(b"", ABSENT),), ()),
        ]
        for transaction in wrong:
            with pytest.raises(InvalidInput):
                await index.commit([put(b"good", b""), transaction])
        assert await index.scan(b"\x00", EVERYTHING, limit=9) == []
        with pytest.raises(InvalidInput):
            await index.scan(b"a", b"b", limit=0)


async def test_the_feed_tells_every_commit_in_order_and_waits_for_more(opened: Opened) -> None:
    async with opened() as index:
        start = index.status().revision
        first = await committed(index, put(b"a", b"1"))
        await index.commit([put(b"a", b"refused", ABSENT)])
        second = await committed(index, Transaction((), ((b"b", b"2"), (b"c", b"3")), (b"a",)))
        assert await take(index, start, 2) == [
            Change(first, ((b"a", b"1"),), ()),
            Change(second, ((b"b", b"2"), (b"c", b"3")), (b"a",)),
        ]
        waiting = asyncio.ensure_future(take(index, second, 40))
        await asyncio.sleep(0)
        revisions = [
            outcome.revision
            for answer in await asyncio.gather(
                *(index.commit([put(b"d/%d" % n, b"")] * 2) for n in range(20))
            )
            for outcome in answer
            if isinstance(outcome, Committed)
        ]
        assert [change.revision for change in await waiting] == sorted(revisions)
        with pytest.raises(InvalidInput):
            await take(index, max(revisions) + 1000, 1)


async def test_the_feed_replayed_gives_the_rows(opened: Opened) -> None:
    async with opened() as index:
        for n in range(60):
            key = b"key/%d" % (n * 7 % 11)
            await committed(index, put(key, b"%d" % n) if n % 3 else Transaction((), (), (key,)))
        rows: dict[bytes, Row] = {}
        for change in await take(index, 0, 60):
            for key in change.deletes:
                rows.pop(key, None)
            rows.update({key: Row(key, value, change.revision) for key, value in change.puts})
        assert [rows[key] for key in sorted(rows)] == await index.scan(b"key/", b"key0", limit=100)


async def test_a_lease_has_one_holder_and_a_token_that_grows(opened: Opened) -> None:
    async with opened() as index:
        mine = await index.acquire("chores", "me", ttl_s=60)
        assert mine is not None
        assert await index.acquire("chores", "you", ttl_s=60) is None
        assert await index.acquire("chores", "me", ttl_s=60) == mine
        held = Transaction((Expect(lease_row("chores"), mine.token),), ((b"work", b"1"),))
        await committed(index, held)
        await index.release(mine)
        yours = await index.acquire("chores", "you", ttl_s=60)
        assert yours is not None
        assert yours.token > mine.token
        assert await index.commit([held]) == [Conflict(lease_row("chores"))]
        await index.release(mine)
        assert await index.acquire("chores", "me", ttl_s=60) is None
        assert await index.acquire("other", "me", ttl_s=60) is not None


async def test_a_lease_that_expired_goes_to_the_next(opened: Opened) -> None:
    async with opened() as index:
        old = await index.acquire("chores", "me", ttl_s=0.01)
        assert old is not None
        granted: list[Lease] = []
        async with asyncio.timeout(60):
            # An engine may count in whole seconds, and see late that one is over.
            while not granted:
                await asyncio.sleep(0.02)
                asked = [index.acquire("chores", f"node{n}", ttl_s=60) for n in range(5)]
                granted = [lease for lease in await asyncio.gather(*asked) if lease is not None]
        assert len(granted) == 1
        assert granted[0].token > old.token


async def test_status_tells_and_a_closed_index_refuses(opened: Opened) -> None:
    async with opened() as index:
        revision = await committed(index, put(b"a", b"1"))
        status = index.status()
        assert status.state is IndexState.SERVING
        assert status.revision == revision
        assert status.incarnation
        waiting = asyncio.ensure_future(take(index, revision, 1))
        await asyncio.sleep(0.01)
        await index.close()
        with pytest.raises(Unavailable):
            await waiting
        with pytest.raises(Unavailable):
            await index.get([b"a"])
        with pytest.raises(Unavailable):
            await index.commit([put(b"a", b"2")])
        assert index.status().state is IndexState.UNAVAILABLE


ALPHABET = [b"a", b"b", b"/", b"//", b"\x00", b"\xff"]
keys = st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=6).map(b"".join)


def scan_simply(
    rows: dict[bytes, Row], start: bytes, end: bytes, limit: int, delimiter: bytes, skip: int
) -> list[Row | Prefix]:
    """The port's sentence about `scan`, word by word."""
    found: list[Row | Prefix] = []
    for key in sorted(key for key in rows if start <= key < end):
        at = key.find(delimiter, skip) if delimiter else -1
        item = rows[key] if at < 0 else Prefix(key[: at + len(delimiter)])
        if item not in found:
            found.append(item)
    return found[:limit]


@pytest.mark.parametrize("engine", list(ENGINES))
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_scan_answers_as_the_simple_one(
    engine: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    async def run() -> None:
        async with ENGINES[engine](tmp_path_factory.mktemp("index")) as index:
            rows: dict[bytes, Row] = {}
            puts = data.draw(st.lists(keys, unique=True, max_size=40))
            gone = set(data.draw(st.lists(st.sampled_from(puts), max_size=10)) if puts else [])
            for key in puts:
                rows[key] = Row(key, b"v", await committed(index, put(key, b"v")))
            for key in gone:
                await committed(index, Transaction((), (), (key,)))
                del rows[key]
            for _ in range(8):
                start, end = data.draw(keys), data.draw(keys | st.just(EVERYTHING))
                limit, skip = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 4))
                delimiter = data.draw(st.sampled_from([b"", b"/", b"//", b"\xff", b"a/"]))
                answer = await index.scan(start, end, limit=limit, delimiter=delimiter, skip=skip)
                assert answer == scan_simply(rows, start, end, limit, delimiter, skip)

    asyncio.run(run())


async def test_pages_laid_end_to_end_are_the_whole(opened: Opened) -> None:
    async with opened() as index:
        names = sorted(b"key/%05d" % (n * 7919 % 1000) for n in range(1000))
        for at in range(0, 1000, 100):
            await index.commit([put(name, name) for name in names[at : at + 100]])
        pages: list[bytes] = []
        start = b"key/"
        while page := await index.scan(start, b"key0", limit=137):
            pages.extend(item.key for item in page)
            start = page[-1].key + b"\x00"
        assert pages == names
