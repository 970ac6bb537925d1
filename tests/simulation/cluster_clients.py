"""Clients of several nodes behind a balancer: each request goes to some node, and one that got no answer is
tried again at another one, under the same name, with the number of its try.

For the history a request is one operation, whatever its tries went through: its last try answers what the
first one that came to pass earned, and none comes to pass after it. Only a key that others changed so often
in between that its head row has forgotten the request may show it twice (decision record 21).
"""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar, cast

from msgspec import field
from msgspec.structs import replace

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import RequestId, UploadId
from holdfast.objects import errors as e
from holdfast.objects import model as m
from holdfast.objects.rows import REMEMBERED_MAX
from tests.simulation.book import TOKEN, Book, Open, Violation
from tests.simulation.clients import Client, Failed
from tests.simulation.cluster_world import ClusterWorld, NoAnswer
from tests.simulation.history import ANYTHING, Need, Op, Sort

if TYPE_CHECKING:
    from tests.simulation.cluster_node import ClusterNode
    from tests.simulation.node import SimulatedNode

T = TypeVar("T")

UNNAMED = RequestId("")
PATIENCE_S = (15.0, 1.0)
"""How long a try is waited for, each as often: longer than a node is stopped, or so short that another node
is asked while the first one sleeps over the request, and goes on with it later."""

TRIES_AT_NODES = 4
AGAIN = ("get", "head", "list", "put", "delete", "copy", "create upload", "part", "complete", "abort")
"""What is tried again by itself."""


class Twin(NamedTuple):
    """A request with several tries, which may have changed its key once more than it says if the key forgot
    it. `must` is whether only that explains its answer."""

    key: str
    began: int
    ended: int
    token: str | None
    need: Need
    must: bool


class ClusterBook(Book):
    """As for one node, where a request may have had several tries."""

    twins: list[Twin] = field(default_factory=list)
    tried_again: int = 0
    forgotten: int = 0

    def check(self) -> None:
        """See `Book.check`."""
        more: list[tuple[str, Op]] = []
        for number, twin in enumerate(self.twins, self.requests + 1):
            others = sum(
                op.writes and op.began <= twin.ended and (op.ended is None or op.ended >= twin.began)
                for op in self.histories.get(twin.key, ())
            )
            # Itself is among them.
            if others - 1 >= REMEMBERED_MAX:
                self.forgotten += 1
                op = Op(number, "forgotten try", twin.began, twin.ended, twin.need, True, twin.token, True)
                more.append((twin.key, op))
            elif twin.must:
                raise Violation(f"a second try was not told what the first one earned: {twin}")
        for key, op in more:
            self._add(key, op)
        super().check()


class Named:
    """The objects of a node, as a balancer reaches them: it names each request, and counts its tries."""

    def __init__(self, objects: m.ObjectService, request: RequestId, tries: int) -> None:
        self._objects = objects
        self._request = request
        self._tries = tries
        self.writes: list[tuple[str, str | None, Need]] = []
        """What may come to pass: the key, the version it leaves, and what it must find."""

    def __getattr__(self, name: str) -> object:
        return getattr(self._objects, name)

    async def put_object(self, put: m.PutObject) -> m.Stored:
        conditions, need = put.conditions, ANYTHING
        if conditions.if_match:
            need = Need(Sort.ETAG, conditions.if_match[0])
        elif conditions.if_none_match:
            need = Need(Sort.NOTHING)
        self._will(put.bucket, put.key, dict(put.metadata)[TOKEN], need)
        return await self._objects.put_object(replace(put, request=self._request, tries=self._tries))

    async def copy_object(self, copy: m.CopyObject) -> m.Stored:
        self._will(copy.bucket, copy.key, dict(copy.metadata)[TOKEN], ANYTHING)
        return await self._objects.copy_object(replace(copy, request=self._request, tries=self._tries))

    async def delete_objects(
        self, bucket: str, keys: Sequence[m.DeleteKey], request: RequestId, tries: int = 1
    ) -> Sequence[m.DeleteResult]:
        for key in keys:
            need = Need(Sort.ETAG, key.if_match[0]) if key.if_match else ANYTHING
            self._will(bucket, key.key, None, need)
        return await self._objects.delete_objects(bucket, keys, self._request, self._tries)

    async def upload_part(self, part: m.UploadPart) -> m.Stored:
        return await self._objects.upload_part(replace(part, request=self._request, tries=self._tries))

    async def complete_upload(self, complete: m.CompleteUpload) -> m.Stored:
        return await self._objects.complete_upload(
            replace(complete, request=self._request, tries=self._tries)
        )

    async def abort_upload(
        self, bucket: str, key: str, upload: UploadId, request: RequestId = UNNAMED, tries: int = 1
    ) -> None:
        await self._objects.abort_upload(bucket, key, upload, self._request, self._tries)

    def _will(self, bucket: str, key: str, token: str | None, need: Need) -> None:
        self.writes.append((f"{bucket}/{key}", token, need))


class Through(NamedTuple):
    """A node as a client meets it."""

    objects: Named


class ClusterClient(Client):
    """One of several, each a task."""

    def __init__(self, world: ClusterWorld, book: ClusterBook, number: int, buckets: tuple[str, ...]) -> None:
        super().__init__(world, book, number, buckets)
        self._cluster = world
        self._told = book
        self._sticky = number % len(world.machines)
        self._tries: dict[int, int] = {}

    async def _send(
        self,
        open_: Open,
        size: int,
        request: "Callable[[SimulatedNode], Awaitable[T]]",
        slack_s: float = 0.0,
    ) -> T:
        world, book = self._cluster, self._book
        again = TRIES_AT_NODES if open_.what in AGAIN else 1
        named = RequestId(hashlib.md5(f"{world.seed} {open_.number}".encode()).hexdigest())
        patience_s = PATIENCE_S[self._chance.below(len(PATIENCE_S))] if again > 1 else PATIENCE_S[0]
        while True:
            again -= 1
            tries = self._tries[open_.number] = self._tries.get(open_.number, 0) + 1
            machine = self._machine()
            world.trace.note(self._number, open_.what, open_.key, size, "at", machine.name, "try", tries)
            began = world.clock.monotonic()
            error, refused = "", False
            writes: list[tuple[str, str | None, Need]] = []

            def through(
                node: "ClusterNode",
                tries: int = tries,
                writes: list[tuple[str, str | None, Need]] = writes,
            ) -> Awaitable[T]:
                stamped = Named(node.objects, named, tries)
                stamped.writes = writes
                return request(cast("SimulatedNode", Through(stamped)))

            try:
                return await world.ask(machine, through, patience_s)
            except e.NoSuchUpload as raised:
                if tries == 1 or open_.what != "complete":
                    raise
                # It was completed by a try that the key has forgotten: the checker sees whether it may have.
                error = repr(raised)
                self._twin(open_, open_.key, "", ANYTHING, must=True)
                raise Failed from raised
            except (e.InvalidInput, e.NoSuchKey):
                refused = True
                raise
            except HoldfastError as raised:
                error = repr(raised)
                self._sticky = self._chance.below(len(world.machines))
                if not again or isinstance(raised, e.ConditionalConflict):
                    raise Failed from raised
            finally:
                now = world.clock.monotonic()
                world.trace.note(self._number, open_.what, open_.key, error or "answered")
                open_.at = began
                book.tell(open_, now, size, error, slack_s, refused=refused)
                if tries > 1:
                    self._told.tried_again += 1
                    for key, token, need in writes:
                        self._twin(open_, key, token, need)
            await world.clock.sleep(0.05 + 0.3 * self._chance.fraction())

    def _twin(self, open_: Open, key: str, token: str | None, need: Need, *, must: bool = False) -> None:
        self._told.twins.append(Twin(key, open_.began, self._world.tick(), token, need, must))

    def _machine(self):  # type: ignore[no-untyped-def]
        machines = self._cluster.machines
        if self._chance.below(3) == 0:
            self._sticky = self._chance.below(len(machines))
        return machines[self._sticky]


__all__ = ["ClusterBook", "ClusterClient", "NoAnswer"]
