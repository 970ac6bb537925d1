"""What a node answers its peers: who it is, and what its stores say.

What must hold: no store is asked before the hello, the tag of the request's head and, where there is one, of
its content held; every request ends by the time its caller gave it, wherever it is; what is in memory for all
peers together keeps to a limit, and who comes beyond it waits; an error of a store is answered as that error;
and nothing of an error that is not the house's is told but that there was one.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence

import msgspec

from holdfast.base.checksums import Buffer, feed
from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.stores.peer import messages
from holdfast.stores.peer.errors import Kind, PeerRefused, Refusal, encode_error, kind_of
from holdfast.stores.peer.messages import Asked, Call, HelloAnswer, PeerIdentity, SizeAnswer
from holdfast.stores.peer.room import Room
from holdfast.stores.peer.signing import NONCE_BYTES, TAG_BYTES, Root, Roots, Session, passes, same
from holdfast.stores.port import Range, Store, StoreBusy, StoreFailed, StoreOverdue
from holdfast.wire.exchange import BodyError, ClientGone, Exchange
from holdfast.wire.http import Head, HeadError

_LOG = logging.getLogger("holdfast.peer")
_BYTES = "application/octet-stream"
_JSON = "application/json"
HELLO = "hello"
"""The operation of a hello, for observers; of other requests it is the word of their `Call`, of what was not
understood nothing."""

_TOLD_EVERY_S = 1.0
_WAITING_MAX = 8192
_SMALL_BYTES = 64 << 10


class _Refused(Exception):
    """A request that is not taken: nothing after it can be believed, so that the connection ends."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class _Peer:
    """What is kept of a connection after its hello."""

    __slots__ = ("node", "root", "session", "version")

    def __init__(self, node: str, version: int, root: Root, session: Session) -> None:
        self.node = node
        self.root = root
        self.version = f"/v{version}"
        self.session = session


class PeerFace:
    """Answers the requests of peers. `stores` is looked at anew for each, `content_bytes_max` is what
    requests and answers together may hold in memory."""

    gives_up = True
    single_headers = frozenset(
        {
            messages.TIMEOUT_HEADER,
            messages.TAG_HEADER,
            "holdfast-speaks",
            "holdfast-cluster",
            "holdfast-from",
            "holdfast-to",
            "holdfast-nonce",
        }
    )

    def __init__(
        self,
        stores: Mapping[StoreId, Store],
        identity: PeerIdentity,
        roots: Roots,
        clock: Clock,
        randomness: Randomness,
        *,
        speaks: tuple[int, ...] = messages.SPEAKS,
        content_bytes_max: int,
    ) -> None:
        self._stores = stores
        self._identity = identity
        self._roots = roots
        self._clock = clock
        self._randomness = randomness
        self._speaks = speaks
        self._room = Room(content_bytes_max, _WAITING_MAX)
        self._told_at = -_TOLD_EVERY_S

    @property
    def content_bytes(self) -> int:
        """What requests and answers hold in memory now."""
        return self._room.taken

    def is_internal(self, head: Head) -> bool:
        """None is: all are observed."""
        return False

    def claim(self, exchange: Exchange) -> None:
        """Nothing is believed of what was not read."""

    def refuse(self, error: HeadError) -> tuple[int, str, bytes]:
        """What is not HTTP as it should be, or has no room."""
        kind = Kind.STORE_BUSY if error.status == 503 else Kind.MALFORMED
        content = encode_error(kind, HoldfastError(error.reason)) + bytes(TAG_BYTES)
        return error.status, _fields(_JSON, len(content)), content

    def answer_at_once(self, exchange: Exchange) -> bool:
        """Nothing is."""
        return False

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request."""
        peer = exchange.session
        try:
            if peer is None:
                self._greet(exchange)
            else:
                assert isinstance(peer, _Peer)
                await self._answer(exchange, peer)
        except BodyError:
            return  # The connection ends: what was announced did not come.

    # Hello

    def _greet(self, exchange: Exchange) -> None:
        head = exchange.head
        nonce = head.headers.get("holdfast-nonce", "")
        root = self._root_of(head)
        exchange.operation = HELLO
        try:
            content = self._hello(exchange, nonce, root)
            status = 200
        except _Refused as refused:
            self._tell(f"a hello was refused: {refused.message}")
            exchange.code = refused.kind.wire
            content = encode_error(refused.kind, HoldfastError(refused.message))
            status = refused.kind.status
            exchange.close_after_answer()
        content += (root or self._roots.all()[0]).answer(nonce, status, content)
        exchange.respond(status, _fields(_JSON, len(content)), content)

    def _root_of(self, head: Head) -> Root | None:
        """What the hello was signed with, of what this node knows."""
        names = ("speaks", "cluster", "from", "to", "nonce")
        texts = [head.headers.get(f"holdfast-{name}", "") for name in names]
        tag = head.headers.get(messages.TAG_HEADER, "").encode()
        for root in self._roots.all():
            if same(root.hello(*texts).encode(), tag):
                return root
        return None

    def _hello(self, exchange: Exchange, nonce: str, root: Root | None) -> bytes:
        head, mine = exchange.head, self._identity
        if head.path != messages.HELLO_PATH:
            raise _Refused(Kind.NO_HELLO, "A connection begins with a hello.")
        names = ("holdfast-speaks", "holdfast-cluster", "holdfast-from", "holdfast-to", "holdfast-tag")
        speaks, cluster, caller, called, tag = (head.headers.get(name, "") for name in names)
        theirs = messages.read_speaks(speaks)
        well = (
            head.method == "GET"
            and not head.query
            and not head.length
            and not head.chunked
            and theirs is not None
            and messages.is_node_name(cluster)
            and messages.is_node_name(caller)
            and messages.is_node_name(called)
            and messages.is_nonce(nonce)
            and messages.is_tag(tag)
        )
        if not well or theirs is None:
            raise _Refused(Kind.MALFORMED, "This is no hello of the peer protocol.")
        if cluster != mine.cluster:
            raise _Refused(Kind.FOREIGN_CLUSTER, "This node is part of another cluster.")
        if root is None:
            raise _Refused(Kind.WRONG_SECRET, "The secrets of the two nodes differ.")
        if called != mine.node:
            raise _Refused(Kind.OTHER_NODE, f"This is node {mine.node}, not {called}.")
        common = set(theirs) & set(self._speaks)
        if not common:
            raise _Refused(
                Kind.NO_COMMON_VERSION,
                f"This node speaks versions {messages.write_speaks(self._speaks)} of the peer protocol, "
                f"the caller {speaks}.",
            )
        version = max(common)
        ours = self._randomness.token(NONCE_BYTES).hex()
        session = root.session(version, (nonce, ours), caller, called)
        exchange.session = _Peer(caller, version, root, session)
        return msgspec.json.encode(
            HelloAnswer(version, self._speaks, mine.cluster, mine.node, mine.uuid, mine.boot, ours)
        )

    # Requests

    async def _answer(self, exchange: Exchange, peer: _Peer) -> None:
        session = peer.session
        session.next()
        if not self._roots.knows(peer.root):
            # The caller made this connection before the secret changed, and makes the next with another.
            exchange.close_after_answer()
        try:
            asked, left_s = self._understand(exchange, peer)
            exchange.operation = asked.call.value
            if asked.call is Call.GET and not asked.uncached:
                found = self._store(asked).peek(asked.name, asked.ranges)
                if found is not None:
                    self._send(exchange, session, _BYTES, found)
                    return
        except _Refused as refused:
            self._tell(f"a request of {peer.node} was refused: {refused.message}")
            exchange.close_after_answer()
            self._send_error(exchange, session, refused.kind, HoldfastError(refused.message))
            return
        except HoldfastError as error:
            self._fail(exchange, session, error)
            return
        deadline = exchange.begun_at + left_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._perform(exchange, session, asked, deadline)
        except TimeoutError:
            self._fail(
                exchange, session, StoreOverdue(f"Store {asked.store} did not answer in {left_s:g} s.")
            )
        except _Refused as refused:
            self._tell(f"a content of {peer.node} was refused: {refused.message}")
            exchange.close_after_answer()
            self._send_error(exchange, session, refused.kind, HoldfastError(refused.message))
        except (ClientGone, BodyError):
            raise
        except HoldfastError as error:
            self._fail(exchange, session, error)
        except Exception:
            _LOG.exception("a request of peer %s failed", peer.node)
            if not exchange.begun:
                fault = HoldfastError("The peer made a mistake; its log says which.")
                self._send_error(exchange, session, Kind.FAULT, fault)

    def _understand(self, exchange: Exchange, peer: _Peer) -> tuple[Asked, float]:
        """What is asked, and how many seconds there are for it. Raises _Refused."""
        method, path, query, headers, length, chunked, _, _ = exchange.head
        timeout, tag = headers.get(messages.TIMEOUT_HEADER, ""), headers.get(messages.TAG_HEADER, "")
        expected = peer.session.request(method, path, query, timeout, length or 0)
        if not same(expected.encode(), tag.encode()):
            raise _Refused(Kind.ALTERED, "A request was changed on its way, or is not the one that is due.")
        left_s = messages.read_timeout(timeout)
        version = peer.version
        asked = None
        if left_s is not None and not chunked and path.startswith(version + "/"):
            asked = messages.read_request(method, path[len(version) :], query)
        if asked is None or left_s is None:
            raise _Refused(Kind.MALFORMED, "A request is none of the version that was agreed on.")
        content_bytes = (length or 0) - TAG_BYTES if asked.call is Call.PUT else length or 0
        if content_bytes < 0 or content_bytes > (messages.BLOB_BYTES_MAX if asked.call is Call.PUT else 0):
            raise _Refused(Kind.MALFORMED, "A content is longer than it may be, or missing.")
        return asked, left_s

    async def _perform(self, exchange: Exchange, session: Session, asked: Asked, deadline: float) -> None:
        call, name = asked.call, asked.name
        if call is Call.PING:
            self._send(exchange, session, _BYTES, ())
            return
        store = self._store(asked)
        match call:
            case Call.GET:
                await self._get(exchange, session, store, asked, deadline)
            case Call.PUT:
                await self._put(exchange, session, store, asked, deadline)
                self._send(exchange, session, _BYTES, ())
            case Call.SIZE:
                size = await store.size(name, timeout_s=_left_s(deadline))
                self._send(exchange, session, _JSON, (msgspec.json.encode(SizeAnswer(size)),))
            case Call.DELETE:
                await store.delete(name, timeout_s=_left_s(deadline))
                self._send(exchange, session, _BYTES, ())
            case Call.LIST:
                names = await store.list(asked.after, limit=asked.limit, timeout_s=_left_s(deadline))
                self._send(exchange, session, _JSON, (msgspec.json.encode(names),))
            case Call.USAGE:
                usage = await store.usage(timeout_s=_left_s(deadline))
                self._send(exchange, session, _JSON, (msgspec.json.encode(usage),))
            case Call.PROBE:
                await store.probe(timeout_s=_left_s(deadline))
                self._send(exchange, session, _BYTES, ())

    async def _get(
        self, exchange: Exchange, session: Session, store: Store, asked: Asked, deadline: float
    ) -> None:
        total = sum(length for _, length in asked.ranges)
        room = _room_for(total)
        await self._take(room, deadline)
        try:
            ranges: Sequence[Range] = asked.ranges
            found = await store.get(asked.name, ranges, timeout_s=_left_s(deadline), uncached=asked.uncached)
            if total <= _SMALL_BYTES:
                self._send(exchange, session, _BYTES, found)
                return
            hasher = session.answer(200)
            exchange.begin(200, _fields(_BYTES, total + TAG_BYTES))
            for piece in found:
                for some in passes(piece):
                    feed(hasher, some)
                    await exchange.write(some)
            await exchange.write(session.end(hasher))
            exchange.end()
        finally:
            self._room.give(room)

    async def _put(
        self, exchange: Exchange, session: Session, store: Store, asked: Asked, deadline: float
    ) -> None:
        length = (exchange.head.length or 0) - TAG_BYTES
        room = _room_for(length)
        await self._take(room, deadline)
        try:
            hasher = session.content(exchange.head.headers[messages.TAG_HEADER])
            pieces: list[Buffer] = []
            tag = b""
            left = length
            while piece := await exchange.read():
                if left < len(piece):
                    tag += piece[left:]
                    piece = piece[:left]
                if piece:
                    left -= len(piece)
                    for some in passes(piece):
                        feed(hasher, some)
                    pieces.append(piece)
            if not same(session.end(hasher), tag):
                raise _Refused(Kind.ALTERED, "A content was changed on its way.")
            await store.put(
                asked.name, pieces, timeout_s=_left_s(deadline), reserve_share=asked.reserve_share
            )
        finally:
            self._room.give(room)

    async def _take(self, amount: int, deadline: float) -> None:
        if amount and not self._room.take_now(amount) and not await self._room.take(amount, deadline):
            raise StoreBusy("The peer has too many requests waiting.")

    def _store(self, asked: Asked) -> Store:
        store = self._stores.get(asked.store)
        if store is None:
            raise _Away(f"Node {self._identity.node} has no store {asked.store}.")
        return store

    # Answers

    def _send(self, exchange: Exchange, session: Session, kind: str, content: Sequence[Buffer]) -> None:
        """A whole, small answer."""
        whole = bytes(content[0]) if len(content) == 1 else b"".join(content)
        hasher = session.answer(200)
        for some in passes(whole):
            feed(hasher, some)
        exchange.respond(200, _fields(kind, len(whole) + TAG_BYTES), whole + session.end(hasher))

    def _fail(self, exchange: Exchange, session: Session, error: HoldfastError) -> None:
        if not exchange.begun:
            kind = Kind.STORE_AWAY if isinstance(error, _Away) else kind_of(error)
            self._send_error(exchange, session, kind, error)

    def _send_error(self, exchange: Exchange, session: Session, kind: Kind, error: HoldfastError) -> None:
        if not exchange.complete_at:
            # The rest of the request may never come: then whatever is sent on this connection next is lost.
            exchange.close_after_answer()
        exchange.code = kind.wire
        content = encode_error(kind, error)
        hasher = session.answer(kind.status)
        feed(hasher, content)
        exchange.respond(kind.status, _fields(_JSON, len(content) + TAG_BYTES), content + session.end(hasher))

    def _tell(self, what: str) -> None:
        """A word in the log, once a second at most: whoever can connect could fill it."""
        now = self._clock.monotonic()
        if now - self._told_at >= _TOLD_EVERY_S:
            self._told_at = now
            _LOG.warning("%s", what)


class _Away(StoreFailed):
    """No such store here."""


def _room_for(content_bytes: int) -> int:
    """What a content takes of the room. Small ones take none and wait for nobody: connections bound them."""
    return content_bytes if content_bytes > _SMALL_BYTES else 0


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - asyncio.get_running_loop().time())


def _fields(kind: str, length: int) -> str:
    return f"content-type: {kind}\r\ncontent-length: {length}\r\n"


__all__ = ["PeerFace", "PeerRefused", "Refusal"]
