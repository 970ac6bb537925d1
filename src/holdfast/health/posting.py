"""Posts to a URL from a thread of its own, which a server that never answers may keep.

What must hold: one post at a time, each ended by its deadline for who waits, whatever the server does (accept
and say nothing, answer a byte a minute); certificates and names are verified; redirects are not followed; and
no error tells the URL, since the path of a webhook is often its password.
"""

import contextlib
import http.client
import socket
import ssl
from collections.abc import Mapping
from typing import Protocol
from urllib.parse import urlsplit

from holdfast.base.errors import Unavailable
from holdfast.stores.directory.pool import Lane
from holdfast.stores.port import StoreBusy, StoreFailed, StoreOverdue

STEP_TIMEOUT_S = 10.0
"""For connecting, and for each wait on the connection."""

DEADLINE_S = 15.0


class PostFailed(Unavailable):
    """It did not arrive, as far as is known."""


class Poster(Protocol):
    """Where batches go."""

    async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer. Raises PostFailed."""
        ...

    async def close(self) -> None:
        """Let go; nobody waits for what hangs."""
        ...


class HttpPoster:
    """Posts to `url`, http or https."""

    def __init__(self, url: str, *, deadline_s: float = DEADLINE_S) -> None:
        self._url = urlsplit(url)
        assert self._url.scheme in ("http", "https")
        assert self._url.hostname
        self._deadline_s = deadline_s
        self._lane = Lane("the webhook", threads=1, waiting_max=0)
        self._connection: http.client.HTTPConnection | None = None

    async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        """As the port's."""
        try:
            return await self._lane.run(self._post, body, dict(headers), timeout_s=self._deadline_s)
        except StoreOverdue:
            self._cut()
            raise PostFailed(f"No answer in {self._deadline_s:g} s.") from None
        except StoreBusy:
            raise PostFailed("The attempt before has not ended yet.") from None
        except StoreFailed:
            raise PostFailed("The node is stopping.") from None

    async def close(self) -> None:
        """As the port's."""
        self._lane.close()
        self._cut()

    def _post(self, body: bytes, headers: dict[str, str]) -> int:
        url = self._url
        assert url.hostname
        target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        if url.scheme == "https":
            # Here, and not when the node starts: it reads the system's certificates.
            context = ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                url.hostname, url.port, timeout=STEP_TIMEOUT_S, context=context
            )
        else:
            connection = http.client.HTTPConnection(url.hostname, url.port, timeout=STEP_TIMEOUT_S)
        self._connection = connection
        try:
            connection.request("POST", target, body, headers)
            return connection.getresponse().status
        except TimeoutError:
            raise PostFailed(f"No answer in {STEP_TIMEOUT_S:g} s.") from None
        except (OSError, http.client.HTTPException) as error:
            raise PostFailed(f"It cannot be reached ({_said(error)}).") from None
        finally:
            self._connection = None
            connection.close()

    def _cut(self) -> None:
        """End what the thread waits for, if it is on a connection."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _said(error: Exception) -> str:
    """What an error says, without what it may say of the URL."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return type(error).__name__
