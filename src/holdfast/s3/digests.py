"""The digests that a client says its body has: Content-MD5 and S3's five checksums, in headers or trailers.
Pure.

What must hold: a digest that was sent is either understood or refused, never skipped.
"""

import base64
import binascii
from collections.abc import Mapping
from typing import NamedTuple

from holdfast.base.checksums import ChecksumAlgorithm
from holdfast.objects.model import Checksum
from holdfast.s3.errors import Code, S3Error

_HEADERS = {f"x-amz-checksum-{a.value.lower()}": a for a in ChecksumAlgorithm}
_SET = frozenset(_HEADERS)
FULL_OBJECT = "FULL_OBJECT"
COMPOSITE = "COMPOSITE"


class Announced(NamedTuple):
    """What a request's headers say of its body. `algorithm` is known even when the value comes in the
    trailer; `trailers` are the names that were announced."""

    md5: bytes | None = None
    checksum: Checksum | None = None
    algorithm: ChecksumAlgorithm | None = None
    trailers: tuple[str, ...] = ()


NOTHING = Announced()


def header_name(algorithm: ChecksumAlgorithm) -> str:
    """`x-amz-checksum-crc32` and its like."""
    return f"x-amz-checksum-{algorithm.value.lower()}"


def element_name(algorithm: ChecksumAlgorithm) -> str:
    """`ChecksumCRC32` and its like."""
    return f"Checksum{algorithm.value}"


def checksum_text(checksum: Checksum) -> str:
    """Base64, with the number of parts behind composite ones."""
    text = base64.b64encode(checksum.value).decode("ascii")
    return f"{text}-{checksum.parts}" if checksum.parts else text


def checksum_type(checksum: Checksum) -> str:
    """FULL_OBJECT or COMPOSITE."""
    return COMPOSITE if checksum.parts else FULL_OBJECT


def checksum_fields(checksum: Checksum | None) -> list[tuple[str, str]]:
    """The headers that tell a checksum."""
    if checksum is None:
        return []
    return [
        (header_name(checksum.algorithm), checksum_text(checksum)),
        ("x-amz-checksum-type", checksum_type(checksum)),
    ]


def parse_algorithm(name: str, header: str) -> ChecksumAlgorithm:
    """The algorithm called `name`. Raises InvalidRequest."""
    try:
        return ChecksumAlgorithm(name.upper())
    except ValueError:
        raise S3Error(
            Code.INVALID_REQUEST,
            "Checksum algorithm provided is unsupported. Please try again with any of the valid types: "
            "[CRC32, CRC32C, CRC64NVME, SHA1, SHA256]",
            Header=header,
        ) from None


def parse_checksum(algorithm: ChecksumAlgorithm, text: str, name: str) -> Checksum:
    """A checksum from its text (`base64` or `base64-parts`). Raises InvalidRequest."""
    value, dash, parts = text.partition("-")
    decoded = _base64(value)
    if decoded is None or len(decoded) != algorithm.length or (dash and not _is_part_count(parts)):
        raise S3Error(Code.INVALID_REQUEST, f"Value for {name} header is invalid.")
    return Checksum(algorithm, decoded, int(parts) if dash else 0)


def find_checksum(headers: Mapping[str, str]) -> Checksum | None:
    """The one checksum among the headers. Raises InvalidRequest for two, or a wrong one."""
    if _SET.isdisjoint(headers):
        return None
    found = [name for name in _HEADERS if name in headers]
    if len(found) > 1:
        raise S3Error(
            Code.INVALID_REQUEST,
            "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
        )
    return parse_checksum(_HEADERS[found[0]], headers[found[0]], found[0])


def parse_md5(headers: Mapping[str, str]) -> bytes | None:
    """Content-MD5. Raises InvalidDigest."""
    text = headers.get("content-md5")
    if text is None:
        return None
    decoded = _base64(text)
    if decoded is None or len(decoded) != 16:
        raise S3Error(Code.INVALID_DIGEST, more={"Content-MD5": text})
    return decoded


def parse_announced(headers: Mapping[str, str]) -> Announced:
    """All that the headers say. Raises InvalidDigest or InvalidRequest."""
    md5 = parse_md5(headers)
    checksum = find_checksum(headers)
    announced = headers.get("x-amz-trailer")
    named = headers.get("x-amz-sdk-checksum-algorithm")
    if checksum is None and announced is None and named is None:
        return NOTHING if md5 is None else Announced(md5)
    trailers: tuple[str, ...] = ()
    algorithm = checksum.algorithm if checksum else None
    if announced is not None:
        trailers, algorithm = _parse_trailers(announced, checksum)
    if named is not None:
        wanted = parse_algorithm(named, "x-amz-sdk-checksum-algorithm")
        if algorithm is None:
            raise S3Error(
                Code.INVALID_REQUEST,
                "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or "
                "x-amz-trailer headers were found.",
            )
        if wanted is not algorithm:
            raise S3Error(Code.INVALID_REQUEST, "Value for x-amz-sdk-checksum-algorithm header is invalid.")
    return Announced(md5, checksum, algorithm, trailers)


def _parse_trailers(text: str, checksum: Checksum | None) -> tuple[tuple[str, ...], ChecksumAlgorithm]:
    trailers = tuple(name.strip().lower() for name in text.split(","))
    if len(trailers) != 1 or trailers[0] not in _HEADERS:
        raise S3Error(
            Code.INVALID_REQUEST, "The value specified in the x-amz-trailer header is not supported"
        )
    if checksum is not None:
        raise S3Error(
            Code.INVALID_REQUEST,
            "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.",
        )
    return trailers, _HEADERS[trailers[0]]


def _is_part_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and text[0] != "0"


def _base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
