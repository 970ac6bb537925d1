"""Making a cluster's index again, broken off after every step and given again; and two who do it at once."""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from msgspec.structs import replace

from holdfast.base.clock import SystemClock
from holdfast.base.errors import Busy, Fenced, InvalidInput, Unavailable
from holdfast.base.randomness import SystemRandomness
from holdfast.index.port import Row
from holdfast.node.borrowing import PeerNamed, borrow
from holdfast.node.cluster import read_cluster
from holdfast.node.config import Config, make_config
from holdfast.node.config_cluster import Engine, PeerAddress
from holdfast.node.config_file import load_config_file
from holdfast.node.lending import lend
from holdfast.node.recovering import Step, Wanted, recover
from holdfast.node.recovering_shared import SharedTarget
from holdfast.node.shared_index import open_shared
from holdfast.recovery.nodes import KnownNode
from holdfast.recovery.report import Report
from holdfast.recovery.scratch import Scratch
from holdfast.stores.peer import PeerIdentity, PeerServer
from tests.kit.cluster import SECRET, TestCluster
from tests.kit.etcd import running_etcd
from tests.kit.postgres import running_server
from tests.kit.process import wait_until

CLOCK, CHANCE = SystemClock(), SystemRandomness()
OBJECTS = 4


class BrokenOff(Exception):
    """The process died here."""


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folders of two nodes with two stores each, whose index is gone."""
    folder = tmp_path_factory.mktemp("lost")
    cluster = TestCluster(folder, Engine.ETCD)
    with cluster.node("n1") as first, cluster.node("n2") as second:
        wait_until("both to be there", lambda: sum(store.well for store in first.status().stores) == 4)
        first.s3().create_bucket(Bucket="bucket")
        for number in range(OBJECTS):
            first.s3().put_object(Bucket="bucket", Key=f"k{number}", Body=bytes(100 * number))
        first.s3().delete_object(Bucket="bucket", Key="k0")
        assert second.stop() == 0
        assert first.stop() == 0
    return folder


@pytest.fixture
def nodes(lost: Path, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Config]:
    """The same, and an engine that is empty."""
    engine: Engine = request.param
    if engine is Engine.ETCD:
        address = running_etcd().address()
    else:
        database = f"steps_{os.getpid()}_{abs(hash(tmp_path)):x}"
        running_server().run(f"CREATE DATABASE {database}")
        address = running_server().address(database)
    found = {}
    for name in ("n1", "n2"):
        home = tmp_path / name
        shutil.copytree(lost / name, home)
        file = home / "holdfast.toml"
        lines = [line for line in file.read_text().splitlines() if not line.startswith("index =")]
        file.write_text(f'index = "{address}"\n' + "\n".join(lines))
        found[name] = make_config([load_config_file(file)], home)
    return found


both = pytest.mark.parametrize("nodes", list(Engine), indirect=True)
etcd = pytest.mark.parametrize("nodes", [Engine.ETCD], indirect=True)


@asynccontextmanager
async def lending(config: Config) -> AsyncIterator[tuple[PeerNamed, "asyncio.Task[None]"]]:
    """A node that lends, until the block ends or all is done."""
    serving: asyncio.Future[PeerServer] = asyncio.get_running_loop().create_future()
    task = asyncio.ensure_future(
        lend(config, CLOCK, CHANCE, lambda _: None, serving=lambda server: serving.set_result(server))
    )
    await asyncio.wait({serving, task}, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield PeerNamed(config.name, PeerAddress("127.0.0.1", serving.result().port)), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def run(config: Config, peer: PeerNamed, until: Step | None = None) -> Report:
    """Recover; the process dies after the step `until`."""

    def done(step: Step) -> None:
        if step is until:
            raise BrokenOff

    return await recover(config, Wanted(peers=(peer,)), {}, CLOCK, CHANCE, lambda _: None, done)


async def heads(config: Config) -> list[Row]:
    """The objects that a node would find."""
    assert config.index is not None
    index = await open_shared(config.index, CLOCK, CHANCE)
    try:
        found = await index.scan(b"head/", b"head0", limit=1000)
        return [row for row in found if isinstance(row, Row)]
    finally:
        await index.close()


@pytest.mark.slow
@both
def test_broken_off_after_any_step_it_can_be_given_again(nodes: dict[str, Config]) -> None:
    async def main() -> None:
        first, second = nodes["n1"], nodes["n2"]
        async with lending(second) as (peer, lender):
            for step in (Step.READ, Step.FILLED, Step.NOTED, Step.KEPT):
                with pytest.raises(BrokenOff):
                    await run(first, peer, step)
                if step is not Step.READ:
                    with pytest.raises(Unavailable, match="holdfast recover"):
                        await heads(first)
            report = await run(first, peer)
            await asyncio.wait_for(lender, 60)
        assert report.objects == OBJECTS - 1
        assert len(await heads(first)) == OBJECTS - 1
        for config in nodes.values():
            cluster = read_cluster(config.data)
            assert cluster is not None
            assert cluster.incarnation == report.incarnation
        async with lending(second) as (peer, _):
            with pytest.raises(InvalidInput, match="The index is there"):
                await run(first, peer)

    asyncio.run(main())


@pytest.mark.slow
@etcd
def test_there_is_no_index_that_a_node_which_lent_its_stores_does_not_know(nodes: dict[str, Config]) -> None:
    async def main() -> None:
        first, second = nodes["n1"], nodes["n2"]
        async with lending(second) as (peer, lender):

            def dies(step: Step) -> None:
                if step is Step.FILLED:
                    lender.cancel()

            with pytest.raises(Unavailable, match="Node n2 does not say that it has noted"):
                await recover(first, Wanted(peers=(peer,)), {}, CLOCK, CHANCE, lambda _: None, dies)
        with pytest.raises(Unavailable, match="holdfast recover"):
            await heads(first)
        async with lending(second) as (peer, _):
            report = await run(first, peer)
        assert report.objects == OBJECTS - 1

    asyncio.run(main())


@pytest.mark.slow
@etcd
def test_who_dies_at_the_very_end_has_an_index(nodes: dict[str, Config]) -> None:
    async def main() -> None:
        async with lending(nodes["n2"]) as (peer, _):
            with pytest.raises(BrokenOff):
                await run(nodes["n1"], peer, Step.JOINED)
        assert len(await heads(nodes["n1"])) == OBJECTS - 1

    asyncio.run(main())


@pytest.mark.slow
@both
def test_of_two_that_write_at_once_one_gets_to_the_end(nodes: dict[str, Config]) -> None:
    async def main() -> None:
        rows = [Scratch(None), Scratch(None)]
        for number, scratch in enumerate(rows):
            scratch.put_rows([Row(b"head/%d" % at, b"%d" % number, at) for at in range(300)])
        async with AsyncExitStack() as stack:
            targets = [SharedTarget(nodes["n1"], CLOCK, CHANCE, stack, lambda _: None) for _ in range(2)]
            for target in targets:
                await target.check({"ab" * 16}, force=False)
                target._source = "recovery of " + "ab" * 16
            first, second = targets
            await first.write(rows[0], "11" * 16, 500)
            try:
                await second.write(rows[1], "22" * 16, 500)
            except Busy:
                winner = first
            else:
                with pytest.raises(Fenced):
                    await first.join()
                winner = second
            await winner.join()
        mine = b"0" if winner is first else b"1"
        assert {row.value for row in await heads(nodes["n1"])} == {mine}

    asyncio.run(main())


@pytest.mark.slow
@etcd
def test_only_one_recovery_has_the_stores_and_none_while_a_node_runs(nodes: dict[str, Config]) -> None:
    async def main() -> None:
        first, second = nodes["n1"], nodes["n2"]
        known = read_cluster(second.data)
        assert known is not None

        async with lending(second) as (peer, _), AsyncExitStack() as stack:
            peers, told = [peer], list[str]()
            one = await borrow(first, known.cluster, "", [SECRET], peers, CHANCE, stack, told.append)
            assert len(one.stores) == 2
            with pytest.raises(Busy, match="A recovery on node n1 has these stores"):
                await borrow(
                    replace(first, name="n3"), known.cluster, "", [SECRET], peers, CHANCE, stack, told.append
                )
            row = KnownNode("n2", known.node, str(peer.address), ())
            (found,) = await one.look_for_others([row], "n1")
            assert found.part == "lends"
            with pytest.raises(Busy):
                async with lending(second):
                    pass

        async with lending(second) as (peer, _), AsyncExitStack() as stack:
            nobody = await borrow(first, known.cluster, "", [SECRET], [], CHANCE, stack, told.append)
            row = KnownNode("n2", known.node, str(peer.address), ())
            with pytest.raises(InvalidInput, match="was not named"):
                await nobody.look_for_others([row], "n1")

        identity = PeerIdentity(known.cluster, "n2", known.node, "cd" * 8)
        server = PeerServer({}, identity, SECRET, CLOCK, CHANCE, port=0)
        await server.start()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(server.stop, 0.0)
            address = PeerAddress("127.0.0.1", server.port)
            with pytest.raises(Busy, match="Node n2 runs"):
                await borrow(
                    first, known.cluster, "", [SECRET], [PeerNamed("n2", address)], CHANCE, stack, told.append
                )
            nobody = await borrow(first, known.cluster, "", [SECRET], [], CHANCE, stack, told.append)
            with pytest.raises(Busy, match="Node n2 runs"):
                await nobody.look_for_others([KnownNode("n2", known.node, str(address), ())], "n1")
        # Now that nobody is there:
        async with AsyncExitStack() as stack:
            nobody = await borrow(first, known.cluster, "", [SECRET], [], CHANCE, stack, told.append)
            (found,) = await nobody.look_for_others([KnownNode("n2", known.node, str(address), ())], "n1")
            assert found.part == "it does not answer"

    asyncio.run(main())
