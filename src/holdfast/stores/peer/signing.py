"""Keys and tags of the peer protocol: who knows the cluster's secret, and which message this is.

Every tag is an HMAC-SHA-256. What must hold: a session's key is bound to both nonces, both nodes and the
version, so that it is worth nothing on any other connection; a tag is bound to the kind and the number of its
message on that connection, so that no message can stand for another, and none counts twice; and no tag is
compared in a time that tells where it differs.
"""

import hmac
from collections.abc import Sequence

from holdfast.base.checksums import Buffer, Hasher, HmacSha256

TAG_BYTES = 32
NONCE_BYTES = 16
SECRET_BYTES_MIN = 16

_PASS_BYTES = 256 << 10
"""What is hashed in one go on the loop: an eighth of a millisecond."""


class Root:
    """What is made of the cluster's secret: good for hellos and for the keys of sessions."""

    def __init__(self, secret: bytes, cluster: str) -> None:
        assert len(secret) >= SECRET_BYTES_MIN, "the secret is too short"
        self._key = HmacSha256(HmacSha256(secret).digest(b"holdfast peer\n" + cluster.encode("ascii")))

    def hello(self, speaks: str, cluster: str, caller: str, called: str, nonce: str) -> str:
        """The tag of a hello."""
        return self._key.hexdigest(f"hello\n{speaks}\n{cluster}\n{caller}\n{called}\n{nonce}".encode())

    def answer(self, nonce: str, status: int, content: bytes) -> bytes:
        """The tag of the answer to a hello with that nonce."""
        return self._key.digest(f"hello answer\n{nonce}\n{status}\n".encode() + content)

    def session(self, version: int, nonces: tuple[str, str], caller: str, called: str) -> "Session":
        """The key of a connection. `nonces` are the caller's and the server's."""
        bound = f"session\n{version}\n{nonces[0]}\n{nonces[1]}\n{caller}\n{called}"
        return Session(self._key.digest(bound.encode("ascii")))


class Roots:
    """What is made of all secrets by which the cluster is known now: one, or two while it changes its secret.
    The first is what this node signs with where the other side knows it."""

    def __init__(self, secrets: Sequence[bytes], cluster: str) -> None:
        self._cluster = cluster
        self._made: dict[bytes, Root] = {}
        self.change(secrets)

    def change(self, secrets: Sequence[bytes]) -> None:
        """Know these from now on, and no others."""
        assert secrets, "a cluster has a secret"
        self._made = {
            secret: self._made.get(secret) or Root(secret, self._cluster) for secret in dict.fromkeys(secrets)
        }

    def all(self) -> tuple[Root, ...]:
        """The first before the others."""
        return tuple(self._made.values())

    def knows(self, root: Root | None) -> bool:
        """Whether that secret still counts."""
        return root in self._made.values()


class Session:
    """The tags of one connection, made by either side. `next` begins each exchange."""

    __slots__ = ("_count", "_key")

    def __init__(self, key: bytes) -> None:
        self._key = HmacSha256(key)
        self._count = bytes(8)

    def next(self) -> None:
        """The next request of the connection."""
        self._count = (int.from_bytes(self._count, "big") + 1).to_bytes(8, "big")

    def request(self, method: str, path: str, query: str, timeout: str, length: int) -> str:
        """The tag of a request's head. `length` is its content-length, 0 for none."""
        text = f"{method}\n{path}\n{query}\n{timeout}\n{length}"
        return self._key.hexdigest(b"Q" + self._count + text.encode())

    def content(self, request_tag: str) -> Hasher:
        """What hashes the content of the request with that tag; then `end`."""
        return self._key.begin(b"B" + self._count + bytes.fromhex(request_tag))

    def answer(self, status: int) -> Hasher:
        """What hashes the content of the answer; then `end`."""
        return self._key.begin(b"A%s%d\n" % (self._count, status))

    def end(self, begun: Hasher) -> bytes:
        """The tag of a content that was hashed."""
        return self._key.end(begun)


def passes(data: Buffer) -> list[Buffer]:
    """`data` in pieces that are hashed quickly enough to do each in one step of the loop."""
    if len(data) <= _PASS_BYTES:
        return [data]
    view = memoryview(data)
    return [view[at : at + _PASS_BYTES] for at in range(0, len(view), _PASS_BYTES)]


def same(one: bytes, other: bytes) -> bool:
    """Whether two tags are the same, in a time that does not depend on them."""
    return hmac.compare_digest(one, other)
