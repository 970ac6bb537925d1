"""A peer, as those who ask it see it: connections that are kept, one request on each at a time.

What must hold: every request ends by its deadline; a peer that refuses connections is an error at once, and
one that does not answer costs each caller its own time and no more; nothing of an answer is used before its
tag was checked; what may have taken effect is never sent twice, only reads and what was not sent at all are;
and a connection of which anything is in doubt is closed, never used again.
"""

import asyncio
import ssl
from collections.abc import Callable, Sequence
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.checksums import Buffer, feed
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.stores.peer import messages
from holdfast.stores.peer.errors import PeerRefused, Refusal, decode_error
from holdfast.stores.peer.greeting import Caller, Dial, describe_os_error, dial_tcp, greet, roots_of
from holdfast.stores.peer.line import Line, LineBroken, LineLate
from holdfast.stores.peer.messages import HelloAnswer, PeerIdentity
from holdfast.stores.peer.room import Room
from holdfast.stores.peer.signing import TAG_BYTES, Roots, same
from holdfast.stores.port import StoreBusy, StoreFailed, StoreOverdue

_ERROR_BYTES_MAX = 64 << 10
_DROPPED_BYTES_MAX = 64 << 10
"""An answer that nobody wants any more is taken and dropped up to this size: a new connection costs more."""


class ClientLimits(Struct, frozen=True):
    """What a caller allows itself at one peer. Seconds. After a connection could not be had, calls that need
    one fail at once for `refused_s`."""

    connections_max: int = 128
    reserve: int = 4
    waiting_max: int = 4096
    connect_s: float = 1.0
    hello_s: float = 2.0
    idle_s: float = 30.0
    refused_s: float = 0.1


class Request(NamedTuple):
    """One request. `path` is without the version. `answer_bytes` is what a good answer may have at most.
    `again`: asking twice does no harm, so it may be sent a second time when the first was not answered."""

    method: str
    path: str
    query: str = ""
    content: Sequence[Buffer] = ()
    content_bytes: int = 0
    answer_bytes: int = 0
    again: bool = True
    store: StoreId | None = None
    """Whose it is; None for the peer's own."""


class _Failure(NamedTuple):
    """Why no connection could be had, until when that is believed."""

    until: float
    error: HoldfastError

    def again(self) -> HoldfastError:
        """The same error once more, as a new exception."""
        error = self.error
        if isinstance(error, PeerRefused):
            return PeerRefused(error.refusal, error.message, hint=error.hint, **error.facts)
        return type(error)(error.message, hint=error.hint, **error.facts)


class PeerClient:
    """The peer called `node` at `address` (`host:port`), asked in the name of `identity`. `uuid`, where
    given, is who it must be. `dial` replaces TCP, for simulations. Raises InvalidInput for what is no
    address, or a secret that is too short."""

    def __init__(
        self,
        address: str,
        node: str,
        identity: PeerIdentity,
        secret: bytes | Roots,
        randomness: Randomness,
        *,
        uuid: str = "",
        tls: ssl.SSLContext | None = None,
        limits: ClientLimits | None = None,
        speaks: tuple[int, ...] = messages.SPEAKS,
        dial: Dial | None = None,
    ) -> None:
        for name in (node, identity.node, identity.cluster):
            assert messages.is_node_name(name), f"{name!r} is no name for a node or a cluster"
        self.node = node
        self.address = address
        self._roots = roots_of(secret, identity.cluster)
        self._caller = Caller(identity, self._roots.all()[0], address, node, uuid, speaks)
        self._randomness = randomness
        self._limits = limits or ClientLimits()
        self._dial = dial or dial_tcp(address, tls)
        self._room = Room(self._limits.connections_max, self._limits.waiting_max)
        # Of pings and hellos: stores that hang, and hold all other connections, do not make a peer look dead.
        self._reserve = Room(self._limits.reserve, self._limits.waiting_max)
        self._idle: list[Line] = []
        self._lines: set[Line] = set()
        self._failure: _Failure | None = None
        self._reaper: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def connections(self) -> int:
        """How many there are, idle ones included."""
        return len(self._lines)

    @property
    def idle(self) -> int:
        """How many connections nobody uses."""
        return len(self._idle)

    async def greet(self, *, timeout_s: float) -> HelloAnswer:
        """Who the peer is, by a hello on a new connection. Raises as a store's calls do; PeerRefused where it
        is somebody else, has another secret, or speaks no version of ours."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        await self._take_room(self._reserve, deadline, timeout_s, None)
        line: Line | None = None
        try:
            line, hello = await self._connect(deadline, timeout_s)
        finally:
            self._put_back(line, self._reserve)
        return hello

    async def ping(self, *, timeout_s: float) -> None:
        """Return when the peer has answered. Raises as a store's calls do."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        await self.ask(Request("GET", "/ping"), deadline, timeout_s)

    async def close(self) -> None:
        """Close all connections; calls under way, and any later, raise StoreFailed."""
        self._closed = True
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None
        self._idle.clear()
        for line in tuple(self._lines):
            line.hang_up("The connection was closed by this side.")

    async def ask(
        self,
        request: Request,
        deadline: float,
        timeout_s: float,
        over: Callable[[], None] = lambda: None,
    ) -> Buffer:
        """The content of a good answer that came by `deadline` (of the loop's clock; `timeout_s` is only
        said). `over` is called once nothing of it is under way any more, which may be later than this
        returns: an answer that nobody wants still has to come.

        Raises what the peer raised, StoreOverdue, StoreBusy, StoreFailed, PeerRefused."""
        room = self._reserve if request.store is None else self._room
        if not room.take_now():
            try:
                await self._take_room(room, deadline, timeout_s, request.store)
            except BaseException:
                over()
                raise
        line: Line | None = None
        kept = False
        try:
            line = self._take_idle() or (await self._connect(deadline, timeout_s))[0]
            try:
                return await self._exchange(line, request, deadline, timeout_s)
            except LineBroken as broken:
                line.hang_up()
                if broken.sent and not request.again:
                    raise self._broken(broken, request.store) from None
            line = (await self._connect(deadline, timeout_s))[0]
            try:
                return await self._exchange(line, request, deadline, timeout_s)
            except LineBroken as broken:
                raise self._broken(broken, request.store) from None
        except asyncio.CancelledError:
            if line is not None and self._may_drop(line, request):
                kept = True
                self._drop_answer(line, deadline, room, over)
            elif line is not None:
                line.hang_up()
            raise
        finally:
            if not kept:
                self._put_back(line, room)
                over()

    async def _exchange(self, line: Line, request: Request, deadline: float, timeout_s: float) -> Buffer:
        loop = asyncio.get_running_loop()
        session = line.session
        assert session is not None
        began = loop.time()
        if began >= deadline:
            raise self._overdue(timeout_s, request.store)
        session.next()
        timeout = messages.write_timeout(deadline - began)
        path = f"/v{line.version}{request.path}"
        length = request.content_bytes + TAG_BYTES if request.content else 0
        tag = session.request(request.method, path, request.query, timeout, length)
        target = f"{path}?{request.query}" if request.query else path
        announced = f"content-length: {length}\r\n" if length else ""
        head = (
            f"{request.method} {target} HTTP/1.1\r\nhost: {self.address}\r\n"
            f"holdfast-timeout-ms: {timeout}\r\n{announced}holdfast-tag: {tag}\r\n\r\n"
        ).encode("ascii")
        allowed = max(request.answer_bytes, _ERROR_BYTES_MAX)
        timer = loop.call_at(deadline, line.expire)
        try:
            answer = await line.ask(head, request.content, session, tag, allowed)
        except LineLate:
            # A peer that is well would have said itself that it is late.
            self._doubt_idle(began)
            raise self._overdue(timeout_s, request.store) from None
        finally:
            timer.cancel()
        hasher = answer.hasher
        if hasher is None:
            hasher = session.answer(answer.status)
            feed(hasher, answer.content)
        if not same(session.end(hasher), answer.tag):
            raise LineBroken("An answer was changed on its way, or is none of the peer's.", sent=True)
        if answer.status != 200:
            error = decode_error(bytes(answer.content), self.node, request.store)
            if isinstance(error, PeerRefused) and error.refusal is Refusal.ALTERED:
                # Nothing was done, whatever it was.
                raise LineBroken(error.message, sent=False, error=error)
            raise error
        return answer.content

    def _may_drop(self, line: Line, request: Request) -> bool:
        """Whether an answer that nobody wants any more is awaited, so that its connection can be kept."""
        return request.again and not line.sending and request.answer_bytes <= _DROPPED_BYTES_MAX

    def _drop_answer(self, line: Line, deadline: float, room: Room, over: Callable[[], None]) -> None:
        timer = asyncio.get_running_loop().call_at(deadline, line.expire)

        def come() -> None:
            timer.cancel()
            self._put_back(line, room)
            over()

        line.forsake(come)

    # Connections

    async def _take_room(self, room: Room, deadline: float, timeout_s: float, store: StoreId | None) -> None:
        try:
            if await room.take(1, deadline):
                return
        except TimeoutError:
            raise self._overdue(timeout_s, store) from None
        raise StoreBusy(f"Too many calls wait for peer {self.node}.", peer=self.node, store=store)

    def _put_back(self, line: Line | None, room: Room) -> None:
        """The call that had this connection is over."""
        if line is not None:
            if line.usable and not self._closed and self._roots.knows(line.root):
                self._idle.append(line)
                if self._reaper is None:
                    self._reap_later()
            else:
                line.hang_up()
        room.give()

    def _take_idle(self) -> Line | None:
        """A connection that nobody uses, of a secret that still counts."""
        while self._idle:
            line = self._idle.pop()
            if self._roots.knows(line.root):
                return line
            line.hang_up()
        return None

    async def _connect(self, deadline: float, timeout_s: float) -> tuple[Line, HelloAnswer]:
        """A new connection, and what the peer said of itself."""
        loop = asyncio.get_running_loop()
        self._check_open()
        if self._failure is not None and loop.time() < self._failure.until:
            raise self._failure.again()
        made: list[Line] = []

        def make() -> Line:
            line = Line(loop, self._lost)
            made.append(line)
            self._lines.add(line)
            return line

        try:
            line, hello = await self._made(make, deadline)
        except BaseException as error:
            for line in made:
                line.hang_up()
                self._lines.discard(line)
            if isinstance(error, HoldfastError):
                if loop.time() < deadline:
                    self._failure = _Failure(loop.time() + self._limits.refused_s, error)
                elif isinstance(error, StoreOverdue):
                    raise self._overdue(timeout_s, None) from None
            raise
        self._failure = None
        if self._closed:
            line.hang_up()
            self._check_open()
        return line, hello

    async def _made(self, make: Callable[[], Line], deadline: float) -> tuple[Line, HelloAnswer]:
        """A connection and its hello. While the cluster changes its secret a peer may know one of ours only:
        the one that it knew last is tried first, then the others."""
        left = sorted(self._roots.all(), key=lambda root: root is not self._caller.root)
        while True:
            caller = replace(self._caller, root=left.pop(0))
            line = await self._dialled(make, deadline)
            try:
                hello = await self._greeted(line, deadline, caller)
            except PeerRefused as refused:
                if not left or refused.refusal is not Refusal.WRONG_SECRET:
                    raise
                line.hang_up()
                continue
            self._caller = caller
            return line, hello

    async def _dialled(self, make: Callable[[], Line], deadline: float) -> Line:
        loop = asyncio.get_running_loop()
        ends = min(deadline, loop.time() + self._limits.connect_s)
        try:
            async with asyncio.timeout_at(ends):
                return await self._dial(make)
        except TimeoutError:
            if ends == deadline:
                raise self._overdue(self._limits.connect_s, None) from None
            raise self._unreachable(f"no answer within {self._limits.connect_s:g} s") from None
        except OSError as error:
            raise self._unreachable(describe_os_error(error)) from error

    async def _greeted(self, line: Line, deadline: float, caller: Caller) -> HelloAnswer:
        loop = asyncio.get_running_loop()
        timer = loop.call_at(min(deadline, loop.time() + self._limits.hello_s), line.expire)
        try:
            return await greet(line, caller, self._randomness)
        except LineLate:
            raise self._overdue(self._limits.hello_s, None) from None
        except LineBroken as broken:
            raise self._broken(broken, None) from None
        finally:
            timer.cancel()

    def _lost(self, line: Line) -> None:
        self._lines.discard(line)
        if line in self._idle:
            self._idle.remove(line)

    def _doubt_idle(self, since: float) -> None:
        """Close idle connections on which nothing was answered since then: the peer may be gone."""
        doubtful = [line for line in self._idle if line.last_at < since]
        self._idle = [line for line in self._idle if line.last_at >= since]
        for line in doubtful:
            line.hang_up()

    def _reap_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._reaper = loop.call_later(self._limits.idle_s / 2, self._reap)

    def _reap(self) -> None:
        """Close what was idle for too long: the peer would, too, and a request might cross its end."""
        self._reaper = None
        self._doubt_idle(asyncio.get_running_loop().time() - self._limits.idle_s)
        if self._idle:
            self._reap_later()

    # Errors

    def _check_open(self) -> None:
        if self._closed:
            raise StoreFailed(f"The connections to peer {self.node} are closed.", peer=self.node)

    def _overdue(self, timeout_s: float, store: StoreId | None) -> StoreOverdue:
        return StoreOverdue(
            f"Peer {self.node} did not answer in {timeout_s:g} s.", peer=self.node, store=store
        )

    def _unreachable(self, why: str) -> StoreFailed:
        return StoreFailed(
            f"Peer {self.node} cannot be reached at {self.address}: {why}.",
            peer=self.node,
            address=self.address,
        )

    def _broken(self, broken: LineBroken, store: StoreId | None) -> StoreFailed:
        if broken.error is not None:
            return broken.error
        return StoreFailed(f"Peer {self.node} ({self.address}): {broken}", peer=self.node, store=store)
