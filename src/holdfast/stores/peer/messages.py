"""The texts of the peer protocol: names, paths, queries, and the documents of answers. No I/O.

What must hold: what one side writes the other reads as the same, and only that; whatever else comes is
refused, never guessed at. The page is docs/formats-peer.md.
"""

import re
from collections.abc import Sequence
from enum import Enum
from itertools import pairwise

import msgspec
from msgspec import Struct

from holdfast.base.ids import StoreId
from holdfast.stores.port import NAME, Range
from holdfast.wire.http import TARGET_BYTES_MAX

VERSION = 1
SPEAKS = (1,)
"""The versions that this node speaks, ascending."""

HELLO_PATH = "/hello"
RANGES_MAX = 512
ANSWER_BYTES_MAX = 4 << 20
"""Bytes that one request may ask for."""

BLOB_BYTES_MAX = 64 << 20
LISTED_MAX = 4096
TIMEOUT_MS_MAX = 3_600_000

TIMEOUT_HEADER = "holdfast-timeout-ms"
TAG_HEADER = "holdfast-tag"

_NODE = re.compile(r"[A-Za-z0-9._-]{1,128}\Z")
_STORE = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
_SPEAKS = re.compile(r"[1-9][0-9]{0,3}(?:,[1-9][0-9]{0,3}){0,15}\Z")
_NONCE = re.compile(r"[0-9a-f]{32}\Z")
_TAG = re.compile(r"[0-9a-f]{64}\Z")
_RANGE = re.compile(r"(0|[1-9][0-9]{0,14})\+([1-9][0-9]{0,14})\Z")
_GET = re.compile(r"ranges=([0-9+,]+)(&uncached=1)?\Z")
_PUT = re.compile(r"reserve=(100|[1-9][0-9]?)\Z")
_AFTER = re.compile(r"[A-Za-z0-9._-]{0,128}\Z")
_LIST = re.compile(r"after=([A-Za-z0-9._-]{0,128})&limit=([1-9][0-9]{0,9})\Z")
_TIMEOUT = re.compile(r"[1-9][0-9]{0,6}\Z")
_TARGET = re.compile(r"/stores/([A-Za-z0-9._-]{1,64})/(?:(usage|probe|blobs)|blobs/([^/]+)(/size)?)\Z")


class Call(Enum):
    """What a request asks for."""

    PING = "ping"
    GET = "get"
    SIZE = "size"
    PUT = "put"
    DELETE = "delete"
    LIST = "list"
    USAGE = "usage"
    PROBE = "probe"


class Asked(Struct, gc=False):
    """A request, understood. What a call does not have is empty."""

    call: Call
    store: StoreId = StoreId("")
    name: str = ""
    ranges: tuple[Range, ...] = ()
    uncached: bool = False
    after: str = ""
    limit: int = 0
    reserve_share: float = 0.0


class PeerIdentity(Struct, frozen=True):
    """Who a node is: its cluster, its name, the `uuid` of its data folder, the `boot` of its process."""

    cluster: str
    node: str
    uuid: str = ""
    boot: str = ""


class HelloAnswer(Struct, frozen=True):
    """What a node says of itself. `version` is the one that both speak."""

    version: int
    speaks: tuple[int, ...]
    cluster: str
    node: str
    uuid: str
    boot: str
    nonce: str


class SizeAnswer(Struct):
    """Of `size`."""

    bytes: int


hello_decoder = msgspec.json.Decoder(HelloAnswer)
size_decoder = msgspec.json.Decoder(SizeAnswer)
names_decoder = msgspec.json.Decoder(list[str])


# A head with as many ranges as a request may have, each at the end of a blob of a petabyte, is still a head.
assert RANGES_MAX * len(f"{10**15 - 1}+{ANSWER_BYTES_MAX},") + 512 <= TARGET_BYTES_MAX


def is_node_name(text: str) -> bool:
    """Whether a node or a cluster can be called so."""
    return _NODE.match(text) is not None


def is_after(text: str) -> bool:
    """Whether a listing can begin after this."""
    return _AFTER.match(text) is not None


def is_store_id(text: str) -> bool:
    """Whether a store can be called so here."""
    return _STORE.match(text) is not None


def is_nonce(text: str) -> bool:
    """Whether this is a nonce."""
    return _NONCE.match(text) is not None


def is_tag(text: str) -> bool:
    """Whether this looks like a tag."""
    return _TAG.match(text) is not None


def write_speaks(speaks: Sequence[int]) -> str:
    """Versions, ascending."""
    return ",".join(str(version) for version in speaks)


def read_speaks(text: str) -> tuple[int, ...] | None:
    """The versions, or None for what is no list of versions in ascending order."""
    if not _SPEAKS.match(text):
        return None
    versions = tuple(int(version) for version in text.split(","))
    return versions if all(a < b for a, b in pairwise(versions)) else None


def write_timeout(left_s: float) -> str:
    """What is sent of the time that is left: enough less that an answer made at its end still arrives."""
    allowed_s = left_s - min(left_s / 10, 0.05)
    return str(max(1, min(TIMEOUT_MS_MAX, int(allowed_s * 1000))))


def read_timeout(text: str) -> float | None:
    """Seconds, or None."""
    if not _TIMEOUT.match(text):
        return None
    milliseconds = int(text)
    return milliseconds / 1000 if milliseconds <= TIMEOUT_MS_MAX else None


def write_ranges(ranges: Sequence[Range], *, uncached: bool) -> str:
    """The query of a GET."""
    if len(ranges) == 1:
        ((offset, length),) = ranges
        text = f"ranges={offset}+{length}"
    else:
        text = "ranges=" + ",".join([f"{offset}+{length}" for offset, length in ranges])
    return text + "&uncached=1" if uncached else text


def _read_ranges(text: str) -> tuple[Range, ...] | None:
    found = []
    total = 0
    for part in text.split(","):
        match = _RANGE.match(part)
        if match is None:
            return None
        length = int(match[2])
        total += length
        found.append(Range(int(match[1]), length))
    return tuple(found) if len(found) <= RANGES_MAX and total <= ANSWER_BYTES_MAX else None


def write_reserve(share: float) -> str:
    """The query of a put that may take so much of the reserve; in whole percent, rounded down."""
    assert 0.0 <= share <= 1.0
    percent = int(share * 100)
    return f"reserve={percent}" if percent else ""


def read_request(method: str, path: str, query: str) -> Asked | None:
    """What a request asks for, `path` without its version; None for what is none of ours."""
    target = _TARGET.match(path)
    if target is None:
        if path == "/ping" and method == "GET" and not query:
            return Asked(Call.PING)
        return None
    store, plain, name, size = target.groups()
    store = StoreId(store)
    if name is not None:
        if not NAME.match(name):
            return None
        if method == "GET" and not size:
            return _read_get(store, name, query)
        if method == "PUT" and query and not size:
            reserve = _PUT.match(query)
            return Asked(Call.PUT, store, name, reserve_share=int(reserve[1]) / 100) if reserve else None
        if query:
            return None
        if size:
            return Asked(Call.SIZE, store, name) if method == "GET" else None
        call = {"PUT": Call.PUT, "DELETE": Call.DELETE}.get(method)
        return Asked(call, store, name) if call is not None else None
    if plain == "blobs":
        listed = _LIST.match(query)
        if method != "GET" or listed is None:
            return None
        return Asked(Call.LIST, store, after=listed[1], limit=min(int(listed[2]), LISTED_MAX))
    if query:
        return None
    if plain == "usage":
        return Asked(Call.USAGE, store) if method == "GET" else None
    return Asked(Call.PROBE, store) if method == "POST" else None


def _read_get(store: StoreId, name: str, query: str) -> Asked | None:
    found = _GET.match(query)
    if found is None:
        return None
    ranges = _read_ranges(found[1])
    if ranges is None:
        return None
    return Asked(Call.GET, store, name, ranges, found[2] is not None)


def split(ranges: Sequence[Range]) -> list[list[Range]]:
    """The ranges, in order, cut into requests that keep to the limits."""
    requests: list[list[Range]] = [[]]
    room = ANSWER_BYTES_MAX
    for offset, length in ranges:
        at = offset
        while at < offset + length:
            if not room or len(requests[-1]) == RANGES_MAX:
                requests.append([])
                room = ANSWER_BYTES_MAX
            piece = min(room, offset + length - at)
            requests[-1].append(Range(at, piece))
            at += piece
            room -= piece
    return requests
