"""The chunked codings: one reading only, whatever the cuts.

Examples: Amazon S3 API Reference, "Signature Calculations: Transferring Payload in Multiple Chunks".
"""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.s3.chunk_signing import ChunkSigner
from holdfast.s3.sigv4 import signing_key
from holdfast.wire.chunked import ChunkedDecoder, ChunkError, Fault

KEY = signing_key("wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", "20130524", "us-east-1", "s3")
SCOPE = "20130524/us-east-1/s3/aws4_request"
CUTS = [1, 7, 1000, 1 << 20]


def signer(seed: str) -> ChunkSigner:
    return ChunkSigner(KEY, seed, "20130524T000000Z", SCOPE)


def aws_example() -> tuple[bytes, ChunkedDecoder]:
    wire = b"".join(
        b"%x;chunk-signature=%s\r\n%s\r\n" % (len(data), signature, data)
        for data, signature in [
            (b"a" * 65536, b"ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648"),
            (b"a" * 1024, b"0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497"),
            (b"", b"b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9"),
        ]
    )
    seed = "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
    return wire, ChunkedDecoder(length=66560, signer=signer(seed))


def aws_trailer_example() -> tuple[bytes, ChunkedDecoder]:
    wire = b"".join(
        b"%x;chunk-signature=%s\r\n%s%s" % (len(data), signature, data, b"\r\n" if data else b"")
        for data, signature in [
            (b"a" * 65536, b"b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2"),
            (b"a" * 1024, b"1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7"),
            (b"", b"2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992"),
        ]
    )
    wire += (
        b"x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:"
        b"d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n\r\n"
    )
    seed = "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
    decoder = ChunkedDecoder(
        length=66560, signer=signer(seed), trailers=("x-amz-checksum-crc32c",), signed_trailers=True
    )
    return wire, decoder


def feed(decoder: ChunkedDecoder, wire: bytes, cut: int = 1 << 30) -> bytes:
    out = []
    for at in range(0, len(wire), cut):
        out += [bytes(piece) for piece in decoder.feed(wire[at : at + cut])]
    return b"".join(out)


def feed_all(decoder: ChunkedDecoder, wire: bytes, cut: int = 1 << 30) -> None:
    feed(decoder, wire, cut)
    decoder.close()


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("make", [aws_example, aws_trailer_example])
def test_published_examples_hold_however_they_are_cut(make, cut: int) -> None:  # type: ignore[no-untyped-def]
    wire, decoder = make()
    assert feed(decoder, wire, cut) == b"a" * 66560
    assert decoder.finished
    decoder.close()


@pytest.mark.parametrize("make", [aws_example, aws_trailer_example])
def test_one_changed_byte_breaks_a_signature_or_the_framing(make) -> None:  # type: ignore[no-untyped-def]
    wire, _ = make()
    for at in [0, 30, 90, 5000, 65700, len(wire) - 70, len(wire) - 1]:
        _, decoder = make()
        changed = wire[:at] + bytes([wire[at] ^ 1]) + wire[at + 1 :]
        with pytest.raises(ChunkError):
            feed_all(decoder, changed)


def test_chunks_cannot_change_places() -> None:
    wire, decoder = aws_example()
    first = wire.index(b"\r\n400;") + 2
    last = wire.index(b"0;chunk-signature=b6c6")
    with pytest.raises(ChunkError) as caught:
        feed(decoder, wire[first:last] + wire[:first] + wire[last:])
    assert caught.value.fault is Fault.SIGNATURE


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=300), max_size=6),
    cuts=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    leftover=st.binary(max_size=20),
)
def test_any_payload_survives_any_cutting(chunks: list[bytes], cuts: list[int], leftover: bytes) -> None:
    wire = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in chunks)
    wire += b"0\r\nx-amz-checksum-crc32:AAAAAA==\r\n\r\n" + leftover
    decoder = ChunkedDecoder(length=sum(map(len, chunks)), trailers=("x-amz-checksum-crc32",))
    out, at, n = b"", 0, 0
    while at < len(wire):
        step = cuts[n % len(cuts)]
        out += b"".join(bytes(piece) for piece in decoder.feed(wire[at : at + step]))
        at, n = at + step, n + 1
    assert out == b"".join(chunks)
    assert decoder.finished
    assert decoder.leftover == leftover
    assert decoder.trailers == {"x-amz-checksum-crc32": "AAAAAA=="}


@given(st.binary(max_size=200))
def test_noise_is_decoded_or_refused_and_never_anything_else(noise: bytes) -> None:
    decoder = ChunkedDecoder(length=100)
    try:
        decoder.feed(noise)
        decoder.close()
    except ChunkError:
        return
    assert decoder.finished


@pytest.mark.parametrize(
    ("wire", "fault"),
    [
        (b"0x3\r\nabc\r\n0\r\n\r\n", Fault.FRAMING),
        (b"+3\r\nabc\r\n0\r\n\r\n", Fault.FRAMING),
        (b"-3\r\nabc\r\n0\r\n\r\n", Fault.FRAMING),
        (b" 3\r\nabc\r\n0\r\n\r\n", Fault.FRAMING),
        (b"3 \r\nabc\r\n0\r\n\r\n", Fault.FRAMING),
        (b"3\nabc\r\n0\r\n\r\n", Fault.FRAMING),
        (b"3\r\r\nabc\r\n0\r\n\r\n", Fault.FRAMING),
        (b"\r\nabc\r\n0\r\n\r\n", Fault.FRAMING),
        (b"3;x=y\r\nabc\r\n0\r\n\r\n", Fault.FRAMING),
        (b"3\r\nabcd\r\n0\r\n\r\n", Fault.FRAMING),
        (b"2\r\nabc\r\n0\r\n\r\n", Fault.FRAMING),
        (b"0000000000003\r\nabc\r\n0\r\n\r\n", Fault.FRAMING),
        (b"f" * 300, Fault.FRAMING),
        (b"4\r\nabcd\r\n0\r\n\r\n", Fault.TOO_LONG),
        (b"ffffffffff\r\n", Fault.TOO_LONG),
        (b"2\r\nab\r\n0\r\n\r\n", Fault.TOO_SHORT),
        (b"3\r\nab", Fault.TOO_SHORT),
        (b"3\r\nabc\r\n0\r\n", Fault.TOO_SHORT),
        (b"3\r\nabc\r\n0\r\nx-amz-checksum-crc32:AAAA\r\n\r\n", Fault.TRAILER),
        (b"3\r\nabc\r\n0\r\nnonsense\r\n\r\n", Fault.TRAILER),
    ],
)
@pytest.mark.parametrize("cut", [1, 1000])
def test_wrong_framing_is_refused(wire: bytes, fault: Fault, cut: int) -> None:
    decoder = ChunkedDecoder(length=3)
    with pytest.raises(ChunkError) as caught:
        feed_all(decoder, wire, cut)
    assert caught.value.fault is fault


def test_an_announced_trailer_must_come_and_only_once() -> None:
    name = "x-amz-checksum-crc32"
    for trailers in ["", f"{name}:a\r\n{name}:a\r\n"]:
        decoder = ChunkedDecoder(length=0, trailers=(name,))
        with pytest.raises(ChunkError) as caught:
            feed(decoder, f"0\r\n{trailers}\r\n".encode())
        assert caught.value.fault is Fault.TRAILER


def test_signed_trailers_need_their_signature() -> None:
    wire, decoder = aws_trailer_example()
    with pytest.raises(ChunkError) as caught:
        feed(decoder, wire[: wire.index(b"x-amz-trailer-signature")] + b"\r\n")
    assert caught.value.fault is Fault.SIGNATURE


def test_small_signed_chunks_are_refused_except_the_last() -> None:
    chain = signer("0" * 64)
    wire = b""
    for _ in range(2):
        signature = chain.chunk(hashlib.sha256(b"x").hexdigest())
        wire += f"1;chunk-signature={signature}\r\nx\r\n".encode()
    with pytest.raises(ChunkError) as caught:
        feed(ChunkedDecoder(length=2, signer=signer("0" * 64)), wire)
    assert caught.value.fault is Fault.CHUNK_SIZE
