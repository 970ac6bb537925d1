"""One connection to a peer, from the caller's side: a request out, its answer in, and then the next.

An answer that is small is read into a buffer that the connection keeps; a large one straight into memory of
its announced length, so that its bytes are copied by the kernel alone. What must hold: an answer goes to the
request that is under way and to no other; what was not asked for, is longer than was allowed, or is no HTTP,
ends the connection; memory is what was allowed for the answer and no more; whoever waits is woken exactly
once, however the connection ends.
"""

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

from holdfast.base.checksums import Buffer, Hasher, feed
from holdfast.stores.peer.signing import TAG_BYTES, Root, Session, passes
from holdfast.stores.port import StoreFailed

SCRATCH_BYTES = 16 << 10
"""Answers up to about this size are copied once more; head and content of a small read fit."""

_JOIN_BYTES_MAX = 64 << 10
_UNSENT_BYTES_MAX = 256 << 10
_HEAD = re.compile(
    rb"HTTP/1\.1 ([1-5][0-9]{2}) [ -~]*\r\n((?:[A-Za-z0-9-]{1,64}:[^\x00-\x08\x0a-\x1f\x7f]*\r\n)*)\r\n\Z"
)
_LENGTH = re.compile(rb"(?i:content-length):[ ]*([0-9]{1,10})[ ]*\r\n")


class Answer(NamedTuple):
    """What came back. `content` and `tag` are not checked yet; `hasher` has taken the content already, if it
    was large."""

    status: int
    content: Buffer
    tag: bytes
    hasher: Hasher | None = None


class LineBroken(Exception):
    """The connection ended, or what came on it was no answer. `sent`: the peer may have done what was asked.
    `error` is what the peer said, if it did."""

    def __init__(self, reason: str, *, sent: bool, error: StoreFailed | None = None) -> None:
        super().__init__(reason)
        self.sent = sent
        self.error = error


class LineLate(Exception):
    """The time for an answer is up."""


class Line(asyncio.BufferedProtocol):
    """One connection. `root`, `session` and `version` are set once the hello was answered; `last_at` is when
    something was last answered; `sending` while a request is not all with the transport."""

    __slots__ = (
        "_allowed",
        "_at",
        "_closing",
        "_content",
        "_content_at",
        "_due",
        "_forsaken",
        "_hasher",
        "_loop",
        "_lost",
        "_on_lost",
        "_room",
        "_scratch",
        "_status",
        "_transport",
        "_view",
        "_waiter",
        "_writing_paused",
        "last_at",
        "root",
        "sending",
        "session",
        "version",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, on_lost: "Callable[[Line], None]") -> None:
        self._loop = loop
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._scratch = bytearray(SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._at = 0
        self._status = 0
        self._content: bytearray | None = None
        self._content_at = 0
        self._hasher: Hasher | None = None
        self._allowed = 0
        self._waiter: asyncio.Future[Answer] | None = None
        self._room: asyncio.Future[None] | None = None
        self._due = False
        self._forsaken: Callable[[], None] | None = None
        self.sending = False
        self._writing_paused = False
        self._closing = False
        self._lost = False
        self.root: Root | None = None
        self.session: Session | None = None
        self.last_at = loop.time()
        self.version = 0

    @property
    def usable(self) -> bool:
        """Whether another request can go out on it."""
        return not (self._lost or self._closing or self._due or self.sending)

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_UNSENT_BYTES_MAX)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._fail(LineBroken("The connection ended before the answer.", sent=True))
        self._on_lost(self)

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._wake_writer()

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._content is not None:
            return memoryview(self._content)[self._content_at :]
        return self._view[self._at :]

    def buffer_updated(self, nbytes: int) -> None:
        if self._content is not None:
            self._hash(self._content, self._content_at, self._content_at + nbytes)
            self._content_at += nbytes
            if self._content_at == len(self._content):
                self._finish_large()
            return
        self._at += nbytes
        if not self._due:
            self.hang_up("The peer sent what nobody had asked for.")
            return
        end = self._scratch.find(b"\r\n\r\n", 0, self._at)
        if end >= 0:
            self._take_head(end + 4)
        elif self._at == SCRATCH_BYTES:
            self.hang_up("The head of the peer's answer is too long.")

    def _take_head(self, end: int) -> None:
        found = _HEAD.match(bytes(self._view[:end]))
        lengths = _LENGTH.findall(found[2]) if found is not None else ()
        if found is None or len(lengths) != 1:
            self.hang_up("The peer's answer is not as it must be.")
            return
        self._status = int(found[1])
        length = int(lengths[0])
        if not TAG_BYTES <= length <= self._allowed + TAG_BYTES:
            self.hang_up("The peer's answer is longer than what was asked for.")
            return
        self._closing |= b"\r\nconnection: close\r\n" in b"\r\n" + found[2].lower()
        here = self._at - end
        if here > length:
            self.hang_up("The peer sent more than it announced.")
        elif here == length:
            self._at = 0
            whole = bytes(self._view[end : end + length])
            self._finish(Answer(self._status, whole[:-TAG_BYTES], whole[-TAG_BYTES:]))
        elif end + length <= SCRATCH_BYTES:
            return  # The rest is on its way, and fits.
        else:
            self._content = bytearray(length)
            self._content[:here] = self._view[end : self._at]
            self._content_at = here
            self._at = 0
            self._hasher = self.session.answer(self._status) if self.session is not None else None
            self._hash(self._content, 0, here)

    def _hash(self, content: bytearray, begin: int, end: int) -> None:
        """Hash as it comes: all of it at once could hold the loop for too long."""
        end = min(end, len(content) - TAG_BYTES)
        if self._hasher is not None and begin < end:
            feed(self._hasher, memoryview(content)[begin:end])

    def _finish_large(self) -> None:
        content = self._content
        assert content is not None
        hasher, self._content, self._hasher = self._hasher, None, None
        view = memoryview(content)
        self._finish(Answer(self._status, view[:-TAG_BYTES], bytes(view[-TAG_BYTES:]), hasher))

    def _finish(self, answer: Answer) -> None:
        self._due = False
        self.last_at = self._loop.time()
        waiter, self._waiter = self._waiter, None
        forsaken, self._forsaken = self._forsaken, None
        if forsaken is not None:
            forsaken()
        elif waiter is not None and not waiter.done():
            waiter.set_result(answer)
        self._wake_writer()

    def _fail(self, error: Exception) -> None:
        self._due = False
        waiter, self._waiter = self._waiter, None
        forsaken, self._forsaken = self._forsaken, None
        self._content = self._hasher = None
        if forsaken is not None:
            forsaken()
        elif waiter is not None and not waiter.done():
            waiter.set_exception(error)
        self._wake_writer()

    def _wake_writer(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # What callers do

    async def ask(
        self, head: bytes, content: Sequence[Buffer], tag_of: Session | None, request_tag: str, allowed: int
    ) -> Answer:
        """Send a request, and its content with its tag, if it has one; the answer has at most `allowed` bytes
        of content. Raises LineBroken, or what `expire` says."""
        if self._lost or self._closing:
            raise LineBroken("The connection had ended before the request.", sent=False)
        assert not self._due, "one request at a time"
        assert self._transport is not None
        waiter: asyncio.Future[Answer] = self._loop.create_future()
        self._waiter = waiter
        self._allowed = allowed
        self._due = True
        try:
            if not content:
                self._transport.write(head)
            else:
                assert tag_of is not None
                self.sending = True
                await self._send_content(head, content, tag_of, request_tag, waiter)
                self.sending = False
            return await waiter
        finally:
            if self._waiter is waiter:
                self._waiter = None

    async def _send_content(
        self,
        head: bytes,
        content: Sequence[Buffer],
        session: Session,
        request_tag: str,
        waiter: asyncio.Future[Answer],
    ) -> None:
        transport = self._transport
        assert transport is not None
        hasher = session.content(request_tag)
        if sum(map(len, content)) <= _JOIN_BYTES_MAX:
            whole = b"".join(content)
            feed(hasher, whole)
            transport.write(b"".join((head, whole, session.end(hasher))))
            return
        transport.write(head)
        for piece in content:
            for some in passes(piece):
                feed(hasher, some)
                transport.write(some)
                while self._writing_paused and not waiter.done():
                    self._room = self._loop.create_future()
                    try:
                        await self._room
                    finally:
                        self._room = None
                if waiter.done():
                    # An answer before the request was complete: nothing more can be sent here.
                    self._closing = True
                    return
        transport.write(session.end(hasher))

    def forsake(self, then: Callable[[], None]) -> None:
        """Nobody waits for the answer that is due any more; `then` is called when it has come or cannot."""
        assert not self.sending
        if not self._due:
            then()
        else:
            self._forsaken = then

    def expire(self) -> None:
        """The time for the answer is up."""
        if self._due:
            self._end(LineLate())

    def hang_up(self, reason: str = "The connection was closed.") -> None:
        """Close at once, whatever is under way."""
        self._end(LineBroken(reason, sent=True))

    def _end(self, error: Exception) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()
        self._fail(error)
