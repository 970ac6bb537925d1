"""Reads `balance.toml`, or says in one sentence what is wrong with it.

    listen = "0.0.0.0:9000"             where clients come
    nodes = ["10.0.0.1:9000", { address = "10.0.0.2:9000", region = "eu", zone = "b" }]
    seeds = ["10.0.0.1:9000"]           instead of nodes: some of them, which are asked for all of them
    dir = "holdfast-balance"            what the balancer writes; one for each balancer
    secret = "..."                      what the nodes know it by: [balancer] secret in holdfast.toml
    region = "eu"                       where the balancer is: the nearest nodes first
    zone = "a"
    retry_body = "1 MiB"                writes up to this are kept, so that another node can be asked
    access_log = "access.log"           one JSON line a request; "" for none
    threads = 2                         default: one for each processor
    connections = 8192                  of clients, at once
    drain = "30 s"                      what requests under way are given when the balancer stops
    notice = "3 s"                      how long it says "not ready" before it takes no more connections

    [tls]
    certificate = "/etc/holdfast/tls.crt"
    key = "/etc/holdfast/tls.key"

Relative paths are relative to the file. A key that is not known is an error.
"""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from holdfast.balance.view import Endpoint, View, split_address, view_of
from holdfast.base.errors import InvalidInput

MIB = 1 << 20
RETRY_BODY_BYTES_MAX = 64 * MIB
DIRECTORY_DEFAULT = "holdfast-balance"

_SECRET = re.compile(r"[A-Za-z0-9_-]{16,128}\Z")
_LABEL = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62})?\Z")
_SIZE = re.compile(r"([0-9]{1,9})\s*(B|KiB|MiB)?\Z")
_UNITS = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": MIB}
_DURATION = re.compile(r"([0-9]{1,6})\s*(s|min)?\Z")


class Tls(Struct, frozen=True):
    """The files of the certificate (with its chain) and its key."""

    certificate: Path
    key: Path


class Settings(Struct, frozen=True, kw_only=True):
    """All a balancer needs to know. Paths are absolute; `access_log` is None for none, `threads` 0 for one
    for each processor. Without a secret nodes cannot tell a second try from a second request, so
    that writes are sent again only if no node has seen them. There are `nodes`, or
    `seeds` that tell of them."""

    listen_host: str
    listen_port: int
    nodes: View
    directory: Path
    seeds: View = ()
    secret: str = ""
    region: str = ""
    zone: str = ""
    retry_body_bytes: int = MIB
    access_log: Path | None = None
    threads: int = 0
    connections_max: int = 8192
    drain_s: float = 30.0
    notice_s: float = 3.0
    tls: Tls | None = None


class _Node(Struct, frozen=True, forbid_unknown_fields=True):
    address: str
    region: str = ""
    zone: str = ""


class _Tls(Struct, frozen=True, forbid_unknown_fields=True):
    certificate: str
    key: str


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    listen: str = "127.0.0.1:9000"
    nodes: list[str | _Node] = []
    seeds: list[str] = []
    dir: str = DIRECTORY_DEFAULT
    secret: str = ""
    region: str = ""
    zone: str = ""
    retry_body: int | str = MIB
    access_log: str = "access.log"
    threads: int = 0
    connections: int = 8192
    drain: int | str = 30
    notice: int | str = 3
    tls: _Tls | None = None


def load_settings(path: Path) -> Settings:
    """What the file at `path` says. Raises InvalidInput."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInput(f"There is no configuration file {path}:", hint="check --config.") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path}: not UTF-8.", hint="Save the file as UTF-8 text.") from None
    except tomllib.TOMLDecodeError as error:
        raise InvalidInput(f"{path}: not TOML: {error}.", hint="See the example in the README.") from None
    try:
        return settings_of(msgspec.convert(raw, _File), path.parent.absolute())
    except msgspec.ValidationError as error:
        raise InvalidInput(f"{path}: {error}.", hint="See the example in the README.") from None
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error.message}", hint=error.hint) from None


def settings_of(file: _File, here: Path) -> Settings:
    """Checked, with relative paths below `here`. Raises InvalidInput."""
    host, port = split_address(file.listen)
    if file.secret and not _SECRET.match(file.secret):
        raise InvalidInput(
            "secret cannot be used:", hint="16 to 128 letters, digits, dashes and underscores."
        )
    if file.nodes and file.seeds:
        raise InvalidInput("there are nodes and seeds:", hint="seeds tell of all nodes: leave nodes out.")
    if not file.nodes and not file.seeds:
        raise InvalidInput(
            "there are no nodes:",
            hint='say which, as nodes = ["10.0.0.1:9000"], or whom to ask, as seeds = ["10.0.0.1:9000"].',
        )
    if file.seeds and not file.secret:
        raise InvalidInput(
            "seeds are believed only with a secret:",
            hint="`holdfast balance secret` prints it from the cluster's secret file.",
        )
    for name, label in (("region", file.region), ("zone", file.zone)):
        if not _LABEL.match(label):
            raise InvalidInput(f"{name}: {label!r} is not a label:", hint='letters and digits, as "eu-1".')
    if not 0 <= file.threads <= 256:
        raise InvalidInput(
            f"threads: {file.threads} is not possible:", hint="0 (as many as processors) to 256."
        )
    if not 1 <= file.connections <= 1_000_000:
        raise InvalidInput(f"connections: {file.connections} is not a limit:", hint="from 1 to 1000000.")
    retry_body_bytes = _size(file.retry_body)
    if retry_body_bytes > RETRY_BODY_BYTES_MAX:
        raise InvalidInput(
            f"retry_body: {file.retry_body!r} is too much:",
            hint="the balancer keeps so much of every write in memory; at most 64 MiB.",
        )
    directory = here / Path(file.dir).expanduser()
    return Settings(
        listen_host=host,
        listen_port=port,
        nodes=_nodes("nodes", file.nodes),
        seeds=_nodes("seeds", file.seeds),
        directory=directory,
        secret=file.secret,
        region=file.region,
        zone=file.zone,
        retry_body_bytes=retry_body_bytes,
        access_log=directory / Path(file.access_log).expanduser() if file.access_log else None,
        threads=file.threads,
        connections_max=file.connections,
        drain_s=_duration("drain", file.drain),
        notice_s=_duration("notice", file.notice),
        tls=_tls(file.tls, here),
    )


def _nodes(table: str, given: Sequence[str | _Node]) -> View:
    endpoints = []
    for one in given:
        node = _Node(one) if isinstance(one, str) else one
        host, port = split_address(node.address)
        if port == 0:
            raise InvalidInput(f"{node.address!r} is not a node's address:", hint="name its port.")
        endpoints.append(Endpoint(host, port, node.address, node.region, node.zone))
    view = view_of(endpoints)
    if len(view) != len(endpoints):
        raise InvalidInput(f"a node is named twice in {table}:", hint="name each once.")
    return view


def _tls(given: _Tls | None, here: Path) -> Tls | None:
    if given is None:
        return None
    return Tls(here / Path(given.certificate).expanduser(), here / Path(given.key).expanduser())


def _size(value: int | str) -> int:
    if isinstance(value, int) and value >= 0:
        return value
    found = _SIZE.match(value) if isinstance(value, str) else None
    if not found:
        raise InvalidInput(f"retry_body: {value!r} is not a size:", hint='bytes, or text as "1 MiB".')
    return int(found[1]) * _UNITS[found[2]]


def _duration(name: str, value: int | str) -> float:
    if isinstance(value, int) and value >= 0:
        return float(value)
    found = _DURATION.match(value) if isinstance(value, str) else None
    if not found:
        raise InvalidInput(f"{name}: {value!r} is not a time:", hint='seconds, or text as "30 s" or "2 min".')
    return float(int(found[1]) * (60 if found[2] == "min" else 1))
