"""How a node meets its shared index where that is in etcd: certificates, a password, what it may grow to.

The table `[etcd]`. What must hold: a password or key that others can read is refused, and none is ever shown.
PostgreSQL's own address says all of this (`?sslmode=verify-full&sslrootcert=...`).
"""

import os
import stat
from pathlib import Path
from urllib.parse import quote

from msgspec import Struct

from holdfast.base.errors import InvalidInput

QUOTA_BYTES_DEFAULT = 2 << 30
"""What etcd takes where nothing is said."""

QUOTA_BYTES_MIN = 64 << 20
PASSWORD_BYTES_MAX = 1024
PEM_BYTES_MAX = 1 << 20


class EtcdSettings(Struct, frozen=True, kw_only=True):
    """`authority` is whom to believe, in PEM; with it all goes through TLS. `certificate` and `key` say who
    this node is, where etcd asks. `password_file` holds the password of the user that the index's address
    names. `quota_bytes` is what the members were started with: etcd does not tell."""

    authority: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    password_file: Path | None = None
    quota_bytes: int = QUOTA_BYTES_DEFAULT


class EtcdFiles(Struct, frozen=True):
    """What was in the files; empty for those that are not named."""

    authority: bytes = b""
    certificate: bytes = b""
    key: bytes = b""
    password: str = ""


def read_etcd_files(settings: EtcdSettings) -> EtcdFiles:
    """Raises InvalidInput with what to do."""
    password = _read(settings.password_file, "etcd's password", PASSWORD_BYTES_MAX, secret=True).strip()
    if settings.password_file is not None and not password:
        raise InvalidInput(f"There is no password in {settings.password_file}:", hint="write it there.")
    try:
        text = password.decode()
    except UnicodeDecodeError:
        raise InvalidInput(f"The password in {settings.password_file} is not UTF-8.") from None
    return EtcdFiles(
        _pem(settings.authority, "the certificate of etcd's authority", secret=False),
        _pem(settings.certificate, "this node's certificate for etcd", secret=False),
        _pem(settings.key, "this node's key for etcd", secret=True),
        text,
    )


def with_password(address: str, password: str) -> str:
    """An address of an index in etcd with a password for its user. Raises InvalidInput."""
    if not password:
        return address
    scheme, _, rest = address.partition("://")
    user, at, hosts = rest.rpartition("@")
    if not at or ":" in user:
        raise InvalidInput(
            "A password_file is for the user that the index's address names, without a password there:",
            hint='as "etcd://user@host1:2379,host2:2379".',
        )
    return f"{scheme}://{user}:{quote(password, safe='')}@{hosts}"


def _pem(path: Path | None, what: str, *, secret: bool) -> bytes:
    found = _read(path, what, PEM_BYTES_MAX, secret=secret)
    if path is not None and b"-----BEGIN " not in found:
        raise InvalidInput(f"{path} does not hold {what}:", hint="a PEM file is wanted.")
    return found


def _read(path: Path | None, what: str, limit: int, *, secret: bool) -> bytes:
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if secret and mode & 0o077:
                raise InvalidInput(
                    f"{path} with {what} can be read by others (mode {mode:04o}):",
                    hint=f"say `chmod 600 {path}`.",
                )
            found = file.read(limit + 1)
    except OSError as error:
        raise InvalidInput(
            f"{path} with {what} cannot be read ({error.strerror}):", hint="mend [etcd] in holdfast.toml."
        ) from None
    if len(found) > limit:
        raise InvalidInput(f"{path} is too long for {what}.")
    return found
