"""How many requests are taken on follows what turns of the loop take; and what a node says of itself does not
wait behind them."""

import asyncio
import math
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.base.clock import SystemClock
from holdfast.base.randomness import SeededRandomness
from holdfast.s3.face import AdminAnswer, AdminRequest, Face, Route, route_at_once
from holdfast.wire.admission import LEAST, LOOK_EVERY_S, Admission
from holdfast.wire.connection import Connection, Shared
from holdfast.wire.exchange import Limits
from tests.kit.fake_objects import FakeObjects
from tests.unit.test_wire_giving_up import Wireless

MOST, LATE_S = 512, 0.5


class Seen(NamedTuple):
    """A turn of a node under load."""

    turn_s: float
    limit: int


def under_load(admission: Admission, wanted: int, cost_s: float, looks: int) -> list[Seen]:
    """A loop whose turn has some work for each request under way, while so many are wanted."""
    seen = []
    for _ in range(looks):
        in_flight = min(wanted, admission.limit)
        turn_s = in_flight * cost_s
        admission.looked(turn_s, in_flight)
        seen.append(Seen(turn_s, admission.limit))
    return seen


def test_with_more_than_it_can_do_a_node_takes_on_what_it_can() -> None:
    admission = Admission(MOST, LATE_S)
    # 512 at 4 ms each are turns of two seconds.
    seen = under_load(admission, 5000, 0.004, 100)
    assert seen[0].turn_s > 2
    assert all(turn.turn_s <= 2 * LATE_S for turn in seen[10:])
    assert sum(turn.turn_s > LATE_S for turn in seen[10:]) < 45
    # It is asked less, and takes all of that at once, and soon as much as ever.
    under_load(admission, 10, 0.004, 30)
    assert admission.limit == MOST


def test_who_has_time_is_bound_by_nothing_but_the_configuration() -> None:
    admission = Admission(MOST, LATE_S)
    under_load(admission, 5000, 0.0005, 100)
    assert admission.limit == MOST


def test_one_late_turn_changes_nothing() -> None:
    admission = Admission(MOST, LATE_S)
    for _ in range(100):
        admission.looked(30.0, 500)
        admission.looked(0.0, 500)
    assert admission.limit == MOST


@given(
    most=st.integers(1, 1000),
    looks=st.lists(st.tuples(st.floats(0, 100), st.integers(0, 1000)), max_size=50),
)
def test_the_bound_stays_within_its_bounds(most: int, looks: list[tuple[float, int]]) -> None:
    admission = Admission(most, LATE_S)
    for late_s, in_flight in looks:
        admission.looked(late_s, min(in_flight, most))
        assert min(LEAST, most) <= admission.limit <= most


def face_of(routes: dict[str, Route]) -> Face:
    clock = SystemClock()
    return Face(
        FakeObjects(clock, region="r"),
        {},
        clock,
        SeededRandomness("face"),
        region="r",
        base_domains=(),
        routes=routes,
    )


def at_once(request: AdminRequest) -> AdminAnswer:
    return AdminAnswer(200, request.query.get("say", "ready").encode())


async def in_turn(request: AdminRequest) -> AdminAnswer:
    return AdminAnswer(200, b"in its turn")


class Kept(Wireless):
    """Keeps what is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()

    def write(self, data: object) -> None:
        assert isinstance(data, bytes | bytearray | memoryview)
        self.sent += data


def ask(face: Face, head: str, limits: Limits | None = None) -> Kept:
    """One request on a connection of its own; what was answered before anything else had its turn."""
    connection, transport = Connection(Shared(face, limits or Limits())), Kept()
    connection.connection_made(transport)
    connection.data_received(f"{head} HTTP/1.1\r\nhost: n\r\n\r\n".encode())
    return transport


ROUTES = {"/-/ready": route_at_once(at_once), "/-/other": Route(in_turn, signed=False)}


async def test_whether_it_is_ready_is_answered_when_the_question_is_read() -> None:
    face = face_of(ROUTES)
    answer = bytes(ask(face, "GET /-/ready").sent)
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nready")
    assert b"x-amz-request-id" in answer
    assert bytes(ask(face, "GET /-/ready?say=yes").sent).endswith(b"\r\n\r\nyes")
    head = bytes(ask(face, "HEAD /-/ready").sent)
    assert head.startswith(b"HTTP/1.1 200 ")
    assert head.endswith(b"\r\n\r\n")
    # However little room there is.
    assert b" 200 " in bytes(ask(face, "GET /-/ready", Limits(requests_max=0)).sent)


async def test_all_else_has_its_turn() -> None:
    face = face_of(ROUTES)
    asked = ("GET /-/other", "POST /-/ready", "GET /-/ready?a=1&a=2", "GET /-/none", "GET /b/k")
    waiting = [ask(face, head) for head in asked]
    assert [bytes(one.sent) for one in waiting] == [b""] * len(waiting)
    for _ in range(50):
        await asyncio.sleep(0)
    statuses = [bytes(one.sent).split()[1] for one in waiting]
    assert statuses == [b"200", b"405", b"400", b"403", b"403"]


async def test_a_connection_goes_on_after_an_answer_at_once() -> None:
    face = face_of(ROUTES)
    connection, transport = Connection(Shared(face, Limits())), Kept()
    connection.connection_made(transport)
    question = b"GET /-/ready HTTP/1.1\r\nhost: n\r\n\r\n"
    connection.data_received(question * 3)
    for _ in range(20):
        await asyncio.sleep(0)
    assert bytes(transport.sent).count(b"HTTP/1.1 200 ") == 3
    connection.data_received(question)
    assert bytes(transport.sent).count(b"HTTP/1.1 200 ") == 4


@pytest.mark.parametrize("late_s", [math.inf, 0.5])
async def test_a_server_looks_at_its_loop_only_where_that_was_asked_for(late_s: float) -> None:
    shared = Shared(face_of({}), Limits(requests_max=100, late_s=late_s))
    for _ in range(4):
        shared.admission.looked(1.0, 100)
    assert (shared.admission.limit < 100) is (late_s < math.inf)
    assert LOOK_EVERY_S < LATE_S
