"""The webhook: in order, at least once, from where it was, and never in the way."""

import asyncio
import hmac
from collections.abc import Mapping
from itertools import pairwise

import msgspec
import pytest

from holdfast.base.randomness import SeededRandomness
from holdfast.health.event_log import EventLog
from holdfast.health.events import HEAD, decode_head, encode_head
from holdfast.health.posting import HttpPoster, PostFailed
from holdfast.health.webhook import (
    RETRY_FIRST_S,
    RETRY_MAX_S,
    SIGNATURE_HEADER,
    Batch,
    Webhook,
    forget_cursor,
    retry_after_s,
    sign,
)
from holdfast.index.memory import Fault, MemoryIndex, MemoryRows, Mishap
from holdfast.index.port import Transaction
from tests.kit.receiver import Receiver
from tests.kit.virtual import VirtualClock

URL = "https://hooks.example.org/secret-path?token=secret-token"


class Mailbox:
    """A receiver in memory, that may refuse."""

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self.status = 200
        self.tries: list[float] = []
        self.received: list[Batch] = []
        self.headers: Mapping[str, str] = {}

    async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        self.tries.append(self._clock.monotonic())
        await self._clock.sleep(0.05)
        if self.status == 0:
            raise PostFailed("No answer in 10 s.")
        if self.status == 200:
            self.received.append(msgspec.json.decode(body, type=Batch))
            self.headers = headers
        return self.status

    async def close(self) -> None:
        return

    @property
    def texts(self) -> list[str]:
        return [event.text for batch in self.received for event in batch.events]


class House:
    """A log, an index, a webhook."""

    def __init__(
        self,
        rows: MemoryRows | None = None,
        *,
        kept_max: int = 1000,
        secret: str = "",
        kinds: tuple[str, ...] = (),
    ) -> None:
        self.clock = VirtualClock()
        self.index = MemoryIndex(self.clock, rows)
        self.log = EventLog(self.clock, "here", kept_max=kept_max)
        self.log.begin(self.index)
        self.mailbox = Mailbox(self.clock)
        self.webhook = Webhook(
            self.log,
            self.index,
            self.mailbox,
            self.clock,
            SeededRandomness(1),
            url=URL,
            secret=secret,
            kinds=kinds,
        )

    async def open(self) -> "House":
        self.webhook.begin()
        await self.clock.sleep(1.0)
        return self

    async def close(self) -> None:
        await self.webhook.close()
        await self.log.close()


@pytest.mark.virtual
async def test_events_arrive_in_order_soon_after_they_happened() -> None:
    house = await House().open()
    for number in range(120):
        house.log.tell(f"number {number}")
    await house.clock.sleep(2.0)
    assert house.mailbox.texts == [f"number {number}" for number in range(120)]
    status = house.webhook.status()
    assert (status.delivered, status.waiting, status.failing_for_s) == (120, 0, None)
    await house.close()


@pytest.mark.virtual
async def test_what_happened_before_there_was_a_webhook_is_not_told() -> None:
    house = House()
    house.log.tell("long ago")
    await house.clock.sleep(1.0)
    await house.open()
    house.log.tell("now")
    await house.clock.sleep(1.0)
    assert house.mailbox.texts == ["now"]
    await house.close()


@pytest.mark.virtual
async def test_a_receiver_that_was_away_gets_what_it_missed_and_is_not_stormed() -> None:
    house = await House().open()
    house.mailbox.status = 503
    for number in range(10):
        house.log.tell(f"number {number}")
        await house.clock.sleep(60.0)
    status = house.webhook.status()
    assert status.host == "hooks.example.org"
    assert "secret" not in str(status)
    assert status.last_error == "It answered 503."
    assert status.failing_for_s is not None
    assert status.failing_for_s > 500.0
    assert status.waiting == 10
    waits = [after - before for before, after in pairwise(house.mailbox.tries)]
    assert len(waits) < 40
    assert max(waits[-3:]) > RETRY_MAX_S / 2
    house.mailbox.status = 200
    await house.clock.sleep(RETRY_MAX_S + 5.0)
    assert house.mailbox.texts == [f"number {number}" for number in range(10)]
    assert house.webhook.status().failing_for_s is None
    await house.close()


@pytest.mark.virtual
async def test_delivery_goes_on_where_it_was_after_a_restart() -> None:
    house = await House().open()
    house.log.tell("one")
    await house.clock.sleep(1.0)
    house.mailbox.status = 0
    house.log.tell("two")
    await house.clock.sleep(5.0)
    await house.close()
    again = await House(house.index.rows).open()
    again.log.tell("three")
    await again.clock.sleep(2.0)
    assert house.mailbox.texts == ["one"]
    assert again.mailbox.texts == ["two", "three"]
    await again.close()


@pytest.mark.virtual
async def test_every_event_arrives_although_commits_fail_and_none_overtakes_another() -> None:
    house = await House().open()
    chance = SeededRandomness(3)
    for number in range(60):
        house.index.faults.append(Fault(tuple(Mishap)[chance.below(4)], chance.fraction()))
        house.log.tell(f"number {number:02}")
        await house.clock.sleep(1.0)
    house.index.faults.clear()
    await house.clock.sleep(120.0)
    firsts = list(dict.fromkeys(house.mailbox.texts))
    assert firsts == [f"number {number:02}" for number in range(60)]
    numbers = [event.number for batch in house.mailbox.received for event in batch.events]
    assert max(before - after for before, after in pairwise(numbers)) < 50, "only a batch comes again"
    await house.close()


@pytest.mark.virtual
async def test_events_that_were_removed_before_they_could_be_sent_are_counted() -> None:
    house = await House(kept_max=20).open()
    house.mailbox.status = 0
    for number in range(100):
        house.log.tell(f"number {number}")
        await house.clock.sleep(0.1)
    house.mailbox.status = 200
    await house.clock.sleep(2 * RETRY_MAX_S)
    assert sum(batch.missed for batch in house.mailbox.received) + len(house.mailbox.texts) == 100
    assert house.mailbox.texts[-1] == "number 99"
    assert house.webhook.status().missed == 80
    await house.close()


@pytest.mark.virtual
async def test_numbers_that_were_skipped_after_a_recovery_are_nothing_that_was_missed() -> None:
    house = await House().open()
    house.log.tell("before")
    await house.clock.sleep(1.0)
    await house.close()
    (row,) = await house.index.get([HEAD])
    head = decode_head(row).skipping_to(1 << 40)
    await house.index.commit([Transaction((), ((HEAD, encode_head(head)),))])
    after = await House(house.index.rows).open()
    after.mailbox.status = 0
    after.log.tell("after")
    await after.clock.sleep(1.0)
    assert after.webhook.status().waiting == 1
    after.mailbox.status = 200
    await after.clock.sleep(2 * RETRY_MAX_S)
    assert [(event.number, event.text) for batch in after.mailbox.received for event in batch.events] == [
        (1 << 40, "after")
    ]
    assert (after.webhook.status().missed, after.webhook.status().waiting) == (0, 0)
    await after.close()


@pytest.mark.virtual
async def test_only_the_kinds_that_were_asked_for_are_told() -> None:
    house = await House(kinds=("store",)).open()
    house.log.tell("a chore", kind="chore")
    house.log.tell("a disk", kind="store")
    await house.clock.sleep(1.0)
    house.log.tell("another chore", kind="chore")
    await house.clock.sleep(1.0)
    assert house.mailbox.texts == ["a disk"]
    assert len(house.mailbox.tries) == 1
    assert house.webhook.status().waiting == 0
    await house.close()


@pytest.mark.virtual
async def test_without_a_webhook_nothing_is_owed_to_the_next_one() -> None:
    house = await House().open()
    await house.close()
    between = House(house.index.rows)
    await forget_cursor(between.index)
    between.log.tell("in between")
    await between.clock.sleep(1.0)
    await between.log.close()
    again = await House(house.index.rows).open()
    again.log.tell("after")
    await again.clock.sleep(1.0)
    assert again.mailbox.texts == ["after"]
    await again.close()


def test_waits_double_up_to_a_bound_and_are_spread() -> None:
    assert retry_after_s(1, 1.0) == RETRY_FIRST_S
    assert retry_after_s(3, 1.0) == 4 * RETRY_FIRST_S
    assert retry_after_s(10_000, 1.0) == RETRY_MAX_S
    assert retry_after_s(10_000, 0.0) == RETRY_MAX_S / 2


# The wire


async def test_a_post_arrives_with_its_headers_and_signature() -> None:
    body = b'{"events":[]}'
    with Receiver() as receiver:
        poster = HttpPoster(f"http://127.0.0.1:{receiver.port}/hook?token=1")
        headers = {"content-type": "application/json", SIGNATURE_HEADER: sign("a secret of ours", body)}
        assert await poster.post(body, headers) == 200
        receiver.answers = 503
        assert await poster.post(body, headers) == 503
        (sent, received), _ = receiver.posts
        assert received == body
        assert sent["content-type"] == "application/json"
        expected = hmac.new(b"a secret of ours", received, "sha256").hexdigest()
        assert sent[SIGNATURE_HEADER] == f"sha256={expected}"
        await poster.close()


async def test_a_server_that_accepts_and_says_nothing_is_left_at_the_deadline() -> None:
    with Receiver() as receiver:
        receiver.answers = None
        poster = HttpPoster(f"http://127.0.0.1:{receiver.port}/secret-path", deadline_s=0.2)
        with pytest.raises(PostFailed, match="No answer in 0") as failed:
            await poster.post(b"{}", {})
        assert "secret" not in str(failed.value)
        receiver.answers = 200
        await _until_free(poster)
        await poster.close()


async def _until_free(poster: HttpPoster) -> None:
    """The connection was cut, so that its thread is there for the next one."""
    async with asyncio.timeout(60):
        while True:
            try:
                assert await poster.post(b"{}", {}) == 200
            except PostFailed as error:
                # A busy machine may not answer by so short a deadline either.
                assert "before has not ended" in str(error) or "No answer in 0" in str(error)  # noqa: PT017
                await asyncio.sleep(0.01)
            else:
                return


async def test_nobody_there_is_said_without_the_url() -> None:
    with Receiver() as receiver:
        port = receiver.port
    poster = HttpPoster(f"http://127.0.0.1:{port}/secret-path")
    with pytest.raises(PostFailed, match="cannot be reached") as failed:
        await poster.post(b"{}", {})
    assert "secret" not in str(failed.value)
    await poster.close()


async def test_a_certificate_that_nobody_signed_is_not_trusted() -> None:
    with Receiver(tls=True) as receiver:
        poster = HttpPoster(f"https://localhost:{receiver.port}/hook")
        with pytest.raises(PostFailed, match="certificate is not trusted"):
            await poster.post(b"{}", {})
        assert receiver.posts == []
        await poster.close()


@pytest.mark.virtual
async def test_of_several_nodes_one_delivers_and_another_goes_on_where_it_was() -> None:
    house = House()
    turns = ["one"]
    boxes = {name: Mailbox(house.clock) for name in ("one", "two")}

    def webhook(name: str) -> Webhook:
        async def is_our_turn() -> bool:
            return turns[0] == name

        return Webhook(
            house.log,
            house.index,
            boxes[name],
            house.clock,
            SeededRandomness(1),
            url=URL,
            is_our_turn=is_our_turn,
        )

    hooks = [webhook("one"), webhook("two")]
    for hook in hooks:
        hook.begin()
    await house.clock.sleep(1.0)
    for number in range(9):
        turns[0] = "two" if 3 <= number < 6 else "one"
        house.log.tell(f"number {number}")
        await house.clock.sleep(30.0)
    assert boxes["one"].texts == [f"number {number}" for number in (0, 1, 2, 6, 7, 8)]
    assert boxes["two"].texts == [f"number {number}" for number in (3, 4, 5)]
    assert hooks[1].status().waiting == 0
    for hook in hooks:
        await hook.close()
    await house.close()
