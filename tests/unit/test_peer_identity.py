"""Who is who between peers: nobody is believed who cannot prove it, and whoever is wrong is told why.

Over pipes on a virtual clock.
"""

import asyncio
from typing import Any

import pytest

from holdfast.base.errors import InvalidInput
from holdfast.stores.peer import PeerIdentity, PeerRefused, Refusal, Roots
from holdfast.stores.port import Range, StoreFailed
from tests.kit.peer_pair import ADDRESS, pair, piped_client, piped_server
from tests.kit.peers import CLUSTER
from tests.kit.pipes import PipeNetwork

pytestmark = pytest.mark.virtual

T = 10.0


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_a_peer_says_who_it_is() -> None:
    async with pair() as both:
        hello = await both.client.greet(timeout_s=T)
        assert (hello.cluster, hello.node, hello.uuid, hello.boot) == (CLUSTER, "node-b", "uuid-b", "boot-b")
        assert (hello.version, hello.speaks) == (1, (1,))
        await both.client.ping(timeout_s=T)
        assert both.network.dials == 1


@pytest.mark.parametrize(
    ("client", "refusal", "said"),
    [
        (
            {"secret": b"another secret, as long"},
            Refusal.WRONG_SECRET,
            "refuses: The secrets of the two nodes",
        ),
        (
            {"identity": PeerIdentity("holdfast-other", "node-a")},
            Refusal.FOREIGN_CLUSTER,
            "refuses: This node is part of another cluster",
        ),
        ({"node": "node-c"}, Refusal.OTHER_NODE, "refuses: This is node node-b, not node-c"),
        ({"uuid": "uuid-before"}, Refusal.OTHER_NODE, "its data folder is uuid-b, not uuid-before"),
        (
            {"speaks": (7, 8)},
            Refusal.NO_COMMON_VERSION,
            "speaks versions 1 of .*, the caller 7,8",
        ),
    ],
)
async def test_whoever_is_not_the_right_peer_is_told_apart(
    client: dict[str, Any], refusal: Refusal, said: str
) -> None:
    async with pair(client=client) as both:
        for call in (both.client.greet, both.client.ping, both.store.usage, both.store.probe):
            with pytest.raises(PeerRefused, match=said) as caught:
                await call(timeout_s=T)
            assert caught.value.refusal is refusal
            assert caught.value.hint
            assert ADDRESS in caught.value.message
        assert both.client.connections == 0


async def test_what_cannot_be_proved_is_said_to_be_so() -> None:
    async with pair(client={"secret": b"another secret, as long"}) as both:
        with pytest.raises(PeerRefused, match="It cannot prove that it is a peer of ours"):
            await both.client.ping(timeout_s=T)


async def test_a_peer_that_only_pretends_is_found_out() -> None:
    """It has another secret, and takes every hello for good."""

    class Gullible(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            content = (
                b'{"version":1,"speaks":[1],"cluster":"c","node":"node-b","uuid":"u","boot":"b","nonce":"n"}'
            )
            content += bytes(32)
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)

    network = PipeNetwork()
    network.listeners[ADDRESS] = Gullible
    client = piped_client(network)
    with pytest.raises(PeerRefused, match="cannot prove that it knows the cluster's secret") as caught:
        await client.ping(timeout_s=T)
    assert caught.value.refusal is Refusal.WRONG_SECRET
    await client.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 40\r\n\r\n" + b"<html>not found, it says here</html>    ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46" + bytes(20000),
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 40\r\nContent-Length: 41\r\n\r\n" + bytes(40),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 32\r\n\r\n" + bytes(32) + b"and more",
    ],
)
async def test_what_is_no_peer_at_all_is_an_error_and_no_more(answer: bytes) -> None:
    class Other(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(answer)
            self.transport.close()

    network = PipeNetwork()
    network.listeners[ADDRESS] = Other
    client = piped_client(network)
    with pytest.raises(StoreFailed):
        await client.ping(timeout_s=T)
    assert now() < 1.0
    assert client.connections == 0
    await client.close()


@pytest.mark.parametrize(
    ("server", "client", "agreed"),
    [((1,), (1, 2, 3), 1), ((1, 2), (1,), 1), ((1, 2), (1, 2), 2), ((2, 3), (1, 2), 2)],
)
async def test_nodes_of_neighbouring_versions_work_side_by_side(
    server: tuple[int, ...], client: tuple[int, ...], agreed: int
) -> None:
    async with pair(speaks=server, client={"speaks": client}) as both:
        assert (await both.client.greet(timeout_s=T)).version == agreed
        await both.store.put("blob", [b"holdfast"], timeout_s=T)
        assert await both.store.get("blob", [Range(0, 8)], timeout_s=T) == [b"holdfast"]


async def test_one_server_serves_two_versions_at_once() -> None:
    async with pair(speaks=(1, 2), client={"speaks": (1,)}) as both:
        newer = piped_client(both.network, speaks=(1, 2))
        await asyncio.gather(both.client.ping(timeout_s=T), newer.ping(timeout_s=T))
        assert (await newer.greet(timeout_s=T)).version == 2
        await both.client.ping(timeout_s=T)
        await newer.close()


def test_what_cannot_be_an_address_or_a_secret_is_refused_at_once() -> None:
    network = PipeNetwork()
    for address in ("node-b", "node-b:", ":9100", "node-b:0", "node-b:65536", "node-b:x"):
        with pytest.raises(InvalidInput, match="host:port"):
            piped_client(network, address=address, dial=None)
    with pytest.raises(InvalidInput, match="at least 16"):
        piped_client(network, secret=b"short")
    with pytest.raises(InvalidInput, match="at least 16"):
        piped_server(network, {}, secret=b"short")


OLD, NEW = b"the old secret of the cluster", b"the new secret of the cluster"


@pytest.mark.parametrize("server_first", [True, False])
async def test_both_change_their_secret_one_after_the_other_and_no_call_fails(server_first: bool) -> None:
    of_server, of_client = Roots([OLD], CLUSTER), Roots([OLD], CLUSTER)
    sides = [of_server, of_client] if server_first else [of_client, of_server]
    network = PipeNetwork()
    async with pair(network=network, client={"secret": of_client}, secret=of_server) as both:
        written = 0

        async def work() -> None:
            """What must not be sent twice, on connections that there are and on new ones."""
            nonlocal written
            for _ in range(3):
                written += 1
                await both.store.put(f"p{written}.0.0", [b"x"], timeout_s=T)
            await both.client.greet(timeout_s=T)

        await work()
        for secrets in ([NEW, OLD], [OLD, NEW], [NEW]):
            for side in sides:
                side.change(secrets)
                await work()
                await work()
        assert len(await both.store.list("", limit=1000, timeout_s=T)) == written
        of_client.change([OLD])
        with pytest.raises(PeerRefused):
            await both.client.greet(timeout_s=T)


async def test_a_connection_ends_with_the_secret_that_it_was_made_with() -> None:
    of_server, of_client = Roots([OLD], CLUSTER), Roots([OLD], CLUSTER)
    network = PipeNetwork()
    async with pair(network=network, client={"secret": of_client}, secret=of_server) as both:
        await both.client.ping(timeout_s=T)
        assert (network.dials, both.client.connections) == (1, 1)
        # The server lets it go: what comes on the connection once more is answered, and it ends.
        of_server.change([NEW])
        await both.client.ping(timeout_s=T)
        with pytest.raises(PeerRefused):
            await both.client.ping(timeout_s=T)

        of_server.change([NEW, OLD])
        await asyncio.sleep(1)
        await both.client.ping(timeout_s=T)
        dials = network.dials
        # The caller lets it go: it makes another at once.
        of_client.change([NEW])
        await both.client.ping(timeout_s=T)
        assert network.dials == dials + 1


async def test_a_peer_that_knows_one_of_two_is_found_and_not_asked_in_vain_again() -> None:
    of_client = Roots([NEW, OLD], CLUSTER)
    network = PipeNetwork()
    async with pair(network=network, client={"secret": of_client}, secret=OLD) as both:
        await both.client.greet(timeout_s=T)
        assert network.dials == 2
        await both.client.greet(timeout_s=T)
        assert network.dials == 3
    async with pair(client={"secret": of_client}, secret=b"a secret that nobody else knows") as both:
        with pytest.raises(PeerRefused) as caught:
            await both.client.greet(timeout_s=T)
        assert caught.value.refusal is Refusal.WRONG_SECRET
        assert both.client.connections == 0
