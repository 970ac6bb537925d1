"""The folder of one balancer: only one process has it, and Envoy reads from it whole files or none.

A file is written beside its place and renamed over it: Envoy watches for that, and never sees half of one.
Files that would say the same again are left alone, because Envoy takes each for a change. They are for this
user alone: the key of the certificate and what the nodes know the balancer by are in them.
"""

import fcntl
import os
from pathlib import Path

import msgspec

from holdfast.balance.bootstrap import Files
from holdfast.balance.nodes_cluster import Json
from holdfast.base.errors import Busy


class Folder:
    """Holds the folder for this process. Raises Busy when another one has it."""

    def __init__(self, directory: Path) -> None:
        self.files = files = Files(directory)
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        self._lock = os.open(files.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise Busy(
                f"Another balancer runs in {directory}.", hint="Stop it first, or give this one another dir."
            ) from None
        self._written: dict[Path, bytes] = {}

    def write(self, path: Path, content: Json) -> bool:
        """Put `content` there, unless this process did just that before. Whether it was written."""
        raw = msgspec.json.format(msgspec.json.encode(content))
        if self._written.get(path) == raw:
            return False
        temporary = path.with_name(f".{path.name}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
        temporary.replace(path)
        self._written[path] = raw
        return True

    def close(self) -> None:
        """Let go."""
        os.close(self._lock)
