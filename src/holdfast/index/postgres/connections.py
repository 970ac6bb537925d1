"""Connections to PostgreSQL: a few for reading, one for commits, replaced when they break.

What must hold: a call never waits longer than its patience; what is asked again was a read, or was never
begun; and which errors mean "the server is away, try again" is decided here and nowhere else.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from holdfast.base.clock import Clock
from holdfast.base.errors import InvalidInput, Unavailable

T = TypeVar("T")

PAUSE_FIRST_S = 0.05
PAUSE_MAX_S = 1.0
CONNECT_TIMEOUT_S = 5.0

# The server went, is going, is only starting, or is not the one that takes commits any more.
_AWAY = (
    OSError,
    asyncio.TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # how the driver takes a connection that breaks between two messages
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.DeadlockDetectedError,
    asyncpg.QueryCanceledError,
    asyncpg.TargetServerAttributeNotMatched,
)

# No patience helps against these.
_WRONG = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidPasswordError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
)


def is_away(error: BaseException) -> bool:
    """Whether trying again on a new connection may help."""
    return isinstance(error, _AWAY)


async def connect(address: str, call_timeout_s: float) -> asyncpg.Connection:
    """A connection to the server that takes commits, of those that the address names. A call that the server
    does not answer in `call_timeout_s` fails.

    Raises InvalidInput for what a person has to mend, and what `is_away` knows.
    """
    try:
        return await asyncpg.connect(
            address,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=call_timeout_s,
            target_session_attrs=SessionAttribute.read_write,
            server_settings={"application_name": "holdfast"},
        )
    except _WRONG as error:
        raise InvalidInput(
            f"PostgreSQL refuses: {error}.", hint="Mend the index's address or role."
        ) from None
    except ValueError as error:
        raise InvalidInput(
            f"The index's address cannot be used: {error}.",
            hint='It looks like "postgres://user@host1,host2/database".',
        ) from None


class Connections:
    """Up to `count` connections, each used by one call at a time."""

    def __init__(
        self, address: str, clock: Clock, *, count: int, patience_s: float, call_timeout_s: float
    ) -> None:
        self._address = address
        self._clock = clock
        self._patience_s = patience_s
        self._call_timeout_s = call_timeout_s
        self._free: list[asyncpg.Connection] = []
        self._slots = asyncio.Semaphore(count)
        self._closed = False
        self.last_error = ""

    async def use(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Do `work`, which may be done again from its beginning. Raises Unavailable."""
        deadline = self._clock.monotonic() + self._patience_s
        pause = PAUSE_FIRST_S
        while True:
            self._check()
            try:
                async with self._slots:
                    return await self._once(work)
            except BaseException as error:
                if not is_away(error):
                    raise
                self.last_error = str(error) or type(error).__name__
                if self._clock.monotonic() + pause > deadline:
                    raise Unavailable(
                        f"PostgreSQL did not answer in {self._patience_s:g} s: {self.last_error}.",
                        hint="Is it running, and is one of its servers taking commits?",
                    ) from error
            await self._clock.sleep(pause)
            pause = min(2 * pause, PAUSE_MAX_S)

    async def _once(self, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        connection = self._free.pop() if self._free else await connect(self._address, self._call_timeout_s)
        try:
            result = await work(connection)
        except BaseException as error:
            # A connection in the middle of something is of no use to the next one.
            connection.terminate()
            raise error
        self.last_error = ""
        if self._closed:
            connection.terminate()
        else:
            self._free.append(connection)
        return result

    def _check(self) -> None:
        if self._closed:
            raise Unavailable("The index is closed.")

    def close(self) -> None:
        """Let go; what is under way fails."""
        self._closed = True
        while self._free:
            self._free.pop().terminate()
