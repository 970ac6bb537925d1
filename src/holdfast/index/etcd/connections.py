"""Connections to the members of etcd: one channel each, of which one is preferred.

A call goes to the preferred member. When that does not answer for a while, the same is asked of the next
one too, and the first answer counts; so a member that hangs costs a fraction of a second. That is allowed
for every call made here: reads change nothing, and commits are applied once however often they are sent
(see `committing`). When nobody answers, all are asked again, until the patience is over.

What must hold: which errors mean "ask another", "ask again" and "this will never do" is decided here and
nowhere else; and whoever is told that nobody answered is told, too, whether somebody may have heard.
"""

import asyncio
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Protocol, TypeVar, cast

import grpc
import grpc.aio
from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Damaged, InvalidInput, Unavailable
from holdfast.index.etcd import wire
from holdfast.index.etcd.address import Address

T = TypeVar("T")

PAUSE_FIRST_S = 0.02
PAUSE_MAX_S = 0.5

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


class Tls(Struct, frozen=True):
    """Certificates in PEM. `ca` is whom to believe (empty: whom the system believes); the other two say who
    we are, where etcd asks for that."""

    ca: bytes = b""
    certificate: bytes = b""
    key: bytes = b""


class Unanswered(Unavailable):
    """Nobody answered in time. `doubtful`: somebody may have heard."""

    def __init__(self, message: str, *, hint: str = "", doubtful: bool) -> None:
        super().__init__(message, hint=hint)
        self.doubtful = doubtful


class NoSpace(Unanswered):
    """etcd has used up its quota and takes no more puts."""


class Compacted(InvalidInput):
    """What was asked for was forgotten."""


class LeaseGone(InvalidInput):
    """The lease of etcd does not exist any more."""


class Stream(Protocol):
    """A call with messages in both directions. `read` answers something that is not bytes at its end."""

    async def write(self, request: bytes) -> None: ...

    async def read(self) -> object: ...

    def cancel(self) -> bool: ...


class Verdict(Enum):
    """What an error of a call means for the call."""

    NEXT = "ask another member; this one certainly did nothing"
    DOUBT = "ask another member; this one may have done it, or may do it yet"
    LOGIN = "ask again with a new token"


def judge(code: grpc.StatusCode, details: str) -> Verdict:
    """What an error means. Raises what asking others does not mend."""
    text = details.lower()
    if "database space exceeded" in text:
        raise NoSpace(
            "etcd has used up its space and takes no more changes.",
            hint="Compact and defragment each member, raise its quota if need be, then disarm the alarm "
            "(`etcdctl defrag`, `etcdctl alarm disarm`).",
            doubtful=False,
        )
    if "corrupt cluster" in text:
        raise Unavailable(
            "etcd found its members to differ and refuses to go on.",
            hint="Find the wrong member (`etcdctl endpoint hashkv`), replace it, then disarm the alarm.",
        )
    if "invalid auth token" in text or "revision of auth store is old" in text:
        return Verdict.LOGIN
    if code is grpc.StatusCode.OUT_OF_RANGE and "compacted" in text:
        raise Compacted(details)
    if "lease not found" in text:
        raise LeaseGone(details)
    if code in _WRONG or "user name is empty" in text:
        raise InvalidInput(f"etcd refuses: {details}.", hint="Mend the index's address, user or role.")
    if code is grpc.StatusCode.INVALID_ARGUMENT and "authentication failed" in text:
        raise InvalidInput(f"etcd refuses: {details}.", hint="Mend the user or password in its address.")
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        raise InvalidInput(
            f"etcd refuses: {details}.", hint="Does it run with --max-txn-ops or --max-request-bytes too low?"
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        raise InvalidInput(f"What answers is not etcd 3.4 or later: {details}.")
    if "failed to connect" in text or "no leader" in text or "too many requests" in text:
        return Verdict.NEXT
    return Verdict.DOUBT


_WRONG = (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED)


class Endpoint:
    """One member, by the address that we know it by."""

    def __init__(self, name: str, channel: grpc.aio.Channel) -> None:
        self.name = name
        self.channel = channel
        self.failures = 0
        self.last_error = ""
        self._unary: dict[str, Callable[..., object]] = {}

    async def call(self, method: str, request: bytes, timeout_s: float, token: str) -> bytes:
        """One call. Raises the driver's errors."""
        made = self._unary.get(method)
        if made is None:
            made = self._unary[method] = cast("Callable[..., object]", self.channel.unary_unary(method))
        call = made(request, timeout=timeout_s, metadata=_metadata(token))
        return cast("bytes", await call)  # type: ignore[misc]

    def stream(self, method: str, token: str) -> Stream:
        """A stream, begun."""
        made = cast("Callable[..., object]", self.channel.stream_stream(method))
        return cast("Stream", made(metadata=(*_metadata(token), ("hasleader", "true"))))


def _metadata(token: str) -> tuple[tuple[str, str], ...]:
    return (("token", token),) if token else ()


class _Round(Struct):
    """One time through the members."""

    waiting: list[Endpoint]
    asked: dict[asyncio.Task[object], Endpoint]
    doubtful: bool = False
    damaged: Damaged | None = None


class Connections:
    """All members. `patience_s` is how long a call waits for anybody to answer, `call_timeout_s` how long for
    one member, `hedge_after_s` how long until the next is asked too."""

    def __init__(
        self,
        address: Address,
        clock: Clock,
        *,
        patience_s: float,
        call_timeout_s: float,
        hedge_after_s: float,
        tls: Tls | None = None,
    ) -> None:
        self._address = address
        self._clock = clock
        self.patience_s = patience_s
        self.call_timeout_s = call_timeout_s
        self._hedge_after_s = hedge_after_s
        self._token = ""
        self._closed = False
        self.endpoints = [Endpoint(name, _channel(name, tls)) for name in address.endpoints]
        self._preferred = 0

    @property
    def preferred(self) -> Endpoint:
        """Whom to ask first."""
        return self.endpoints[self._preferred]

    def prefer(self, endpoint: Endpoint) -> None:
        """Ask that one first from now on."""
        self._preferred = self.endpoints.index(endpoint)

    def reason(self) -> str:
        """What the members that do not answer say."""
        return "; ".join(f"{one.name}: {one.last_error}" for one in self.endpoints if one.last_error)

    async def call(
        self,
        method: str,
        request: bytes,
        read: Callable[[bytes], T],
        *,
        patience_s: float | None = None,
    ) -> tuple[T, bool]:
        """The answer of whoever answers first, as `read` takes it, and whether somebody else may have heard
        the same and not answered.

        An answer that `read` finds Damaged is not taken; another member is asked. Raises Unanswered,
        NoSpace, Compacted, InvalidInput, Damaged.
        """
        patience_s = self.patience_s if patience_s is None else patience_s
        deadline = self._clock.monotonic() + patience_s
        pause = PAUSE_FIRST_S
        doubtful = False
        while True:
            self._check(doubtful)
            this = _Round(self.order(), {})
            try:
                answer = await self._ask_all(this, method, request, read)
                return answer, doubtful or this.doubtful
            except NoSpace as error:
                error.doubtful = doubtful or this.doubtful
                raise
            except Unanswered as error:
                doubtful = doubtful or error.doubtful
                if this.damaged is not None:
                    raise this.damaged from None
                if self._clock.monotonic() + pause > deadline:
                    raise Unanswered(
                        f"etcd did not answer in {patience_s:g} s: {self.reason() or 'no error was told'}.",
                        hint="Are most of its members running, and can they reach each other?",
                        doubtful=doubtful,
                    ) from None
            await self._clock.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX_S)

    def order(self) -> list[Endpoint]:
        """The preferred one first, then whoever failed least."""
        rest = [one for one in self.endpoints if one is not self.preferred]
        return [self.preferred, *sorted(rest, key=lambda one: one.failures)]

    async def _ask_all(self, this: _Round, method: str, request: bytes, read: Callable[[bytes], T]) -> T:
        """Ask one after the other, the next when one fails or takes long."""
        try:
            while this.waiting or this.asked:
                if this.waiting and not this.asked:
                    self._ask_next(this, method, request, read)
                hedge_s = self._hedge_after_s if this.waiting else None
                done, _ = await asyncio.wait(this.asked, timeout=hedge_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    endpoint = this.asked.pop(task)
                    if self._took(this, endpoint, task):
                        self._won(endpoint)
                        return cast("T", task.result())
                if this.waiting:
                    self._ask_next(this, method, request, read)
            raise Unanswered("Nobody answered.", doubtful=this.doubtful)
        finally:
            for task, endpoint in this.asked.items():
                this.doubtful = True
                endpoint.failures += 1
                endpoint.last_error = endpoint.last_error or "slow to answer"
                task.cancel()
                task.add_done_callback(_seen)

    def _ask_next(self, this: _Round, method: str, request: bytes, read: Callable[[bytes], T]) -> None:
        endpoint = this.waiting.pop(0)
        task: asyncio.Task[object] = asyncio.create_task(self._ask(endpoint, method, request, read))
        this.asked[task] = endpoint

    async def _ask(self, endpoint: Endpoint, method: str, request: bytes, read: Callable[[bytes], T]) -> T:
        if self._address.user and not self._token and method != wire.AUTHENTICATE:
            await self._login(endpoint)
        token = self._token
        try:
            answer = await endpoint.call(method, request, self.call_timeout_s, token)
        except grpc.aio.AioRpcError as error:
            if judge(error.code(), error.details() or "") is not Verdict.LOGIN or not self._address.user:
                raise
            if self._token == token:
                await self._login(endpoint)
            answer = await endpoint.call(method, request, self.call_timeout_s, self._token)
        return read(answer)

    async def _login(self, endpoint: Endpoint) -> None:
        request = wire.authenticate_request(self._address.user, self._address.password)
        try:
            answer = await endpoint.call(wire.AUTHENTICATE, request, self.call_timeout_s, "")
        except grpc.aio.AioRpcError as error:
            if "not enabled" in (error.details() or ""):
                return  # whoever may do everything needs no token
            raise
        self._token = wire.Message(answer).text(2)

    def _took(self, this: _Round, endpoint: Endpoint, task: asyncio.Task[object]) -> bool:
        """Whether that is an answer. Raises what asking others does not mend."""
        if task.cancelled():
            self._failed(endpoint, "the connection was closed")
            this.doubtful = True
            return False
        error = task.exception()
        match error:
            case None:
                return True
            case Damaged():
                self._failed(endpoint, error.message)
                this.damaged = error
            case grpc.aio.AioRpcError():
                details = error.details() or error.code().name
                self._failed(endpoint, details)
                if judge(error.code(), details) is not Verdict.NEXT:
                    this.doubtful = True
            case grpc.aio.UsageError():
                self._failed(endpoint, str(error))
            case _:
                raise error
        return False

    def _failed(self, endpoint: Endpoint, why: str) -> None:
        endpoint.failures += 1
        endpoint.last_error = why

    def _won(self, endpoint: Endpoint) -> None:
        endpoint.failures = 0
        endpoint.last_error = ""
        self.prefer(endpoint)

    async def ask_one(self, endpoint: Endpoint, method: str, request: bytes, timeout_s: float) -> bytes:
        """That very member, once. Raises Unavailable, InvalidInput."""
        self._check(False)
        try:
            async with asyncio.timeout(timeout_s):
                return await self._ask(endpoint, method, request, lambda answer: answer)
        except grpc.aio.AioRpcError as error:
            judge(error.code(), error.details() or "")
            why = error.details() or error.code().name
        except TimeoutError:
            why = f"no answer in {timeout_s:g} s"
        except grpc.aio.UsageError as error:
            why = str(error)
        endpoint.last_error = why
        raise Unavailable(f"{endpoint.name} does not answer: {why}.")

    def stream(self, endpoint: Endpoint, method: str) -> Stream:
        """A stream to that member. Calls made before tell a token."""
        self._check(False)
        return endpoint.stream(method, self._token)

    def _check(self, doubtful: bool) -> None:
        if self._closed:
            raise Unanswered("The index is closed.", doubtful=doubtful)

    async def close(self) -> None:
        """Let go; what is under way fails."""
        self._closed = True
        await asyncio.gather(*(one.channel.close(None) for one in self.endpoints), return_exceptions=True)


def _seen(task: asyncio.Task[object]) -> None:
    """Nobody waits for it any more; its error is not a surprise."""
    if not task.cancelled():
        task.exception()


def _channel(name: str, tls: Tls | None) -> grpc.aio.Channel:
    options: Sequence[tuple[str, int]] = _OPTIONS
    if tls is None:
        return grpc.aio.insecure_channel(name, options=options)
    credentials = grpc.ssl_channel_credentials(tls.ca or None, tls.key or None, tls.certificate or None)
    return grpc.aio.secure_channel(name, credentials, options=options)
