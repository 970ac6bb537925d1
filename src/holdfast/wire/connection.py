"""One HTTP/1.1 connection: heads in, answers out, and never more in memory than the limits say.

The house's own server, because what S3 and peers need cannot be had behind a general one: the request
target as it was sent, a truncated body told from a complete one, header values that are not ASCII, and
writes that wait for a slow reader (see the decision record on the HTTP server).

A connection is idle, reading a head, or serving one exchange; pipelined requests wait their turn. What must
hold: a body is asked for (`100 Continue`) only when somebody reads it; reading stops while nobody takes
what came; an answer that cannot be completed ends in a closed connection, never in a short body that
looks whole; a body nobody read is skipped when it is short, else the connection closes after the answer;
no client, however it cuts its bytes, makes one step of the loop long.
"""

import asyncio
import logging
import math
from collections import deque
from http import HTTPStatus
from typing import cast

from holdfast.base.checksums import Buffer
from holdfast.wire.admission import Admission
from holdfast.wire.chunked import ChunkedDecoder, ChunkError
from holdfast.wire.exchange import (
    Application,
    BodyError,
    BodyFault,
    ClientGone,
    Exchange,
    ExchangeObserver,
    Limits,
)
from holdfast.wire.http import HEAD_BYTES_MAX, SINGLE, Head, HeadError, parse_head

_LOG = logging.getLogger("holdfast.wire")
_REASONS = {status.value: status.phrase for status in HTTPStatus}
_JOIN_BYTES_MAX = 16 << 10
PIPELINED_BYTES_MAX = 64 << 10
"""Requests that wait for their turn on a connection. Clients of S3 send none; who sends more is cut off after
the answer that is due."""
_IDLE_WRITE_BYTES = 16 << 10
"""Unsent bytes above which a connection's next request waits."""

_NEVER = math.inf
_CONTINUE = "HTTP/1.1 100 Continue\r\n\r\n"


class Shared:
    """What the connections of one server share: limits, counts, and whether it is draining."""

    def __init__(
        self, application: Application, limits: Limits, observer: ExchangeObserver | None = None
    ) -> None:
        self.application = application
        self.limits = limits
        self.observer = observer
        self.single = SINGLE | application.single_headers
        self.loop = asyncio.get_running_loop()
        self.connections: set[Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.in_flight = 0
        self.admission = Admission(limits.requests_max, limits.late_s)
        self.draining = False

    def sweep(self) -> None:
        """Close what has been silent for too long. Call about every second."""
        now = self.loop.time()
        for connection in tuple(self.connections):
            connection.check_deadline(now)

    def drain(self) -> None:
        """Take no more requests; idle connections close, busy ones after their answer."""
        self.draining = True
        for connection in tuple(self.connections):
            connection.close_if_idle()


class Connection(asyncio.Protocol):
    """One client's connection."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_body_done",
        "_body_error",
        "_buffer",
        "_closing",
        "_coded",
        "_coded_at",
        "_continue_due",
        "_cut",
        "_deadline",
        "_decoder",
        "_eof",
        "_exchange",
        "_left",
        "_lingering",
        "_lost",
        "_much",
        "_next_due",
        "_reader",
        "_reading_paused",
        "_shared",
        "_skipping",
        "_task",
        "_transport",
        "_writer",
        "_writing_paused",
        "session",
    )

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self.session: object | None = None
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._exchange: Exchange | None = None
        self._body: deque[Buffer] = deque()
        self._body_bytes = 0
        self._body_done = True
        self._body_error: BodyError | None = None
        self._decoder: ChunkedDecoder | None = None
        self._coded: deque[bytes] = deque()
        self._coded_at = 0
        self._cut = False
        self._left = 0
        self._continue_due = False
        self._skipping = False
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._closing = False
        self._lingering = False
        self._eof = False
        self._lost = False
        self._next_due = False
        self._much = False
        self._deadline = _NEVER

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not derived from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        shared = self._shared
        self._transport.set_write_buffer_limits(high=_IDLE_WRITE_BYTES)
        shared.connections.add(self)
        self._deadline = shared.loop.time() + shared.limits.head_s
        if shared.draining or len(shared.connections) > shared.limits.connections_max:
            self._refuse(HeadError(503, "There are too many connections."))

    def connection_lost(self, _error: Exception | None) -> None:
        self._lost = True
        self._note_gone()
        self._shared.connections.discard(self)
        self._deadline = _NEVER
        self._body_ended_early()
        _wake(self._writer)
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> bool:
        self._eof = True
        self._note_gone()
        if self._task is not None:
            self._task.cancel()
            return False
        if self._exchange is None or self._lingering:
            return False
        # The client may have closed its side only, and still want the answer.
        self._body_ended_early()
        return True

    def _note_gone(self) -> None:
        if self._exchange is not None and not self._exchange.gone_at:
            self._exchange.gone_at = self._shared.loop.time()

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._deadline = _NEVER
        _wake(self._writer)
        if self._next_due:
            self._next()

    def data_received(self, data: bytes) -> None:
        if self._lingering:
            return
        if self._exchange is None:
            self._take_head(data)
        elif not self._body_done:
            self._take_body(data)
        else:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        """Bytes of requests to come."""
        self._buffer += data
        if len(self._buffer) > PIPELINED_BYTES_MAX:
            self._buffer = self._buffer[:PIPELINED_BYTES_MAX]
            self._closing = True
            self._pause_reading()

    # Heads

    def _take_head(self, data: bytes) -> None:
        shared = self._shared
        if self._buffer:
            data = self._buffer + data
        else:
            self._deadline = shared.loop.time() + shared.limits.head_s
        if data.startswith(b"\r\n"):
            data = data[2:]
        end = data.find(b"\r\n\r\n", 0, HEAD_BYTES_MAX)
        if end < 0:
            self._buffer = data
            if len(data) >= HEAD_BYTES_MAX:
                self._refuse(HeadError(431, "The request's head is too long."))
            elif b"\n\n" in data or (data and not 0x41 <= data[0] <= 0x5A and data != b"\r"):
                self._refuse(HeadError(400, "This is not an HTTP/1.1 request."))
            return
        head = parse_head(data[: end + 2], shared.single)
        self._buffer = b""
        if isinstance(head, HeadError):
            self._refuse(head)
            return
        self._begin(head, data[end + 4 :] if len(data) > end + 4 else b"")

    def _begin(self, head: Head, rest: bytes) -> None:
        shared = self._shared
        self._deadline = _NEVER
        now = shared.loop.time()
        exchange = self._exchange = Exchange(self, head, now)
        self._body_error = None
        self._left = head.length or 0
        self._decoder = ChunkedDecoder() if head.chunked else None
        self._body_done = not self._left and not head.chunked
        if self._body_done:
            exchange.complete_at = now
        self._coded.clear()
        self._coded_at = 0
        self._cut = False
        self._continue_due = head.expects_continue
        self._skipping = False
        if rest:
            if self._body_done:
                self._keep(rest)
            else:
                self._take_body(rest)
        internal = shared.application.is_internal(head)
        if internal and self._body_done and shared.application.answer_at_once(exchange):
            shared.loop.call_soon(self._finish, exchange)
            return
        if shared.in_flight >= shared.admission.limit and not internal:
            exchange.respond(*shared.application.refuse(HeadError(503, "Too many requests are under way.")))
            if shared.observer is not None:
                shared.application.claim(exchange)
                self._tell(exchange, shared.observer)
            # Not at once: a long row of pipelined requests would nest as deep as it is long.
            shared.loop.call_soon(self._finish, exchange)
            return
        # The set keeps the task alive; it takes itself out, unless it is cancelled before it has begun.
        task = shared.loop.create_task(self._serve(exchange, internal))
        shared.tasks.add(task)
        if shared.application.gives_up:
            self._task = task
            task.add_done_callback(shared.tasks.discard)

    async def _serve(self, exchange: Exchange, internal: bool) -> None:
        shared = self._shared
        shared.in_flight += not internal
        try:
            await shared.application.handle(exchange)
        except ClientGone:
            pass
        except Exception:
            _LOG.exception("an answer could not be completed")
        finally:
            shared.in_flight -= not internal
            if shared.observer is not None and not internal:
                self._tell(exchange, shared.observer)
            task = asyncio.current_task()
            assert task is not None
            shared.tasks.discard(task)
            self._task = None
            self._finish(exchange)

    def _tell(self, exchange: Exchange, observer: ExchangeObserver) -> None:
        broken = self._shared.draining or not self._lost
        observer.over(exchange, self._shared.loop.time(), broken_by_us=broken)

    def _finish(self, exchange: Exchange) -> None:
        """The exchange is over: go on to the next, or close."""
        transport = self._transport
        assert transport is not None
        if self._lost:
            return
        if not exchange.ended:
            transport.abort()
            return
        self._body.clear()
        self._coded.clear()
        self._body_bytes = 0
        self._resume_reading()
        if self._closing:
            self._linger()
        elif self._body_done:
            self._next()
        else:
            self._skipping = True
            self._deadline = self._shared.loop.time() + self._shared.limits.stall_s

    def _next(self) -> None:
        self._next_due = self._writing_paused
        if self._next_due:
            # A client that asks and asks and reads no answer waits here, with one answer in memory.
            self._deadline = self._shared.loop.time() + self._shared.limits.stall_s
            return
        if self._much:
            assert self._transport is not None
            self._much = False
            self._transport.set_write_buffer_limits(high=_IDLE_WRITE_BYTES)
        self._exchange = None
        self._deadline = self._shared.loop.time() + self._shared.limits.idle_s
        if self._buffer:
            buffered, self._buffer = self._buffer, b""
            self._take_head(buffered)
        elif self._shared.draining:
            self.close_if_idle()

    # Bodies

    def _take_body(self, data: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None
        exchange.bytes_in += len(data)
        if self._decoder is not None:
            # Decoded when somebody reads it, a bounded piece at a time.
            self._coded.append(data)
            self._body_bytes += len(data)
        elif len(data) <= self._left:
            self._left -= len(data)
            self._add_piece(data)
            if not self._left:
                self._body_done = True
                exchange.complete_at = self._shared.loop.time()
        else:
            self._add_piece(data[: self._left])
            exchange.bytes_in -= len(data) - self._left
            exchange.complete_at = self._shared.loop.time()
            self._left, data = 0, data[self._left :]
            self._body_done = True
            self._keep(data)
        if self._skipping:
            if self._body_done:
                self._next()
            return
        if self._body_bytes > self._shared.limits.body_buffer_bytes:
            self._pause_reading()
        if self._reader is not None:
            _wake(self._reader)

    def _add_piece(self, piece: bytes) -> None:
        if not self._skipping:
            self._body.append(piece)
            self._body_bytes += len(piece)

    def _decode_some(self) -> bool:
        """Take HTTP's own coding off a bounded part of what came; False when there is nothing to take."""
        if not self._coded:
            return False
        decoder, data = self._decoder, self._coded[0]
        assert decoder is not None
        begun_at = self._coded_at
        try:
            pieces, self._coded_at = decoder.feed_some(data, begun_at)
        except ChunkError as error:
            self._coded.clear()
            self._fail_body(BodyError(BodyFault.CODING, f"Transfer-Encoding: {error}"))
            return True
        self._body_bytes -= self._coded_at - begun_at
        for piece in pieces:
            self._body.append(piece)
            self._body_bytes += len(piece)
        if self._coded_at == len(data):
            self._coded.popleft()
            self._coded_at = 0
        if decoder.finished:
            self._body_done = True
            if self._exchange is not None:
                self._exchange.complete_at = self._shared.loop.time()
            if self._coded_at:
                self._coded[0] = data[self._coded_at :]
                self._coded_at = 0
            for rest in (decoder.leftover, *self._coded):
                self._keep(rest)
            self._coded.clear()
        return True

    def _fail_body(self, error: BodyError) -> None:
        self._body_error = self._body_error or error
        self._body_done = self._closing = True
        self._deadline = _NEVER
        _wake(self._reader)
        if self._skipping:
            self._linger()

    def _body_ended_early(self) -> None:
        if self._coded:
            self._cut = True  # The end may be in what was not decoded yet.
        elif not self._body_done:
            self._fail_body(BodyError(BodyFault.CUT, "The body ended before its announced end."))

    def read_body_now(self) -> Buffer | None:
        self._decode_some()
        if not self._body_done or self._body_error is not None:
            return None
        if len(self._body) == 1:
            self._body_bytes = 0
            return self._body.popleft()
        data = b"".join(self._body)
        self._body.clear()
        self._body_bytes = 0
        return data

    async def read_body(self) -> Buffer:
        while not self._body:
            if self._body_error is not None:
                raise self._body_error
            if self._body_done:
                return b""
            if self._decode_some():
                await self.let_others()
                continue
            if self._cut:
                self._cut = False
                self._body_ended_early()
                continue
            assert self._transport is not None
            if self._continue_due:
                self._continue_due = False
                self._transport.write(_CONTINUE.encode())
            self._resume_reading()
            self._deadline = self._shared.loop.time() + self._shared.limits.stall_s
            self._reader = self._shared.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
                self._deadline = _NEVER
        piece = self._body.popleft()
        self._body_bytes -= len(piece)
        if self._reading_paused and self._body_bytes < self._shared.limits.body_buffer_bytes // 2:
            self._resume_reading()
        return piece

    async def let_others(self) -> None:
        """Let the loop do what else is due."""
        turn = self._shared.loop.create_future()
        self._shared.loop.call_soon(_wake, turn)
        await turn

    def _pause_reading(self) -> None:
        if not self._reading_paused and not self._lost:
            assert self._transport is not None
            self._reading_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and not self._lost:
            assert self._transport is not None
            self._reading_paused = False
            self._transport.resume_reading()

    # Answers

    def expect_much(self) -> None:
        """A long answer follows: let more of it be under way."""
        if not self._lost:
            assert self._transport is not None
            self._much = True
            self._transport.set_write_buffer_limits(high=self._shared.limits.write_buffer_bytes)

    def send_head(self, status: int, fields: str, body: Buffer) -> None:
        transport, exchange = self._transport, self._exchange
        assert transport is not None
        assert exchange is not None
        if self._lost:
            return
        exchange.status = status
        exchange.first_at = self._shared.loop.time()
        exchange.bytes_out = len(body)
        if not self._closing:
            self._closing = not exchange.head.keep_alive or self._shared.draining or self._eof
            if not self._body_done:
                unknown = self._decoder is not None or self._continue_due
                self._closing |= unknown or self._left > self._shared.limits.skip_bytes_max
        end = "Connection: close\r\n\r\n" if self._closing else "\r\n"
        # botocore takes an answer without a 100 for an early one, and then loses the next answer on that
        # connection. It expects one for empty bodies, too.
        first = _CONTINUE if self._continue_due and self._body_done else ""
        head = f"{first}HTTP/1.1 {status} {_REASONS[status]}\r\n{fields}{end}".encode()
        if len(body) <= _JOIN_BYTES_MAX:
            transport.write(head + body)
        else:
            transport.write(head)
            transport.write(body)

    async def write(self, data: Buffer) -> None:
        if self._lost:
            raise ClientGone
        assert self._transport is not None
        assert self._exchange is not None
        self._transport.write(data)
        self._exchange.bytes_out += len(data)
        while self._writing_paused:
            self._deadline = self._shared.loop.time() + self._shared.limits.stall_s
            self._writer = self._shared.loop.create_future()
            try:
                await self._writer
            finally:
                self._writer = None
            if self._lost:
                raise ClientGone

    def close_after_answer(self) -> None:
        self._closing = True

    def _refuse(self, error: HeadError) -> None:
        status, fields, body = self._shared.application.refuse(error)
        self._closing = True
        exchange = self._exchange = Exchange(self, _NO_HEAD, self._shared.loop.time())
        exchange.ended = True
        self.send_head(status, fields, body)
        if error.status == 503 and self._shared.observer is not None:
            # Turned away for lack of room, before it could say what it wanted.
            self._tell(exchange, self._shared.observer)
        self._linger()

    # Ends

    def _linger(self) -> None:
        """Close so that the answer arrives: a reset for unread bytes would destroy it on its way."""
        transport = self._transport
        assert transport is not None
        if self._lost:
            return
        self._lingering = True
        self._resume_reading()
        if self._body_done and not self._body_error and not self._buffer:
            self._deadline = self._shared.loop.time() + self._shared.limits.stall_s
            transport.close()
            return
        self._deadline = self._shared.loop.time() + self._shared.limits.linger_s
        if self._eof or not transport.can_write_eof():
            transport.close()
        else:
            transport.write_eof()

    def close_if_idle(self) -> None:
        if self._exchange is None and not self._lost:
            assert self._transport is not None
            self._transport.close()

    def close(self) -> None:
        """Close when what was answered has been sent."""
        if not self._lost:
            assert self._transport is not None
            self._transport.close()

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        if not self._lost:
            assert self._transport is not None
            self._transport.abort()

    def check_deadline(self, now: float) -> None:
        if now < self._deadline:
            return
        self._deadline = _NEVER
        if self._lingering or self._skipping or self._writing_paused:
            self.abort()
        elif self._exchange is not None:
            self._fail_body(BodyError(BodyFault.LATE, "The body did not arrive in time."))
        elif self._buffer:
            self._refuse(HeadError(408, "The request's head did not arrive in time."))
        else:
            self.close_if_idle()


_NO_HEAD = Head("GET", "/", "", {}, None, False, False, False)


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
