"""What a node is told: where its data and stores are, how to protect, where to listen.

Three sources, later ones winning: the defaults, `holdfast.toml`, the command line. A `Config` is
complete and consistent: whoever holds one need not ask whether the scheme fits the stores. What must
always hold: the same inputs make the same `Config`, without touching a disk; and whatever is refused
is refused here, before anything is created, with a sentence that says what would be right.
"""

import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from holdfast.base.errors import InvalidInput
from holdfast.node.config_cloud import StorePath
from holdfast.node.config_cluster import (
    PEER_PORT_DEFAULT,
    ClusterSettings,
    IndexAddress,
    fit_name,
    read_name,
)
from holdfast.node.config_index import EtcdSettings
from holdfast.node.config_sizes import read_size as read_size
from holdfast.scheme import Scheme, parse_scheme
from holdfast.stores.peer.tls import TlsFiles

DATA_DEFAULT = Path("holdfast-data")
STORES_DEFAULT = 6
REGION_DEFAULT = "us-east-1"
PORT_DEFAULT = 9000
INDEX_MEMBERS_MAX = 5
MIB = 1 << 20

_SLOT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\Z")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
_HOST = re.compile(r"[A-Za-z0-9:.\[\]-]{1,253}\Z")
_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*\Z")

_BALANCER_SECRET = re.compile(r"[A-Za-z0-9_-]{16,128}\Z")
_DURATION = re.compile(r"([0-9]{1,9})\s*(s|min|h|days?)\Z")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "day": 86_400, "days": 86_400}


class StorePlace(Struct, frozen=True):
    """One store as configured. An empty `slot` is given one by the node: the one the directory was
    known under before, or the next free `diskN`. A `spare` takes nothing until a store is away for long."""

    path: StorePath
    slot: str = ""
    region: str = "local"
    zone: str = "local"
    host: str = "local"
    spare: bool = False


class Limits(Struct, frozen=True):
    """Bounds. `memory_bytes` is for object bytes under way; `requests_max` requests are served at once,
    more wait or are told to slow down; `reserve_bytes` are kept free on every store, so that deletes
    and the index work on full disks; None leaves it to the store (1 % of it, 256 MiB to 1 GiB)."""

    memory_bytes: int = 96 * MIB
    requests_max: int = 512
    reserve_bytes: int | None = None


class ChoresSettings(Struct, frozen=True):
    """What runs behind. Everything is read from its medium once in `scrub_pass_s`, at most `scrub_rate_bytes`
    a second (0: no limit); a store that was away for `away_patience_s` is given up, and what it held is
    written again elsewhere."""

    scrub_pass_s: float = 7 * 86_400.0
    scrub_rate_bytes: int = 200 * MIB
    away_patience_s: float = 600.0


class EventsSettings(Struct, frozen=True):
    """Who is told of events: a URL that gets them as JSON, signed with `secret` if there is one; of `kinds`
    alone, if any are named."""

    webhook: str = ""
    secret: str = ""
    kinds: tuple[str, ...] = ()


class Config(Struct, frozen=True, kw_only=True):
    """All a node needs to know. Paths are absolute. `index_dirs` empty means: on the stores. `metrics_open`
    shows `/-/metrics` to everybody; `canary` is whether the node asks itself when nobody else does.

    With an `index` that several nodes share there is a `cluster`, too. Then the stores here are not all there
    are: `scheme` is what buckets get if the cluster's stores allow, and `scheme_given` says that a person
    chose it. `index_managed`: its provider sees to it that a failover loses nothing.
    `etcd`: how it is met, if it is in etcd."""

    data: Path
    stores: tuple[StorePlace, ...]
    scheme: Scheme
    index_dirs: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = PORT_DEFAULT
    region: str = REGION_DEFAULT
    domain: str = ""
    limits: Limits = Limits()
    events: EventsSettings = EventsSettings()
    metrics_open: bool = False
    canary: bool = True
    chores: ChoresSettings = ChoresSettings()
    name: str = "node"
    index: IndexAddress | None = None
    index_managed: bool = False
    etcd: EtcdSettings = EtcdSettings()
    cluster: ClusterSettings | None = None
    scheme_given: bool = True
    balancer_secret: str = ""


class Given(Struct, frozen=True, kw_only=True):
    """What one source says; None where it says nothing."""

    data: Path | None = None
    stores: tuple[StorePlace, ...] | None = None
    scheme: str | None = None
    index_dirs: tuple[Path, ...] | None = None
    host: str | None = None
    port: int | None = None
    region: str | None = None
    domain: str | None = None
    limits: Limits | None = None
    events: EventsSettings | None = None
    metrics_open: bool | None = None
    canary: bool | None = None
    chores: ChoresSettings | None = None
    name: str | None = None
    index: IndexAddress | None = None
    index_managed: bool | None = None
    etcd: EtcdSettings | None = None
    cluster: ClusterSettings | None = None
    balancer_secret: str | None = None


def make_config(sources: Sequence[Given], here: Path) -> Config:
    """The configuration from `sources`, the last of them that says something winning; relative paths
    that are left are below `here`. Raises InvalidInput."""
    said: dict[str, object] = {}
    for source in sources:
        for name in Given.__struct_fields__:
            value = getattr(source, name)
            if value is not None:
                said[name] = value
    merged = Given(**said)  # type: ignore[arg-type]
    data = absolute(merged.data or DATA_DEFAULT, here)
    stores = merged.stores or tuple(
        StorePlace(path=data / f"disk{number}", slot=f"disk{number}")
        for number in range(1, STORES_DEFAULT + 1)
    )
    stores = tuple(placed(store, here) for store in stores)
    index_dirs = tuple(absolute(path, here) for path in merged.index_dirs or ())
    _check_distinct([str(store.path) for store in stores], "store")
    _check_distinct([store.slot for store in stores if store.slot], "slot")
    check_index_dirs(index_dirs)
    check_together(merged.index, merged.cluster, index_dirs)
    name = read_name(merged.name) if merged.name is not None else fit_name(platform.node())
    if merged.index is None:
        scheme = scheme_for(merged.scheme, len(stores))
    else:
        scheme = shared_scheme(merged.scheme)
        stores = tuple(
            replace(store, host=name) if store.host == "local" and isinstance(store.path, Path) else store
            for store in stores
        )
    return Config(
        data=data,
        stores=stores,
        scheme=scheme,
        scheme_given=merged.scheme is not None or merged.index is None,
        name=name,
        index=merged.index,
        index_managed=bool(merged.index_managed),
        etcd=merged.etcd or EtcdSettings(),
        cluster=_placed(merged.cluster, here),
        balancer_secret=merged.balancer_secret or "",
        index_dirs=index_dirs,
        host=read_host(merged.host or "127.0.0.1"),
        port=read_port(PORT_DEFAULT if merged.port is None else merged.port),
        region=read_label(merged.region or REGION_DEFAULT),
        domain=read_domain(merged.domain or ""),
        limits=merged.limits or Limits(),
        chores=merged.chores or ChoresSettings(),
        events=merged.events or EventsSettings(),
        metrics_open=bool(merged.metrics_open),
        canary=merged.canary is not False,
    )


def placed(store: StorePlace, here: Path) -> StorePlace:
    """With a whole path; a bucket with labels of its own, where none were given: it is on no host of ours."""
    if isinstance(store.path, Path):
        return replace(store, path=absolute(store.path, here))
    host = store.path.host if store.host == "local" else store.host
    region = (store.path.bucket_region or "local") if store.region == "local" else store.region
    return replace(store, region=region, host=host)


def _placed(cluster: ClusterSettings | None, here: Path) -> ClusterSettings | None:
    """With whole paths."""
    if cluster is None:
        return None
    tls = cluster.tls
    if tls is not None:
        tls = TlsFiles(
            authority=absolute(tls.authority, here),
            certificate=absolute(tls.certificate, here),
            key=absolute(tls.key, here),
        )
    return replace(cluster, secret_file=absolute(cluster.secret_file, here), tls=tls)


def check_together(
    index: IndexAddress | None, cluster: ClusterSettings | None, index_dirs: Sequence[Path]
) -> None:
    """Raise InvalidInput unless what is said of the index and of other nodes fits together."""
    if index is None and cluster is not None:
        raise InvalidInput(
            "[cluster] needs an index that nodes can share, and this one is embedded:",
            hint='say index = "etcd://..." or "postgres://...", or take [cluster] out.',
        )
    if index is not None and cluster is None:
        raise InvalidInput(
            "A shared index needs the secret by which nodes know each other:",
            hint=f'add [cluster] with secret_file = "..." and peer = "0.0.0.0:{PEER_PORT_DEFAULT}".',
        )
    if index is not None and index_dirs:
        raise InvalidInput(
            "index_dirs are for the embedded index, and this one is shared:", hint="take them out."
        )


def shared_scheme(text: str | None) -> Scheme:
    """The scheme called `text` for however many stores a cluster has. Raises InvalidInput."""
    if text in ("raid5", "raid6"):
        raise InvalidInput(
            f"{text} means another scheme with each store that comes or goes:", hint="say it as rs-4-2."
        )
    return Scheme(4, 2) if text is None else parse_scheme(text, STORES_DEFAULT)


def absolute(path: Path, here: Path) -> Path:
    """The whole path of what is named from `here`."""
    # Not `resolve`: a path through a symbolic link stays the path the operator knows.
    joined = here / path.expanduser()
    parts: list[str] = []
    for part in joined.parts:
        if part == ".." and len(parts) > 1:
            parts.pop()
        elif part not in (".", ".."):
            parts.append(part)
    return Path(*parts)


def _check_distinct(values: Sequence[object], what: str) -> None:
    for value in values:
        if values.count(value) > 1:
            raise InvalidInput(f"The {what} {str(value)!r} is named twice;", hint="each must be another.")


def check_index_dirs(places: Sequence[Path]) -> None:
    """Raise InvalidInput unless the index can be kept at just these, or there are none."""
    _check_distinct(places, "index directory")
    if places and len(places) % 2 == 0:
        raise InvalidInput(
            f"The index needs an odd number of directories, {len(places)} were given:",
            hint="an even one more survives no more. Name 1, 3 or 5.",
        )
    if len(places) > INDEX_MEMBERS_MAX:
        raise InvalidInput(
            f"{len(places)} index directories are more than are useful;", hint="name at most 5."
        )


def scheme_for(text: str | None, stores: int) -> Scheme:
    """The scheme called `text`, or the default one, of so many stores. Raises InvalidInput."""
    if text is None:
        if stores == 1:
            raise InvalidInput(
                "One store protects nothing:",
                hint="name at least two, or say --scheme raid0 if losing it all is acceptable.",
            )
        return Scheme(1, 1) if stores == 2 else Scheme(4, 2).shrunk(stores) or Scheme(1, 2)
    scheme = parse_scheme(text, stores)
    if scheme.n > stores:
        fitting = scheme_for(None, stores).name if stores > 1 else "raid0"
        raise InvalidInput(
            f"Scheme {text} needs {scheme.n} stores, there {'is' if stores == 1 else 'are'} {stores}:",
            hint=f"name more with --store, or say --scheme {fitting}.",
        )
    return scheme


def read_port(value: object) -> int:
    """A TCP port; 0 asks the system for a free one."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 65535:
        raise InvalidInput(f"{value!r} is not a port:", hint="a whole number from 0 (any free one) to 65535.")
    return value


def read_host(value: object) -> str:
    """A name or address to listen on."""
    if not isinstance(value, str) or not _HOST.match(value):
        raise InvalidInput(f"{value!r} is not a host:", hint='a name or address, as "127.0.0.1" or "::1".')
    return value


def read_label(value: object) -> str:
    """The name of a region, zone or host."""
    if not isinstance(value, str) or not _LABEL.match(value):
        raise InvalidInput(
            f"{value!r} is not a label:", hint='up to 63 letters, digits, dots and dashes, as "zone-a".'
        )
    return value


def read_slot(value: object) -> str:
    """The name of a store's place in this installation."""
    if not isinstance(value, str) or not _SLOT.match(value):
        raise InvalidInput(
            f"{value!r} is not a slot name:", hint='lower-case letters, digits and dashes, as "disk1".'
        )
    return value


def read_domain(value: object) -> str:
    """The base domain of virtual-host style requests; empty for none."""
    if not isinstance(value, str) or (value and not _DOMAIN.match(value)):
        raise InvalidInput(f"{value!r} is not a domain:", hint='lower case, as "s3.example.org".')
    return value


def read_switch(value: object) -> bool:
    """Yes or no."""
    if not isinstance(value, bool):
        raise InvalidInput(f"{value!r} is neither yes nor no:", hint="write true or false, without quotes.")
    return value


def read_webhook(value: object) -> str:
    """A URL to post to."""
    hint = 'an address as "https://example.org/hook".'
    if not isinstance(value, str) or not value.isascii() or not value.isprintable() or " " in value:
        raise InvalidInput("This is not the address of a webhook:", hint=hint)
    try:
        url = urlsplit(value)
        named = bool(url.hostname) and url.port != 0
    except ValueError:
        raise InvalidInput("This is not the address of a webhook:", hint=hint) from None
    if url.scheme not in ("http", "https") or not named or url.username or url.fragment:
        raise InvalidInput("This is not the address of a webhook:", hint=hint)
    return value


def read_secret(value: object) -> str:
    """What posts are signed with."""
    if not isinstance(value, str) or not 16 <= len(value) <= 256 or not value.isprintable():
        raise InvalidInput("This is no secret to sign with:", hint="16 to 256 printable characters.")
    return value


def read_balancer_secret(value: object) -> str:
    """What balancers are known by; it travels in a header."""
    if not isinstance(value, str) or not _BALANCER_SECRET.match(value):
        raise InvalidInput(
            "This cannot be the secret of balancers:",
            hint="16 to 128 letters, digits, dashes and underscores.",
        )
    return value


def read_path(value: object) -> Path:
    """A directory."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise InvalidInput(f"{value!r} is not a path:", hint='a directory in quotes, as "/mnt/disk1".')
    return Path(value)


def read_duration(value: object) -> float:
    """Seconds: a whole number, or text with a unit; more than none."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return float(value)
    found = _DURATION.match(value) if isinstance(value, str) else None
    if not found or int(found[1]) == 0:
        raise InvalidInput(
            f"{value!r} is not a time:", hint='seconds, or text as "10 min", with s, min, h or days.'
        )
    return float(int(found[1]) * _SECONDS[found[2]])


def credentials_given(environment: Mapping[str, str]) -> tuple[str, str] | None:
    """Access key id and secret from HOLDFAST_ACCESS_KEY_ID and HOLDFAST_SECRET_ACCESS_KEY.

    Raises InvalidInput when only one is there, or one cannot be used in a signature.
    """
    names = ("HOLDFAST_ACCESS_KEY_ID", "HOLDFAST_SECRET_ACCESS_KEY")
    key, secret = (environment.get(name, "") for name in names)
    if not key and not secret:
        return None
    if not key or not secret:
        there, missing = names if key else reversed(names)
        raise InvalidInput(f"{there} is set and {missing} is not;", hint="set both or neither.")
    if not re.fullmatch(r"[A-Za-z0-9_.-]{3,128}", key):
        raise InvalidInput(
            "HOLDFAST_ACCESS_KEY_ID cannot be used:",
            hint="3 to 128 letters, digits, dots, dashes and underscores.",
        )
    if not 8 <= len(secret) <= 128 or not secret.isascii() or not secret.isprintable():
        raise InvalidInput(
            "HOLDFAST_SECRET_ACCESS_KEY cannot be used:", hint="8 to 128 printable ASCII characters."
        )
    return key, secret
