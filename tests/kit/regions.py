"""The byte regions of durable files, taken from the code that writes them.

A field that is added to a format is a region more, without anybody thinking of it; and each list must cover
its file without gaps (`assert_covers`), so that no byte is left untested.
"""

import re
import struct
from itertools import pairwise
from typing import NamedTuple

from holdfast.index.sqlite import checkpoint, records
from holdfast.index.sqlite.scan import MEMBER_FILE, MEMBER_HEADER_BYTES, PROMISE_BYTES
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


def index_regions(name: str, content: bytes) -> list[Region]:
    """Of a file of an index member, by its name. The file must be whole: its own lengths are followed."""
    if name == MEMBER_FILE:
        return _member_regions(content)
    if name.startswith("log-"):
        return _segment_regions(content)
    if name.startswith("checkpoint-"):
        return _checkpoint_regions(content)
    return whole("all of it", 0, len(content))


def _member_regions(content: bytes) -> list[Region]:
    found = split("header", 0, MEMBER_HEADER_BYTES, 4)
    return found + split("promise", MEMBER_HEADER_BYTES, len(content), PROMISE_BYTES)


def _segment_regions(content: bytes) -> list[Region]:
    found = fields("segment header", records._SEGMENT, 0)
    found += whole("filling of the header", records._SEGMENT.size, records.SEGMENT_HEADER_BYTES)
    at = records.SEGMENT_HEADER_BYTES
    while content[at : at + 4] == records._FRAME_MAGIC:
        length = records._FRAME.unpack_from(content, at)[1]
        found += fields("frame header", records._FRAME, at)
        begin = at + records.FRAME_HEADER_BYTES
        end, at = begin + length, at + records.frame_bytes(length)
        while begin < end:
            body = begin + records.RECORD_HEADER_BYTES
            found += fields("record header", records._RECORD, begin)
            begin = body + records._RECORD.unpack_from(content, begin)[0]
            found += whole("record", body, begin)
        found += whole("filling of the frame", end, at)
    return found + whole("zeros to come", at, len(content))


def _checkpoint_regions(content: bytes) -> list[Region]:
    found = fields("head", checkpoint._HEAD, 0)
    end = checkpoint._HEAD.size + checkpoint._HEAD.unpack_from(content)[1]
    found += whole("where it stands", checkpoint._HEAD.size, end)
    found += whole("head checksum", end, end + 4)
    found += whole("filling of the head", end + 4, checkpoint.HEAD_BYTES)
    at = checkpoint.HEAD_BYTES
    while at < len(content):
        length = checkpoint._BLOCK.unpack_from(content, at)[1]
        found += fields("block head", checkpoint._BLOCK, at)
        at += checkpoint.BLOCK_HEAD_BYTES
        end = at + length
        if content[at - checkpoint.BLOCK_HEAD_BYTES :][:4] != checkpoint._BLOCK_MAGIC:
            found += whole("how many rows", at, end)
            at = end
        while at < end:
            keys, values, _ = checkpoint._ROW.unpack_from(content, at)
            found += fields("row head", checkpoint._ROW, at)
            at += checkpoint._ROW.size
            found += whole("key", at, at + keys) + whole("value", at + keys, at + keys + values)
            at += keys + values
    return found


def assert_covers(regions: list[Region], size: int) -> None:
    """From the first byte to the last without gaps."""
    at = 0
    for region in regions:
        assert region.start == at, f"{region.name} begins at {region.start}, the one before ends at {at}"
        assert region.end > region.start, region.name
        at = region.end
    assert at == size


_SQLITE_HEADER = struct.Struct(">16sHBBBBBBIIIIIIIIIIIII20sII")
_PAGE_HEADER = struct.Struct(">BHHHB")
_WAL_HEADER = struct.Struct(">IIIIIIII")
_WAL_FRAME = struct.Struct(">IIIIII")
"""From SQLite's documentation of its file format; that of pages is for leaves."""


def sqlite_regions(name: str, content: bytes) -> list[Region]:
    """Of a copy of the rows: its pages, its write-ahead log, the shared memory beside it."""
    if name.endswith("-shm"):
        return split("shared memory", 0, len(content), 4096)
    if name.endswith("-wal"):
        return _wal_regions(content)
    page = int.from_bytes(content[16:18], "big")
    found = fields("database header", _SQLITE_HEADER, 0)
    for start in range(0, len(content), page):
        begin = start or _SQLITE_HEADER.size
        cells = begin + _PAGE_HEADER.size
        found += fields("page header", _PAGE_HEADER, begin)
        found += whole("cell pointers", cells, cells + 64) + whole("cells", cells + 64, start + page)
    return found


def _wal_regions(content: bytes) -> list[Region]:
    if not content:
        return []
    page = int.from_bytes(content[8:12], "big")
    found = fields("log header", _WAL_HEADER, 0)
    for start in range(_WAL_HEADER.size, len(content), _WAL_FRAME.size + page):
        found += fields("frame header", _WAL_FRAME, start)
        found += whole("frame", start + _WAL_FRAME.size, start + _WAL_FRAME.size + page)
    return found
