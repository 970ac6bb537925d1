"""The two chunked codings, decoded without I/O: HTTP's own, and S3's `aws-chunked` inside it.

    chunk    size-hex [;chunk-signature=64 hex] CR LF  data  CR LF
    last     0        [;chunk-signature=64 hex] CR LF
    trailers *( name:value CR LF ) [x-amz-trailer-signature:64 hex CR LF]  CR LF

Feed bytes as they come, take the payload that they held; it does not matter where they were cut. What must
hold: one reading only. A size is plain hexadecimal digits (no `0x`, sign or space), lines end in CR LF, only
announced trailers come, the payload is as long as announced. The one buffer is a line of bounded
length; payload is passed on, never kept. A chunk's signature is checked when the chunk ends, so whoever
takes payload must not act on it before `finished`.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from enum import Enum, auto
from typing import Protocol

from holdfast.base.checksums import Buffer, feed

LINE_BYTES_MAX = 256
"""A size with a signature is 99 bytes; the longest trailer, a SHA-256 signature, is 90."""

LINES_AT_ONCE = 200
"""A line takes some microseconds: who cuts a body into chunks of one byte must not hold the event loop."""

CHUNK_SIGNED_BYTES_MIN = 8192
"""S3 refuses smaller signed chunks, except the last one with data."""

_PIECES_MAX = 16
_PLAIN_SIZE = re.compile(rb"([0-9a-fA-F]{1,10})\Z")
_SIGNED_SIZE = re.compile(rb"([0-9a-fA-F]{1,10});chunk-signature=([0-9a-f]{64})\Z")
_TRAILER = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([!-~](?:[ -~]*[!-~])?)[ \t]*\Z")
_TRAILER_SIGNATURE = "x-amz-trailer-signature"


class Fault(Enum):
    """What was wrong with the coding."""

    FRAMING = "framing"
    TOO_LONG = "too-long"
    TOO_SHORT = "too-short"
    SIGNATURE = "signature"
    TRAILER = "trailer"
    CHUNK_SIZE = "chunk-size"


class ChunkError(Exception):
    """The coding is not as it must be. Nothing that follows can be understood."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(message)
        self.fault = fault


class Signer(Protocol):
    """The signatures that a signed body must have, each made from the one before."""

    def chunk(self, sha256_hex: str) -> str:
        """The signature of the next chunk, whose data has this digest."""
        ...

    def trailer(self, trailers: bytes) -> str:
        """The signature of the trailers, each as `name:value` and a line feed."""
        ...


class _State(Enum):
    SIZE = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILERS = auto()
    FINISHED = auto()


class ChunkedDecoder:
    """Decodes one body. `length` is the announced payload length, None for HTTP's own coding;
    `signer` where chunks are signed; `trailers` the announced trailer names; `signed_trailers` where
    they end in a signature."""

    def __init__(
        self,
        *,
        length: int | None = None,
        signer: Signer | None = None,
        trailers: Sequence[str] = (),
        signed_trailers: bool = False,
    ) -> None:
        assert not signed_trailers or signer is not None, "signed trailers need a signer"
        self._length = length
        self._signer = signer
        self._announced = frozenset(trailers)
        self._signed_trailers = signed_trailers
        self._state = _State.SIZE
        self._line = b""
        self._chunk_left = 0
        self._chunk_small = False
        self._chunk_signature = ""
        self._hash = hashlib.sha256()
        self._received = 0
        self._trailer_lines = b""
        self._trailer_signed = False
        self.trailers: dict[str, str] = {}
        self.leftover = b""

    @property
    def finished(self) -> bool:
        """Whether the coding has ended, and every check of it held."""
        return self._state is _State.FINISHED

    def feed(self, data: bytes) -> list[Buffer]:
        """The payload in `data`, in order, however long that takes. Raises ChunkError. What comes after
        the end is kept in `leftover`."""
        payload: list[Buffer] = []
        at = 0
        while at < len(data):
            pieces, at = self.feed_some(data, at)
            payload += pieces
        return payload

    def feed_some(self, data: bytes, at: int = 0) -> tuple[list[Buffer], int]:
        """As `feed`, from position `at`, but returns after a bounded number of lines: the payload, and the
        position to go on from, which is the length of `data` when all of it was taken."""
        payload: list[Buffer] = []
        view = memoryview(data)
        lines = 0
        while at < len(data) and lines < LINES_AT_ONCE:
            if self._state is _State.DATA:
                piece = view[at : at + self._chunk_left]
                at += len(piece)
                self._take(piece)
                payload.append(piece)
            elif self._state is _State.FINISHED:
                self.leftover += data[at:]
                at = len(data)
            else:
                lines += 1
                line, at = self._read_line(data, at)
                if line is not None:
                    self._step(line)
        # Many small views would cost more than the bytes they show.
        return payload if len(payload) < _PIECES_MAX else [b"".join(payload)], at

    def close(self) -> None:
        """The bytes have ended. Raises ChunkError when the coding has not."""
        if self._state is not _State.FINISHED:
            raise ChunkError(Fault.TOO_SHORT, "the body ended inside the chunked coding")

    def _read_line(self, data: bytes, at: int) -> tuple[bytes | None, int]:
        end = data.find(b"\n", at)
        taken = data[at : end + 1] if end >= 0 else data[at:]
        line = self._line + taken
        if len(line) > LINE_BYTES_MAX:
            raise ChunkError(Fault.FRAMING, "a line of the chunked coding is too long")
        if end < 0:
            self._line = line
            return None, len(data)
        self._line = b""
        if not line.endswith(b"\r\n"):
            raise ChunkError(Fault.FRAMING, "a line of the chunked coding must end in CR LF")
        return line[:-2], end + 1

    def _step(self, line: bytes) -> None:
        if self._state is _State.SIZE:
            self._begin_chunk(line)
        elif self._state is _State.DATA_END:
            if line:
                raise ChunkError(Fault.FRAMING, "a chunk is longer than its size says")
            self._state = _State.SIZE
        elif line:
            self._trailer(line)
        else:
            self._end()

    def _begin_chunk(self, line: bytes) -> None:
        found = (_SIGNED_SIZE if self._signer else _PLAIN_SIZE).match(line)
        if found is None:
            raise ChunkError(Fault.FRAMING, "a chunk must begin with its size in hexadecimal digits")
        size = int(found[1], 16)
        if self._signer:
            self._chunk_signature = found[2].decode("ascii")
            self._hash = hashlib.sha256()
            if size and self._chunk_small:
                raise ChunkError(Fault.CHUNK_SIZE, "only the last chunk may be smaller than 8192 bytes")
            self._chunk_small = size < CHUNK_SIGNED_BYTES_MIN
        if self._length is not None and self._received + size > self._length:
            raise ChunkError(Fault.TOO_LONG, "the body is longer than x-amz-decoded-content-length")
        self._received += size
        self._chunk_left = size
        if size:
            self._state = _State.DATA
            return
        self._verify_chunk()
        if self._length is not None and self._received != self._length:
            raise ChunkError(Fault.TOO_SHORT, "the body is shorter than x-amz-decoded-content-length")
        self._state = _State.TRAILERS

    def _take(self, piece: memoryview) -> None:
        if self._signer:
            feed(self._hash, piece)
        self._chunk_left -= len(piece)
        if not self._chunk_left:
            self._verify_chunk()
            self._state = _State.DATA_END

    def _verify_chunk(self) -> None:
        if self._signer is None:
            return
        expected = self._signer.chunk(self._hash.hexdigest())
        if not hmac.compare_digest(expected, self._chunk_signature):
            raise ChunkError(Fault.SIGNATURE, "a chunk's signature does not match")

    def _trailer(self, line: bytes) -> None:
        found = _TRAILER.match(line)
        if found is None or self._trailer_signed:
            raise ChunkError(Fault.TRAILER, "a trailer is not well-formed")
        name, value = found[1].decode("ascii").lower(), found[2].decode("ascii")
        if name == _TRAILER_SIGNATURE and self._signed_trailers:
            assert self._signer is not None
            if not hmac.compare_digest(self._signer.trailer(self._trailer_lines), value):
                raise ChunkError(Fault.SIGNATURE, "the trailers' signature does not match")
            self._trailer_signed = True
            return
        if name not in self._announced or name in self.trailers:
            raise ChunkError(Fault.TRAILER, f"the trailer {name} was not announced, or came twice")
        self.trailers[name] = value
        self._trailer_lines += f"{name}:{value}\n".encode("ascii")

    def _end(self) -> None:
        if len(self.trailers) != len(self._announced):
            raise ChunkError(Fault.TRAILER, "an announced trailer is missing")
        if self._signed_trailers and not self._trailer_signed:
            raise ChunkError(Fault.SIGNATURE, "the trailers' signature is missing")
        self._state = _State.FINISHED
