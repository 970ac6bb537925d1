"""The index in a real PostgreSQL that is killed, hung, cut off, failed over and misconfigured."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Fenced, InvalidInput, Unavailable
from holdfast.base.randomness import SystemRandomness
from holdfast.index.port import ABSENT, Committed, Expect, Index, IndexState, Transaction
from holdfast.index.postgres import PostgresIndex, PostgresOptions, open_postgres
from tests.kit.index_load import first_changes, under_load
from tests.kit.postgres import PostgresServer, postgres_server, postgres_standby, running_server
from tests.kit.proxy import proxy_to

QUICK = PostgresOptions(patience_s=120.0, call_timeout_s=1.0)


@asynccontextmanager
async def opened(address: str, options: PostgresOptions = QUICK) -> AsyncIterator[PostgresIndex]:
    index = await open_postgres(address, clock=SystemClock(), randomness=SystemRandomness(), options=options)
    try:
        yield index
    finally:
        await index.close()


@pytest.fixture
def server() -> PostgresServer:
    found = running_server()
    found.run("DROP SCHEMA IF EXISTS holdfast CASCADE")
    return found


async def test_whatever_the_connection_is_cut_at_the_answer_is_the_truth(server: PostgresServer) -> None:
    async with proxy_to(server.port) as proxy:
        address = f"postgres://holdfast@127.0.0.1:{proxy.port}/postgres"
        async with opened(address) as index:
            cut_at = 0
            revision = ABSENT
            written = 0
            while True:
                cuts = proxy.cuts
                proxy.cut_after = proxy.pieces + cut_at
                for _ in range(2):
                    put = Transaction((Expect(b"count", revision),), ((b"count", b"%d" % (written + 1)),))
                    (outcome,) = await index.commit([put])
                    assert isinstance(outcome, Committed), (cut_at, outcome)
                    revision, written = outcome.revision, written + 1
                    (row,) = await index.get([b"count"])
                    assert row is not None
                    assert (row.revision, row.value) == (revision, b"%d" % written), cut_at
                proxy.cut_after = None
                if proxy.cuts == cuts:
                    break
                cut_at += 1
            assert cut_at >= 20, "a commit and a read are at least so many pieces"
            feed = [change async for change in first_changes(index, written)]
            assert [change.puts[0][1] for change in feed] == [b"%d" % n for n in range(1, written + 1)]


async def test_two_nodes_commit_side_by_side_and_follow_each_other(server: PostgresServer) -> None:
    async with opened(server.address()) as one, opened(server.address()) as other:
        assert one.status().incarnation == other.status().incarnation

        async def add(index: Index) -> None:
            while True:
                (row,) = await index.get([b"count"])
                put = Transaction(
                    (Expect(b"count", row.revision if row else ABSENT),),
                    ((b"count", b"%d" % (int(row.value) + 1 if row else 1)),),
                )
                (outcome,) = await index.commit([put])
                if isinstance(outcome, Committed):
                    return

        await asyncio.gather(*[add(index) for _ in range(20) for index in (one, other)])
        async with asyncio.timeout(10):
            feed = [change async for change in first_changes(one, 40)]
        assert [change.puts[0][1] for change in feed] == [b"%d" % n for n in range(1, 41)]
        mine = await one.acquire("chores", "one", ttl_s=60)
        assert mine is not None
        assert await other.acquire("chores", "other", ttl_s=60) is None


async def test_a_server_that_crashes_makes_writers_wait_and_loses_nothing() -> None:
    with postgres_server() as own:
        async with opened(own.address()) as index, under_load(index):
            own.kill()
            own.start()


async def test_a_server_that_hangs_makes_writers_wait() -> None:
    with postgres_server() as own:
        async with opened(own.address()) as index, under_load(index):
            own.pause()
            await asyncio.sleep(1.5)
            own.resume()


async def test_a_standby_that_is_promoted_takes_over_and_nothing_is_lost() -> None:
    with ExitStack() as stack:
        first = stack.enter_context(postgres_server())
        second = stack.enter_context(postgres_standby(first, "second"))
        first.run("ALTER SYSTEM SET synchronous_standby_names = 'second'")
        first.run("SELECT pg_reload_conf()")
        first.wait_until("SELECT bool_or(sync_state = 'sync') FROM pg_stat_replication")
        address = f"postgres://holdfast@127.0.0.1:{first.port},127.0.0.1:{second.port}/postgres"
        async with opened(address) as index:
            async with under_load(index):
                first.kill()
                second.run("SELECT pg_promote(true)")
            assert index.status().state is IndexState.SERVING


async def test_an_index_that_was_replaced_fences_whoever_follows_the_old_one(server: PostgresServer) -> None:
    async with opened(server.address()) as index:
        server.run("UPDATE holdfast.meta SET incarnation = 'another'")
        with pytest.raises(Fenced):
            await index.commit([Transaction((), ((b"a", b"1"),))])
        with pytest.raises(Fenced):
            await index.get([b"a"])
        assert index.status().state is IndexState.FENCED


async def test_who_is_away_for_longer_than_the_patience_is_said_to_be(server: PostgresServer) -> None:
    impatient = PostgresOptions(patience_s=0.3, call_timeout_s=0.2)
    async with proxy_to(server.port) as proxy:
        address = f"postgres://holdfast@127.0.0.1:{proxy.port}/postgres"
        async with opened(address) as index:
            await index.commit([Transaction((), ((b"a", b"1"),))])
    with pytest.raises(Unavailable, match="did not answer"):
        async with opened(address, impatient):
            pass


@pytest.mark.parametrize(
    ("setting", "why"), [("fsync=off", "fsync"), ("synchronous_commit=off", "synchronous_commit")]
)
async def test_a_server_that_may_lose_commits_is_refused(setting: str, why: str) -> None:
    with postgres_server() as own:
        own.kill()
        name, value = setting.split("=")
        own.start(**{name: value})
        with pytest.raises(InvalidInput, match=why):
            async with opened(own.address()):
                pass
        async with opened(own.address(), PostgresOptions(managed=True)):
            pass


async def test_an_address_or_a_role_that_is_wrong_is_said_to_be(server: PostgresServer) -> None:
    for address in (
        server.address("nowhere"),
        f"postgres://nobody@127.0.0.1:{server.port}/postgres",
        "postgres://holdfast@127.0.0.1:notaport/postgres",
    ):
        with pytest.raises(InvalidInput):
            async with opened(address):
                pass
