"""The sealed form of a blob: its header, its frames, and where they lie (docs/formats-cloud.md). Pure.

What must hold: a data key seals one blob, each frame number once, so that no nonce repeats under it; and
nothing opens but what was sealed by that one put, under that name, at that place, as the last frame or not.
"""

import struct
from collections.abc import Iterator, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap, aes_key_wrap

from holdfast.base.checksums import Buffer, crc32c
from holdfast.stores.port import ShardSpoiled, StoreFailed
from holdfast.stores.sealing.keys import KEY_BYTES, KEY_ID_BYTES, Key, KeyMissing, KeyRing

FRAME_BYTES = 16 << 10
TAG_BYTES = 16
HEADER_BYTES = 96
VERSION = 1
MAGIC = b"HFSEALED"

_FIELDS = struct.Struct(f"<8sI{KEY_ID_BYTES}sQ{KEY_BYTES + 8}s")
_CRC = struct.Struct("<I")
_NONCE = struct.Struct("<IB7x")
_HEADER_NONCE = b"\xff" * 12
_FRAMES_MAX = 1 << 32
BYTES_MAX = _FRAMES_MAX * FRAME_BYTES
"""The longest blob: frame numbers have 4 bytes in a nonce."""

assert _FIELDS.size + TAG_BYTES + _CRC.size == HEADER_BYTES
assert len(_HEADER_NONCE) == _NONCE.size == 12
assert _HEADER_NONCE[4] not in (0, 1), "that byte tells the header's nonce from those of frames"


def frames_of(length: int) -> int:
    """How many frames a plain blob of `length` bytes has; an empty one has one."""
    return max(1, -(-length // FRAME_BYTES))


def sealed_bytes(length: int) -> int:
    """The sealed size of a plain blob of `length` bytes."""
    return HEADER_BYTES + length + TAG_BYTES * frames_of(length)


def plain_bytes(sealed: int) -> int | None:
    """The plain size of a sealed blob of `sealed` bytes; None when no sealed blob has that size."""
    body = sealed - HEADER_BYTES
    frames = -(-body // (FRAME_BYTES + TAG_BYTES))
    length = body - TAG_BYTES * frames
    return length if frames >= 1 and length >= 0 and sealed_bytes(length) == sealed else None


def plain_that_fits(room: int) -> int:
    """The longest plain blob that has at most `room` bytes sealed; 0 also where none fits."""
    body = room - HEADER_BYTES
    frames, rest = divmod(max(0, body), FRAME_BYTES + TAG_BYTES)
    return frames * FRAME_BYTES + max(0, rest - TAG_BYTES)


class OpenedBlob:
    """What a header says, proven to be right: the length of the plain blob, and how its frames open."""

    __slots__ = ("_cipher", "_context", "length", "name")

    def __init__(self, name: str, length: int, cipher: AESGCM, context: bytes) -> None:
        self.name = name
        self.length = length
        self._cipher = cipher
        self._context = context

    def frame_bytes(self, number: int) -> int:
        """Plain bytes of a frame."""
        return min(FRAME_BYTES, self.length - number * FRAME_BYTES)

    def stretch(self, first: int, end: int) -> tuple[int, int]:
        """Where the frames from `first` up to `end` lie in the sealed blob: offset and length."""
        plain = min(end * FRAME_BYTES, self.length) - first * FRAME_BYTES
        return HEADER_BYTES + first * (FRAME_BYTES + TAG_BYTES), plain + (end - first) * TAG_BYTES

    def open(self, number: int, sealed: Buffer) -> bytes:
        """The plain bytes of a frame. Raises ShardSpoiled."""
        last = number == frames_of(self.length) - 1
        try:
            return self._cipher.decrypt(_NONCE.pack(number, last), sealed, self._context)
        except InvalidTag:
            raise ShardSpoiled(
                f"Frame {number} of sealed blob {self.name} is not what was put.", name=self.name
            ) from None


def seal_blob(name: str, data: Sequence[Buffer], length: int, key: Key, data_key: bytes) -> Iterator[bytes]:
    """The header, then each frame, of the plain blob that the pieces of `data` are together. `data_key` is
    drawn for this call and never used for another."""
    assert len(data_key) == KEY_BYTES
    assert length <= BYTES_MAX
    cipher = AESGCM(data_key)
    fields = _FIELDS.pack(MAGIC, VERSION, key.id, length, aes_key_wrap(key.wrapping, data_key))
    bound = name.encode("ascii")
    header = fields + cipher.encrypt(_HEADER_NONCE, b"", fields + bound)
    header += _CRC.pack(crc32c(header + bound))
    yield header
    context = header + bound
    last = frames_of(length) - 1
    number = -1
    for number, frame in enumerate(_cut(data)):
        yield cipher.encrypt(_NONCE.pack(number, number == last), frame, context)
    assert number == last, "the pieces are not as long as was said"


def key_id_of(name: str, header: Buffer) -> bytes:
    """The id of the key that a header names; by its CRC-32C alone. Raises ShardSpoiled, StoreFailed."""
    assert len(header) == HEADER_BYTES
    raw = bytes(header)
    (crc,) = _CRC.unpack_from(raw, HEADER_BYTES - _CRC.size)
    if raw[: len(MAGIC)] != MAGIC or crc != crc32c(raw[: -_CRC.size] + name.encode("ascii")):
        raise ShardSpoiled(f"Blob {name} does not begin with the header of a sealed blob.", name=name)
    _, version, key_id, _, _ = _FIELDS.unpack_from(raw)
    if version != VERSION:
        raise StoreFailed(
            f"Blob {name} is sealed in version {version}, and this Holdfast knows version {VERSION}.",
            hint="Use the version of Holdfast that wrote it, or a newer one.",
            name=name,
        )
    return bytes(key_id)


def open_header(name: str, header: Buffer, ring: KeyRing) -> OpenedBlob:
    """The blob of a header. Raises ShardSpoiled, KeyMissing, StoreFailed (a version that is not known)."""
    key_id = key_id_of(name, header)
    key = ring.find(key_id)
    if key is None:
        raise KeyMissing(
            f"Blob {name} is sealed with key {key_id.hex()}, which is not in the key ring.",
            hint="Put the key ring back that has it.",
            name=name,
            key=key_id.hex(),
        )
    raw = bytes(header)
    _, _, _, length, wrapped = _FIELDS.unpack_from(raw)
    bound = name.encode("ascii")
    tag = raw[_FIELDS.size : _FIELDS.size + TAG_BYTES]
    try:
        cipher = AESGCM(aes_key_unwrap(key.wrapping, wrapped))
        cipher.decrypt(_HEADER_NONCE, tag, raw[: _FIELDS.size] + bound)
    except (InvalidUnwrap, InvalidTag):
        raise ShardSpoiled(f"The header of sealed blob {name} is not what was put.", name=name) from None
    return OpenedBlob(name, length, cipher, raw + bound)


def _cut(data: Sequence[Buffer]) -> Iterator[Buffer]:
    """The pieces, cut anew into frames; one empty frame for an empty blob."""
    waiting = bytearray()
    yielded = False
    for piece in data:
        view = memoryview(piece).cast("B")
        at = 0
        if waiting:
            at = min(len(view), FRAME_BYTES - len(waiting))
            waiting += view[:at]
            if len(waiting) < FRAME_BYTES:
                continue
            yield bytes(waiting)
            yielded = True
            waiting.clear()
        while len(view) - at >= FRAME_BYTES:
            yield view[at : at + FRAME_BYTES]
            yielded = True
            at += FRAME_BYTES
        waiting += view[at:]
    if waiting or not yielded:
        yield bytes(waiting)
