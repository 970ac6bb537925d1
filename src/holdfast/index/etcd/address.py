"""The address of an index in etcd, taken apart. Pure.

    etcd://[user[:password]@]host[:port][,host[:port]...][/namespace]

The namespace is what all its keys begin with, so that several installations could share one etcd; by
default `holdfast`. Percent signs escape what a password holds.
"""

import re
from urllib.parse import unquote

from msgspec import Struct

from holdfast.base.errors import InvalidInput

SCHEME = "etcd://"
NAMESPACE = "holdfast"
PORT = 2379
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")


class Address(Struct, frozen=True):
    """Where etcd is. `endpoints` are `host:port`."""

    endpoints: tuple[str, ...]
    user: str = ""
    password: str = ""
    namespace: str = NAMESPACE

    def __repr__(self) -> str:
        return f"Address({','.join(self.endpoints)}/{self.namespace})"


def parse_address(text: str) -> Address:
    """Raises InvalidInput."""
    if not text.startswith(SCHEME):
        raise _wrong("it does not begin with etcd://")
    rest = text.removeprefix(SCHEME)
    credentials, _, rest = rest.rpartition("@")
    hosts, _, namespace = rest.partition("/")
    user, _, password = credentials.partition(":")
    namespace = namespace.strip("/") or NAMESPACE
    if not _NAMESPACE.fullmatch(namespace):
        raise _wrong(f"{namespace!r} cannot be a namespace")
    endpoints = tuple(_endpoint(host) for host in hosts.split(","))
    if len(set(endpoints)) != len(endpoints):
        raise _wrong("it names one server twice")
    return Address(endpoints, unquote(user), unquote(password), namespace)


def _endpoint(host: str) -> str:
    found = _HOST.fullmatch(host)
    if found is None:
        raise _wrong(f"{host!r} is not a host and a port")
    port = int(found[2] or PORT)
    if not 1 <= port <= 65535:
        raise _wrong(f"{port} is not a port")
    return f"{found[1]}:{port}"


def _wrong(why: str) -> InvalidInput:
    return InvalidInput(
        f"The index's address cannot be used: {why}.",
        hint='It looks like "etcd://host1:2379,host2:2379,host3:2379".',
    )
