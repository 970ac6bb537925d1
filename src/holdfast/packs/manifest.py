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


class Manifest(Struct, frozen=True, array_like=True):
    """All of it. `incarnation` and `revision` say how far the index was when the pack was begun; without
    them (packs of an older version) the pack's age is not known. They are what tells a pack that was
    committed after the last piece of the journal from one that a crash left behind long before."""

    version: int
    entries: tuple[ManifestEntry, ...]
    incarnation: str = ""
    revision: int = 0


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Manifest)


def encode_manifest(entries: Sequence[ManifestEntry], incarnation: str = "", revision: int = 0) -> bytes:
    """The manifest's bytes."""
    body = _encoder.encode(Manifest(MANIFEST_VERSION, tuple(entries), incarnation, revision))
    return _CRC.pack(crc32c(body)) + body


def decode_manifest(data: Buffer, where: str) -> tuple[ManifestEntry, ...]:
    """The entries of a manifest. Raises Damaged, naming `where`."""
    return decode_manifest_whole(data, where).entries


def decode_manifest_whole(data: Buffer, where: str) -> Manifest:
    """A manifest with what it says of its pack. Raises Damaged, naming `where`."""
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
    return manifest
