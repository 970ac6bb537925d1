"""What a node tells balancers about the members, and how each proves that it knows their secret. Pure.

A balancer asks with a nonce of its own and a proof over it; the answer carries a proof over the same nonce
and every byte of what is told. What must hold: who does not know the secret is told nothing and
believed nothing; an answer that was recorded fits no other question; and the secret itself is in neither.

    GET /-/members?nonce=<32 to 64 hex digits>     holdfast-proof: <64 hex digits>
    200  {"proof": "<64 hex digits>", "told": {"format": 1, "cluster": ..., "told_by": ..., "nodes": [...]}}
"""

import hmac
import re

import msgspec
from msgspec import Struct

from holdfast.base.errors import Damaged, InvalidInput
from holdfast.cluster.secret import derive

MEMBERS_PATH = "/-/members"
PROOF_HEADER = "holdfast-proof"
NONCE_BYTES = 16
FORMAT = 1

_NONCE = re.compile(r"[0-9a-f]{32,64}\Z")


class ToldNode(Struct, frozen=True):
    """One node: `client` is the URL at which clients and balancers reach it. One that drains gets nothing
    new: it is being emptied, or about to stop."""

    name: str
    client: str
    region: str = ""
    zone: str = ""
    draining: bool = False


class Told(Struct, frozen=True):
    """All members as the node `told_by` sees them."""

    format: int
    cluster: str
    told_by: str
    nodes: tuple[ToldNode, ...]


class _Answer(Struct, frozen=True):
    proof: str
    told: msgspec.Raw


def balancer_secret(cluster_secret: bytes) -> str:
    """What balancers are known by in a cluster whose file says nothing else: made of the cluster's secret,
    which cannot be worked out from it."""
    return derive(cluster_secret, b"", "holdfast balancer", 24).hex()


def is_nonce(text: str) -> bool:
    """Whether a question can be asked with it."""
    return _NONCE.match(text) is not None


def question(secret: str, nonce: str) -> str:
    """The proof of who asks."""
    return _proof(secret, b"ask", nonce, b"")


def is_proven(secret: str, nonce: str, proof: str) -> bool:
    """Whether who asks knows the secret."""
    expected = question(secret, nonce).encode()
    return is_nonce(nonce) and hmac.compare_digest(expected, proof.encode("ascii", "replace"))


def answer(secret: str, nonce: str, told: Told) -> bytes:
    """What is told, with its proof."""
    body = msgspec.json.encode(told)
    return msgspec.json.encode(_Answer(_proof(secret, b"answer", nonce, body), msgspec.Raw(body)))


def believed(secret: str, nonce: str, raw: bytes) -> Told:
    """What an answer tells. Raises InvalidInput when its sender does not know the secret, Damaged when it is
    no such answer at all, or of a format that is newer than ours."""
    try:
        found = msgspec.json.decode(raw, type=_Answer)
        body = bytes(found.told)
        expected = _proof(secret, b"answer", nonce, body).encode()
        if not hmac.compare_digest(expected, found.proof.encode("ascii", "replace")):
            raise InvalidInput(
                "its answer is not made with the secret of this balancer:",
                hint="it belongs to another cluster, or secret in balance.toml is not this cluster's.",
            )
        told = msgspec.json.decode(body, type=Told)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Damaged(f"its answer cannot be read: {error}.") from None
    if told.format != FORMAT:
        raise Damaged(f"it tells in format {told.format}, which this version does not know.")
    return told


def _proof(secret: str, what: bytes, nonce: str, body: bytes) -> str:
    key = derive(secret.encode(), b"", "holdfast members", 32)
    return hmac.digest(key, b"%b\0%b\0%b" % (what, nonce.encode("ascii", "replace"), body), "sha256").hex()
