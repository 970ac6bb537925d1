"""What an attacker, or a mistake, tries on a node's peer address, as bytes on a socket.

Nothing of a store is read or changed by who has not said a proper hello and tagged each message; whoever
sends noise, halves, drips, wrong lengths or no end costs a little for a while; and the peers are served
meanwhile.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvloop

from holdfast.base.checksums import Buffer
from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import SeededRandomness
from holdfast.stores.memory import MemoryStore
from holdfast.stores.peer import (
    PeerClient,
    PeerLimits,
    PeerServer,
    PeerStore,
    TlsFiles,
    client_tls,
    server_tls,
)
from holdfast.stores.peer.messages import BLOB_BYTES_MAX
from holdfast.stores.peer.signing import TAG_BYTES, Root, Session
from holdfast.stores.port import Range, StoreBusy, StoreFailed
from tests.kit.peers import CALLER, CLUSTER, SECRET, SERVER, exporting, memory_store, peer_client
from tests.kit.s3 import read_answer

T = 60.0
CONTENT = b"contents"
STORE = memory_store().id
ROOT = Root(SECRET, CLUSTER)
NONCE = "ab" * 16


async def served(port: int) -> list[Buffer]:
    """What a peer reads now, or when there is room for it again."""
    client = peer_client(port)
    try:
        async with asyncio.timeout(T):
            while True:
                with suppress(StoreFailed, StoreBusy):
                    return await PeerStore(STORE, client).get("there", [Range(0, 8)], timeout_s=T)
                await asyncio.sleep(0.05)
    finally:
        await client.close()


@asynccontextmanager
async def attacked(limits: PeerLimits | None = None) -> AsyncIterator[tuple[PeerServer, MemoryStore]]:
    """A server with one blob. Afterwards the blob is as it was, alone, and peers are served."""
    inner = memory_store()
    await inner.put("there", [CONTENT], timeout_s=T)
    async with exporting({inner.id: inner}, limits=limits) as server:
        yield server, inner
        assert await served(server.port) == [CONTENT]
    assert inner.medium == {"there": CONTENT}


def hello(**changes: str) -> bytes:
    """A hello; changes are made after it was tagged, None takes a header away."""
    headers = {
        "holdfast-speaks": "1",
        "holdfast-cluster": CLUSTER,
        "holdfast-from": CALLER.node,
        "holdfast-to": SERVER.node,
        "holdfast-nonce": NONCE,
        "holdfast-tag": ROOT.hello("1", CLUSTER, CALLER.node, SERVER.node, NONCE),
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if value != "-")
    return f"GET /hello HTTP/1.1\r\nhost: h\r\n{lines}\r\n".encode()


class Known:
    """A connection on which the hello was exchanged by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, session: Session) -> None:
        self.reader, self.writer, self.session = reader, writer, session

    def request(
        self,
        method: str,
        path: str,
        query: str = "",
        *,
        content: bytes | None = None,
        timeout: str = "60000",
        length: int | None = None,
        extra: str = "",
    ) -> bytes:
        """The next request, rightly tagged."""
        self.session.next()
        whole = length if length is not None else len(content) + TAG_BYTES if content is not None else 0
        tag = self.session.request(method, path, query, timeout, whole)
        announced = f"content-length: {whole}\r\n" if whole else ""
        target = f"{path}?{query}" if query else path
        head = (
            f"{method} {target} HTTP/1.1\r\nhost: h\r\nholdfast-timeout-ms: {timeout}\r\n"
            f"{announced}{extra}holdfast-tag: {tag}\r\n\r\n"
        ).encode()
        if content is None:
            return head
        hasher = self.session.content(tag)
        hasher.update(content)
        return head + content + self.session.end(hasher)

    async def say(self, data: bytes) -> tuple[int, str]:
        """Send; status and kind of the answer."""
        self.writer.write(data)
        async with asyncio.timeout(T):
            answer = await read_answer(self.reader)
        body = answer.body[:-TAG_BYTES]
        return answer.status, json.loads(body)["kind"] if answer.status >= 400 else ""

    async def ended(self) -> bool:
        """Whether the server hangs up."""
        async with asyncio.timeout(T):
            return await self.reader.read() == b""


async def greeted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Known:
    writer.write(hello())
    async with asyncio.timeout(T):
        answer = await read_answer(reader)
    said = json.loads(answer.body[:-TAG_BYTES])
    return Known(reader, writer, ROOT.session(1, (NONCE, said["nonce"]), CALLER.node, SERVER.node))


@asynccontextmanager
async def known(port: int) -> AsyncIterator[Known]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield await greeted(reader, writer)
    finally:
        writer.close()


async def sent(port: int, data: bytes, *, finish: bool = True) -> bytes:
    """All that comes back for bytes on a connection of their own, until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        if finish:
            writer.write_eof()
        async with asyncio.timeout(T):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    "data",
    [
        b"GET /v1/stores/store/blobs/there?ranges=0+8 HTTP/1.1\r\nhost: h\r\n\r\n",
        b"PUT /v1/stores/store/blobs/new HTTP/1.1\r\nhost: h\r\ncontent-length: 36\r\n\r\n" + bytes(36),
        b"DELETE /v1/stores/store/blobs/there HTTP/1.1\r\nhost: h\r\n\r\n",
        b"POST /hello HTTP/1.1\r\nhost: h\r\n\r\n",
        b"GET /hello HTTP/1.1\r\nhost: h\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: h\r\n\r\n",
        hello(holdfast_tag="0" * 64),
        hello(holdfast_tag=""),
        hello(holdfast_tag="é"),
        hello(holdfast_speaks="1,2"),
        hello(holdfast_speaks="0"),
        hello(holdfast_speaks="2,1"),
        hello(holdfast_from="node-x"),
        hello(holdfast_from="-"),
        hello(holdfast_to="node-x"),
        hello(holdfast_cluster="another"),
        hello(holdfast_cluster="a b"),
        hello(holdfast_nonce="cd" * 16),
        hello(holdfast_nonce="-"),
        hello(holdfast_nonce="AB" * 16),
        hello().replace(b"GET", b"PUT"),
        hello().replace(b"/hello", b"/hello?x"),
        hello().replace(b"/hello", b"//hello"),
        hello().replace(b"host: h", b"host: h\r\nholdfast-to: node-c"),
        hello().replace(b"host: h", b"host: h\r\ncontent-length: 5") + b"abcde",
        hello().replace(b"host: h", b"host: h\r\ntransfer-encoding: chunked") + b"0\r\n\r\n",
    ],
)
async def test_nothing_is_answered_to_who_says_no_proper_hello(data: bytes) -> None:
    async with attacked() as (server, _):
        answer = await sent(server.port, data, finish=False)
        assert answer.startswith(b"HTTP/1.1 4")
        assert b"connection: close" in answer.lower()
        for secret in (b"uuid-b", b"boot-b", SECRET, CONTENT):
            assert secret not in answer


@pytest.mark.parametrize(
    ("spoil", "status"),
    [
        (lambda raw: raw.replace(b"GET", b"PUT", 1), 400),
        (lambda raw: raw.replace(b"ranges=0+8", b"ranges=0+7"), 400),
        (lambda raw: raw.replace(b"blobs/there", b"blobs/other"), 400),
        (lambda raw: raw.replace(b"/v1/", b"/v2/"), 400),
        (lambda raw: raw.replace(b"60000", b"60001"), 400),
        (lambda raw: raw.replace(b"60000", b"+6000"), 400),
        (lambda raw: raw.replace(b"holdfast-tag: ", b"holdfast-tag: 0"), 400),
        (lambda raw: raw.replace(b"holdfast-tag", b"holdfast-tax"), 400),
        (lambda raw: raw.replace(b"host: h", b"host: h\r\nholdfast-timeout-ms: 1"), 400),
    ],
)
async def test_a_request_that_was_changed_is_refused_and_the_connection_ends(spoil, status: int) -> None:  # type: ignore[no-untyped-def]
    async with attacked() as (server, _), known(server.port) as peer:
        raw = peer.request("GET", "/v1/stores/store/blobs/there", "ranges=0+8")
        assert spoil(raw) != raw
        peer.writer.write(spoil(raw))
        async with asyncio.timeout(T):
            answer = await peer.reader.read()
        assert answer.startswith(b"HTTP/1.1 %d" % status)
        assert CONTENT not in answer


async def test_a_put_whose_content_was_changed_cut_or_lengthened_is_not_done() -> None:
    async with attacked() as (server, _):
        for at in (0, 5, 9, -1, -TAG_BYTES):
            async with known(server.port) as peer:
                raw = bytearray(peer.request("PUT", "/v1/stores/store/blobs/new", content=b"0123456789"))
                start = raw.index(b"\r\n\r\n") + 4
                raw[start + at if at >= 0 else at] ^= 4
                assert await peer.say(bytes(raw)) == (400, "Altered")
                assert await peer.ended()
        async with known(server.port) as peer:
            raw = peer.request("PUT", "/v1/stores/store/blobs/new", content=b"0123456789")
            peer.writer.write(raw[:-1])
            peer.writer.write_eof()
            assert await peer.ended()
        async with known(server.port) as peer:
            # The tag of one content under the head of another request.
            first = peer.request("PUT", "/v1/stores/store/blobs/new", content=b"0123456789")
            assert first.endswith(first[-TAG_BYTES:])
            second = peer.request("PUT", "/v1/stores/store/blobs/new", content=b"0123456789")
            mixed = second[: -TAG_BYTES - 10] + first[-TAG_BYTES - 10 :]
            assert await peer.say(mixed) == (400, "Altered")


@pytest.mark.parametrize(
    ("method", "path", "query", "options", "kind"),
    [
        ("GET", "/v1/nothing", "", {}, "Malformed"),
        ("GET", "/hello", "", {}, "Malformed"),
        ("GET", "/v2/ping", "", {}, "Malformed"),
        ("GET", "/v1/ping", "", {"timeout": "0"}, "Malformed"),
        ("GET", "/v1/ping", "", {"timeout": ""}, "Malformed"),
        ("GET", "/v1/ping", "", {"content": b"x"}, "Malformed"),
        ("PUT", "/v1/stores/store/blobs/new", "", {}, "Malformed"),
        ("PUT", "/v1/stores/store/blobs/new", "", {"length": 31}, "Malformed"),
        ("PUT", "/v1/stores/store/blobs/new", "", {"length": BLOB_BYTES_MAX + 33}, "Malformed"),
        ("PUT", "/v1/stores/store/blobs/new", "", {"length": 10**17}, "Malformed"),
        ("PUT", "/v1/stores/store/blobs/.new", "", {"content": b"x"}, "Malformed"),
        ("GET", "/v1/stores/store/blobs/there", "ranges=0+99999999", {}, "Malformed"),
        ("GET", "/v1/stores/other/blobs/there", "ranges=0+8", {}, "StoreAway"),
        ("GET", "/v1/stores/store/blobs/there", "ranges=0+9", {}, "ShardTruncated"),
        ("GET", "/v1/stores/store/blobs/there", "ranges=99999999999999+1", {}, "ShardTruncated"),
        ("PUT", "/v1/stores/store/blobs/there", "", {"content": b"x"}, "ShardExists"),
    ],
)
async def test_what_a_peer_may_not_ask_is_refused_before_a_content_is_taken(
    method: str, path: str, query: str, options: dict[str, str], kind: str
) -> None:
    async with attacked() as (server, _), known(server.port) as peer:
        status, said = await peer.say(peer.request(method, path, query, **options))  # type: ignore[arg-type]
        assert (said, 400 <= status < 500) == (kind, True)
        assert server.face.content_bytes == 0


async def test_a_request_that_waits_behind_another_is_not_taken_for_it() -> None:
    """Two at once on one connection: each is answered in its turn, or the second is refused."""
    async with attacked() as (server, _), known(server.port) as peer:
        first = peer.request("GET", "/v1/stores/store/blobs/there", "ranges=0+4")
        second = peer.request("GET", "/v1/stores/store/blobs/there", "ranges=4+4")
        peer.writer.write(first + second)
        async with asyncio.timeout(T):
            bodies = [(await read_answer(peer.reader)).body[:-TAG_BYTES] for _ in range(2)]
        assert bodies == [CONTENT[:4], CONTENT[4:]]
        assert (await peer.say(first))[1] == "Altered"


async def test_noise_and_halves_end_their_own_connection_only() -> None:
    noise = SeededRandomness("noise")
    whole = hello()
    async with attacked() as (server, _):
        for number in range(40):
            await sent(server.port, noise.token(1 + noise.below(3000)))
            await sent(server.port, whole[: noise.below(len(whole))])
            await sent(server.port, b"GET /hello HTTP/1.1\r\n" + b"a: b\r\n" * (number * 400))


async def test_who_says_nothing_or_drips_is_cut_off() -> None:
    limits = PeerLimits(head_s=1.0, idle_s=1.0)
    async with attacked(limits) as (server, _):

        async def drip(data: bytes) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            try:
                for at in range(len(data)):
                    writer.write(data[at : at + 1])
                    await writer.drain()
                    await asyncio.sleep(0.02)
            except ConnectionError:
                return
            async with asyncio.timeout(T):
                await reader.read()
            writer.close()

        async with asyncio.timeout(T):
            answers = await asyncio.gather(
                sent(server.port, b"", finish=False),
                sent(server.port, hello()[:50], finish=False),
                sent(server.port, hello(), finish=False),
                drip(hello()),
            )
        assert answers[0] == b""
        assert b" 408 " in answers[1] or answers[1] == b""
        assert answers[2].startswith(b"HTTP/1.1 200") or answers[2] == b""


async def test_a_content_that_does_not_come_holds_its_room_no_longer_than_its_time() -> None:
    async with attacked() as (server, _):
        for timeout, lingers in (("1000", False), ("60000", True)):
            async with known(server.port) as peer:
                raw = peer.request("PUT", "/v1/stores/store/blobs/new", length=32 << 20, timeout=timeout)
                peer.writer.write(raw + bytes(1000))
                async with asyncio.timeout(T):
                    while not server.face.content_bytes:  # noqa: ASYNC110 (nobody tells when)
                        await asyncio.sleep(0.005)
                    assert server.face.content_bytes == (32 << 20) - TAG_BYTES
                    if not lingers:
                        assert b"StoreOverdue" in await peer.reader.read()
            async with asyncio.timeout(T):
                while server.face.content_bytes:  # noqa: ASYNC110 (nobody tells when)
                    await asyncio.sleep(0.005)


async def test_an_answer_that_nobody_takes_holds_its_room_no_longer_than_its_time() -> None:
    async with attacked() as (server, inner):
        await inner.put("large", [bytes(4 << 20)], timeout_s=T)
        with socket.socket() as taker:
            taker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            taker.setblocking(False)
            await asyncio.get_running_loop().sock_connect(taker, ("127.0.0.1", server.port))
            reader, writer = await asyncio.open_connection(sock=taker, limit=1024)
            peer = await greeted(reader, writer)
            writer.transport.pause_reading()
            query = f"ranges=0+{4 << 20}"
            writer.write(peer.request("GET", "/v1/stores/store/blobs/large", query, timeout="1500"))
            async with asyncio.timeout(T):
                while not server.face.content_bytes:  # noqa: ASYNC110 (nobody tells when)
                    await asyncio.sleep(0.005)
                while server.face.content_bytes:  # noqa: ASYNC110 (nobody tells when)
                    await asyncio.sleep(0.005)
            writer.transport.abort()
        await inner.delete("large", timeout_s=T)


async def test_too_many_connections_are_turned_away_and_the_others_served() -> None:
    async with attacked(PeerLimits(connections_max=4)) as (server, inner):
        client = peer_client(server.port)
        store = PeerStore(inner.id, client)
        await store.size("there", timeout_s=T)
        crowd = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(8)]
        turned_away = 0
        for reader, writer in crowd[3:]:
            async with asyncio.timeout(T):
                turned_away += b" 503 " in await reader.read()
            writer.close()
        assert turned_away == 5
        assert await store.size("there", timeout_s=T) == 8
        assert client.connections == 1
        late = peer_client(server.port)
        with pytest.raises((StoreFailed, StoreBusy), match="node-b"):
            await late.ping(timeout_s=T)
        await late.close()
        for _, writer in crowd:
            writer.close()
        await client.close()
        async with asyncio.timeout(T):
            while server.connections:  # noqa: ASYNC110 (nobody tells when)
                await asyncio.sleep(0.005)


async def test_nothing_secret_is_written_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    async with attacked() as (server, _):
        await sent(server.port, hello(holdfast_tag="0" * 64), finish=False)
        async with known(server.port) as peer:
            raw = peer.request("GET", "/v1/ping").replace(b"60000", b"60001")
            await peer.say(raw)
    assert "The secrets of the two nodes differ" in caplog.text
    assert SECRET.decode() not in caplog.text
    assert ROOT.hello("1", CLUSTER, CALLER.node, SERVER.node, NONCE) not in caplog.text


# Certificates, and the loop that nodes run on

FOLDER = Path(__file__).parents[1] / "kit" / "tls"
NODE = TlsFiles(FOLDER / "authority.pem", FOLDER / "node.pem", FOLDER / "node.pem")
STRANGER = TlsFiles(FOLDER / "authority.pem", FOLDER / "stranger.pem", FOLDER / "stranger.pem")
MIB = 1 << 20


async def exercise(client: PeerClient) -> None:
    """A bit of everything, small and large, side by side."""
    store = PeerStore(memory_store().id, client)
    blobs = {f"blob{size}": SeededRandomness(size).token(size) for size in (0, 1, 4096, 20_000, 3 * MIB)}
    await asyncio.gather(*(store.put(name, [blob], timeout_s=T) for name, blob in blobs.items()))
    for name, blob in blobs.items():
        assert await store.size(name, timeout_s=T) == len(blob)
        if blob:
            assert await store.get(name, [Range(0, len(blob))], timeout_s=T) == [blob]
    assert await store.list("", limit=99, timeout_s=T) == sorted(blobs)
    await asyncio.gather(*(store.delete(name, timeout_s=T) for name in blobs))


async def over_tls() -> None:
    inner = memory_store()
    async with exporting({inner.id: inner}, tls=server_tls(NODE)) as server:
        client = peer_client(server.port, tls=client_tls(NODE))
        await exercise(client)
        await client.close()
        for tls in (client_tls(STRANGER), None):
            other = peer_client(server.port, tls=tls)
            with pytest.raises(StoreFailed):
                await other.ping(timeout_s=T)
            await other.close()
        assert b"HTTP" not in await sent(server.port, hello(), finish=False)
    async with exporting({inner.id: inner}, tls=server_tls(STRANGER)) as server:
        client = peer_client(server.port, tls=client_tls(NODE))
        with pytest.raises(StoreFailed, match="cannot be reached"):
            await client.ping(timeout_s=T)
        await client.close()


async def over_tcp() -> None:
    inner = memory_store()
    async with exporting({inner.id: inner}) as server:
        client = peer_client(server.port)
        await exercise(client)
        call = asyncio.create_task(client.ping(timeout_s=T))
        await asyncio.sleep(0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await client.ping(timeout_s=T)
        await client.close()
        dead = peer_client(server.port)
    with pytest.raises(StoreFailed, match="cannot be reached"):
        await dead.ping(timeout_s=T)
    await dead.close()


async def test_peers_with_certificates_take_only_each_other() -> None:
    await over_tls()


@pytest.mark.parametrize("what", [over_tcp, over_tls], ids=["tcp", "tls"])
def test_all_of_it_works_on_uvloop(what) -> None:  # type: ignore[no-untyped-def]
    uvloop.run(what())


def test_certificates_that_cannot_be_used_are_refused_in_a_sentence(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    for files in (
        TlsFiles(tmp_path / "none.pem", NODE.certificate, NODE.key),
        TlsFiles(NODE.authority, empty, NODE.key),
        TlsFiles(NODE.authority, NODE.certificate, STRANGER.key),
    ):
        for make in (server_tls, client_tls):
            with pytest.raises(InvalidInput, match="cannot be used"):
                make(files)
