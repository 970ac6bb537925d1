"""Requests as bytes, signed ahead of time, so that the load generator only sends and counts.

AWS Signature Version 4 in the header, with the digest of the body signed, as SDKs do over plain HTTP.
"""

import hashlib
from datetime import UTC, datetime

from holdfast.s3.sigv4 import canonical_request, signing_key


class Signer:
    """Makes requests for one endpoint and one pair of keys. A signature is good for 15 minutes."""

    def __init__(
        self, host: str, access_key_id: str, secret_access_key: str, region: str, wall: float
    ) -> None:
        self._host = host
        self._access = access_key_id
        moment = datetime.fromtimestamp(wall, UTC)
        self._date = moment.strftime("%Y%m%dT%H%M%SZ")
        self._scope = f"{self._date[:8]}/{region}/s3/aws4_request"
        self._key = signing_key(secret_access_key, self._date[:8], region, "s3")

    def head(
        self,
        method: str,
        path: str,
        query: tuple[tuple[str, str], ...] = (),
        body: bytes = b"",
        times: int = 1,
    ) -> bytes:
        """The request's head, up to and with the empty line, for `body` sent so many `times`; one that is
        sent several times is not signed over."""
        digest = hashlib.sha256(body).hexdigest() if times == 1 else "UNSIGNED-PAYLOAD"
        headers = {"host": self._host, "x-amz-content-sha256": digest, "x-amz-date": self._date}
        names = sorted(headers)
        signed = ";".join(names)
        canonical = canonical_request(method, path, query, headers, names, signed, digest)
        to_sign = "\n".join(
            ("AWS4-HMAC-SHA256", self._date, self._scope, hashlib.sha256(canonical.encode()).hexdigest())
        )
        signature = self._key.hexdigest(to_sign.encode())
        target = path + ("?" + "&".join(f"{name}={value}" for name, value in query) if query else "")
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {headers[name]}" for name in names)]
        if method in ("PUT", "POST"):
            lines.append(f"content-length: {len(body) * times}")
        lines.append(
            f"authorization: AWS4-HMAC-SHA256 Credential={self._access}/{self._scope}, "
            f"SignedHeaders={signed}, Signature={signature}"
        )
        return ("\r\n".join(lines) + "\r\n\r\n").encode()
