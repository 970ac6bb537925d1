"""The shard file: header, block checksums, data region. The byte table is in `docs/formats.md`.

Each block's CRC32C starts from a seed that binds pack, shard, attempt and position, so that a block
that is right in itself but lies in the wrong place, or belongs to an older attempt, is found wrong.
The header repeats what the pack row says, so that a store can be understood without an index.
"""

import struct
from collections.abc import Sequence

from msgspec import Struct

from holdfast.base.checksums import Buffer, crc32c
from holdfast.base.errors import Damaged
from holdfast.base.ids import PACK_ID_BYTES, PackId
from holdfast.packs.layout import BLOCK_BYTES, Layout
from holdfast.scheme import Scheme

MAGIC = b"HOLDFAST"
FORMAT_VERSION = 1
_HEADER = struct.Struct("<8sHBBBxxx16sIIQII")
_CRC = struct.Struct("<I")
HEADER_BYTES = _HEADER.size + _CRC.size
TABLE_OFFSET = 64
"""Where the table of block checksums begins: four bytes a block, little-endian."""

assert HEADER_BYTES <= TABLE_OFFSET
assert PACK_ID_BYTES == 16


class ShardHeader(Struct, frozen=True):
    """What a shard file says of itself."""

    pack: PackId
    shard: int
    attempt: int
    scheme: Scheme
    payload_bytes: int
    manifest_bytes: int

    @property
    def layout(self) -> Layout:
        """The geometry of the pack."""
        return Layout(self.scheme.k, self.payload_bytes + self.manifest_bytes)


def data_offset(blocks: int) -> int:
    """Where the data region begins in a shard file of `blocks` blocks: after the table, at a block."""
    return -(-(TABLE_OFFSET + 4 * blocks) // BLOCK_BYTES) * BLOCK_BYTES


def file_bytes(blocks: int) -> int:
    """Length of a shard file of `blocks` blocks."""
    return data_offset(blocks) + blocks * BLOCK_BYTES


def binding(pack: PackId, shard: int, attempt: int) -> int:
    """The seed of block 0; block n has this plus n, modulo 2**32."""
    return crc32c(b"%b%c%b" % (pack, shard, attempt.to_bytes(4, "little")))


def block_checksums(data: Buffer, seed: int, first_block: int) -> list[int]:
    """The checksum of each block of `data`, which begins at block `first_block` of its shard."""
    view = memoryview(data)
    at = seed + first_block
    return [
        crc32c(view[offset : offset + BLOCK_BYTES], (at + number) & 0xFFFFFFFF)
        for number, offset in enumerate(range(0, len(view), BLOCK_BYTES))
    ]


def wrong_blocks(data: Buffer, table: Buffer, seed: int, first_block: int) -> list[int]:
    """Numbers of the blocks of `data` whose checksum is not what `table` (their entries) says."""
    # Compared as bytes in one step: the ordinary case is that all is well.
    found = block_checksums(data, seed, first_block)
    if pack_table(found) == bytes(table):
        return []
    said = struct.unpack(f"<{len(found)}I", table)
    return [first_block + number for number, value in enumerate(found) if value != said[number]]


def pack_table(checksums: Sequence[int]) -> bytes:
    """Table entries as bytes."""
    return struct.pack(f"<{len(checksums)}I", *checksums)


def encode_head(header: ShardHeader, checksums: Sequence[int]) -> bytes:
    """Header, table and filling: all of a shard file before its data region."""
    fixed = _HEADER.pack(
        MAGIC,
        FORMAT_VERSION,
        header.scheme.k,
        header.scheme.m,
        header.shard,
        header.pack,
        header.attempt,
        header.manifest_bytes,
        header.payload_bytes,
        len(checksums),
        BLOCK_BYTES,
    )
    head = fixed + _CRC.pack(crc32c(fixed))
    return (head.ljust(TABLE_OFFSET, b"\0") + pack_table(checksums)).ljust(data_offset(len(checksums)), b"\0")


def check_head(head: Buffer, expected: ShardHeader, file_bytes_found: int, where: str) -> None:
    """Whether all of a shard file but its blocks and their checksums, which prove each other, is what was
    written: the header, the filling before the data region, the length of the file. `head` is what lies
    before the data region. Raises Damaged, naming `where`."""
    if decode_header(head, where) != expected:
        raise Damaged(f"The header of {where} belongs to something else.")
    blocks = expected.layout.blocks
    table_end = TABLE_OFFSET + 4 * blocks
    assert len(head) == data_offset(blocks)
    filling = bytes(head[HEADER_BYTES:TABLE_OFFSET]) + bytes(head[table_end:])
    if filling.strip(b"\0"):
        raise Damaged(f"{where} has something in its filling, where zeros were written.")
    if file_bytes_found != file_bytes(blocks):
        raise Damaged(
            f"{where} has {file_bytes_found} bytes, not the {file_bytes(blocks)} that were written."
        )


def decode_header(data: Buffer, where: str) -> ShardHeader:
    """The header at the start of a shard file. Raises Damaged, naming `where`."""
    if len(data) < HEADER_BYTES:
        raise Damaged(f"{where} is too short for a shard header.", bytes=len(data))
    fixed = bytes(data[: _HEADER.size])
    (crc,) = _CRC.unpack(bytes(data[_HEADER.size : HEADER_BYTES]))
    magic, version, k, m, shard, pack, attempt, manifest, payload, blocks, block = _HEADER.unpack(fixed)
    if magic != MAGIC or crc != crc32c(fixed):
        raise Damaged(f"{where} does not begin with a valid shard header.")
    if version != FORMAT_VERSION or block != BLOCK_BYTES:
        raise Damaged(
            f"{where} has shard format {version} with blocks of {block} bytes,",
            hint=f"this version reads format {FORMAT_VERSION} with {BLOCK_BYTES}.",
        )
    header = ShardHeader(PackId(pack), shard, attempt, Scheme(k, m), payload, manifest)
    if k < 1 or payload + manifest < 1 or header.layout.blocks != blocks:
        raise Damaged(f"{where} has a header that contradicts itself.")
    return header
