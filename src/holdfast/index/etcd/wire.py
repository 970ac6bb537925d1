"""The messages of etcd's API that are used here, as bytes. Pure.

Protocol buffers are short: a field is a tag (number and kind), then a number in base 128 or a length and
so many bytes. Field numbers are those of etcd's `rpc.proto` and `kv.proto` (3.4 and later); what is not
asked for is not read, so that newer servers may say more. What must hold: nothing here reads beyond the
message it was given; what cannot be read is `Damaged`, never guessed.
"""

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

from holdfast.base.errors import Damaged

RANGE = "/etcdserverpb.KV/Range"
TXN = "/etcdserverpb.KV/Txn"
COMPACT = "/etcdserverpb.KV/Compact"
WATCH = "/etcdserverpb.Watch/Watch"
LEASE_GRANT = "/etcdserverpb.Lease/LeaseGrant"
LEASE_REVOKE = "/etcdserverpb.Lease/LeaseRevoke"
LEASE_KEEP_ALIVE = "/etcdserverpb.Lease/LeaseKeepAlive"
MEMBER_LIST = "/etcdserverpb.Cluster/MemberList"
STATUS = "/etcdserverpb.Maintenance/Status"
ALARM = "/etcdserverpb.Maintenance/Alarm"
AUTHENTICATE = "/etcdserverpb.Auth/Authenticate"

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Message:
    """A message taken apart: numbers by field, and all byte strings by field, in their order."""

    __slots__ = ("blobs", "numbers")

    def __init__(self, data: bytes) -> None:
        self.numbers: dict[int, int] = {}
        self.blobs: dict[int, list[bytes]] = {}
        at, end = 0, len(data)
        try:
            while at < end:
                tag = data[at]
                at += 1
                if tag > 0x7F:
                    tag, at = _varint(data, at - 1)
                field, kind = tag >> 3, tag & 7
                if kind in (_VARINT, _BYTES):
                    number = data[at]
                    at += 1
                    if number > 0x7F:
                        number, at = _varint(data, at - 1)
                    if kind == _VARINT:
                        self.numbers[field] = number
                        continue
                    if at + number > end:
                        raise IndexError
                    self.blobs.setdefault(field, []).append(data[at : at + number])
                    at += number
                elif kind == _FIXED64:
                    at += 8
                elif kind == _FIXED32:
                    at += 4
                else:
                    raise IndexError
            if at != end:
                raise IndexError
        except IndexError:
            raise Damaged(f"An answer of etcd of {end} bytes cannot be read.") from None

    def number(self, field: int) -> int:
        """A number; 0 when it was not sent, which is how this format says 0."""
        return self.numbers.get(field, 0)

    def signed(self, field: int) -> int:
        """A number that may be negative."""
        number = self.numbers.get(field, 0)
        return number - (1 << 64) if number >> 63 else number

    def blob(self, field: int) -> bytes:
        """A byte string; empty when it was not sent."""
        found = self.blobs.get(field)
        return found[-1] if found else b""

    def text(self, field: int) -> str:
        """A string."""
        return self.blob(field).decode(errors="replace")

    def message(self, field: int) -> "Message":
        """A message inside."""
        return Message(self.blob(field))

    def messages(self, field: int) -> list["Message"]:
        """All messages inside, of that field."""
        return [Message(blob) for blob in self.blobs.get(field, ())]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise IndexError


def _number(field: int, number: int) -> bytes:
    """A number; nothing for 0."""
    return _key(field, _VARINT) + _encode(number & (1 << 64) - 1) if number else b""


def _blob(field: int, data: bytes) -> bytes:
    """A byte string; nothing for an empty one."""
    return _key(field, _BYTES) + _encode(len(data)) + data if data else b""


def _inner(field: int, message: bytes) -> bytes:
    """A message inside, also when it is empty."""
    return _key(field, _BYTES) + _encode(len(message)) + message


def _key(field: int, kind: int) -> bytes:
    return _encode(field << 3 | kind)


def _encode(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


# What is asked


class Is(IntEnum):
    """How a comparison must come out."""

    EQUAL = 0
    GREATER = 1
    LESS = 2


def compare_created(key: bytes, result: Is, revision: int) -> bytes:
    """The revision at which the key was made, 0 while it does not exist."""
    return _number(1, result) + _number(2, 1) + _blob(3, key) + _oneof(5, revision)


def compare_modified(key: bytes, result: Is, revision: int) -> bytes:
    """The revision at which the key was put last, 0 while it does not exist."""
    return _number(1, result) + _number(2, 2) + _blob(3, key) + _oneof(6, revision)


def compare_value(key: bytes, result: Is, value: bytes) -> bytes:
    """The key's value; never true of a key that does not exist."""
    return _number(1, result) + _number(2, 3) + _blob(3, key) + _inner(7, value)


def _oneof(field: int, number: int) -> bytes:
    return _key(field, _VARINT) + _encode(number)


def range_request(
    key: bytes,
    end: bytes = b"",
    *,
    limit: int = 0,
    revision: int = 0,
    newest_first: bool = False,
    serializable: bool = False,
    keys_only: bool = False,
) -> bytes:
    """One key, or all keys from `key` to before `end`."""
    return b"".join(
        (
            _blob(1, key),
            _blob(2, end),
            _number(3, limit),
            _number(4, revision),
            _number(5, 2) + _number(6, 3) if newest_first else b"",
            _number(7, serializable),
            _number(8, keys_only),
        )
    )


def range_op(request: bytes) -> bytes:
    """A range as a step of a transaction."""
    return _inner(1, request)


def put_op(key: bytes, value: bytes, lease: int = 0) -> bytes:
    """A put as a step of a transaction."""
    return _inner(2, _blob(1, key) + _blob(2, value) + _number(3, lease))


def delete_op(key: bytes, end: bytes = b"") -> bytes:
    """A delete as a step of a transaction: one key, or all keys from `key` to before `end`."""
    return _inner(3, _blob(1, key) + _blob(2, end))


def txn_op(request: bytes) -> bytes:
    """A transaction as a step of one."""
    return _inner(4, request)


def txn_request(compares: Sequence[bytes], success: Sequence[bytes], failure: Sequence[bytes] = ()) -> bytes:
    """Do `success` when all `compares` hold, else `failure`."""
    return b"".join(
        (
            *(_inner(1, compare) for compare in compares),
            *(_inner(2, op) for op in success),
            *(_inner(3, op) for op in failure),
        )
    )


def compact_request(revision: int) -> bytes:
    """Forget what was superseded before `revision`."""
    return _number(1, revision)


def watch_request(key: bytes, end: bytes, start_revision: int) -> bytes:
    """Tell every change of the keys from that revision on."""
    return _inner(1, _blob(1, key) + _blob(2, end) + _number(3, start_revision) + _number(4, 1))


def lease_grant_request(ttl_s: int) -> bytes:
    """A lease, its id chosen by the server."""
    return _number(1, ttl_s)


def lease_request(lease: int) -> bytes:
    """To keep a lease alive, or to revoke it."""
    return _number(1, lease)


def authenticate_request(user: str, password: str) -> bytes:
    """For a token."""
    return _blob(1, user.encode()) + _blob(2, password.encode())


# What is answered


class KeyValue(NamedTuple):
    """A key as it is stored."""

    key: bytes
    value: bytes
    created: int
    modified: int
    lease: int


_KEY, _CREATED, _MODIFIED, _VERSION, _VALUE, _LEASE = 0x0A, 0x10, 0x18, 0x20, 0x2A, 0x30
"""Tags of its fields. What has others is read the slow way."""


def key_value(data: bytes) -> KeyValue:
    """Taken from bytes. A page has hundreds of them, so they are taken apart without a `Message`."""
    key = value = b""
    created = modified = lease = at = 0
    end = len(data)
    try:
        while at < end:
            tag, number = data[at], data[at + 1]
            at += 2
            if number > 0x7F:
                number, at = _varint(data, at - 1)
            if tag == _KEY:
                key = data[at : at + number]
                at += number
            elif tag == _VALUE:
                value = data[at : at + number]
                at += number
            elif tag == _CREATED:
                created = number
            elif tag == _MODIFIED:
                modified = number
            elif tag == _LEASE:
                lease = number
            elif tag != _VERSION:
                return _key_value_of(Message(data))
    except IndexError:
        at = -1
    if at != end:
        raise Damaged(f"A row that etcd answered, of {end} bytes, cannot be read.")
    return KeyValue(key, value, created, modified, lease - (1 << 64) if lease >> 63 else lease)


def _key_value_of(message: Message) -> KeyValue:
    return KeyValue(message.blob(1), message.blob(5), message.number(2), message.number(3), message.signed(6))


class Ranged(NamedTuple):
    """The answer to a range. `revision` is that of the store when it was made (0 inside a transaction)."""

    revision: int
    found: list[KeyValue]
    more: bool


def ranged(message: Message) -> Ranged:
    """Taken from its message."""
    return Ranged(
        message.message(1).number(3),
        [key_value(kv) for kv in message.blobs.get(2, ())],
        bool(message.number(3)),
    )


class Txned(NamedTuple):
    """The answer to a transaction. `revision` is its own, if it changed anything."""

    revision: int
    succeeded: bool
    responses: list[Message]

    def ranged(self, at: int) -> list[KeyValue]:
        """What the range at that place of the branch found."""
        return ranged(self.responses[at].message(1)).found


def txned(data: bytes) -> Txned:
    """Taken from bytes."""
    message = Message(data)
    return Txned(message.message(1).number(3), bool(message.number(2)), message.messages(3))


class Event(NamedTuple):
    """A change of one key. `value` is None when it was deleted."""

    key: bytes
    value: bytes | None
    modified: int


class Watched(NamedTuple):
    """One message of a watch. `compacted` says from which revision on it could tell."""

    revision: int
    canceled: bool
    compacted: int
    reason: str
    events: list[Event]


def watched(data: bytes) -> Watched:
    """Taken from bytes."""
    message = Message(data)
    events = []
    for one in message.messages(11):
        kv = key_value(one.blob(2))
        events.append(Event(kv.key, None if one.number(1) else kv.value, kv.modified))
    return Watched(
        message.message(1).number(3),
        bool(message.number(4)),
        message.number(5),
        message.text(6),
        events,
    )


class Member(NamedTuple):
    """A member, as the cluster knows it."""

    id: int
    name: str
    client_urls: tuple[str, ...]
    learner: bool


def member_list(data: bytes) -> list[Member]:
    """Taken from bytes."""
    return [
        Member(
            one.number(1),
            one.text(2),
            tuple(url.decode(errors="replace") for url in one.blobs.get(4, ())),
            bool(one.number(5)),
        )
        for one in Message(data).messages(2)
    ]


class ServerStatus(NamedTuple):
    """What a member says of itself."""

    member: int
    version: str
    bytes_stored: int
    bytes_in_use: int
    leader: int
    applied: int
    errors: tuple[str, ...]


def server_status(data: bytes) -> ServerStatus:
    """Taken from bytes."""
    message = Message(data)
    return ServerStatus(
        message.message(1).number(2),
        message.text(2),
        message.number(3),
        message.number(9),
        message.number(4),
        message.number(7) or message.number(5),
        tuple(error.decode(errors="replace") for error in message.blobs.get(8, ())),
    )
