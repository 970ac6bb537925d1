"""`holdfast node` inside the node: list, can-stop, drain, remove.

Draining empties all stores of this node, and removing takes another one's rows away. What must hold: a node
that is alive is never removed; one whose stores hold something that is not elsewhere goes only with `force`,
which says what it costs; and a beat that comes in between wins.
"""

from collections.abc import Callable, Mapping

import msgspec
from msgspec import Struct

from holdfast.base.clock import Clock
from holdfast.base.errors import Busy, HoldfastError, InvalidInput
from holdfast.base.ids import StoreId
from holdfast.base.wording import counted
from holdfast.cluster.formats import raise_format, read_format
from holdfast.cluster.rows import (
    FORMAT,
    NodeRow,
    RemovedRow,
    all_of,
    beat_row,
    decode,
    encode,
    fences_of,
    node_row,
    removed_row,
)
from holdfast.cluster.stopping import Stopping
from holdfast.index.port import Committed, Expect, Index, Row, Transaction
from holdfast.node.can_stop import (
    CAN_STOP_PATH,
    CLAIM_PATH,
    COUNT_FRESH_S,
    CanStop,
    StopView,
    has_the_word,
    may_stop,
    stores_to_write,
)
from holdfast.node.census import Census
from holdfast.node.cluster import Draining
from holdfast.node.joining import Joining
from holdfast.node.keeper import Keeper
from holdfast.node.leaving import cost_of_all_leaving
from holdfast.node.report import node_statuses
from holdfast.node.status import NodeStatus
from holdfast.node.store_commands import StoreCommands
from holdfast.node.store_routes import refused
from holdfast.node.stores import Done
from holdfast.s3.face import AdminAnswer, AdminRequest, Route

NODES_PATH = "/-/nodes"
FORMAT_PATH = f"{NODES_PATH}/format"
FENCES_MAX = 50
"""As many as go in one transaction; what is left is ended as that of any node that is gone."""


class NodeList(Struct, frozen=True):
    """All nodes, as the one called `asked` sees them."""

    asked: str
    nodes: tuple[NodeStatus, ...]


class NodeCommands:
    """Carries out commands on nodes. `is_up` says which stores answer, `serving` whether the index does."""

    def __init__(
        self,
        joining: Joining | None,
        keeper: Keeper,
        commands: StoreCommands,
        census: Census,
        index: Index,
        is_up: Callable[[StoreId], bool],
        serving: Callable[[], bool],
        clock: Clock,
        tell: Callable[[str], None],
    ) -> None:
        self._joining = joining
        self._keeper = keeper
        self._commands = commands
        self._census = census
        self._index = index
        self._is_up = is_up
        self._serving = serving
        self._clock = clock
        self._tell = tell
        self._stopping: Stopping | None = None
        if joining is not None:
            self._stopping = Stopping(index, clock, joining.name, joining.identity.boot)

    def routes(self) -> Mapping[str, Route]:
        """The internal paths."""
        post = frozenset({"POST"})
        return {
            CAN_STOP_PATH: Route(self._answer_can_stop, signed=False),
            CLAIM_PATH: Route(self._answer_claim, signed=True, methods=post),
            NODES_PATH: Route(self._answer_list, signed=True),
            FORMAT_PATH: Route(self._answer_format, signed=True, methods=frozenset({"GET", "POST"})),
            f"{NODES_PATH}/drain": Route(self._answer_drain, signed=True, methods=post),
            f"{NODES_PATH}/remove": Route(self._answer_remove, signed=True, methods=post),
        }

    def list(self) -> NodeList:
        """All nodes. Raises InvalidInput where there is but one."""
        joining = self._cluster()
        now = self._clock.monotonic()
        found = node_statuses(joining.members.values(), joining.name, joining.is_ready, now)
        return NodeList(joining.name, found)

    async def can_stop(self, *, claiming: bool = False) -> CanStop:
        """Whether this node can be taken down. Who hears yes when `claiming` has the word for a while: others
        hear no. Raises Unavailable."""
        keeper, census, joining = self._keeper, self._census, self._joining
        if self._clock.monotonic() - census.last.began_at > COUNT_FRESH_S:
            await census.whole()
        count, nodes = census.last, self.list().nodes if joining is not None else ()
        others = [node for node in nodes if joining is not None and node.name != joining.name]
        answer = may_stop(
            StopView(
                ready=sum(node.state in ("ready", "draining") for node in others),
                silent=tuple(node.name for node in others if node.state in ("silent", "not ready")),
                stores=stores_to_write(keeper.others.values(), keeper.attached, self._is_up),
                stores_needed=count.redundancy_most + 1,
                packs_lost=count.unreadable_without_own,
                packs_unreadable=count.unreadable,
                index_serving=self._serving(),
                index_here=joining is None,
            )
        )
        if not answer.can_stop or self._stopping is None or joining is None:
            return answer
        ask = self._stopping.claim if claiming else self._stopping.holder
        other = await ask(joining.members)
        return CanStop(False, (has_the_word(other),)) if other else answer

    async def drain(self, name: str, *, cancel: bool, forced: bool) -> Done:
        """Empty all stores of this node, or none. Raises InvalidInput with what that would cost, and of what
        was begun nothing goes on."""
        joining, keeper = self._cluster(), self._keeper
        if name != joining.name:
            raise InvalidInput(f"This is node {joining.name}:", hint=f"ask node {name} to drain itself.")
        was = {slot: keeper.cluster.slots[slot].draining for slot in keeper.held}
        wanted = [slot for slot, draining in was.items() if (draining is Draining.NO) is not cancel]
        if not wanted:
            return Done(
                (f"Node {name} is {'not ' if cancel else ''}being emptied{'' if cancel else ' already'}.",)
            )
        begun = []
        try:
            for slot in wanted:
                asked = {
                    "slot": slot,
                    "cancel": "yes" if cancel else "",
                    "force": "yes" if forced else "",
                    "together": ",".join(was),
                }
                await self._commands.do("drain", asked)
                begun.append(slot)
        except HoldfastError as error:
            for slot in begun:
                await self._commands.do("drain", {"slot": slot, "cancel": "" if cancel else "yes"})
            if isinstance(error, InvalidInput):
                raise InvalidInput(
                    f"Node {name} with its {counted(len(was), 'store')} cannot be emptied. {error.message}",
                    hint=error.hint,
                ) from None
            raise
        joining.presence.announce()
        if cancel:
            return Done((f"Node {name} stays; its stores take new objects again.",))
        self._tell(f"node {name} is being emptied")
        return Done(
            (
                f"All {len(keeper.held)} stores of node {name} take nothing new; what they hold moves to the "
                "other nodes.",
                "Once `holdfast store list` shows them empty, stop it, and say on another node: "
                f"`holdfast node remove {name}`.",
            )
        )

    async def remove(self, name: str, *, forced: bool, cancel: bool = False) -> Done:
        """Take a node out of the cluster, or let one that was taken out join again. Raises InvalidInput with
        what that would cost, Busy."""
        joining, keeper = self._cluster(), self._keeper
        if cancel:
            return await self._let_back(name)
        member = joining.members.get(name)
        if member is None:
            known = ", ".join(sorted(joining.members))
            raise InvalidInput(f"There is no node {name!r} in this cluster:", hint=f"there are {known}.")
        if name == joining.name:
            raise InvalidInput(f"This is node {name} itself:", hint="stop it, and ask another one.")
        if member.is_alive:
            raise InvalidInput(
                f"Node {name} is alive:",
                hint="stop it first, until `holdfast node list` calls it silent.",
            )
        stores = frozenset(store.store for store in member.row.stores)
        there = frozenset(store for store in keeper.attached if self._is_up(store))
        cost = await cost_of_all_leaving(self._index, stores, there, self._commands.others(()) - stores)
        if cost.shards and not forced:
            raise InvalidInput(
                f"Stores of node {name} hold {counted(cost.shards, 'shard')} that "
                f"{'is' if cost.shards == 1 else 'are'} not elsewhere; without them "
                f"{', '.join(cost.sentences())}.",
                hint="Wait until they are written elsewhere, or say --force to accept that.",
            )
        await self._take_away(name, member.revision)
        self._tell(f"node {name} was removed")
        sentences = [
            f"Node {name} is no longer part of the cluster, and does not join again by itself "
            f"(`holdfast node remove --cancel {name}` allows it)."
        ]
        if cost.shards:
            sentences += cost.once_gone("it")
        return Done(tuple(sentences))

    async def _let_back(self, name: str) -> Done:
        (row,) = await self._index.get([removed_row(name)])
        if row is None:
            raise InvalidInput(
                f"No node {name!r} was removed.", hint="`holdfast node list` shows who is there."
            )
        (outcome,) = await self._index.commit([Transaction((Expect(row.key, row.revision),), (), (row.key,))])
        if not isinstance(outcome, Committed):
            raise Busy(f"Node {name} was changed at the same time.", hint="Try again.")
        return Done((f"Node {name} may join again: start it.",))

    async def _take_away(self, name: str, revision: int) -> None:
        """Its rows go, its fences too, so that nothing that it had under way can land."""
        rows = await self._index.get([node_row(name), beat_row(name)])
        fences = await self._index.scan(*all_of(fences_of(name)), limit=FENCES_MAX)
        changed = Busy(f"Node {name} was changed at the same time.", hint="Look again: is it alive?")
        if rows[0] is None or rows[0].revision != revision:
            raise changed
        gone = [row for row in [*rows, *fences] if isinstance(row, Row)]
        left = RemovedRow(FORMAT, decode(NodeRow, rows[0].value).uuid)
        leave = Transaction(
            tuple(Expect(row.key, row.revision) for row in gone),
            ((removed_row(name), encode(left)),),
            tuple(row.key for row in gone),
        )
        (outcome,) = await self._index.commit([leave])
        if not isinstance(outcome, Committed):
            raise changed

    def _cluster(self) -> Joining:
        if self._joining is None:
            raise InvalidInput(
                "This node is alone: its index is embedded.", hint="See [cluster] in docs/operations.md."
            )
        return self._joining

    # Answers

    async def _answer_can_stop(self, request: AdminRequest) -> AdminAnswer:
        return await self._whether_it_can(claiming=False)

    async def _answer_claim(self, request: AdminRequest) -> AdminAnswer:
        return await self._whether_it_can(claiming=True)

    async def _whether_it_can(self, *, claiming: bool) -> AdminAnswer:
        try:
            answer = await self.can_stop(claiming=claiming)
        except HoldfastError as error:
            answer = CanStop(False, (f"It cannot be found out: {error}",))
        return AdminAnswer(200 if answer.can_stop else 412, msgspec.json.encode(answer))

    async def _answer_list(self, request: AdminRequest) -> AdminAnswer:
        try:
            return AdminAnswer(200, msgspec.json.encode(self.list()))
        except HoldfastError as error:
            return refused(error)

    async def _answer_format(self, request: AdminRequest) -> AdminAnswer:
        try:
            self._cluster()
            do = raise_format if request.method == "POST" else read_format
            return AdminAnswer(200, msgspec.json.encode(await do(self._index)))
        except HoldfastError as error:
            return refused(error)

    async def _answer_drain(self, request: AdminRequest) -> AdminAnswer:
        asked = request.query
        try:
            done = await self.drain(
                asked.get("name", ""), cancel=bool(asked.get("cancel")), forced=bool(asked.get("force"))
            )
        except HoldfastError as error:
            return refused(error)
        return AdminAnswer(200, msgspec.json.encode(done))

    async def _answer_remove(self, request: AdminRequest) -> AdminAnswer:
        asked = request.query
        try:
            done = await self.remove(
                asked.get("name", ""), forced=bool(asked.get("force")), cancel=bool(asked.get("cancel"))
            )
        except HoldfastError as error:
            return refused(error)
        return AdminAnswer(200, msgspec.json.encode(done))
