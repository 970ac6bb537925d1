"""The byte regions of durable files, taken from the code that writes them.

A field that is added to a format is a region more, without anybody thinking of it; and each list must cover
its file without gaps (`tests/unit/test_corruption_regions.py`), so that no byte is left untested.
"""

import re
import struct
from itertools import pairwise
from typing import NamedTuple

from holdfast.packs import format as shards
from holdfast.packs.layout import BLOCK_BYTES


class Region(NamedTuple):
    """Bytes `start` to `end` of a file, and what they are."""

    name: str
    start: int
    end: int


def fields(name: str, layout: struct.Struct, start: int) -> list[Region]:
    """One region for each field of a packed structure, filling included."""
    found = []
    for count, code in re.findall(r"(\d*)([a-zA-Z?])", layout.format):
        size = struct.calcsize(f"<{count}{code}")
        pieces = 1 if code in "sx" else int(count or 1)
        for _ in range(pieces):
            found.append(Region(f"{name} byte {start}", start, start + size // pieces))
            start += size // pieces
    return found


def split(name: str, start: int, end: int, unit: int) -> list[Region]:
    """First, inner and last unit of a stretch of equal units; nothing when it is empty."""
    count = (end - start) // unit
    assert start + count * unit == end
    edges = sorted({0, min(1, count), min(2, count), max(0, count - 1), count})
    return [
        Region(f"{name} {low} to {high}", start + low * unit, start + high * unit)
        for low, high in pairwise(edges)
    ]


def whole(name: str, start: int, end: int) -> list[Region]:
    """One region, if there is a byte in it."""
    return [Region(name, start, end)] if end > start else []


def shard_regions(blocks: int) -> list[Region]:
    """Of a shard file of `blocks` blocks."""
    data = shards.data_offset(blocks)
    table_end = shards.TABLE_OFFSET + 4 * blocks
    return [
        *fields("header", shards._HEADER, 0),
        *fields("header checksum", shards._CRC, shards._HEADER.size),
        *whole("filling behind the header", shards.HEADER_BYTES, shards.TABLE_OFFSET),
        *split("checksum", shards.TABLE_OFFSET, table_end, 4),
        *whole("filling behind the checksums", table_end, data),
        *split("block", data, shards.file_bytes(blocks), BLOCK_BYTES),
    ]
