"""Asks Envoy, over the socket in the balancer's folder.

Calls block, for a second at most: the other side is a thread of a program on this machine that does nothing
else, and whoever asks has nothing else to do.
"""

import http.client
import os
import socket
from pathlib import Path

import msgspec

from holdfast.balance.nodes_cluster import Json
from holdfast.base.errors import Unavailable

_TIMEOUT_S = 1.0


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("envoy", timeout=_TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_TIMEOUT_S)
        # A socket's path is short (unix(7)), a folder's need not be.
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            short = Path(f"/proc/self/fd/{folder}")
            self.sock.connect(str((short if short.exists() else self._path.parent) / self._path.name))
        finally:
            os.close(folder)


class Admin:
    """Envoy's administration interface."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def ask(self, path: str, method: str = "GET") -> bytes:
        """The answer to a request. Raises Unavailable when there is none, or not a good one."""
        connection = _Connection(self._path)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(f"Envoy does not answer at {self._path}: {error}.") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise Unavailable(f"Envoy answers {answer.status} to {path}.")
        return body

    def document(self, path: str) -> Json:
        """The same, for what is answered in JSON."""
        try:
            found = msgspec.json.decode(self.ask(path), type=dict[str, object])
        except msgspec.MsgspecError as error:
            raise Unavailable(f"Envoy's answer to {path} cannot be read: {error}.") from None
        return found

    def number(self, name: str) -> int:
        """One of its figures; 0 for one that it does not have (yet)."""
        for line in self.ask(f"/stats?filter=^{name}$").decode().splitlines():
            found, _, value = line.partition(": ")
            if found == name:
                return int(value)
        return 0
