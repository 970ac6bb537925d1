"""Clients that fight over a few keys, and write down all that they were told, for the checker of histories
(`tests/simulation/history.py`).

A version is known by a token in its metadata, and its bytes follow from the token. A client knows what was
asked and answered, and when; a request that got no answer, or an answer that promises nothing, is in doubt:
it may have come to pass, may yet do so, or never will. Some clients go away before they are answered.

A request that a balancer sent more than once is still one operation. Only a key that others wrote so often
in between that its head row forgot it may show it twice (decision record 21): the balancers' logs say how
many tries there were, and `ClusterBook` when that was possible.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol
from urllib.parse import quote
from xml.etree import ElementTree

from tests.kit.s3 import Answer
from tests.simulation.book import TOKEN, Open, Violation
from tests.simulation.cluster_clients import ClusterBook, Twin
from tests.simulation.contents import make_bytes
from tests.simulation.history import ANYTHING, NOTHING, SOMETHING, Need, Sort

SIZES = (40, 900, 5000, 70_000, 300_000)
KEYS = ("hot", "hot/a", "hot/ü")
AGENT = "hot-keys/"
LEAVES_AFTER_S = 0.03

ACTIONS = (
    (26, "put"),
    (10, "create"),
    (10, "replace"),
    (12, "delete"),
    (4, "delete_if"),
    (24, "get"),
    (4, "get_if"),
    (3, "head"),
    (3, "list_keys"),
)


class Door(Protocol):
    """Sends a signed request to whoever serves."""

    def __call__(
        self, method: str, target: str, body: bytes = b"", /, *, headers: Mapping[str, str] | None = None
    ) -> Awaitable[Answer]: ...


class Write(NamedTuple):
    """What a request may leave at a key, and what it must have found for that."""

    open_: Open
    token: str | None
    need: Need
    answered: int | None


class HotKeys:
    """What some clients did to `KEYS` of a bucket that exists."""

    def __init__(self, doors: Sequence[Door], *, seed: str, bucket: str) -> None:
        self._doors = doors
        self._chance = random.Random(seed)
        self._ticks = itertools.count(1)
        self._tokens = itertools.count(1)
        self._bucket = bucket
        self._writes: list[Write] = []
        self._etags: dict[str, list[str]] = {}
        self.book = ClusterBook()
        self.unknown = 0
        self.pause_s = 0.05
        self.leaving = 0.03
        """How many of a client's requests it does not wait for."""

    async def work(self, operations: int, clients: int = 6) -> None:
        """So many operations of so many clients at once."""
        left = iter(range(operations))

        async def one() -> None:
            for _ in left:
                await self._act()
                await asyncio.sleep(self._chance.uniform(0, 2 * self.pause_s))

        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(one())

    async def _act(self) -> None:
        weights = [weight for weight, _ in ACTIONS]
        action: Callable[[str], Awaitable[None]]
        action = getattr(self, self._chance.choices(ACTIONS, weights)[0][1])
        await action(self._chance.choice(KEYS))

    # Writes

    async def put(self, key: str) -> None:
        """Whatever is there."""
        await self._put(key, {}, ANYTHING, None)

    async def create(self, key: str) -> None:
        """If nothing is there."""
        await self._put(key, {"If-None-Match": "*"}, NOTHING, SOMETHING)

    async def replace(self, key: str) -> None:
        """If a certain version is there."""
        if etag := await self._some_etag(key):
            need, refused = Need(Sort.ETAG, etag), Need(Sort.OTHER_ETAG, etag)
            await self._put(key, {"If-Match": f'"{etag}"'}, need, refused)

    async def delete(self, key: str) -> None:
        """Whatever is there."""
        await self._change("DELETE", key, b"", {}, None, ANYTHING, None)

    async def delete_if(self, key: str) -> None:
        """If a certain version is there."""
        if etag := await self._some_etag(key):
            need, refused = Need(Sort.ETAG, etag), Need(Sort.OTHER_ETAG, etag)
            headers = {"If-Match": f'"{etag}"'}
            await self._change("DELETE", key, b"", headers, None, need, refused)

    async def _put(self, key: str, headers: dict[str, str], need: Need, refused: Need | None) -> None:
        token = f"t{next(self._tokens)}"
        body = make_bytes(token, self._chance.choice(SIZES))
        etag = self.book.promise(f"{self._bucket}/{key}", token, body)
        self._etags.setdefault(f"{self._bucket}/{key}", []).append(etag)
        headers |= {f"x-amz-meta-{TOKEN}": token}
        await self._change("PUT", key, body, headers, token, need, refused)

    async def _change(
        self,
        method: str,
        key: str,
        body: bytes,
        headers: dict[str, str],
        token: str | None,
        need: Need,
        refused: Need | None,
    ) -> None:
        open_ = self._begin(key, " ".join((method.lower(), *sorted(headers))))
        answer = await self._ask(open_, method, key, body, headers)
        tick = next(self._ticks)
        status = 0 if answer is None else answer.status
        self._writes.append(Write(open_, token, need, tick if answer is not None else None))
        if answer is not None and status in {200, 204}:
            if token is not None:
                assert answer.headers["etag"].strip('"') == self.book.versions[token].etag
            self.book.wrote(open_, tick, token, need)
        elif status == 412 and refused is not None:
            self.book.saw(open_, tick, refused)
        elif status == 404 and refused is not None and need.sort is Sort.ETAG:
            self.book.saw(open_, tick, NOTHING)
        elif answer is None or _promises_nothing(answer):
            self.unknown += 1
            self.book.doubts(open_, token, need, crashed=False)
        else:
            raise Violation(f"{open_.what} of {open_.key} was answered with {answer}")

    # Reads

    async def get(self, key: str, door: Door | None = None) -> None:
        """All of it."""
        open_ = self._begin(key, "get")
        self._read(open_, await self._ask(open_, "GET", key, door=door))

    async def get_if(self, key: str) -> None:
        """Unless, or only if, a certain version is there."""
        etag = await self._some_etag(key)
        if not etag:
            return
        header, told = self._chance.choice((("If-None-Match", 304), ("If-Match", 412)))
        open_ = self._begin(key, f"get {header}")
        answer = await self._ask(open_, "GET", key, headers={header: f'"{etag}"'})
        if answer is not None and answer.status == told:
            sort = Sort.ETAG if told == 304 else Sort.OTHER_ETAG
            self.book.saw(open_, next(self._ticks), Need(sort, etag))
        else:
            self._read(open_, answer)

    async def head(self, key: str) -> None:
        """What is there, without its bytes."""
        await self._look(key)

    async def list_keys(self, _key: str) -> None:
        """Says of each key whether it is there."""
        opens = [self._begin(key, "list") for key in KEYS]
        answer = await self._ask(opens[0], "GET", "?list-type=2")
        if answer is None or _promises_nothing(answer):
            return
        assert answer.status == 200, answer
        shown = {
            entry.findtext("{*}Key", ""): entry.findtext("{*}ETag", "").strip('"')
            for entry in ElementTree.fromstring(answer.body).iterfind("{*}Contents")
        }
        if unknown := shown.keys() - set(KEYS):
            raise Violation(f"{self._bucket} lists {unknown}, which nobody wrote")
        tick = next(self._ticks)
        for open_, key in zip(opens, KEYS, strict=True):
            self.book.saw(open_, tick, Need(Sort.ETAG, shown[key]) if key in shown else NOTHING)

    def _read(self, open_: Open, answer: Answer | None, *, bare: bool = False) -> str:
        """The etag of what was there, if that is known."""
        tick = next(self._ticks)
        if answer is None or _promises_nothing(answer):
            return ""
        if answer.status == 404:
            self.book.saw(open_, tick, NOTHING)
            return ""
        assert answer.status == 200, answer
        token = answer.headers.get(f"x-amz-meta-{TOKEN}", "?")
        version = self.book.versions.get(token)
        if version is None or version.where != open_.key:
            raise Violation(f"{open_.key} holds {token}, which was never written there")
        etag = answer.headers["etag"].strip('"')
        self.book.learn(token, etag)
        if not bare and answer.body != self.book.bytes_of[etag]:
            raise Violation(f"{open_.key}: wrong bytes of {token}: {len(answer.body)}")
        self.book.saw(open_, tick, Need(Sort.TOKEN, token))
        return etag

    async def _look(self, key: str) -> str:
        open_ = self._begin(key, "head")
        return self._read(open_, await self._ask(open_, "HEAD", key), bare=True)

    async def _some_etag(self, key: str) -> str:
        """That of what is there; sometimes of what was there once, perhaps."""
        known = self._etags.get(f"{self._bucket}/{key}")
        if known and self._chance.random() < 0.5:
            return self._chance.choice(known[-4:])
        return await self._look(key)

    # The wire

    def _begin(self, key: str, what: str) -> Open:
        return self.book.begin(f"{self._bucket}/{key}", what, next(self._ticks), 0.0)

    async def _ask(
        self,
        open_: Open,
        method: str,
        key: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        door: Door | None = None,
    ) -> Answer | None:
        """None if there is none: it was lost, or the client did not wait for it."""
        name, query, rest = key.partition("?")
        target = f"/{self._bucket}/{quote(name)}" if name else f"/{self._bucket}"
        leaves = door is None and method != "HEAD" and self._chance.random() < self.leaving
        patience = asyncio.timeout(self._chance.uniform(0, LEAVES_AFTER_S) if leaves else None)
        door = door or self._chance.choice(self._doors)
        stamped = {"User-Agent": f"{AGENT}{open_.number}"} | dict(headers or {})
        try:
            async with patience:
                return await door(method, target + query + rest, body, headers=stamped)
        except (OSError, EOFError, TimeoutError):
            return None

    # The judgement

    async def read_all(self, doors: Sequence[Door]) -> None:
        """Read every key through each of `doors`."""
        for key, door in itertools.product(KEYS, doors):
            await self.get(key, door)

    def judge(self, tries: Mapping[int, int]) -> None:
        """Raises Violation if no order of the requests explains what was seen. `tries` tells of the requests
        that were tried several times, by their numbers."""
        end = next(self._ticks)
        for write in self._writes:
            ended = end if write.answered is None else write.answered
            for _ in range(tries.get(write.open_.number, 1) - 1):
                twin = Twin(write.open_.key, write.open_.began, ended, write.token, write.need, must=False)
                self.book.twins.append(twin)
        self.book.check()


def _promises_nothing(answer: Answer) -> bool:
    """Whether it leaves open what became of the request: it took too long, or met another."""
    return answer.status in {408, 409} or answer.status >= 500
