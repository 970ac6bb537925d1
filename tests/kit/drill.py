"""The drill kit: a node under load at a fixed rate, a fault, and what clients and disks say of it.

The load is open-loop: requests go out when their time has come, however long the others take, so that a
node that stalls is seen to stall. The content of every answer is checked. Afterwards every acknowledged
object is read back, and every shard on every disk is compared with what the byte tables say
(`tests/kit/audit.py`).
"""

import asyncio
import hashlib
import itertools
import json
import os
import random
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol
from xml.etree import ElementTree

import msgspec

from holdfast.base.clock import SystemClock
from holdfast.node.status import NodeState, Status
from holdfast.node.verification import Broken, Started, Summary, decode_line
from tests.kit.drill_node import PIPE
from tests.kit.outcome import Outcome
from tests.kit.process import NodeProcess
from tests.kit.s3 import ACCESS_KEY, SECRET_KEY, Answer, call

BUCKET = "drill"
SIZES = (0, 1, 900, 4096, 20_000, 70_000, 300_000, 1_500_000)
KEYS = 60
ROOT = Path(__file__).resolve().parents[2]
CHANGES = ("put", "delete")
LOOK_EVERY_S = 0.1
WHOLE_WITHIN_S = 90.0

Content = bytes | None


class Ask(Protocol):
    """Sends a signed request to whoever serves."""

    def __call__(self, method: str, target: str, body: bytes = b"", /) -> Awaitable[Answer]: ...


class DrillNode(NodeProcess):
    """A node whose stores do as they are told."""

    def __init__(
        self, home: Path, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> None:
        given = {"HOLDFAST_ACCESS_KEY_ID": ACCESS_KEY, "HOLDFAST_SECRET_ACCESS_KEY": SECRET_KEY}
        given |= {"PYTHONPATH": str(ROOT)} | dict(environment or {})
        program = (sys.executable, "-m", "tests.kit.drill_node")
        super().__init__(home, environment=given, prefix=prefix, program=program)
        with suppress(FileExistsError):
            os.mkfifo(home / PIPE)

    def tell(self, slot: str, **script: object) -> None:
        """What is wrong with the store of a slot from now on; `well=True` ends it."""
        with (self.home / PIPE).open("w") as orders:
            orders.write(json.dumps({"slot": slot} | script) + "\n")

    async def look(self) -> Status:
        """Its status."""
        answer = await call(self.port, "GET", "/-/status")
        assert answer.status == 200, answer.body
        return msgspec.json.decode(answer.body, type=Status)

    async def ask(self, method: str, target: str, body: bytes = b"", /) -> Answer:
        """See `Ask`."""
        return await call(self.port, method, target, body=body)


@dataclass
class Done:
    """One request: when it was due, and when it was over, in seconds of the clock."""

    what: str
    due: float
    over: float
    error: str = ""


class Load:
    """Requests at a fixed rate, each key used by one of them at a time; knows what each key may hold."""

    def __init__(self, ask: Ask, *, rate: float, seed: str, sizes: Sequence[int] = SIZES) -> None:
        self._ask = ask
        self._sizes = sizes
        self._rate = rate
        self._chance = random.Random(seed)
        self._clock = SystemClock()
        self._busy: set[str] = set()
        self.possible: dict[str, list[Content]] = {}
        self._past: dict[str, set[Content]] = {}
        self.done: list[Done] = []
        self.wrong: list[str] = []
        self.stale: list[str] = []
        self._running: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> "Load":
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._running is not None
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)
        await asyncio.gather(*self._tasks)

    async def begin(self) -> None:
        """The bucket, and an object under some of the keys."""
        answer = await self._ask("PUT", f"/{BUCKET}")
        assert answer.status == 200, answer.body
        for number in range(0, KEYS, 2):
            await self._one(self._put, f"k{number:03}", self._clock.monotonic())
        assert not [one for one in self.done if one.error]
        self.done.clear()

    async def _run(self) -> None:
        due = self._clock.monotonic()
        while True:
            due += 1 / self._rate
            await self._clock.sleep(max(0.0, due - self._clock.monotonic()))
            free = [key for key in (f"k{number:03}" for number in range(KEYS)) if key not in self._busy]
            if not free:
                continue
            dice, key = self._chance.random(), self._chance.choice(free)
            operation = (
                self._get
                if dice < 0.60
                else self._put
                if dice < 0.9
                else self._delete
                if dice < 0.95
                else self._list
            )
            task = asyncio.create_task(self._one(operation, key, due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _one(self, operation: Callable[[str], Awaitable[str]], key: str, due: float) -> None:
        self._busy.add(key)
        what = operation.__name__.strip("_")
        try:
            error = await operation(key)
        except (OSError, EOFError, TimeoutError) as raised:
            error = f"{what} {key}: {raised!r}"
        finally:
            self._busy.discard(key)
        self.done.append(Done(what, due, self._clock.monotonic(), error))

    async def _get(self, key: str) -> str:
        answer = await self._ask("GET", f"/{BUCKET}/{key}")
        may_be = self.possible.get(key, [None])
        if answer.status not in (200, 404):
            return f"get {key}: {answer.status} {answer.body[:300]!r}"
        found = None if answer.status == 404 else answer.body
        if found not in may_be:
            told = f"{key} holds {_told(found)}, promised was {[_told(one) for one in may_be]}"
            (self.stale if _mark(found) in self._past.get(key, ()) else self.wrong).append(told)
        return ""

    async def _put(self, key: str) -> str:
        body = self._chance.randbytes(self._chance.choice(self._sizes))
        return await self._change("PUT", key, body)

    async def _delete(self, key: str) -> str:
        return await self._change("DELETE", key, None)

    async def _change(self, method: str, key: str, content: Content) -> str:
        before = self.possible.setdefault(key, [None])
        self.possible[key] = [*before, content]
        answer = await self._ask(method, f"/{BUCKET}/{key}", content or b"")
        if answer.status not in (200, 204):
            return f"{method} {key}: {answer.status} {answer.body[:300]!r}"
        self._past.setdefault(key, set()).update(_mark(one) for one in before)
        self.possible[key] = [content]
        return ""

    async def _list(self, key: str) -> str:
        answer = await self._ask("GET", f"/{BUCKET}?list-type=2&prefix={key}")
        if answer.status != 200:
            return f"list {key}: {answer.status} {answer.body[:300]!r}"
        sizes = [
            int(size.text or "")
            for size in ElementTree.fromstring(answer.body).iterfind("{*}Contents/{*}Size")
        ]
        may_be = [[] if one is None else [len(one)] for one in self.possible.get(key, [None])]
        if sizes not in may_be:
            self.wrong.append(f"{key} is listed with {sizes}, promised was {may_be}")
        return ""

    async def read_back(self, ask: Ask | None = None) -> list[str]:
        """Read every key; what was acknowledged and is not there. Knows from now on what each holds."""
        at_once = asyncio.Semaphore(8)
        ask = ask or self._ask

        async def read(key: str, may_be: list[Content]) -> str:
            async with at_once:
                answer = await ask("GET", f"/{BUCKET}/{key}")
            found = None if answer.status == 404 else answer.body
            if answer.status not in (200, 404) or found not in may_be:
                promised = [_told(one) for one in may_be]
                return f"{key}: {answer.status} {_told(found)}, promised was {promised}"
            self.possible[key] = [found]
            return ""

        return [
            lost for lost in await asyncio.gather(*itertools.starmap(read, self.possible.items())) if lost
        ]

    def forget(self) -> None:
        """The node was no more: what failed then is nobody's fault. What was answered with wrong bytes is."""
        self.done.clear()

    def add_up(self, outcome: Outcome) -> None:
        """Add to `outcome` what clients have seen since the last time."""
        done, self.done = self.done, []
        outcome.requests += len(done)
        outcome.failed += [one.error for one in done if one.error]
        outcome.acknowledged += sum(one.what in CHANGES and not one.error for one in done)
        outcome.wrong, self.wrong = outcome.wrong + self.wrong, []
        outcome.stale, self.stale = outcome.stale + self.stale, []
        outcome.took_s += [one.over - one.due for one in done]
        outcome.longest_s = max([outcome.longest_s, *outcome.took_s])
        for what in sorted({one.what for one in done}):
            gap_s = _longest_gap([one for one in done if one.what == what])
            outcome.gaps_s[what] = max(outcome.gaps_s.get(what, 0.0), gap_s)


def _longest_gap(done: list[Done]) -> float:
    """The longest time in which requests were due and none succeeded: from the first that was due after a
    success to the next success."""
    longest, last = 0.0, float("-inf")
    for success in sorted((one for one in done if not one.error), key=lambda one: one.over):
        waiting = min((one.due for one in done if one.due > last), default=success.over)
        longest = max(longest, success.over - waiting)
        last = success.over
    return longest


def _mark(content: Content) -> Content:
    """What to know a content by when it is no more."""
    return None if content is None else hashlib.sha256(content).digest()


def _told(content: Content) -> str:
    return "nothing" if content is None else f"{len(content)} bytes ({content[:4].hex()}…)"


def is_whole(status: Status) -> bool:
    """Whether the node says that all is as it was promised."""
    return (
        status.state is NodeState.ONLINE
        and is_redundant(status)
        and (status.recovery is None or status.recovery.left_to_read == 0)
        and not members_out(status)
    )


def is_redundant(status: Status) -> bool:
    """Whether the node says that every pack has what it was promised."""
    packs = status.packs
    return packs.degraded == packs.debts == packs.repairs_waiting == packs.unreadable == 0


def members_out(status: Status) -> set[str]:
    """The slots whose member of the index is not current."""
    return {
        member.name
        for member in status.index.members
        if not member.name.startswith("copy ") and member.state != "current"
    }


class Drill:
    """One node, one load, one fault after the other."""

    def __init__(self, node: DrillNode, load: Load, *, seconds: float) -> None:
        self.node = node
        self.load = load
        self._seconds = seconds
        self._clock = SystemClock()
        self.outcomes: list[Outcome] = []

    async def run(
        self,
        name: str,
        fault: Callable[[], object],
        undo: Callable[[], object] = lambda: None,
        *,
        noticed: Callable[[Status], bool] | None = None,
        hidden: bool = False,
    ) -> Outcome:
        """Do `fault` under load, `undo` it after a while, go on with the load for as long, and wait until
        all is whole again. With `noticed`, the fault lasts until the status shows it. What is `hidden` is
        found by reading everything."""
        outcome = Outcome(name)
        self.outcomes.append(outcome)
        async with self.load:
            await self._clock.sleep(0.3)
            began = self._clock.monotonic()
            await asyncio.to_thread(fault)
            if noticed is not None:
                outcome.detected_s = await self._until(noticed, began, f"{name} to be noticed")
            await self._clock.sleep(max(0.0, began + self._seconds - self._clock.monotonic()))
            mending = self._clock.monotonic()
            await asyncio.to_thread(undo)
            if hidden:
                summary = await self.verify()
                assert summary.lost == 0, summary
            await self._clock.sleep(self._seconds)
        # Chores yield to clients: what is left is mended sooner without.
        outcome.redundant_s = await self._until(is_whole, mending, f"redundancy after {name}")
        self.load.add_up(outcome)
        outcome.lost = await self.load.read_back()
        return outcome

    async def restarting(
        self,
        name: str,
        before: Callable[[], object],
        ends: Callable[[], object],
        *,
        sees: Callable[[Status], bool] | None = None,
        then: Callable[[], object] = lambda: None,
    ) -> Outcome:
        """Load with the trouble of `before`; then `ends` ends the process, the load with it, and changes what
        lies on disks. What the node `sees` when it is back; what is done `then`; and whole again."""
        outcome = Outcome(name)
        self.outcomes.append(outcome)
        await asyncio.to_thread(before)
        async with self.load:
            await self._clock.sleep(self._seconds)
        self.load.add_up(outcome)
        await asyncio.to_thread(ends)
        await asyncio.to_thread(self.node.start)
        began = self._clock.monotonic()
        outcome.lost = await self.load.read_back()
        if sees is not None:
            outcome.detected_s = await self._until(sees, began, f"{name} to be noticed")
        async with self.load:
            await asyncio.to_thread(then)
            summary = await self.verify()
            assert summary.lost == 0, summary
        outcome.redundant_s = await self._until(is_whole, began, f"redundancy after {name}")
        self.load.add_up(outcome)
        outcome.lost += await self.load.read_back()
        return outcome

    async def cut(self, name: str, ends: Callable[[], object]) -> Outcome:
        """`ends` ends the process amid the load; what was under way then was not promised to anybody. Start
        it again, read everything back, and wait until all is whole."""
        outcome = Outcome(name)
        self.outcomes.append(outcome)
        async with self.load:
            await self._clock.sleep(self._seconds)
            self.load.add_up(outcome)
            await asyncio.to_thread(ends)
        self.load.forget()
        await asyncio.to_thread(self.node.start)
        began = self._clock.monotonic()
        outcome.lost = await self.load.read_back()
        outcome.redundant_s = await self._until(is_whole, began, f"redundancy after {name}")
        summary = await self.verify()
        assert summary.lost == 0, summary
        return outcome

    async def verify(self) -> Summary:
        """Have every shard of every pack read; what is wrong is mended by the node then."""
        answer = await call(self.node.port, "POST", "/-/verify")
        started = decode_line(answer.body.splitlines()[0])
        assert isinstance(started, Started), answer.body
        while True:
            answer = await call(self.node.port, "GET", f"/-/verify?job={started.job}")
            for line in map(decode_line, answer.body.splitlines()):
                assert not isinstance(line, Broken), line
                if isinstance(line, Summary):
                    return line
            await self._clock.sleep(LOOK_EVERY_S)

    async def _until(self, holds: Callable[[Status], bool], began: float, what: str) -> float:
        while True:
            status = await self.node.look()
            now = self._clock.monotonic()
            if holds(status):
                return now - began
            assert now - began < WHOLE_WITHIN_S, f"waited {now - began:.0f} s for {what}: {status}"
            await self._clock.sleep(LOOK_EVERY_S)

    async def whole(self) -> None:
        """Wait until all is whole."""
        await self._until(is_whole, self._clock.monotonic(), "redundancy")


def is_out(*slots: str) -> Callable[[Status], bool]:
    """Whether the stores of these slots, and the members of the index on them, are known not to be well."""

    def holds(status: Status) -> bool:
        return members_out(status) >= set(slots) and all(store_is(slot)(status) for slot in slots)

    return holds


def store_is(slot: str, *states: str) -> Callable[[Status], bool]:
    """Whether a slot is in one of these states; without any, whether it is anything but healthy."""

    def holds(status: Status) -> bool:
        (store,) = [store for store in status.stores if store.slot == slot]
        return store.state in states if states else store.state != "healthy"

    return holds
