"""Clients of several nodes: each request goes to some node, and what failed is tried again at another one.

A PUT keeps its request id over all tries, as behind a balancer. For the history such a request is one
operation that must have happened once; each try that was given up may have come to pass a second time, if the
key was changed in between so often that its head row no longer knows the first.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from holdfast.base.errors import HoldfastError
from holdfast.base.ids import RequestId
from holdfast.objects import errors as e
from holdfast.objects import model as m
from tests.simulation.book import TOKEN, Book, Open
from tests.simulation.clients import Client, Failed
from tests.simulation.cluster_world import ClusterWorld, NoAnswer
from tests.simulation.contents import SimulatedBody, etag_of, make_bytes
from tests.simulation.history import ANYTHING, NOTHING, Need

if TYPE_CHECKING:
    from tests.simulation.cluster_node import ClusterNode

T = TypeVar("T")

PATIENCE_S = 15.0
TRIES_AT_NODES = 4
AGAIN = ("get", "head", "list", "put", "create upload", "part")
"""What a balancer, or an SDK, tries again by itself."""


class ClusterClient(Client):
    """One of several, each a task."""

    def __init__(self, world: ClusterWorld, book: Book, number: int, buckets: tuple[str, ...]) -> None:
        super().__init__(world, book, number, buckets)
        self._cluster = world
        self._sticky = number % len(world.machines)
        self.tries = 0

    async def _send(
        self,
        open_: Open,
        size: int,
        request: "Callable[[ClusterNode], Awaitable[T]]",
        slack_s: float = 0.0,
    ) -> T:
        world, book = self._cluster, self._book
        again = TRIES_AT_NODES if open_.what in AGAIN else 1
        while True:
            self.tries += 1
            again -= 1
            machine = self._machine()
            world.trace.note(self._number, open_.what, open_.key, size, "at", machine.name)
            began = world.clock.monotonic()
            error, refused = "", False
            try:
                return await world.ask(machine, request, PATIENCE_S)
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
            self._tried_in_vain(open_)
            await world.clock.sleep(0.05 + 0.3 * self._chance.fraction())

    def _machine(self):  # type: ignore[no-untyped-def]
        machines = self._cluster.machines
        if self._chance.below(3) == 0:
            self._sticky = self._chance.below(len(machines))
        return machines[self._sticky]

    def _tried_in_vain(self, open_: Open) -> None:
        """A try was given up and another one follows: what the first one does may still come to pass."""
        if (put := self._putting.get(open_.number)) is not None:
            token, need = put
            twin = self._book.begin(open_.key, f"{open_.what} again", open_.began, open_.at)
            self._book.doubts(twin, token, need, crashed=False)

    @property
    def _putting(self) -> dict[int, tuple[str, Need]]:
        return self.__dict__.setdefault("_puts_under_way", {})

    async def _put(
        self,
        bucket: str,
        key: str,
        size: int,
        conditions: m.Conditions = m.NO_CONDITIONS,
        need: Need = ANYTHING,
        refused: Need = NOTHING,
        tries: int = 1,
    ) -> None:
        token = self._token()
        data = make_bytes(token, size)
        self._book.promise(f"{bucket}/{key}", token, data)
        open_ = self._begin(bucket, key, "put")
        pause_s = 0.002 * self._chance.below(3)

        def send(node: "ClusterNode") -> Awaitable[m.Stored]:
            return node.objects.put_object(
                m.PutObject(
                    bucket=bucket,
                    key=key,
                    body=SimulatedBody(data, self._world.clock, pause_s=pause_s),
                    metadata=((TOKEN, token),),
                    conditions=conditions,
                    request=RequestId(token),
                )
            )

        self._putting[open_.number] = token, need
        tried = self.tries
        try:
            stored = await self._send(open_, size, send, slack_s=pause_s * (size // (1 << 18) + 1))
        except Failed:
            self._book.doubts(open_, token, need, crashed=False)
        except e.PreconditionFailed:
            if self.tries == tried + 1:
                self._book.saw(open_, self._world.tick(), refused)
            else:
                # Its own first try may be what it met.
                self._book.doubts(open_, token, need, crashed=False)
        except e.NoSuchKey:
            self._book.saw(open_, self._world.tick(), NOTHING)
        else:
            assert stored.etag == etag_of(data)
            self._book.wrote(open_, self._world.tick(), token, need)
        finally:
            del self._putting[open_.number]


__all__ = ["ClusterClient", "NoAnswer"]
