"""The hello, from the caller's side: a connection, and the proof of who is at its other end.

What must hold: nothing else is sent before the peer has proved that it knows the secret and is the node that
is meant; and whatever is wrong is said in one sentence that tells a person what to look at.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable

import msgspec
from msgspec import Struct

from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import Randomness
from holdfast.stores.peer import messages
from holdfast.stores.peer.errors import Kind, PeerRefused, Refusal, WireError
from holdfast.stores.peer.line import Answer, Line, LineBroken
from holdfast.stores.peer.messages import HelloAnswer, PeerIdentity
from holdfast.stores.peer.signing import NONCE_BYTES, SECRET_BYTES_MIN, Root, Roots, same
from holdfast.stores.port import StoreBusy, StoreFailed

_HELLO_BYTES_MAX = 16 << 10

_HINTS = {
    Refusal.FOREIGN_CLUSTER: "Look at the address of the peer; it is part of another installation.",
    Refusal.WRONG_SECRET: "Give both nodes the same cluster secret.",
    Refusal.OTHER_NODE: "Look at the address of the peer in the configuration.",
    Refusal.NO_COMMON_VERSION: "Bring the older node up to date; neighbouring versions work side by side.",
    Refusal.NOT_A_PEER: "Look at the address of the peer in the configuration.",
}

Dial = Callable[[Callable[[], Line]], Awaitable[Line]]
"""Makes a connection whose protocol is what it is given. Raises OSError."""


class Caller(Struct, frozen=True):
    """Who asks whom: `called` is the name of the node at `address`, `uuid` who it must be, where that is
    known."""

    identity: PeerIdentity
    root: Root
    address: str
    called: str
    uuid: str
    speaks: tuple[int, ...]


def roots_of(secret: bytes | Roots, cluster: str) -> Roots:
    """What is made of one secret that does not change, or of those that may. Raises InvalidInput."""
    return secret if isinstance(secret, Roots) else Roots([check_secret(secret)], cluster)


def check_secret(secret: bytes) -> bytes:
    """The secret of a cluster. Raises InvalidInput when it is too short to be one."""
    if len(secret) < SECRET_BYTES_MIN:
        raise InvalidInput(
            f"The cluster's secret has {len(secret)} bytes; it needs at least {SECRET_BYTES_MIN}.",
            hint="Make one with: head -c 32 /dev/urandom | base64",
        )
    return secret


def dial_tcp(address: str, tls: ssl.SSLContext | None) -> Dial:
    """TCP to `host:port`, or TLS over it."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidInput(f"{address!r} is no address of a peer.", hint="Write it as host:port.")
    host = host.removeprefix("[").removesuffix("]")

    async def dial(make: Callable[[], Line]) -> Line:
        _, line = await asyncio.get_running_loop().create_connection(make, host, int(port), ssl=tls)
        return line

    return dial


async def greet(line: Line, caller: Caller, randomness: Randomness) -> HelloAnswer:
    """Exchange the hello on a new connection and set up its session. Raises PeerRefused, LineBroken."""
    mine = caller.identity
    nonce = randomness.token(NONCE_BYTES).hex()
    speaks = messages.write_speaks(caller.speaks)
    tag = caller.root.hello(speaks, mine.cluster, mine.node, caller.called, nonce)
    head = (
        f"GET {messages.HELLO_PATH} HTTP/1.1\r\nhost: {caller.address}\r\nholdfast-speaks: {speaks}\r\n"
        f"holdfast-cluster: {mine.cluster}\r\nholdfast-from: {mine.node}\r\nholdfast-to: {caller.called}\r\n"
        f"holdfast-nonce: {nonce}\r\nholdfast-tag: {tag}\r\n\r\n"
    ).encode("ascii")
    answer = await line.ask(head, (), None, "", _HELLO_BYTES_MAX)
    content = bytes(answer.content)
    proven = same(caller.root.answer(nonce, answer.status, content), answer.tag)
    if answer.status != 200:
        raise _refused(caller, answer, content, proven)
    if not proven:
        raise _refusal(caller, Refusal.WRONG_SECRET, "cannot prove that it knows the cluster's secret.")
    try:
        hello = messages.hello_decoder.decode(content)
    except msgspec.DecodeError:
        raise _refusal(caller, Refusal.NOT_A_PEER, "answers a hello with something else.") from None
    if hello.node != caller.called or (caller.uuid and hello.uuid != caller.uuid):
        raise _refusal(
            caller,
            Refusal.OTHER_NODE,
            f"is another node of that name (its data folder is {hello.uuid}, not {caller.uuid})."
            if hello.node == caller.called
            else f"is {hello.node}.",
        )
    if hello.version not in caller.speaks:
        raise _refusal(caller, Refusal.NO_COMMON_VERSION, f"wants to speak version {hello.version}.")
    line.version = hello.version
    line.root = caller.root
    line.session = caller.root.session(hello.version, (nonce, hello.nonce), mine.node, caller.called)
    return hello


def _refused(caller: Caller, answer: Answer, content: bytes, proven: bool) -> StoreFailed | StoreBusy:
    """Why the peer took no hello. What it cannot prove to have said may still help a person."""
    try:
        error = msgspec.json.decode(content, type=WireError)
        if error.kind == Kind.STORE_BUSY.wire:
            return StoreBusy(f"{_peer(caller)} takes no more connections.", peer=caller.called)
        refusal = Refusal(error.kind)
    except (msgspec.DecodeError, ValueError):
        if proven:
            return StoreFailed(f"{_peer(caller)} answers a hello with status {answer.status}.")
        return _refusal(
            caller, Refusal.NOT_A_PEER, f"does not speak the peer protocol (status {answer.status})."
        )
    said = "" if proven else " It cannot prove that it is a peer of ours at all."
    return _refusal(caller, refusal, f"refuses: {error.message}{said}")


def _refusal(caller: Caller, refusal: Refusal, what: str) -> PeerRefused:
    return PeerRefused(
        refusal,
        f"{_peer(caller)} {what}",
        hint=_HINTS.get(refusal, ""),
        peer=caller.called,
        address=caller.address,
    )


def _peer(caller: Caller) -> str:
    return f"Peer {caller.called} ({caller.address})"


def describe_os_error(error: OSError) -> str:
    """What the operating system said, for a person."""
    return error.strerror or str(error) or type(error).__name__


__all__ = [
    "Caller",
    "Dial",
    "LineBroken",
    "check_secret",
    "describe_os_error",
    "dial_tcp",
    "greet",
    "roots_of",
]
