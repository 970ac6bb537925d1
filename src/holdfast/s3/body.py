"""Request bodies, unwrapped and checked: what handlers give to objects.

A small body is read whole, so that objects get one buffer and every check is done before they are
called. A large one streams: pieces go on as they come, and the end of iteration says that framing, chunk
signatures, length and the signed digest held. Checksums and Content-MD5 are objects' to compute; what the
client claimed of them is in `expected()`.
"""

import base64
import hashlib
from collections.abc import AsyncIterator

from holdfast.base.checksums import Buffer, ChecksumAlgorithm, feed, new_hasher, new_md5
from holdfast.objects.model import BODY_BYTES_MAX, ExpectedDigests
from holdfast.s3.chunk_signing import ChunkSigner
from holdfast.s3.digests import Announced, parse_announced, parse_checksum
from holdfast.s3.errors import Code, S3Error
from holdfast.s3.sigv4 import Payload, Signed
from holdfast.wire.chunked import ChunkedDecoder, ChunkError, Fault
from holdfast.wire.exchange import Exchange
from holdfast.wire.http import Head

WHOLE_BYTES_MAX = 128 << 10
"""Bodies up to this size are read before anything is done with them."""

_FAULTS = {
    Fault.FRAMING: Code.INVALID_REQUEST,
    Fault.TOO_LONG: Code.INCOMPLETE_BODY,
    Fault.TOO_SHORT: Code.INCOMPLETE_BODY,
    Fault.SIGNATURE: Code.SIGNATURE_DOES_NOT_MATCH,
    Fault.TRAILER: Code.MALFORMED_TRAILER,
    Fault.CHUNK_SIZE: Code.INVALID_CHUNK_SIZE,
}
_CHUNKED = frozenset(
    {Payload.STREAMING_SIGNED, Payload.STREAMING_SIGNED_TRAILER, Payload.STREAMING_UNSIGNED_TRAILER}
)
_WITH_TRAILER = frozenset({Payload.STREAMING_SIGNED_TRAILER, Payload.STREAMING_UNSIGNED_TRAILER})


class _Unwrapper:
    """Takes the coding off a body and checks what the signature says of it. No I/O."""

    def __init__(self, announced: Announced, signed: Signed, length: int) -> None:
        self._announced = announced
        self._sha256 = signed.sha256
        self._hash = hashlib.sha256() if signed.sha256 else None
        self._decoder: ChunkedDecoder | None = None
        if signed.payload in _CHUNKED:
            signer = None
            if signed.payload is not Payload.STREAMING_UNSIGNED_TRAILER:
                signer = ChunkSigner(signed.signing_key, signed.signature, signed.amz_date, signed.scope)
            self._decoder = ChunkedDecoder(
                length=length,
                signer=signer,
                trailers=announced.trailers,
                signed_trailers=signed.payload is Payload.STREAMING_SIGNED_TRAILER,
            )

    @property
    def plain(self) -> bool:
        """Whether the body is its own payload."""
        return self._decoder is None

    def take(self, data: Buffer) -> Buffer:
        """Note bytes of the body."""
        if self._hash is not None:
            feed(self._hash, data)
        return data

    async def decode(self, data: Buffer, exchange: Exchange) -> AsyncIterator[Buffer]:
        """The payload in `data`, with pauses for others where it is cut very small. Raises S3Error."""
        decoder = self._decoder
        assert decoder is not None, "asked for a body that is not plain"
        coded = data if isinstance(data, bytes) else bytes(data)
        at = 0
        while at < len(coded):
            if at:
                await exchange.let_others()
            try:
                pieces, at = decoder.feed_some(coded, at)
            except ChunkError as error:
                raise S3Error(_FAULTS[error.fault], _sentence(error)) from None
            for piece in pieces:
                yield piece
        if decoder.leftover:
            raise S3Error(Code.INCOMPLETE_BODY, "The body goes on after its last chunk.")

    def finish(self) -> None:
        """The body has ended. Raises S3Error when a check does not hold."""
        if self._decoder is not None:
            try:
                self._decoder.close()
            except ChunkError as error:
                raise S3Error(_FAULTS[error.fault], _sentence(error)) from None
        if self._hash is not None and self._hash.hexdigest() != self._sha256:
            raise S3Error(
                Code.SHA256_MISMATCH,
                ClientComputedContentSHA256=self._sha256,
                S3ComputedContentSHA256=self._hash.hexdigest(),
            )

    def expected(self) -> ExpectedDigests:
        """What the client claimed, trailers included. Raises InvalidRequest for a malformed one."""
        announced = self._announced
        checksum = announced.checksum
        if announced.trailers:
            assert self._decoder is not None
            assert announced.algorithm is not None
            name = announced.trailers[0]
            checksum = parse_checksum(announced.algorithm, self._decoder.trailers[name], name)
        return ExpectedDigests(announced.md5, checksum, announced.algorithm)


class WholeBody:
    """A body that is all here, checked."""

    __slots__ = ("_data", "_expected", "_taken")

    def __init__(self, data: Buffer, expected: ExpectedDigests) -> None:
        self._data = data
        self._expected = expected
        self._taken = False

    @property
    def length(self) -> int:
        return len(self._data)

    @property
    def algorithm(self) -> ChecksumAlgorithm | None:
        return self._expected.algorithm

    def expected(self) -> ExpectedDigests:
        return self._expected

    @property
    def data(self) -> Buffer:
        """All of it."""
        return self._data

    def __aiter__(self) -> AsyncIterator[Buffer]:
        return self

    async def __anext__(self) -> Buffer:
        if self._taken or not self._data:
            raise StopAsyncIteration
        self._taken = True
        return self._data


class StreamedBody:
    """A body that is still coming."""

    def __init__(self, exchange: Exchange, length: int, announced: Announced, signed: Signed) -> None:
        self._exchange = exchange
        self._length = length
        self._algorithm = announced.algorithm
        self._unwrapper = _Unwrapper(announced, signed, length)

    @property
    def length(self) -> int:
        return self._length

    @property
    def algorithm(self) -> ChecksumAlgorithm | None:
        return self._algorithm

    def expected(self) -> ExpectedDigests:
        return self._unwrapper.expected()

    async def __aiter__(self) -> AsyncIterator[Buffer]:
        exchange, unwrapper = self._exchange, self._unwrapper
        while data := await exchange.read():
            unwrapper.take(data)
            if unwrapper.plain:
                yield data
            else:
                async for piece in unwrapper.decode(data, exchange):
                    yield piece
        unwrapper.finish()


async def open_body(exchange: Exchange, signed: Signed) -> WholeBody | StreamedBody:
    """The body of a request that must have one. Raises MissingContentLength, EntityTooLarge, and what
    is wrong with its digests."""
    head = exchange.head
    announced = parse_announced(head.headers)
    if bool(announced.trailers) != (signed.payload in _WITH_TRAILER):
        raise S3Error(
            Code.INVALID_REQUEST, "x-amz-trailer and a STREAMING-...-TRAILER payload belong together."
        )
    length = _body_length(head, signed)
    if length > BODY_BYTES_MAX:
        raise S3Error(Code.ENTITY_TOO_LARGE, ProposedSize=str(length), MaxSizeAllowed=str(BODY_BYTES_MAX))
    if length > WHOLE_BYTES_MAX:
        return StreamedBody(exchange, length, announced, signed)
    unwrapper = _Unwrapper(announced, signed, length)
    whole = exchange.read_now()
    pieces: list[Buffer] = []
    while data := await exchange.read() if whole is None else whole:
        unwrapper.take(data)
        if unwrapper.plain:
            pieces.append(data)
        else:
            pieces += [piece async for piece in unwrapper.decode(data, exchange)]
        if whole is not None:
            break
    unwrapper.finish()
    return WholeBody(pieces[0] if len(pieces) == 1 else b"".join(pieces), unwrapper.expected())


def check_digests(data: Buffer, expected: ExpectedDigests) -> None:
    """For documents, which the face reads itself. Raises BadDigest."""
    if expected.md5 is not None:
        hasher = new_md5()
        feed(hasher, data)
        if hasher.digest() != expected.md5:
            raise S3Error(
                Code.BAD_DIGEST,
                "The Content-MD5 you specified did not match what we received.",
                ExpectedDigest=base64.b64encode(expected.md5).decode("ascii"),
            )
    if expected.checksum is not None:
        checksum = new_hasher(expected.checksum.algorithm)
        feed(checksum, data)
        if checksum.digest() != expected.checksum.value:
            raise S3Error(
                Code.BAD_DIGEST,
                f"The {expected.checksum.algorithm.value} you specified did not match what we received.",
            )


def _body_length(head: Head, signed: Signed) -> int:
    if signed.payload not in _CHUNKED:
        if head.length is None:
            raise S3Error(Code.MISSING_CONTENT_LENGTH)
        return head.length
    if head.length is None and not head.chunked:
        raise S3Error(Code.MISSING_CONTENT_LENGTH)
    text = head.headers.get("x-amz-decoded-content-length")
    if text is None:
        raise S3Error(
            Code.MISSING_CONTENT_LENGTH, "You must provide the x-amz-decoded-content-length HTTP header."
        )
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise S3Error(
            Code.INVALID_ARGUMENT,
            "x-amz-decoded-content-length must be a whole number.",
            ArgumentName="x-amz-decoded-content-length",
            ArgumentValue=text,
        )
    return int(text)


def _sentence(error: ChunkError) -> str:
    text = str(error)
    return f"{text[0].upper()}{text[1:]}."
