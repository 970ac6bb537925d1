"""The index in a real etcd whose members are killed, hung, cut off, damaged and full."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Fenced, InvalidInput, Unavailable
from holdfast.base.randomness import SystemRandomness
from holdfast.index.etcd import EtcdIndex, EtcdOptions, open_etcd, wire
from holdfast.index.etcd.schema import Gate, Meta, encode_meta
from holdfast.index.port import (
    ABSENT,
    PRESENT,
    Committed,
    Conflict,
    Expect,
    Index,
    IndexState,
    Transaction,
    Unknown,
)
from tests.kit.etcd import EtcdProcess, etcd_cluster, running_etcd
from tests.kit.index_load import first_changes, under_load
from tests.kit.proxy import proxy_to

PATIENT = EtcdOptions(patience_s=60.0, status_every_s=0.2)


@asynccontextmanager
async def opened(address: str, options: EtcdOptions = PATIENT) -> AsyncIterator[EtcdIndex]:
    index = await open_etcd(address, clock=SystemClock(), randomness=SystemRandomness(), options=options)
    try:
        yield index
    finally:
        await index.close()


async def until(what: Callable[[], bool], seconds: float = 60.0) -> None:
    """Ask until it comes true."""
    async with asyncio.timeout(seconds):
        while True:
            if what():
                return
            await asyncio.sleep(0.02)


async def test_whatever_the_connection_is_cut_at_the_answer_is_the_truth() -> None:
    etcd = running_etcd()
    namespace = etcd.address().rpartition("/")[2]
    unwatched = EtcdOptions(patience_s=60.0, status_every_s=3600.0)
    async with (
        proxy_to(etcd.members[0].client_port) as proxy,
        opened(f"etcd://127.0.0.1:{proxy.port}/{namespace}", unwatched) as index,
    ):
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
        assert cut_at >= 8, "two commits and two reads are at least so many pieces"
        feed = [change async for change in first_changes(index, written)]
        assert [change.puts[0][1] for change in feed] == [b"%d" % n for n in range(1, written + 1)]


async def test_opened_again_it_shows_no_less_than_was_seen_before() -> None:
    """A node compares it at the start with what its stores have seen, before anything is committed."""
    address = running_etcd().address()
    unwatched = EtcdOptions(patience_s=60.0, status_every_s=3600.0, lanes=1)
    async with opened(address, unwatched) as index:
        for n in range(3):
            outcomes = await index.commit([Transaction((), ((b"%d-%d" % (n, m), b"x"),)) for m in range(4)])
            assert all(isinstance(outcome, Committed) for outcome in outcomes)
        seen = index.status().revision
    again = await open_etcd(address, clock=SystemClock(), randomness=SystemRandomness(), options=unwatched)
    shown = again.status().revision  # before its watch had a turn
    await again.close()
    assert shown >= seen


async def test_two_nodes_commit_side_by_side_and_follow_each_other() -> None:
    address = running_etcd().address()
    async with opened(address) as one, opened(address) as other:
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
        async with asyncio.timeout(30):
            feed = [change async for change in first_changes(one, 40)]
        assert [change.puts[0][1] for change in feed] == [b"%d" % n for n in range(1, 41)]
        mine = await one.acquire("chores", "one", ttl_s=60)
        assert mine is not None
        assert await other.acquire("chores", "other", ttl_s=60) is None


def large(number: int, first: bytes, expects: int) -> Transaction:
    """One that expects, puts and deletes more than etcd compares or does at once."""
    return Transaction(
        (
            Expect(first, ABSENT if number % 2 == 0 else PRESENT),
            *(Expect(b"no/%d" % n, ABSENT) for n in range(expects)),
        ),
        ((b"turn/%d" % number, b"x"), *((b"put/%d/%d" % (number, n), b"v") for n in range(300))),
        tuple(b"gone/%d/%d" % (number, n) for n in range(300)),
    )


async def test_what_is_too_large_for_one_comparison_is_decided_all_the_same() -> None:
    address = running_etcd().address()
    async with opened(address) as one, opened(address) as other, under_load(other, 3), asyncio.timeout(60):
        for expects in (20, 400):
            first = b"first/%d" % expects
            outcomes = await one.commit([large(expects, first, expects), large(expects + 1, first, expects)])
            assert isinstance(outcomes[0], Committed)
            assert outcomes[1] == Conflict(first)
            await one.commit([Transaction((), ((first, b""), (b"no/%d" % (expects - 1), b"")))])
            assert await one.commit([large(expects + 1, first, expects)]) == [
                Conflict(b"no/%d" % (expects - 1))
            ]
            await one.commit([Transaction((), (), (b"no/%d" % (expects - 1),))])
            (outcome,) = await one.commit([large(expects + 1, first, expects)])
            assert isinstance(outcome, Committed)
            rows = await one.scan(b"put/%d/" % expects, b"put/%d0" % expects, limit=1000)
            assert len(rows) == 300
        both = await asyncio.gather(
            *[index.commit([large(1000 + 2 * n, b"race", 300)]) for n, index in enumerate((one, other))]
        )
        assert all(isinstance(answer[0], Committed) for answer in both)
        changes = [change async for change in first_changes(one, 3)]
        assert changes


async def test_a_gate_whose_owner_is_gone_holds_nobody_up_for_long() -> None:
    address = running_etcd().address()
    async with opened(address) as index:
        lane = index._new_lane()
        assert (await lane.put_gate(Gate("nobody", 0.2)))[0]
        async with asyncio.timeout(30):
            (outcome,) = await index.commit([Transaction((), ((b"a", b"1"),))])
            assert isinstance(outcome, Committed)
            assert (await lane.put_gate(Gate("nobody", 0.2)))[0]
            (outcome,) = await index.commit([large(0, b"first", 300)])
            assert isinstance(outcome, Committed)


async def test_an_index_that_was_replaced_fences_whoever_follows_the_old_one() -> None:
    address = running_etcd().address()
    async with opened(address) as index, opened(address) as other:
        await index.commit([Transaction((), ((b"a", b"1"),))])
        await replace_meta(other)
        with pytest.raises(Fenced):
            await index.commit([Transaction((), ((b"a", b"1"),))])
        with pytest.raises(Fenced):
            await index.get([b"a"])
        assert index.status().state is IndexState.FENCED
        with pytest.raises(Fenced):
            await other.scan(b"a", b"b", limit=1)


async def replace_meta(index: EtcdIndex) -> None:
    request = wire.txn_request((), [wire.put_op(index._keys.meta, encode_meta(Meta(1, "another")))])
    await index._connections.call(wire.TXN, request, wire.txned)


async def test_the_feed_ends_where_etcd_has_forgotten() -> None:
    address = running_etcd().address()
    options = EtcdOptions(patience_s=60.0, status_every_s=0.05, kept_s=0.1, kept_revisions=20)
    async with opened(address, options) as index:
        (first,) = await index.commit([Transaction((), ((b"a", b"1"),))])
        assert isinstance(first, Committed)
        for n in range(100):
            await index.commit([Transaction((), ((b"b", b"%d" % n),))])
        async with asyncio.timeout(60):
            while True:
                if not await told_from_the_beginning(index):
                    break
                await asyncio.sleep(0.05)
        with pytest.raises(InvalidInput, match="reaches back"):
            await anext(index.changes(0))
        last = index.status().revision
        waiting = asyncio.ensure_future(anext(index.changes(last)))
        await index.commit([Transaction((), ((b"c", b"1"),))])
        async with asyncio.timeout(30):
            assert (await waiting).puts == ((b"c", b"1"),)


async def told_from_the_beginning(index: Index) -> bool:
    try:
        await anext(index.changes(0))
    except InvalidInput:
        return False
    return True


async def test_who_is_away_for_longer_than_the_patience_is_said_to_be() -> None:
    impatient = EtcdOptions(patience_s=0.3, call_timeout_s=0.3, hedge_after_s=0.1)
    etcd = running_etcd()
    async with proxy_to(etcd.members[0].client_port) as proxy:
        address = f"etcd://127.0.0.1:{proxy.port}/{etcd.address().rpartition('/')[2]}"
    with pytest.raises(Unavailable, match="No etcd answers"):
        async with opened(address, impatient):
            pass


async def test_an_address_that_is_wrong_is_said_to_be() -> None:
    for address in ("postgres://a/b", "etcd://", "etcd://host:port", "etcd://a,a", "etcd://a:1/b c"):
        with pytest.raises(InvalidInput):
            async with opened(address):
                pass


async def test_a_user_that_is_refused_is_told_so_and_a_right_one_works() -> None:
    with etcd_cluster() as etcd:
        plain = etcd.address("rights")
        async with opened(plain) as index:
            await index.commit([Transaction((), ((b"a", b"1"),))])
            await switch_on_passwords(index)
        host = plain.removeprefix("etcd://")
        with pytest.raises(InvalidInput, match="refuses"):
            async with opened(plain):
                pass
        with pytest.raises(InvalidInput, match="refuses"):
            async with opened(f"etcd://root:wrong@{host}"):
                pass
        async with opened(f"etcd://root:s%40crt@{host}") as index:
            assert (await index.get([b"a"]))[0] is not None
            etcd.processes[0].kill()
            etcd.processes[0].start()
            (outcome,) = await index.commit([Transaction((), ((b"b", b"1"),))])
            assert isinstance(outcome, Committed)
            lease = await index.acquire("x", "me", ttl_s=5)
            assert lease is not None
            assert await index.acquire("x", "me", ttl_s=5) == lease


async def switch_on_passwords(index: EtcdIndex) -> None:
    def text(field: int, value: bytes) -> bytes:
        return bytes((field << 3 | 2, len(value))) + value

    for method, request in (
        ("UserAdd", text(1, b"root") + text(2, b"s@crt")),
        ("UserGrantRole", text(1, b"root") + text(2, b"root")),
        ("AuthEnable", b""),
    ):
        await index._connections.call(f"/etcdserverpb.Auth/{method}", request, wire.Message)


def misses(index: Index, gone: EtcdProcess) -> bool:
    """Whether it is said that this member is absent, and no other, and that no more may go. On the way there
    all may be said to be out: while they elect a leader, or when none has answered in time."""
    status = index.status()
    absent = [member.name for member in status.members if member.state == "absent"]
    current = [member for member in status.members if member.state == "current"]
    return status.losses_survivable == 0 and absent == [gone.member.name] and len(current) == 2


async def test_a_leader_that_dies_makes_writers_wait_and_loses_nothing() -> None:
    with etcd_cluster(3) as etcd:
        async with opened(etcd.address()) as index:
            await until(lambda: index.status().losses_survivable == 1)
            async with under_load(index):
                dead = etcd.leader()
                dead.kill()
                await until(lambda: misses(index, dead))
            async with under_load(index, first=10):
                dead.start()
                await until(lambda: index.status().losses_survivable == 1)


async def test_a_member_that_hangs_is_gone_round() -> None:
    with etcd_cluster(3) as etcd:
        async with opened(etcd.address()) as index, under_load(index):
            for process in (etcd.leader(), etcd.followers()[0]):
                process.pause()
                await until(lambda: index.status().losses_survivable == 0)
                process.resume()
                await until(lambda: index.status().losses_survivable == 1)


async def test_when_one_message_in_twenty_is_late_nobody_waits_for_it() -> None:
    with etcd_cluster(3) as etcd:
        async with AsyncExitStack() as stack:
            proxies = [
                await stack.enter_async_context(proxy_to(member.client_port)) for member in etcd.members
            ]
            hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
            index = await stack.enter_async_context(opened(f"etcd://{hosts}/late"))
            for proxy in proxies:
                proxy.late_every, proxy.late_s = 20, 0.2
            async with under_load(index):
                pass
            assert sum(proxy.late for proxy in proxies) >= 6


async def test_without_a_quorum_nothing_is_acknowledged_and_with_it_requests_go_on() -> None:
    with etcd_cluster(3) as etcd:
        quick = EtcdOptions(patience_s=1.0, call_timeout_s=0.5, status_every_s=0.2)
        address = etcd.address()
        async with opened(address) as index, opened(address, quick) as impatient:
            await index.commit([Transaction((), ((b"a", b"1"),))])
            for process in etcd.followers():
                process.kill()
            waiting = asyncio.ensure_future(index.commit([Transaction((), ((b"a", b"2"),))]))
            with pytest.raises(Unavailable):
                await impatient.get([b"a"])
            (outcome,) = await impatient.commit([Transaction((Expect(b"b", ABSENT),), ((b"b", b"1"),))])
            assert isinstance(outcome, Unknown)
            with pytest.raises(Unavailable, match="no quorum"):
                async with opened(address, quick):
                    pass
            assert not waiting.done()
            await until(lambda: index.status().state is IndexState.UNAVAILABLE)
            assert [member.state for member in index.status().members].count("current") == 0
            for process in etcd.processes:
                if not process.runs():
                    process.start()
            async with asyncio.timeout(60):
                assert isinstance((await waiting)[0], Committed)
                await until(lambda: index.status().state is IndexState.SERVING)
                (again,) = await index.commit([Transaction((Expect(b"b", ABSENT),), ((b"b", b"2"),))])
                (row,) = await index.get([b"b"])
            assert row is not None
            assert row.value == (b"2" if isinstance(again, Committed) else b"1")


async def test_a_member_that_lost_its_files_is_told_and_the_others_go_on() -> None:
    with etcd_cluster(3) as etcd:
        async with opened(etcd.address()) as index, under_load(index):
            victim = etcd.followers()[0]
            victim.kill()
            for file in victim.member.data.rglob("*.wal"):
                file.write_bytes(b"\xff" * 4096 + file.read_bytes()[4096:])
            victim.start()
            await until(lambda: not victim.runs())
            await until(lambda: misses(index, victim))
            shutil.rmtree(victim.member.data)


async def test_etcd_without_space_says_so_and_commits_nothing() -> None:
    with etcd_cluster(1, f"--quota-backend-bytes={16 << 20}") as etcd:
        async with opened(etcd.address(), EtcdOptions(patience_s=60, status_every_s=0.1)) as index:
            done = 0

            async def fill() -> None:
                nonlocal done
                for n in range(64):
                    await index.commit([Transaction((), ((b"large/%d" % n, b"x" * (1 << 20)),))])
                    done = n + 1

            with pytest.raises(Unavailable, match="used up its space"):
                await fill()
            rows = await index.scan(b"large/", b"large0", limit=100)
            assert len(rows) == done > 0
            await until(lambda: any("NOSPACE" in member.detail for member in index.status().members))
