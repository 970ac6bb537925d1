"""Reads `holdfast.toml`, or says in which line what is wrong and what would be right.

    data = "/var/lib/holdfast"          where the node keeps what is its own
    scheme = "rs-4-2"                   the default of buckets
    index_dirs = ["/mnt/a", "/mnt/b", "/mnt/c"]
    host = "127.0.0.1"
    port = 9000
    region = "us-east-1"
    domain = "s3.example.org"           for virtual-host style requests
    name = "n1"                         this node's, by default made of the host's
    index = "etcd://h1:2379,h2:2379"    or "postgres://user@host/database"; without it, embedded
    index_managed = false               true: the provider sees to it that no failover loses a commit

    [cluster]                           with a shared index only
    secret_file = "/etc/holdfast/secret"    the same on all nodes
    peer = "0.0.0.0:9100"               where this node listens for the others
    advertise = "10.0.0.1:9100"         where they reach it
    client = "http://10.0.0.1:9000"     where clients and balancers reach it
    tls_certificate = "node.pem"        all three or none: certificates between nodes
    tls_key = "node.key"
    tls_authority = "ca.pem"

    [etcd]                              for an index in etcd, and for `holdfast index copy` to one
    authority = "etcd-ca.pem"           TLS: whom to believe
    certificate = "node.pem"            both or none: who this node is
    key = "node.key"
    password_file = "etcd-password"     of the user that the index's address names
    quota = "8 GiB"                     what etcd's members were started with

    [balancer]
    secret = "..."                      what balancers are known by: the same as in their balance.toml

    [limits]
    memory = "96 MiB"
    requests = 512
    reserve = "1 GiB"

    [metrics]
    open = false                        show /-/metrics to everybody who can connect

    [chores]
    scrub = "7 days"                    every shard is read from its medium once in this time
    scrub_rate = "200 MiB"              at most so much a second; 0 for no limit
    away_patience = "10 min"            then what a store held is written again elsewhere

    [ledger]
    canary = true                       ask itself when no client does

    [events]
    webhook = "https://example.org/hook"    is told of events
    secret = "..."                          signs what it is told
    kinds = ["store", "index"]              only these

    [[store]]
    slot = "disk1"
    path = "/mnt/disk1"
    region = "eu"
    zone = "a"
    host = "one"
    spare = false                       true: takes nothing until a store is away for long

    [[store]]                           a bucket at a cloud, or at whatever speaks S3
    bucket = "s3://name/prefix"
    endpoint = "https://s3.example.org" without it, Amazon's own
    bucket_region = "eu-central-1"      what requests are signed for
    profile = "backup"                  of ~/.aws/credentials; without it, as the environment says
    capacity = "1 TiB"                  what may lie there
    sealed = true                       false: the provider can read what lies there
    price = { storage = 0.023, puts = 0.005, gets = 0.0004, egress = 0.09 }
                                        a GB a month, a thousand requests of either kind, a GB that leaves

Relative paths are relative to the file. What must always hold: a key that is not known is an error,
never ignored, because a misspelt limit is a limit that is not there.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from holdfast.base.errors import InvalidInput
from holdfast.health.events import Kind
from holdfast.node.config import (
    MIB,
    ChoresSettings,
    EventsSettings,
    Given,
    Limits,
    StorePlace,
    check_index_dirs,
    check_together,
    read_balancer_secret,
    read_domain,
    read_duration,
    read_host,
    read_label,
    read_path,
    read_port,
    read_secret,
    read_size,
    read_slot,
    read_switch,
    read_webhook,
    scheme_for,
    shared_scheme,
)
from holdfast.node.config_cloud import (
    BYTES_MAX_DEFAULT,
    Bucket,
    Price,
    read_bucket,
    read_capacity,
    read_endpoint,
    read_price,
    read_profile,
)
from holdfast.node.config_cluster import (
    PEER_PORT_DEFAULT,
    ClusterSettings,
    PeerAddress,
    read_address,
    read_advertised,
    read_client_url,
    read_index,
    read_name,
)
from holdfast.node.config_index import QUOTA_BYTES_DEFAULT, QUOTA_BYTES_MIN, EtcdSettings
from holdfast.scheme import K_MAX, M_MAX
from holdfast.stores.peer.tls import TlsFiles

MEMORY_BYTES_MIN = 64 * MIB
REQUESTS_MAX = 65_536

_STORES_ANY = K_MAX + M_MAX
"""As many as the widest scheme needs."""

Where = tuple[str | int, ...]
"""A place in the file: keys and, in arrays of tables, numbers from 0."""


T = TypeVar("T")
D = TypeVar("D")

_TOP = (
    "data",
    "scheme",
    "index_dirs",
    "host",
    "port",
    "region",
    "domain",
    "limits",
    "chores",
    "metrics",
    "ledger",
    "events",
    "store",
    "name",
    "index",
    "index_managed",
    "cluster",
    "balancer",
    "etcd",
)
_CLUSTER = (
    "secret_file",
    "peer",
    "advertise",
    "client",
    "tls_certificate",
    "tls_key",
    "tls_authority",
)
_TLS = _CLUSTER[4:]
_BALANCER = ("secret",)
_ETCD = ("authority", "certificate", "key", "password_file", "quota")
_LIMITS = ("memory", "requests", "reserve")
_METRICS = ("open",)
_LEDGER = ("canary",)
_CHORES = ("scrub", "scrub_rate", "away_patience")
_EVENTS = ("webhook", "secret", "kinds")
_STORE = ("path", "slot", "region", "zone", "host", "spare")
_BUCKET = ("bucket", "endpoint", "bucket_region", "profile", "capacity", "sealed", "price")
_PRICE = ("storage", "puts", "gets", "egress")


class _Wrong(Exception):
    """Something at `where` is not right; `sentence` says what would be."""

    def __init__(self, where: Where, sentence: str) -> None:
        super().__init__(sentence)
        self.where = where
        self.sentence = sentence


def load_config_file(path: Path) -> Given:
    """What the file at `path` says. Raises InvalidInput."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InvalidInput(
            f"{path}:{line}: not UTF-8.", hint="Save the file as UTF-8 text.", line=line
        ) from None
    except FileNotFoundError:
        raise InvalidInput(f"There is no configuration file {path}:", hint="check --config.") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}):", hint="check --config.") from None
    return read_config_file(path, text)


def read_config_file(path: Path, text: str) -> Given:
    """What the file says. Raises InvalidInput as `<file>:<line>: <what>. <what would be right>`."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)$", message)
        line = int(found[1]) if found and found[1] else max(1, text.count("\n"))
        what = message[: found.start()] if found else message
        raise InvalidInput(
            f"{path}:{line}: not TOML: {what}.",
            hint='Write `key = "text"`, `key = 1`, and tables as `[limits]` or `[[store]]`.',
            line=line,
        ) from None
    try:
        return _given(raw, path.parent)
    except _Wrong as wrong:
        line = find_line(text, wrong.where)
        raise InvalidInput(f"{path}:{line}: {wrong.sentence}", line=line) from None


def _given(raw: Mapping[str, object], here: Path) -> Given:
    table = _Table(raw, (), _TOP)
    data = table.read("data", read_path, None)
    index_dirs = table.read("index_dirs", _paths, None)
    stores = _stores(raw["store"], here) if "store" in raw else None
    # Where the file does not say how many stores there are, the command line may.
    store_count = None if stores is None or "index" in raw else len(stores)
    index = table.read("index", read_index, None)
    cluster = _cluster(raw["cluster"], here) if "cluster" in raw else None
    try:
        check_together(index, cluster, index_dirs or ())
    except InvalidInput as error:
        where = "cluster" if index is None else "index" if cluster is None else "index_dirs"
        raise _Wrong((where,), str(error)) from None
    return Given(
        data=None if data is None else here / data.expanduser(),
        stores=stores,
        scheme=table.read("scheme", lambda value: _scheme(value, store_count, index is not None), None),
        index_dirs=None if index_dirs is None else tuple(here / path.expanduser() for path in index_dirs),
        host=table.read("host", read_host, None),
        port=table.read("port", read_port, None),
        region=table.read("region", read_label, None),
        domain=table.read("domain", read_domain, None),
        limits=_limits(raw["limits"]) if "limits" in raw else None,
        chores=_chores(raw["chores"]) if "chores" in raw else None,
        metrics_open=_switch(raw, "metrics", _METRICS),
        canary=_switch(raw, "ledger", _LEDGER),
        events=_events(raw["events"]) if "events" in raw else None,
        name=table.read("name", read_name, None),
        index=index,
        index_managed=table.read("index_managed", _yes_or_no, None),
        etcd=_etcd(raw["etcd"], here) if "etcd" in raw else None,
        cluster=cluster,
        balancer_secret=_balancer(raw["balancer"]) if "balancer" in raw else None,
    )


def _cluster(raw: object, here: Path) -> ClusterSettings:
    where: Where = ("cluster",)
    table = _Table(raw, where, _CLUSTER)
    secret_file = table.read("secret_file", read_path, None)
    if secret_file is None:
        raise _Wrong(
            where, 'nodes know each other by a secret: add secret_file = "..." with the path of a file.'
        )
    peer = table.read("peer", read_address, PeerAddress("0.0.0.0", PEER_PORT_DEFAULT))  # noqa: S104
    files = {key: table.read(key, read_path, None) for key in _TLS}
    given = {key: here / path.expanduser() for key, path in files.items() if path is not None}
    if given and len(given) < len(_TLS):
        missing = next(key for key in _TLS if key not in given)
        raise _Wrong(where, f'certificates need all of {", ".join(_TLS)}: add {missing} = "...".')
    return ClusterSettings(
        secret_file=here / secret_file.expanduser(),
        peer=peer,
        advertise=table.read("advertise", read_advertised, None),
        client=table.read("client", read_client_url, ""),
        tls=TlsFiles(
            authority=given["tls_authority"], certificate=given["tls_certificate"], key=given["tls_key"]
        )
        if given
        else None,
    )


def _etcd(raw: object, here: Path) -> EtcdSettings:
    where: Where = ("etcd",)
    table = _Table(raw, where, _ETCD)
    files = {key: table.read(key, read_path, None) for key in _ETCD[:4]}
    authority, certificate, key, password = (
        None if path is None else here / path.expanduser() for path in files.values()
    )
    if (certificate is None) is not (key is None):
        raise _Wrong(where, "certificate and key go together: say both, or none.")
    if certificate is not None and authority is None:
        raise _Wrong(where, 'certificates need whom to believe: add authority = "ca.pem".')
    return EtcdSettings(
        authority=authority,
        certificate=certificate,
        key=key,
        password_file=password,
        quota_bytes=table.read("quota", _quota, QUOTA_BYTES_DEFAULT),
    )


def _quota(value: object) -> int:
    size = read_size(value)
    if size < QUOTA_BYTES_MIN:
        raise InvalidInput(f"{value!r} is too little:", hint='as "8 GiB", as etcd was started with.')
    return size


def _balancer(raw: object) -> str | None:
    return _Table(raw, ("balancer",), _BALANCER).read("secret", read_balancer_secret, None)


def _events(raw: object) -> EventsSettings:
    table = _Table(raw, ("events",), _EVENTS)
    default = EventsSettings()
    settings = EventsSettings(
        webhook=table.read("webhook", read_webhook, default.webhook),
        secret=table.read("secret", read_secret, default.secret),
        kinds=table.read("kinds", _kinds, default.kinds),
    )
    if not settings.webhook:
        raise _Wrong(("events",), 'events go nowhere: add webhook = "https://example.org/hook".')
    return settings


def _kinds(value: object) -> tuple[str, ...]:
    known = ", ".join(kind.value for kind in Kind)
    if not isinstance(value, list) or not value or any(kind not in tuple(Kind) for kind in value):
        raise InvalidInput(f"{value!r} are not kinds of events:", hint=f'a list of {known}, as ["store"].')
    return tuple(value)


def _switch(raw: Mapping[str, object], name: str, known: tuple[str]) -> bool | None:
    """The one key of a table that has no other."""
    if name not in raw:
        return None
    return _Table(raw[name], (name,), known).read(known[0], read_switch, None)


def _chores(raw: object) -> ChoresSettings:
    table = _Table(raw, ("chores",), _CHORES)
    default = ChoresSettings()
    return ChoresSettings(
        scrub_pass_s=table.read("scrub", read_duration, default.scrub_pass_s),
        scrub_rate_bytes=table.read("scrub_rate", read_size, default.scrub_rate_bytes),
        away_patience_s=table.read("away_patience", read_duration, default.away_patience_s),
    )


def _limits(raw: object) -> Limits:
    table = _Table(raw, ("limits",), _LIMITS)
    default = Limits()
    return Limits(
        memory_bytes=table.read("memory", _memory, default.memory_bytes),
        requests_max=table.read("requests", _requests, default.requests_max),
        reserve_bytes=table.read("reserve", read_size, default.reserve_bytes),
    )


def _stores(raw: object, here: Path) -> tuple[StorePlace, ...]:
    if not isinstance(raw, list) or not raw:
        raise _Wrong(("store",), "stores are tables of their own: write [[store]] and below it its path.")
    stores: list[StorePlace] = []
    for number, entry in enumerate(raw):
        where: Where = ("store", number)
        is_bucket = isinstance(entry, dict) and "bucket" in entry
        table = _Table(entry, where, (*_BUCKET, *_STORE[1:]) if is_bucket else _STORE)
        path = _bucket(table, entry, where) if is_bucket else table.read("path", read_path, None)
        if path is None:
            raise _Wrong(where, 'this store has no path: add path = "/mnt/disk1".')
        store = StorePlace(
            path=here / path.expanduser() if isinstance(path, Path) else path,
            slot=table.read("slot", read_slot, ""),
            region=table.read("region", read_label, "local"),
            zone=table.read("zone", read_label, "local"),
            host=table.read("host", read_label, "local"),
            spare=table.read("spare", _yes_or_no, False),
        )
        for other in stores:
            if str(other.path) == str(store.path):
                key = "bucket" if is_bucket else "path"
                raise _Wrong((*where, key), f"{key}: {path} is another store's already: name another.")
            if isinstance(other.path, Bucket) and isinstance(path, Bucket) and path.overlaps(other.path):
                raise _Wrong(
                    (*where, "bucket"), f"bucket: {path} is in the way of {other.path}: name another."
                )
            if other.slot == store.slot != "":
                raise _Wrong(
                    (*where, "slot"), f"slot: {store.slot!r} is another store's already: name another."
                )
        stores.append(store)
    return tuple(stores)


def _bucket(table: "_Table", entry: object, where: Where) -> Bucket:
    assert isinstance(entry, dict)
    address = table.read("bucket", read_bucket, None)
    assert address is not None
    price = Price()
    if "price" in entry:
        costs = _Table(entry["price"], (*where, "price"), _PRICE)
        price = Price(*(costs.read(key, read_price, 0.0) for key in _PRICE))
    return Bucket(
        address,
        endpoint=table.read("endpoint", read_endpoint, ""),
        bucket_region=table.read("bucket_region", read_label, ""),
        profile=table.read("profile", read_profile, ""),
        sealed=table.read("sealed", _yes_or_no, True),
        bytes_max=table.read("capacity", read_capacity, BYTES_MAX_DEFAULT),
        price=price,
    )


class _Table:
    """One table of the file; refuses keys that are not among `known`."""

    def __init__(self, raw: object, where: Where, known: tuple[str, ...]) -> None:
        if not isinstance(raw, dict):
            header = f"[[{where[0]}]]" if len(where) > 1 else f"[{where[0]}]"
            raise _Wrong(where, f"this is a table: write {header} on a line of its own.")
        for key in raw:
            if key not in known:
                raise _Wrong((*where, key), _unknown(key, known))
        self._raw = raw
        self._where = where

    def read(self, key: str, reader: Callable[[object], T], default: D) -> T | D:
        """The value of `key` as `reader` understands it, or `default` when it is not there."""
        if key not in self._raw:
            return default
        try:
            return reader(self._raw[key])
        except InvalidInput as error:
            raise _Wrong((*self._where, key), f"{key}: {error}") from None


def _unknown(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"there is no {key!r} here: did you mean {near[0]!r}?"
    return f"there is no {key!r} here: known are {', '.join(known)}."


def _scheme(value: object, stores: int | None, shared: bool) -> str:
    """A scheme for `stores` stores; None where that is not known yet."""
    if not isinstance(value, str) or not value:
        raise InvalidInput(f"{value!r} is not text:", hint='write it in quotes, as "rs-4-2".')
    if shared:
        shared_scheme(value)
    else:
        scheme_for(value, _STORES_ANY if stores is None else stores)
    return value


def _paths(value: object) -> tuple[Path, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidInput(f"{value!r} is not a list of paths:", hint='as ["/mnt/a", "/mnt/b", "/mnt/c"].')
    paths = tuple(read_path(item) for item in value)
    check_index_dirs(paths)
    return paths


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidInput(f"{value!r} is not yes or no:", hint="write true or false.")
    return value


def _memory(value: object) -> int:
    size = read_size(value)
    if size < MEMORY_BYTES_MIN:
        raise InvalidInput(f"{value!r} is too little:", hint='at least "64 MiB".')
    return size


def _requests(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= REQUESTS_MAX:
        raise InvalidInput(f"{value!r} is not a limit:", hint=f"a whole number from 1 to {REQUESTS_MAX}.")
    return value


_HEADER = re.compile(r"\s*(\[\[?)\s*([^\[\]#]+?)\s*\]\]?")
_KEY = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([A-Za-z0-9_-]+))\s*(?:[.=])""")


def find_line(text: str, where: Where) -> int:
    """The line, from 1, where `where` is written; of its table when the key itself is not found."""
    table: list[str | int] = []
    counts: dict[str, int] = {}
    best, best_depth = 1, -1
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            name = header[2].strip("\"'")
            table = [name]
            if header[1] == "[[":
                table.append(counts.get(name, 0))
                counts[name] = counts.get(name, 0) + 1
            written = table
        elif key := _KEY.match(line):
            written = [*table, key[1] or key[2] or key[3]]
        else:
            continue
        depth = _common(written, where)
        if depth == len(written) and depth > best_depth:
            best, best_depth = number, depth
    return best


def _common(written: list[str | int], where: Where) -> int:
    count = 0
    for one, other in zip(written, where, strict=False):
        if one != other:
            break
        count += 1
    return count
