"""The pure parts of the peer protocol: texts, tags, errors, and the room that requests share."""

import asyncio
import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.errors import Bug, Busy, Damaged, Fenced, HoldfastError, InvalidInput, Unavailable
from holdfast.base.ids import StoreId
from holdfast.stores import port
from holdfast.stores.peer import PeerRefused, Refusal, check_secret, messages
from holdfast.stores.peer.errors import Kind, decode_error, encode_error, kind_of
from holdfast.stores.peer.messages import Asked, Call
from holdfast.stores.peer.room import Room
from holdfast.stores.peer.signing import Root
from holdfast.stores.port import Range

PORT_ERRORS = [
    port.ShardExists,
    port.ShardMissing,
    port.ShardTruncated,
    port.ShardSpoiled,
    port.ShardUnreadable,
    port.StoreFull,
    port.StoreReadOnly,
    port.StoreFailed,
    port.StoreOverdue,
    port.StoreBusy,
    Damaged,
]
names = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}", fullmatch=True)
ranges_ = st.lists(
    st.builds(Range, st.integers(0, 10**14), st.integers(1, messages.ANSWER_BYTES_MAX)),
    min_size=1,
    max_size=40,
)


@given(names, ranges_, st.booleans())
def test_a_get_is_read_as_it_was_written(name: str, ranges: list[Range], uncached: bool) -> None:
    path, query = f"/stores/disk-1/blobs/{name}", messages.write_ranges(ranges, uncached=uncached)
    asked = messages.read_request("GET", path, query)
    if sum(length for _, length in ranges) > messages.ANSWER_BYTES_MAX:
        assert asked is None
    else:
        assert asked == Asked(Call.GET, StoreId("disk-1"), name, tuple(ranges), uncached)


@given(
    st.lists(
        st.builds(Range, st.integers(0, 1 << 40), st.integers(1, 3 * messages.ANSWER_BYTES_MAX)),
        min_size=1,
        max_size=6,
    )
)
def test_what_is_too_much_for_one_request_is_cut_without_loss(ranges: list[Range]) -> None:
    parts = messages.split(ranges)
    for part in parts:
        assert 1 <= len(part) <= messages.RANGES_MAX
        assert sum(length for _, length in part) <= messages.ANSWER_BYTES_MAX
    rest = [piece for part in parts for piece in part]
    for offset, length in ranges:
        while length:
            piece = rest.pop(0)
            assert piece.offset == offset
            offset, length = offset + piece.length, length - piece.length
            assert length >= 0
    assert not rest


@given(names, st.floats(0.0, 1.0))
def test_a_share_of_the_reserve_is_never_read_as_more_than_it_was(name: str, share: float) -> None:
    query = messages.write_reserve(share)
    asked = messages.read_request("PUT", f"/stores/s/blobs/{name}", query)
    assert asked is not None
    assert asked.call is Call.PUT
    assert share - 0.0101 <= asked.reserve_share <= share


@pytest.mark.parametrize(
    "query", ["reserve=0", "reserve=101", "reserve=05", "reserve=", "reserve=5&x=y", "x=y"]
)
def test_what_is_no_share_of_the_reserve_is_no_put(query: str) -> None:
    assert messages.read_request("PUT", "/stores/s/blobs/n", query) is None


def test_many_small_ranges_are_several_requests() -> None:
    many = [Range(number * 10, 1) for number in range(3 * messages.RANGES_MAX)]
    assert [len(part) for part in messages.split(many)] == [messages.RANGES_MAX] * 3


@pytest.mark.parametrize(
    ("method", "path", "query", "call"),
    [
        ("GET", "/ping", "", Call.PING),
        ("GET", "/stores/s/blobs/n/size", "", Call.SIZE),
        ("PUT", "/stores/s/blobs/n", "", Call.PUT),
        ("DELETE", "/stores/s/blobs/n", "", Call.DELETE),
        ("GET", "/stores/s/blobs", "after=&limit=7", Call.LIST),
        ("GET", "/stores/s/usage", "", Call.USAGE),
        ("POST", "/stores/s/probe", "", Call.PROBE),
    ],
)
def test_each_request_has_one_method_and_one_query(method: str, path: str, query: str, call: Call) -> None:
    found = messages.read_request(method, path, query)
    assert found is not None
    assert found.call is call
    for other in {"GET", "PUT", "POST", "DELETE", "HEAD"} - {method}:
        again = messages.read_request(other, path, query)
        assert again is None or again.call in {Call.PUT, Call.DELETE}
    assert messages.read_request(method, path, query + "&x=y") is None
    assert messages.read_request(method, path + "/", query) is None


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/stores/s/blobs/.hidden", "ranges=0+1"),
        ("/stores/s/blobs/a%2fb", "ranges=0+1"),
        ("/stores/s/blobs/../n", "ranges=0+1"),
        ("/stores/s/blobs/n", ""),
        ("/stores/s/blobs/n", "ranges="),
        ("/stores/s/blobs/n", "ranges=0+0"),
        ("/stores/s/blobs/n", "ranges=-1+1"),
        ("/stores/s/blobs/n", "ranges=01+1"),
        ("/stores/s/blobs/n", "ranges=0+1,"),
        ("/stores/s/blobs/n", "ranges=0+1&uncached=0"),
        ("/stores/s/blobs/n", f"ranges=0+{messages.ANSWER_BYTES_MAX + 1}"),
        ("/stores/s/blobs/n", "ranges=" + ",".join(["0+1"] * (messages.RANGES_MAX + 1))),
        ("/stores/s/blobs", ""),
        ("/stores/s/blobs", "after=&limit=0"),
        ("/stores/s/blobs", "limit=1&after="),
        ("/stores//usage", ""),
        ("/stores/s t/usage", ""),
        ("/", ""),
    ],
)
def test_what_is_none_of_the_protocol_is_not_guessed_at(path: str, query: str) -> None:
    assert messages.read_request("GET", path, query) is None


@given(st.text(max_size=60), st.text(max_size=60))
def test_noise_is_no_request(path: str, query: str) -> None:
    found = messages.read_request("GET", path, query)
    assert found is None or path.startswith(("/stores/", "/ping"))


def test_versions_are_a_list_in_ascending_order() -> None:
    assert messages.read_speaks("1") == (1,)
    assert messages.read_speaks(messages.write_speaks((3, 4, 12))) == (3, 4, 12)
    for text in ("", "0", "01", "2,1", "1,1", "1,", "1, 2", "x", ",".join("1" * 40)):
        assert messages.read_speaks(text) is None
    assert messages.read_speaks(messages.write_speaks(messages.SPEAKS)) == messages.SPEAKS


@given(st.floats(0.0, 1e7))
def test_the_time_that_is_sent_leaves_some_for_the_answer(left_s: float) -> None:
    sent_s = messages.read_timeout(messages.write_timeout(left_s))
    assert sent_s is not None
    assert sent_s == 0.001 or 0.0 < sent_s < left_s
    if 0.01 < left_s < 3600:
        assert sent_s >= 0.8 * left_s


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "3600001", "1e3", " 1"])
def test_a_time_is_a_whole_number_of_milliseconds(text: str) -> None:
    assert messages.read_timeout(text) is None


@pytest.mark.parametrize("raised", PORT_ERRORS)
def test_each_error_of_the_port_arrives_as_itself(raised: type[HoldfastError]) -> None:
    error = raised("It went wrong.", hint="Do this.", store="disk1", bytes=7, cause=object())
    kind = kind_of(error)
    found = decode_error(encode_error(kind, error), "node-b", StoreId("disk1"))
    assert type(found) is raised
    assert (found.message, found.hint) == ("It went wrong.", "Do this.")
    assert found.facts == {"store": "disk1", "bytes": 7, "peer": "node-b"}
    assert 400 <= kind.status < 600


@pytest.mark.parametrize(
    ("raised", "arrives"),
    [
        (Busy, port.StoreBusy),
        (Unavailable, port.StoreFailed),
        (Fenced, port.StoreFailed),
        (Bug, port.StoreFailed),
        (InvalidInput, port.StoreFailed),
    ],
)
def test_other_errors_arrive_as_what_tells_the_caller_to_do_the_same(
    raised: type[HoldfastError], arrives: type[HoldfastError]
) -> None:
    error = raised("So it was.")
    assert type(decode_error(encode_error(kind_of(error), error), "node-b", None)) is arrives


def test_every_port_error_has_a_kind_of_its_own() -> None:
    kinds = [kind_of(raised("x")) for raised in PORT_ERRORS]
    assert len(set(kinds)) == len(PORT_ERRORS)
    assert kind_of(ValueError("x")) is Kind.FAULT


def test_refusals_and_what_a_newer_peer_says_are_store_failures() -> None:
    refused = decode_error(encode_error(Kind.ALTERED, HoldfastError("Changed.")), "node-b", None)
    assert isinstance(refused, PeerRefused)
    assert refused.refusal is Refusal.ALTERED
    for content in (
        b'{"kind": "ShardIsOnTheMoon", "message": "m", "hint": "h", "facts": {"message": "f"}, "x": 1}',
        b"not json",
        b"[]",
    ):
        assert type(decode_error(content, "node-b", None)) is port.StoreFailed


def by_hand(key: bytes, *parts: bytes) -> bytes:
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def test_tags_are_those_of_the_page() -> None:
    """Made by another implementation, as docs/formats-peer.md says."""
    secret, nonces = b"0123456789abcdef", ("aa" * 16, "bb" * 16)
    root = Root(secret, "c")
    key = by_hand(secret, b"holdfast peer\n", b"c")
    assert root.hello("1,2", "c", "n1", "n2", nonces[0]) == (
        by_hand(key, b"hello\n1,2\nc\nn1\nn2\n" + nonces[0].encode()).hex()
    )
    assert root.answer(nonces[0], 200, b"{}") == (
        by_hand(key, b"hello answer\n" + nonces[0].encode() + b"\n200\n{}")
    )
    session = root.session(1, nonces, "n1", "n2")
    mine = by_hand(key, f"session\n1\n{nonces[0]}\n{nonces[1]}\nn1\nn2".encode())
    for count in (1, 2):
        session.next()
        number = count.to_bytes(8, "big")
        tag = session.request("PUT", "/v1/x", "a=b", "1000", 35)
        assert tag == by_hand(mine, b"Q", number, b"PUT\n/v1/x\na=b\n1000\n35").hex()
        content, answer = session.content(tag), session.answer(404)
        content.update(b"abc")
        answer.update(b"gone")
        assert session.end(content) == by_hand(mine, b"B", number, bytes.fromhex(tag), b"abc")
        assert session.end(answer) == by_hand(mine, b"A", number, b"404\ngone")


def test_a_secret_is_long_enough_to_be_one() -> None:
    with pytest.raises(InvalidInput, match="15 bytes"):
        check_secret(b"x" * 15)
    assert check_secret(b"x" * 16) == b"x" * 16


@pytest.mark.virtual
async def test_room_is_given_in_the_order_of_coming() -> None:
    room, came = Room(10, 3), list[str]()
    now = asyncio.get_running_loop().time

    async def take(name: str, amount: int) -> None:
        assert await room.take(amount, now() + 10)
        came.append(name)

    assert room.take_now(8)
    waiting = [asyncio.create_task(take("large", 9))]
    await asyncio.sleep(0)
    waiting += [asyncio.create_task(take(name, 1)) for name in ("small", "next")]
    await asyncio.sleep(0)
    assert not room.take_now(1)  # although there is some: who came first waits for more
    assert not await room.take(1, now() + 10)  # too many wait already
    room.give(8)
    await asyncio.gather(*waiting[:2])
    assert came == ["large", "small"]
    room.give(9)
    await waiting[2]
    assert room.taken == 2


@pytest.mark.virtual
async def test_who_gives_up_waiting_for_room_leaves_no_trace() -> None:
    room = Room(1, 10)
    now = asyncio.get_running_loop().time
    assert room.take_now()
    with pytest.raises(TimeoutError):
        await room.take(1, now() + 5)
    assert now() == 5
    cancelled = asyncio.create_task(room.take(1, now() + 100))
    waits = asyncio.create_task(room.take(1, now() + 100))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.sleep(0)
    room.give()
    assert await waits
    # Given the place and cancelled in the same moment: it goes on to the next.
    given = asyncio.create_task(room.take(1, now() + 100))
    last = asyncio.create_task(room.take(1, now() + 100))
    await asyncio.sleep(0)
    room.give()
    given.cancel()
    assert await last
    room.give()
    assert (room.taken, room.waiting) == (0, 0)
