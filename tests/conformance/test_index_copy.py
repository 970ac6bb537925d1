"""Copying an index between engines: every pair, broken off after every step and given again."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Fenced, InvalidInput, Unavailable
from holdfast.base.randomness import SystemRandomness
from holdfast.index.copying import Copied, Kind, Moved, Standing, Step, decide, stays
from holdfast.index.etcd import EtcdOptions, open_etcd
from holdfast.index.etcd.moving import EtcdEnd, etcd_end
from holdfast.index.port import ABSENT, Committed, Expect, Index, Row, Transaction
from holdfast.index.postgres import PostgresOptions, open_postgres
from holdfast.index.postgres.moving import PostgresEnd, postgres_end
from holdfast.node.config import Config, Given, StorePlace, make_config
from holdfast.node.index_copying import EMBEDDED, copy_between
from holdfast.node.index_home import embedded_home
from holdfast.node.keeper import Keeper
from holdfast.recovery.format import LINEAGE_ROW, decode_lineage
from tests.kit.etcd import running_etcd
from tests.kit.postgres import running_server

_numbers = itertools.count()


class BrokenOff(Exception):
    """The process that copies died here."""


class World:
    """Where indexes may lie, for one test."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._configs: dict[str, Config] = {}

    def place(self, engine: str) -> str:
        """A name that is given to `index copy`; nothing is there."""
        if engine == "etcd":
            return running_etcd().address()
        if engine == "postgres":
            database = f"copy_{next(_numbers)}"
            running_server().run(f"DROP DATABASE IF EXISTS {database}")
            running_server().run(f"CREATE DATABASE {database}")
            return running_server().address(database)
        home = self._folder / f"home{next(_numbers)}"
        home.mkdir()
        stores = tuple(StorePlace(path=home / f"d{n}") for n in range(3))
        self._config = make_config([Given(data=home / "data", stores=stores, scheme="mirror-2")], home)
        return EMBEDDED

    @property
    def config(self) -> Config:
        """Of the node with an embedded index, if there is one."""
        if not hasattr(self, "_config"):
            self._config = make_config([], self._folder)
        return self._config

    @asynccontextmanager
    async def opened(self, name: str) -> AsyncIterator[Index]:
        """As a node opens it."""
        clock, chance = SystemClock(), SystemRandomness()
        index: Index
        if name.startswith("etcd"):
            index = await open_etcd(name, clock=clock, randomness=chance, options=EtcdOptions(patience_s=60))
        elif name.startswith("postgres"):
            options = PostgresOptions(patience_s=60.0, call_timeout_s=5.0)
            index = await open_postgres(name, clock=clock, randomness=chance, options=options)
        else:
            self.config.data.mkdir(exist_ok=True)
            keeper = Keeper(self.config, clock=clock, randomness=chance, on_event=lambda *_, **__: None)
            await keeper.open()
            try:
                index = (await embedded_home(self.config, keeper, clock, chance)).index
                keeper.remember_index(keeper.cluster.index, index.status().incarnation)
            except BaseException:
                await keeper.close()
                raise
            try:
                yield index
            finally:
                await index.close()
                await keeper.close()
            return
        try:
            yield index
        finally:
            await index.close()

    async def copy(self, source: str, target: str, until: Step | None = None) -> Copied:
        """Copy; the process dies after the step `until`."""

        def done(step: Step) -> None:
            if step is until:
                raise BrokenOff

        return await copy_between(source, target, self.config, SystemClock(), SystemRandomness(), done)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def fill(index: Index, rows: int = 300) -> None:
    for at in range(0, rows, 50):
        puts = [(b"row/%05d" % n, b"value %d" % n * (n % 7)) for n in range(at, at + 50)]
        (outcome,) = await index.commit([Transaction((), tuple(puts))])
        assert isinstance(outcome, Committed)
    await index.commit(
        [Transaction((), ((b"\xff" * 2048, b"last"), (b"\x00", b"first"), (b"big", b"x" * (1 << 20))))]
    )
    await index.acquire("chore", "me", ttl_s=60)


async def rows_of(index: Index) -> dict[bytes, bytes]:
    found = await index.scan(b"\x00", b"\xff" * 2048 + b"\xff", limit=5000)
    return {row.key: row.value for row in found if isinstance(row, Row) and stays(row.key)}


PAIRS = [
    pair
    for pair in itertools.product(("embedded", "etcd", "postgres"), repeat=2)
    if pair != ("embedded",) * 2
]


@pytest.mark.parametrize(("from_", "to"), PAIRS)
async def test_all_of_an_index_goes_over_and_the_old_one_is_fenced(world: World, from_: str, to: str) -> None:
    source, target = world.place(from_), world.place(to)
    async with world.opened(source) as old:
        await fill(old)
        rows, revision, before = await rows_of(old), old.status().revision, old.status().incarnation
    copied = await world.copy(source, target)
    assert copied.sum is not None
    assert copied.sum.rows == len(rows) + 1
    assert "holdfast@" in copied.target or to != "postgres"
    async with world.opened(target) as new:
        found = await rows_of(new)
        assert decode_lineage(found.pop(LINEAGE_ROW)).ancestors == (before,)
        assert found == rows
        assert new.status().incarnation == copied.incarnation != before
        (outcome,) = await new.commit([Transaction((), ((b"after", b"1"),))])
        assert isinstance(outcome, Committed)
        assert outcome.revision > revision
        assert await new.acquire("chore", "you", ttl_s=60) is not None
    with pytest.raises(Fenced, match="which is the truth now"):
        async with world.opened(source):
            pass
    again = await world.copy(source, target)
    assert (again.sum, again.incarnation) == (None, copied.incarnation)


@pytest.mark.parametrize("until", list(Step))
@pytest.mark.parametrize(
    ("from_", "to"), [("embedded", "etcd"), ("etcd", "postgres"), ("postgres", "embedded")]
)
async def test_a_copy_that_dies_leaves_one_truth_and_can_be_given_again(
    world: World, from_: str, to: str, until: Step
) -> None:
    source, target = world.place(from_), world.place(to)
    async with world.opened(source) as old:
        await fill(old, 100)
        rows, before = await rows_of(old), old.status().incarnation
    with pytest.raises(BrokenOff):
        await world.copy(source, target, until)
    if until in (Step.FROZEN, Step.FILLED, Step.PROVEN):
        if until is not Step.FROZEN and to != "embedded":
            with pytest.raises(Unavailable, match="not finished"):
                async with world.opened(target):
                    pass
        async with world.opened(source) as old, asyncio.timeout(60):
            assert old.status().incarnation == before
            (outcome,) = await old.commit([Transaction((), ((b"meanwhile", b"1"),))])
            assert isinstance(outcome, Committed)
        rows[b"meanwhile"] = b"1"
    else:
        with pytest.raises(Fenced):
            async with world.opened(source):
                pass
        if until is Step.MOVED:
            with pytest.raises(InvalidInput, match=r"was moved to|holds a copy"):
                await world.copy(source, world.place("etcd"))
    copied = await world.copy(source, target)
    async with world.opened(target) as new:
        found = await rows_of(new)
        assert decode_lineage(found.pop(LINEAGE_ROW)).ancestors == (before,)
        assert found == rows
        assert new.status().incarnation == copied.incarnation


@pytest.mark.parametrize(("from_", "to"), [("etcd", "postgres"), ("postgres", "etcd")])
async def test_writes_wait_while_rows_go_over_and_none_is_lost(world: World, from_: str, to: str) -> None:
    source, target = world.place(from_), world.place(to)
    acknowledged: list[bytes] = []
    begun = asyncio.Event()

    async def write(index: Index) -> None:
        for n in itertools.count():
            key = b"live/%06d" % n
            (outcome,) = await index.commit([Transaction((Expect(key, ABSENT),), ((key, b""),))])
            assert isinstance(outcome, Committed)
            acknowledged.append(key)
            if n == 20:
                begun.set()

    async with world.opened(source) as old, asyncio.timeout(120):
        await fill(old, 300)
        writing = asyncio.ensure_future(write(old))
        await begun.wait()
        await world.copy(source, target)
        with pytest.raises(Fenced):
            await writing
        with pytest.raises(Fenced):
            await old.get([b"a"])
    async with world.opened(target) as new:
        found = await rows_of(new)
    assert sorted(key for key in found if key.startswith(b"live/")) == acknowledged


@pytest.mark.parametrize("engine", ["etcd", "postgres"])
async def test_what_was_frozen_by_a_process_that_died_thaws_by_itself(world: World, engine: str) -> None:
    name = world.place(engine)
    async with world.opened(name) as index, asyncio.timeout(120):
        await fill(index, 50)
        end: EtcdEnd | PostgresEnd
        if engine == "etcd":
            end = await etcd_end(name, name, clock=SystemClock(), randomness=SystemRandomness())
            end.lease_s = 1
        else:
            end = postgres_end(name, name)
        await end.freeze()
        waiting = asyncio.ensure_future(index.commit([Transaction((), ((b"later", b"1"),))]))
        assert not (await asyncio.wait([waiting], timeout=0.5))[0]
        if isinstance(end, EtcdEnd):
            # As the process would: it renews no more, and takes nothing away itself.
            assert end._renewing is not None
            end._renewing.cancel()
            await end._connections.close()
        else:
            await end.close()
        assert isinstance((await waiting)[0], Committed)
        with pytest.raises((Fenced, Unavailable)):
            await end.move(Moved("new", "elsewhere"))


async def test_what_is_not_empty_is_not_written_over(world: World) -> None:
    one, other = world.place("etcd"), world.place("etcd")
    for name in (one, other):
        async with world.opened(name) as index:
            await fill(index, 50)
    with pytest.raises(InvalidInput, match="holds an index already"):
        await world.copy(one, other)
    with pytest.raises(InvalidInput, match="There is no index"):
        await world.copy(world.place("postgres"), world.place("etcd"))
    with pytest.raises(InvalidInput, match="the same index"):
        await world.copy(one, one)


def test_every_pair_of_states_has_one_answer() -> None:
    sources = [
        Standing(Kind.EMPTY),
        Standing(Kind.FILLING, "new", "old"),
        Standing(Kind.OPEN, "old"),
        Standing(Kind.MOVED, "old", "new", "there"),
    ]
    targets = [
        Standing(Kind.EMPTY),
        Standing(Kind.FILLING, "new", "old"),
        Standing(Kind.FILLING, "else", "another"),
        Standing(Kind.OPEN, "new"),
        Standing(Kind.OPEN, "else"),
        Standing(Kind.MOVED, "else", "more", "elsewhere"),
    ]
    allowed = {}
    for (at, before), (to, there) in itertools.product(enumerate(sources), enumerate(targets)):
        try:
            allowed[at, to] = decide(before, there, "here", "there", "fresh")
        except InvalidInput:
            continue
    assert allowed == {(2, 0): "fresh", (2, 1): "fresh", (3, 0): "new", (3, 1): "new", (3, 3): "new"}
    with pytest.raises(InvalidInput, match="was moved to there"):
        decide(sources[3], targets[0], "here", "a third", "fresh")
