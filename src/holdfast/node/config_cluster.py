"""What a node is told about the others: where the shared index is, the secret, where peers reach it.

Values and how they are read; pure but for `read_secrets`. What must hold: a password that stands in the
index's address is never shown; and a secret that others can read, or that could be guessed, is refused.
"""

import os
import re
import stat
from enum import Enum
from pathlib import Path
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from holdfast.base.errors import InvalidInput
from holdfast.cluster.rows import NODE_NAME
from holdfast.cluster.secret import SECRETS_MAX, split_secrets
from holdfast.stores.peer.tls import TlsFiles

PEER_PORT_DEFAULT = 9100
ETCD_PORT_DEFAULT = 2379
SECRET_BYTES_MIN = 32
SECRET_BYTES_MAX = 4096

_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\]):(?P<port>[0-9]{1,5})\Z")
_UNFIT = re.compile(r"[^a-z0-9-]+")
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_EVERYWHERE = ("0.0.0.0", "[::]")  # noqa: S104


class Engine(Enum):
    """What keeps an index that several nodes share."""

    ETCD = "etcd"
    POSTGRES = "postgres"


class IndexAddress(Struct, frozen=True):
    """Where the shared index is. `address` is as the engine's adapter takes it."""

    engine: Engine
    address: str

    @property
    def shown(self) -> str:
        """The address without a password."""
        url = urlsplit(self.address)
        user, at, hosts = url.netloc.rpartition("@")
        return f"{url.scheme}://{user.partition(':')[0]}{at}{hosts}{url.path}"

    def __repr__(self) -> str:
        return f"IndexAddress({self.shown})"


class PeerAddress(Struct, frozen=True):
    """A host and a port. An IPv6 address is in brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def bare_host(self) -> str:
        """The host as a socket takes it."""
        return self.host.strip("[]")

    @property
    def is_everywhere(self) -> bool:
        """Whether it means all addresses of a machine, and so none that another could connect to."""
        return self.host in _EVERYWHERE


class ClusterSettings(Struct, frozen=True, kw_only=True):
    """The table `[cluster]`. `peer` is where this node listens for others, `advertise` where they find it,
    `client` the URL at which clients and balancers do; what is not given follows from where it listens."""

    secret_file: Path
    peer: PeerAddress
    advertise: PeerAddress | None = None
    client: str = ""
    tls: TlsFiles | None = None


def fit_name(host_name: str) -> str:
    """A node's name made of a host's."""
    name = _UNFIT.sub("-", host_name.split(".")[0].lower()).strip("-")[:63]
    return name or "node"


def read_name(value: object) -> str:
    """The name of a node."""
    if not isinstance(value, str) or not NODE_NAME.match(value):
        raise InvalidInput(
            f"{value!r} is not a node's name:", hint='lower-case letters, digits and dashes, as "n1".'
        )
    return value


def read_index(value: object) -> IndexAddress:
    """Where a shared index is."""
    hint = 'as "etcd://host1:2379,host2:2379" or "postgres://user@host/database"; without it, it is embedded.'
    wrong = InvalidInput("This is not the address of an index:", hint=hint)
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise wrong
    try:
        url = urlsplit(value)
    except ValueError:
        raise wrong from None
    if url.scheme == "etcd":
        user, at, hosts = url.netloc.rpartition("@")
        namespace = url.path.strip("/")
        if url.query or url.fragment or not hosts or (namespace and not _NAMESPACE.match(namespace)):
            raise wrong
        members = [read_address(_with_port(part, ETCD_PORT_DEFAULT)) for part in hosts.split(",")]
        if len(set(members)) < len(members):
            raise InvalidInput("An etcd member is named twice:", hint="each must be another.")
        path = f"/{namespace}" if namespace else ""
        return IndexAddress(Engine.ETCD, f"etcd://{user}{at}{','.join(map(str, members))}{path}")
    if url.scheme in ("postgres", "postgresql"):
        if not url.netloc.rpartition("@")[2] or not unquote(url.path).strip("/"):
            raise wrong
        return IndexAddress(Engine.POSTGRES, value)
    raise wrong


def read_address(value: object) -> PeerAddress:
    """A host with a port."""
    found = _ADDRESS.match(value) if isinstance(value, str) else None
    if found is None or int(found["port"]) > 65535:
        raise InvalidInput(f"{value!r} is not an address:", hint='a host and a port, as "10.0.0.1:9100".')
    return PeerAddress(found["host"], int(found["port"]))


def read_advertised(value: object) -> PeerAddress:
    """A host with a port that others can connect to."""
    address = read_address(value)
    if address.is_everywhere or address.port == 0:
        raise InvalidInput(
            f"{value!r} is no address to connect to:", hint='name this machine, as "10.0.0.1:9100".'
        )
    return address


def read_client_url(value: object) -> str:
    """The URL at which clients reach the node."""
    hint = 'as "http://10.0.0.1:9000".'
    if isinstance(value, str):
        scheme, found, rest = value.rstrip("/").partition("://")
        if found and scheme in ("http", "https"):
            return f"{scheme}://{read_advertised(rest)}"
    raise InvalidInput(f"{value!r} is not where clients reach a node:", hint=hint)


def _with_port(text: str, port: int) -> str:
    return text if _ADDRESS.match(text) else f"{text}:{port}"


def read_secrets(path: Path) -> tuple[bytes, ...]:
    """The cluster's secret, and the other one while it changes: what is in the file, without white space
    round it. Raises InvalidInput."""
    make = f"`head -c 32 /dev/urandom | base64 > {path.name}; chmod 600 {path.name}`"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise InvalidInput(
            f"There is no file {path} with the cluster's secret:",
            hint=f"make it on one machine ({make}) and copy it to the others.",
        ) from None
    except OSError as error:
        raise InvalidInput(
            f"The cluster's secret in {path} cannot be read ({error.strerror}):",
            hint="run as the user that owns it.",
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        if mode & 0o077:
            raise InvalidInput(
                f"The cluster's secret in {path} can be read by others (mode {mode:04o}):",
                hint=f"say `chmod 600 {path}`.",
            )
        secrets = split_secrets(file.read(SECRETS_MAX * (SECRET_BYTES_MAX + 1)))
    if len(secrets) > SECRETS_MAX:
        raise InvalidInput(
            f"There are {len(secrets)} secrets in {path}:", hint="the old one and the new one are enough."
        )
    for secret in secrets:
        if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
            raise InvalidInput(
                f"The cluster's secret in {path} has {len(secret)} bytes:",
                hint=f"{SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} are wanted, made by chance ({make}), the "
                "same on all nodes.",
            )
    return secrets
