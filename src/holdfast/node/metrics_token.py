"""Who may read `/-/metrics`: whoever has the token of the data folder.

Generated once and kept in `metrics-token`, readable by its owner only, so that a Prometheus can be given the
right to look without the right to read or write objects. What must always hold: there is no default that
anybody could know, and a file that others can read is refused, not used.
"""

import hmac
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import Randomness

FILE_NAME = "metrics-token"
_SCHEME = "bearer "


def obtain_token(data: Path, randomness: Randomness) -> str:
    """The token of a data folder, made now if there is none. Raises InvalidInput, OSError."""
    path = data / FILE_NAME
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return _create(path, randomness.token(24).hex())
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        text = file.read(4096).strip()
    if mode & 0o077:
        raise InvalidInput(
            f"The token in {path} can be read by others (mode {mode:04o}):",
            hint=f"say `chmod 600 {path}`, or delete the file to get a new one.",
        )
    if len(text) < 16 or not text.isascii():
        raise InvalidInput(f"The token in {path} cannot be used:", hint="delete the file to get a new one.")
    return text.decode()


def holds_token(headers: Mapping[str, str], token: str) -> bool:
    """Whether a request carries the token (RFC 6750, section 2.1)."""
    said = headers.get("authorization", "")
    if said[: len(_SCHEME)].lower() != _SCHEME:
        return False
    return hmac.compare_digest(said[len(_SCHEME) :].strip().encode(), token.encode())


def _create(path: Path, token: str) -> str:
    # Written whole under another name first: a crash leaves no file or a good one, never an empty one.
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(token.encode() + b"\n")
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    return token
