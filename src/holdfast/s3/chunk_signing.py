"""The chain of signatures in a body of S3's signed chunks.

Each signature covers the one before it, the first that of the request's head, so that no chunk can be left
out, doubled or taken from elsewhere.
Source: Amazon S3 API Reference, "Signature Calculations: Transferring Payload in Multiple Chunks".
"""

import hashlib

from holdfast.base.checksums import HmacSha256

_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


class ChunkSigner:
    """The chain of signatures over chunks, begun by the signature of the request's head."""

    def __init__(self, signing_key: HmacSha256, seed: str, amz_date: str, scope: str) -> None:
        self._key = signing_key
        self._previous = seed
        self._stem = f"{amz_date}\n{scope}\n"

    def chunk(self, sha256_hex: str) -> str:
        """The signature of the next chunk, whose data has this digest."""
        text = f"AWS4-HMAC-SHA256-PAYLOAD\n{self._stem}{self._previous}\n{_EMPTY_SHA256}\n{sha256_hex}"
        return self._sign(text)

    def trailer(self, trailers: bytes) -> str:
        """The signature of the trailers, each as `name:value` and a line feed."""
        digest = hashlib.sha256(trailers).hexdigest()
        return self._sign(f"AWS4-HMAC-SHA256-TRAILER\n{self._stem}{self._previous}\n{digest}")

    def _sign(self, text: str) -> str:
        self._previous = self._key.hexdigest(text.encode("ascii"))
        return self._previous
