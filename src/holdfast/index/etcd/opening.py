"""Opening the index in etcd, or founding it where there is none.

What must hold: of several nodes that start at once one founds and all open the same; and what is in the way
is said in a sentence that tells it from the others: nobody there, no leader, another version, no right.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from holdfast.base.errors import HoldfastError, InvalidInput, Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.copying import Kind, not_finished
from holdfast.index.etcd import wire
from holdfast.index.etcd.connections import Connections, Unanswered
from holdfast.index.etcd.lane import check_not_moved
from holdfast.index.etcd.schema import FORMAT, Keys, Known, Meta, decode_meta, encode_meta

OLDEST = (3, 4)
_ASK_TIMEOUT_S = 2.0


async def found_or_open(connections: Connections, keys: Keys, randomness: Randomness) -> Known:
    """The meta row. Raises InvalidInput, Unavailable."""
    meta = Meta(FORMAT, randomness.token(16).hex())
    request = wire.txn_request(
        (),
        [
            wire.range_op(wire.range_request(keys.rows, keys.all_end, limit=1, keys_only=True)),
            wire.range_op(wire.range_request(keys.meta)),
        ],
    )
    async with explained(connections):
        found, _ = await connections.call(wire.TXN, request, wire.txned)
        await check_versions(connections)
        rows, old = found.ranged(0), found.ranged(1)
        if not old and rows:
            raise InvalidInput(
                "etcd has rows of an index in this namespace, and not the one that names it.",
                hint="It was emptied or filled by hand, or a copy into it was broken off: delete what is in "
                "the namespace to begin anew, or restore it.",
            )
        if not old:
            old = await _found(connections, keys, meta)
    known = Known(decode_meta(old[0].value), old[0].modified)
    check_not_moved(known.meta)
    if known.meta.state == Kind.FILLING.value:
        raise not_finished(known.meta.other)
    return known


@asynccontextmanager
async def explained(connections: Connections) -> AsyncIterator[None]:
    """Says what keeps everybody from answering, where nobody does."""
    try:
        yield
    except Unanswered as error:
        raise await _why(connections, error) from None


async def _found(connections: Connections, keys: Keys, meta: Meta) -> list[wire.KeyValue]:
    """Put the meta row unless somebody else was quicker; what is there then."""
    request = wire.txn_request(
        [wire.compare_created(keys.meta, wire.Is.EQUAL, 0)],
        [
            wire.put_op(keys.meta, encode_meta(meta)),
            wire.range_op(wire.range_request(keys.meta)),
        ],
        [
            wire.range_op(wire.range_request(keys.meta)),
            wire.range_op(wire.range_request(keys.meta)),
        ],
    )
    answer, _ = await connections.call(wire.TXN, request, wire.txned)
    return answer.ranged(1)


async def check_versions(connections: Connections) -> None:
    """Raises InvalidInput when a member is too old. Members that are away are asked when they are back."""
    for endpoint in connections.endpoints:
        try:
            answer = await connections.ask_one(endpoint, wire.STATUS, b"", _ASK_TIMEOUT_S)
        except Unavailable:
            continue
        version = wire.server_status(answer).version
        if version_number(version) < OLDEST:
            raise InvalidInput(
                f"{endpoint.name} runs etcd {version}; the index needs {OLDEST[0]}.{OLDEST[1]} or later."
            )


def version_number(text: str) -> tuple[int, int]:
    """Major and minor."""
    parts = text.split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        raise InvalidInput(f"{text!r} is not a version of etcd.") from None


async def _why(connections: Connections, error: Unanswered) -> HoldfastError:
    """What kept everybody from answering: nobody is there, or nobody leads."""
    there: list[str] = []
    for endpoint in connections.endpoints:
        try:
            await connections.ask_one(endpoint, wire.STATUS, b"", _ASK_TIMEOUT_S)
        except (Unavailable, InvalidInput):
            continue
        there.append(endpoint.name)
    names = ", ".join(one.name for one in connections.endpoints)
    if not there:
        return Unavailable(
            f"No etcd answers at {names}: {connections.reason()}.",
            hint="Is it running, and is this its client address (http or https)?",
        )
    return Unavailable(
        f"etcd has no quorum: of {names} only {', '.join(there)} answer{'s' * (len(there) == 1)}, "
        f"and they cannot agree ({error.message})",
        hint="Start the missing members, or let them reach each other.",
    )
