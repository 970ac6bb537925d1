"""What `/-/verify` says, line by line: progress, each pack that is not whole, and a summary at the end.

One JSON object a line, told apart by `kind`, so that a person sees progress and a program can stop at the
first loss. `POST /-/verify` starts and answers `started`; each `GET /-/verify?job=<id>` answers the lines
since the last one. Lines without a summary at their end were cut and prove nothing.
"""

from enum import Enum

import msgspec
from msgspec import Struct


class PackState(Enum):
    """How a pack was found: all of it there and right; readable, with less redundancy than it should
    have; or with fewer shards right than a read needs."""

    WHOLE = "whole"
    DEGRADED = "degraded"
    LOST = "lost"


class Started(Struct, frozen=True, tag_field="kind", tag="started"):
    """Reading has begun; ask for more with this id."""

    job: str


class Progress(Struct, frozen=True, tag_field="kind", tag="progress"):
    """So far."""

    packs: int
    packs_total: int
    bytes_read: int


class PackFinding(Struct, frozen=True, tag_field="kind", tag="pack"):
    """A pack that is not whole. Each of `faults` is a sentence: which shard, where, what."""

    pack: str
    state: PackState
    scheme: str
    faults: tuple[str, ...]


class Summary(Struct, frozen=True, tag_field="kind", tag="summary"):
    """The end of it."""

    packs: int
    whole: int
    degraded: int
    lost: int
    shards: int
    bytes_read: int
    seconds: float


class Broken(Struct, frozen=True, tag_field="kind", tag="broken"):
    """It could not go on."""

    reason: str


Line = Started | Progress | PackFinding | Summary | Broken

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def encode_line(line: Line) -> bytes:
    """As it is sent."""
    return _encoder.encode(line) + b"\n"


def decode_line(raw: bytes) -> Line:
    """As it was sent. Raises msgspec.MsgspecError."""
    return _decoder.decode(raw)
