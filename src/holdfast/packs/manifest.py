"""The manifest: what a pack says of the pieces inside it, after its payload, protected like data.

Msgpack of `[version, [entry, ...]]`, with a CRC32C in front. It is what a store can be understood by
when the index is gone.
"""

import struct
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from holdfast.base.checksums import Buffer, crc32c
from holdfast.base.errors import Damaged
from holdfast.packs.model import ManifestEntry

MANIFEST_VERSION = 1
_CRC = struct.Struct("<I")


class _Manifest(Struct, frozen=True, array_like=True):
    version: int
    entries: tuple[ManifestEntry, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Manifest)


def encode_manifest(entries: Sequence[ManifestEntry]) -> bytes:
    """The manifest's bytes."""
    body = _encoder.encode(_Manifest(MANIFEST_VERSION, tuple(entries)))
    return _CRC.pack(crc32c(body)) + body


def decode_manifest(data: Buffer, where: str) -> tuple[ManifestEntry, ...]:
    """The entries of a manifest. Raises Damaged, naming `where`."""
    body = bytes(data[_CRC.size :])
    if len(data) < _CRC.size or _CRC.unpack(bytes(data[: _CRC.size]))[0] != crc32c(body):
        raise Damaged(f"The manifest of {where} is damaged.")
    try:
        manifest = _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise Damaged(f"The manifest of {where} cannot be read: {error}.") from error
    if manifest.version != MANIFEST_VERSION:
        raise Damaged(
            f"The manifest of {where} has version {manifest.version},",
            hint=f"this version of Holdfast reads {MANIFEST_VERSION}.",
        )
    return manifest.entries
