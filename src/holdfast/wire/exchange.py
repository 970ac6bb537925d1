"""One request and its answer, as an application sees them, and what a server takes on and serves.

A request whose body breaks off, comes late or is coded wrongly raises BodyError where it is read.
"""

import math
from enum import Enum
from typing import Protocol

from msgspec import Struct

from holdfast.base.checksums import Buffer
from holdfast.base.errors import InvalidInput
from holdfast.wire.http import Head, HeadError


class Limits(Struct, frozen=True):
    """What one server takes on. Bytes and seconds. Bodies in memory are at most `requests_max` times
    `body_buffer_bytes` on the way in, and `requests_max` times (`write_buffer_bytes` and one piece of an
    object, 1 MiB) on the way out, if every client is slow at once. Fewer requests than
    `requests_max` are taken on while turns of the loop take more than `late_s`."""

    connections_max: int = 4096
    requests_max: int = 256
    late_s: float = math.inf
    body_buffer_bytes: int = 512 << 10
    write_buffer_bytes: int = 256 << 10
    skip_bytes_max: int = 256 << 10
    head_s: float = 15.0
    idle_s: float = 75.0
    stall_s: float = 60.0
    linger_s: float = 2.0


class ClientGone(Exception):
    """The client closed the connection, or took nothing for too long."""


class BodyFault(Enum):
    """What was wrong with a body."""

    CUT = "cut"
    LATE = "late"
    CODING = "coding"


class BodyError(InvalidInput):
    """A request's body did not come as it was announced. Nothing after it can be read on its connection."""

    def __init__(self, fault: BodyFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class Application(Protocol):
    """What a server serves."""

    single_headers: frozenset[str]
    """Headers that may come once, besides HTTP's own."""

    gives_up: bool
    """Whether a request is cancelled when its client is gone. Else it goes on until it wants to send."""

    def answer_at_once(self, exchange: "Exchange") -> bool:
        """Answer a request about the server itself without waiting for anything, not even for its turn, and
        say so; or do nothing."""
        ...

    async def handle(self, exchange: "Exchange") -> None:
        """Answer one request. Raises nothing but ClientGone, unless it has a bug."""
        ...

    def is_internal(self, head: Head) -> bool:
        """Whether a request is about the server itself, and answered however much is under way."""
        ...

    def refuse(self, error: HeadError) -> tuple[int, str, bytes]:
        """Status, header lines and body for a head that is not HTTP as it should be."""
        ...

    def claim(self, exchange: "Exchange") -> None:
        """Note in a request that is turned away unread what it claims to be about."""
        ...


class ExchangeObserver(Protocol):
    """Who wants to know how exchanges went. Called on the loop, once each; must be quick and not raise."""

    def over(self, exchange: "Exchange", now: float, *, broken_by_us: bool) -> None:
        """An exchange is over, `now` by the loop's clock. `broken_by_us`: who is to blame if its answer is
        not whole."""
        ...


class Wire(Protocol):
    """The connection under an exchange."""

    session: object | None

    def close_after_answer(self) -> None: ...
    async def read_body(self) -> Buffer: ...
    def read_body_now(self) -> Buffer | None: ...
    async def let_others(self) -> None: ...
    def expect_much(self) -> None: ...
    def send_head(self, status: int, fields: str, body: Buffer) -> None: ...
    async def write(self, data: Buffer) -> None: ...


class Exchange:
    """One request and its answer."""

    __slots__ = (
        "_connection",
        "admitted",
        "begun",
        "begun_at",
        "bytes_in",
        "bytes_out",
        "code",
        "complete_at",
        "ended",
        "first_at",
        "gone_at",
        "head",
        "operation",
        "status",
        "subject",
    )

    def __init__(self, connection: Wire, head: Head, begun_at: float = 0.0) -> None:
        self._connection = connection
        self.head = head
        self.begun = False
        self.ended = False
        # For whoever observes: the application says what the request is, the connection when what was
        # (seconds of the loop's clock, 0.0 for what has not been).
        self.admitted = False
        self.operation = self.subject = self.code = ""
        self.status = self.bytes_in = self.bytes_out = 0
        self.begun_at = begun_at
        self.complete_at = self.first_at = self.gone_at = 0.0

    @property
    def session(self) -> object | None:
        """What the application keeps of this connection from one request to the next."""
        return self._connection.session

    @session.setter
    def session(self, session: object) -> None:
        self._connection.session = session

    def close_after_answer(self) -> None:
        """No other request is taken on this connection. Before the answer is begun."""
        self._connection.close_after_answer()

    async def read(self) -> Buffer:
        """The next bytes of the body, decoded from HTTP's own coding; empty at its end. Raises
        BodyError."""
        return await self._connection.read_body()

    def read_now(self) -> Buffer | None:
        """The whole body if all of it is here already, else None."""
        return self._connection.read_body_now()

    async def let_others(self) -> None:
        """Let the loop do what else is due: for who has much to do with bytes that are here."""
        await self._connection.let_others()

    def respond(self, status: int, fields: str, body: Buffer = b"") -> None:
        """Send a whole answer. `fields` are header lines, each ended by CR LF, with the length."""
        self.begun = self.ended = True
        self._connection.send_head(status, fields, body)

    def begin(self, status: int, fields: str) -> None:
        """Send the head of an answer whose body follows by `write`, then `end`."""
        self.begun = True
        self._connection.expect_much()
        self._connection.send_head(status, fields, b"")

    async def write(self, data: Buffer) -> None:
        """Send a piece of the body; returns when there is room for more. Raises ClientGone."""
        await self._connection.write(data)

    def end(self) -> None:
        """The body is complete."""
        self.ended = True
