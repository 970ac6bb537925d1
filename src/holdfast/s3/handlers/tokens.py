"""Continuation tokens: opaque to clients, and refused when they are not ours. Pure.

One is a name with a checksum before it, in URL-safe Base64. It is not secret and not signed: whoever may list
may start anywhere. The checksum catches what was cut, mixed up or made up.
"""

import base64
import binascii

from holdfast.base.checksums import crc32c
from holdfast.s3.errors import S3Error, invalid_argument

_VERSION = b"\x01"


def write_token(name: str) -> str:
    """The token that continues after `name`."""
    data = _VERSION + name.encode("utf-8", "surrogatepass")
    return base64.urlsafe_b64encode(crc32c(data).to_bytes(4, "big") + data).decode("ascii")


def read_token(token: str | None) -> str:
    """The name that a token continues after; empty for no token. Raises InvalidArgument."""
    if token is None:
        return ""
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _wrong(token) from None
    data = raw[4:]
    if not data.startswith(_VERSION) or crc32c(data) != int.from_bytes(raw[:4], "big"):
        raise _wrong(token)
    return data[1:].decode("utf-8", "surrogatepass")


def _wrong(token: str) -> S3Error:
    return invalid_argument("The continuation token provided is incorrect", "continuation-token", token)
