"""Keeps the stores of other nodes: attached when their owner says that they are there, let go when it says
that they are not, when the owner fell silent and cannot be reached, and when it is no longer a member.

What must hold: a store stays known, and with it in the topology, for as long as its owner is a member that
names it; what this node holds itself is never taken for another's; and nothing here writes to a store but
through its owner.
"""

import asyncio
import ssl
from collections.abc import Callable

from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import HoldfastError
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.cluster.members import Changed, Member
from holdfast.cluster.rows import MemberStore
from holdfast.health import StoreHealth, StoreState
from holdfast.health.events import Kind, Teller
from holdfast.health.prober import paced
from holdfast.node.away import is_cut_off
from holdfast.node.config_cloud import is_bucket
from holdfast.node.keeper import Decorate, Keeper
from holdfast.node.others import Remote
from holdfast.stores.peer import SPEAKS, PeerClient, PeerIdentity, PeerStore, Roots
from holdfast.stores.port import Attachment, Store

LOOK_EVERY_S = 1.0
PING_TIMEOUT_S = 1.0
"""A new connection takes some four round trips, and the other region may be far."""
USAGE_TIMEOUT_S = 1.0
STALE_CUT_OFF_S = 5.0
"""A node looks each second whether it is cut off, and waits for answers while it does."""

CUT_OFF_S = 60.0
"""A node that is cut off again within this time says nothing more of it."""


class Line(Struct):
    """The way to one peer. `stores` makes a store of it, `reaches` says whether it answers."""

    address: str
    uuid: str
    stores: Callable[[StoreId], Store]
    reaches: Callable[[], "asyncio.Future[bool]"]
    close: Callable[[], "asyncio.Future[None]"]
    connections: Callable[[], int] = lambda: 0


Dial = Callable[[Member], Line]
"""Makes the way to a member. Raises HoldfastError when there is none."""


def dial_peers(
    identity: PeerIdentity, roots: Roots, randomness: Randomness, tls: ssl.SSLContext | None
) -> Dial:
    """By the peer protocol."""

    def dial(member: Member) -> Line:
        row = member.row
        client = PeerClient(row.peer, member.name, identity, roots, randomness, uuid=row.uuid, tls=tls)

        async def reaches() -> bool:
            try:
                await client.ping(timeout_s=PING_TIMEOUT_S)
            except HoldfastError:
                return False
            return True

        return Line(
            row.peer,
            row.uuid,
            lambda store: PeerStore(store, client),
            lambda: asyncio.ensure_future(reaches()),
            lambda: asyncio.ensure_future(client.close()),
            lambda: client.connections,
        )

    return dial


class Peers:
    """The stores of all members but this one, put into `keeper.others` and `keeper.attached`."""

    def __init__(
        self,
        name: str,
        keeper: Keeper,
        health: StoreHealth,
        decorate: Decorate,
        dial: Dial,
        clock: Clock,
        tell: Teller,
    ) -> None:
        self._name = name
        self._keeper = keeper
        self._health = health
        self._decorate = decorate
        self._dial = dial
        self._clock = clock
        self._tell = tell
        self._members: dict[str, Member] = {}
        self._lines: dict[str, Line] = {}
        self._unreached: set[str] = set()
        """Nodes that are silent, and did not answer either when they were last asked."""
        self._closing: set[asyncio.Future[None]] = set()
        self._travelling: dict[str, asyncio.Future[None]] = {}
        self._begun = False

    def changed(self, change: Changed) -> None:
        """A member is another, new, or gone."""
        if change.name == self._name:
            return
        self._tell_of(change)
        if change.after is None:
            self._members.pop(change.name, None)
            self._drop(change.name)
        else:
            self._members[change.name] = change.after
            if change.after.is_alive:
                self._unreached.discard(change.name)
            self._adopt(change.after)
        self._keeper.remap()

    def begin(self) -> None:
        """What comes from now on is news, and is looked through for what it should hold."""
        self._begun = True

    async def watch(self) -> None:
        """Look after the stores until cancelled: what room they have, and whether silent nodes answer."""
        async for _ in paced(self._clock, LOOK_EVERY_S):
            await self.round()

    async def round(self) -> None:
        """One look."""
        silent = [name for name, member in self._members.items() if not member.is_alive]
        await asyncio.gather(*[self._ask(name) for name in silent])
        await self._judge()
        there = [other for other in self._keeper.others.values() if other.store is not None]
        nodes = sorted({other.node for other in there})
        await asyncio.gather(*map(self._travel, nodes), *[self._measure(other) for other in there])

    async def close(self) -> None:
        """Let go of everybody."""
        for name in tuple(self._lines):
            self._hang_up(name)
        await asyncio.gather(*self._closing, *self._travelling.values(), return_exceptions=True)

    @property
    def connections(self) -> dict[str, int]:
        """How many there are to each node."""
        return {name: line.connections() for name, line in self._lines.items()}

    @property
    def is_cut_off(self) -> bool:
        """Whether this node did not reach most of the others when it last looked."""
        return self._clock.monotonic() - self._keeper.cut_off_at < STALE_CUT_OFF_S

    # One node

    def _tell_of(self, change: Changed) -> None:
        before, after = change.before, change.after
        was = before.sight.value if before is not None else ""
        now = after.sight.value if after is not None else "gone"
        if was != now:
            reason = "its row was taken away" if after is None else "as its beat shows"
            self._tell(reason, kind=Kind.NODE, subject=change.name, before=was, after=now)

    def _adopt(self, member: Member) -> None:
        """Have what its row says: the way to it, and its stores."""
        name, row = member.name, member.row
        line, problem = self._lines.get(name), ""
        if line is not None and (line.address, line.uuid) != (row.peer, row.uuid):
            self._hang_up(name)
            line = None
        if not set(row.protocols) & set(SPEAKS):
            problem = f"node {name} speaks no version of the peer protocol that this one knows"
        elif line is None and row.peer:
            try:
                line = self._lines[name] = self._dial(member)
            except HoldfastError as error:
                problem = str(error)
        named = {store.store for store in row.stores}
        for other in [one for one in self._keeper.others.values() if one.node == name]:
            if other.id not in named:
                self._forget(other)
        for store in row.stores:
            self._adopt_store(name, store, line, problem)

    def _adopt_store(self, name: str, row: MemberStore, line: Line | None, problem: str) -> None:
        keeper = self._keeper
        known = keeper.others.get(row.store)
        if any(held.id == row.store for held in keeper.held.values()):
            if known is not None:
                self._forget(known)
            return
        if known is not None and known.node != name:
            return  # it moved, and its old owner still names it
        if known is None:
            known = keeper.others[row.store] = Remote(name, row, self._clock.monotonic(), reason="new")
        known.row = row
        if row.attachment != Attachment.READY.value:
            self._detach(known, row.reason or f"its node says that it is {row.attachment}")
        elif line is None or problem:
            self._detach(known, problem or f"node {name} says no address")
        elif name in self._unreached:
            self._detach(known, f"node {name} is silent")
        elif known.store is None:
            self._attach(known, line)

    def _attach(self, other: Remote, line: Line) -> None:
        keeper, now = self._keeper, self._clock.monotonic()
        other.store = self._decorate(other.slot, line.stores(other.id))
        other.since, other.reason = now, ""
        keeper.attached[other.id] = other.store
        self._health.add(other.id, now)
        self._health.is_elsewhere(other.id)
        # At once: until it is known how far they are, its stores are taken to be far.
        if other.node not in self._travelling:
            task = asyncio.ensure_future(self._travel(other.node))
            self._travelling[other.node] = task
            task.add_done_callback(lambda _: self._travelling.pop(other.node, None))
        if is_bucket(other.row.path):
            self._health.probe_seldom(other.id)
        if self._begun:
            keeper.on_attached(other.id)

    def _detach(self, other: Remote, reason: str) -> None:
        keeper, now = self._keeper, self._clock.monotonic()
        if other.store is not None:
            keeper.attached.pop(other.id, None)
            self._end(asyncio.ensure_future(other.store.close()))
            other.store, other.since = None, now
        elif other.reason == reason:
            return
        other.reason = reason
        if other.id not in self._health.stores:
            self._health.add(other.id, now)
        self._health.vanished(other.id, now, reason)

    def _forget(self, other: Remote) -> None:
        self._detach(other, "its node does not name it any more")
        del self._keeper.others[other.id]
        if all(held.id != other.id for held in self._keeper.held.values()):
            self._health.forget(other.id)

    def _drop(self, name: str) -> None:
        for other in [one for one in self._keeper.others.values() if one.node == name]:
            self._forget(other)
        self._unreached.discard(name)
        self._hang_up(name)

    def _hang_up(self, name: str) -> None:
        line = self._lines.pop(name, None)
        if line is None:
            return
        for other in self._keeper.others.values():
            if other.node == name:
                self._detach(other, f"node {name} has another address")
        self._end(line.close())

    def _end(self, closing: "asyncio.Future[None]") -> None:
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _ask(self, name: str) -> None:
        """A silent node may be cut off from the index alone: then its stores are as good as before."""
        line = self._lines.get(name)
        reached = await line.reaches() if line is not None else False
        member = self._members.get(name)
        if member is None or member.is_alive or self._lines.get(name) is not line:
            return
        if reached:
            self._unreached.discard(name)
        else:
            self._unreached.add(name)
        self._adopt(member)

    async def _judge(self) -> None:
        """Notice when it is this node that is cut off: others beat, so they are well, and do not answer."""
        beating = [name for name, member in self._members.items() if member.is_alive and member.row.stores]
        doubtful = [name for name in beating if not self._is_used(name)]
        lines = [self._lines.get(name) for name in doubtful]
        answered = await asyncio.gather(*[line.reaches() for line in lines if line is not None])
        now = self._clock.monotonic()
        was = now - self._keeper.cut_off_at < CUT_OFF_S
        unanswered = len(doubtful) - sum(answered)
        if not is_cut_off(len(beating), unanswered):
            return
        self._keeper.cut_off_at = now
        if not was:
            self._tell(
                f"this node does not reach {unanswered} of {len(beating)} others, which the index shows "
                "alive: it gives up none of their stores",
                kind=Kind.NODE,
                subject=self._name,
            )

    def _is_used(self, name: str) -> bool:
        """Whether anything that a node holds is used here without doubt: then it can be reached. Stores are
        only called down while the others can do without them, so those of a node that reaches nobody stay
        suspect."""
        doubtful = (StoreState.DOWN, StoreState.SUSPECT)
        return any(
            other.store is not None and self._health.state(other.id) not in doubtful
            for other in self._keeper.others.values()
            if other.node == name
        )

    async def _travel(self, name: str) -> None:
        """How far a node is: what its stores take because of that is not their fault."""
        line, began = self._lines.get(name), self._clock.monotonic()
        if line is None or not await line.reaches() or self._lines.get(name) is not line:
            return
        now = self._clock.monotonic()
        for other in self._keeper.others.values():
            # To a bucket it is farther, and nobody here knows how far.
            if other.node == name and not is_bucket(other.row.path):
                self._health.travelled(other.id, now - began, now)

    async def _measure(self, other: Remote) -> None:
        store = other.store
        if store is None or not self._health.readable(other.id):
            return
        try:
            other.usage = await store.usage(timeout_s=USAGE_TIMEOUT_S)
        except HoldfastError:
            return  # health has heard of it
