"""What is made of the cluster's secret, and how two of them stand in one file. Pure.

HKDF with SHA-256 (RFC 5869): each purpose has bytes of its own, from which neither the secret nor the bytes
of another purpose can be worked out. What must hold: the secret itself goes nowhere, into no row, no request
and no message.
"""

import hashlib
import hmac

CHECK_BYTES = 32
SECRETS_MAX = 2
_ALSO = b"\nalso "
_HASH = "sha256"
_HASH_BYTES = hashlib.new(_HASH).digest_size


def split_secrets(raw: bytes) -> tuple[bytes, ...]:
    """The secrets in a file: what is made of one is made of the first; the one after a line that begins with
    `also ` is believed, too, while the cluster changes from one to the other."""
    found = [part.strip() for part in raw.strip().split(_ALSO)]
    return tuple(dict.fromkeys(found))


def derive(secret: bytes, salt: bytes, purpose: str, length: int) -> bytes:
    """`length` bytes for one purpose."""
    assert 0 < length <= 255 * _HASH_BYTES
    key = hmac.digest(salt or bytes(_HASH_BYTES), secret, _HASH)
    made = block = b""
    for number in range(1, -(-length // _HASH_BYTES) + 1):
        block = hmac.digest(key, block + purpose.encode() + bytes([number]), _HASH)
        made += block
    return made[:length]


def check_of(secret: bytes, cluster: str) -> bytes:
    """What a cluster's row says, so that a node with another secret is told so."""
    return derive(secret, cluster.encode(), "holdfast secret check", CHECK_BYTES)
