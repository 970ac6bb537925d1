"""Small JSON files that a person can read, with a checksum that tells when a byte of them went wrong.

The last field, `crc32c`, is 8 lower-case hex digits: the CRC-32C of the object without that field, as
compact JSON (no white space, fields in the order of the file). A file without the field is taken as it is:
a person may have written it.
"""

import msgspec
from msgspec import Struct

from holdfast.base.checksums import crc32c

FIELD = "crc32c"

NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError)
"""What msgspec raises for bytes that are no JSON: of a key that is no UTF-8, not an error of its own."""


def seal(content: Struct) -> bytes:
    """`content` as such a file."""
    body = msgspec.json.encode(content)
    assert body.endswith(b"}")
    assert len(body) > 2, "an object without fields has nothing to protect"
    sealed = b'%b,"%b":"%08x"}' % (body[:-1], FIELD.encode(), crc32c(body))
    return msgspec.json.format(sealed) + b"\n"


def is_spoiled(raw: bytes) -> bool:
    """Whether a file carries a checksum that does not fit. What is no JSON is for the caller to find."""
    try:
        content = msgspec.json.decode(raw)
    except UnicodeDecodeError:
        return True  # of a key: who looks for fields would take it for one that is not known
    except msgspec.MsgspecError:
        return False
    if not isinstance(content, dict) or FIELD not in content:
        return False
    said = content.pop(FIELD)
    return bool(said != f"{crc32c(msgspec.json.encode(content)):08x}")
