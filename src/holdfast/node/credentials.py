"""The node's one pair of credentials.

Given by the environment; or, in a cluster, made of its secret, so that all nodes have the same; or
generated once and kept in the data folder in a file that only its owner can read. What must always hold:
there is no default that anybody could know; the secret never appears in a log, an error or a `repr`; a file
that others can read is refused, not used.
"""

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import Randomness
from holdfast.base.sealed import NOT_JSON, is_spoiled, seal
from holdfast.cluster.secret import derive
from holdfast.node.config import credentials_given

FILE_NAME = "credentials.json"

_UPPER_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_ALPHANUMERIC = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"


class Credentials(Struct, frozen=True):
    """What a client signs with."""

    access_key_id: str
    secret_access_key: str

    def __repr__(self) -> str:
        return f"Credentials({self.access_key_id})"


def generate(randomness: Randomness) -> Credentials:
    """A fresh pair: 90 bits of name, 238 bits of secret; letters and digits only, so that both can be
    pasted anywhere."""
    key = "HF" + "".join(_UPPER_BASE32[randomness.below(32)] for _ in range(18))
    secret = "".join(_ALPHANUMERIC[randomness.below(62)] for _ in range(40))
    return Credentials(key, secret)


def from_secret(secret: bytes) -> Credentials:
    """The pair that every node of a cluster makes of its secret; whoever has one of the pair does not have
    the other, nor the secret."""
    name = int.from_bytes(derive(secret, b"credentials", "holdfast access key id", 32))
    key = int.from_bytes(derive(secret, b"credentials", "holdfast secret access key", 64))
    return Credentials(
        "HF" + _written(name, _UPPER_BASE32, 18),
        _written(key, _ALPHANUMERIC, 40),
    )


def _written(number: int, digits: str, count: int) -> str:
    """The last so many digits of a number that has many more: each is as likely as the other."""
    text = ""
    for _ in range(count):
        number, digit = divmod(number, len(digits))
        text += digits[digit]
    return text


def obtain(
    data: Path, environment: Mapping[str, str], randomness: Randomness, *, secret: bytes | None = None
) -> Credentials:
    """The environment's credentials; else those of the cluster's `secret`; else those of the data folder,
    made now if there are none. Raises InvalidInput."""
    found = find(data, environment, secret=secret)
    return found or _create(data / FILE_NAME, generate(randomness))


def find(data: Path, environment: Mapping[str, str], *, secret: bytes | None = None) -> Credentials | None:
    """The environment's credentials, else those of the cluster's `secret`, else those of the data folder, or
    None. Raises InvalidInput."""
    if given := credentials_given(environment):
        return Credentials(*given)
    return from_secret(secret) if secret is not None else _read(data / FILE_NAME)


def _read(path: Path) -> Credentials | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InvalidInput(
            f"The credentials in {path} cannot be read ({error.strerror}):",
            hint="run as the user that owns them, or set HOLDFAST_ACCESS_KEY_ID and "
            "HOLDFAST_SECRET_ACCESS_KEY.",
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            raise InvalidInput(
                f"The credentials in {path} can be read by others (mode {mode:04o}):",
                hint=f"say `chmod 600 {path}`, or delete the file to get new ones.",
            )
        text = file.read(4096)
    if is_spoiled(text):
        raise InvalidInput(
            f"The credentials in {path} are damaged, their checksum does not fit:",
            hint="put the file back from a copy, or delete it to get new ones. If you changed them yourself, "
            "take the line `crc32c` out.",
        )
    try:
        return msgspec.json.decode(text, type=Credentials)
    except NOT_JSON:
        raise InvalidInput(
            f"The credentials in {path} are not readable as JSON:",
            hint="put the file back from a copy, or delete it to get new ones.",
        ) from None


def _create(path: Path, credentials: Credentials) -> Credentials:
    # Written whole under another name first: a crash leaves no file or a good one, never an empty one.
    temporary = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        file.write(seal(credentials))
        file.flush()
        os.fsync(descriptor)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return credentials
