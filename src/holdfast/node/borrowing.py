"""The stores of other nodes, for the recovery that runs on this one: borrowed from those that lend them.

What must hold: a node that runs is never taken for one that lends, and none is left out that runs, as far as
it can be reached; whoever lends is told when that is over, whatever became of it; and a node that does not
answer is told of, not waited for.
"""

import asyncio
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress

import msgspec
from msgspec import Struct

from holdfast.base.errors import Busy, Fenced, HoldfastError, InvalidInput, Unavailable
from holdfast.base.ids import StoreId
from holdfast.base.randomness import Randomness
from holdfast.cluster.rows import NODE_NAME
from holdfast.node.config import Config
from holdfast.node.config_cluster import PeerAddress, read_advertised
from holdfast.node.lending import DESK, DONE, NOTED, RELEASED, TAKEN, TROUBLE, WHO, Lent, Said
from holdfast.recovery.nodes import KnownNode
from holdfast.recovery.report import NodeFound
from holdfast.stores.peer import PeerClient, PeerIdentity, PeerStore, Roots, client_tls
from holdfast.stores.peer.errors import PeerRefused, Refusal
from holdfast.stores.port import Range, Store, StoreFailed

ASK_TIMEOUT_S = 30.0
NOTE_TIMEOUT_S = 60.0
GREET_TIMEOUT_S = 3.0
GREETINGS = 5

Tell = Callable[[str], None]


class PeerNamed(Struct, frozen=True):
    """A node as `--peer` names it."""

    name: str
    address: PeerAddress


def read_peer(text: str) -> PeerNamed:
    """Of `--peer NAME=HOST:PORT`. Raises InvalidInput."""
    name, found, address = text.partition("=")
    if not found or not NODE_NAME.match(name):
        raise InvalidInput(f"{text!r} does not name a node and its address:", hint="as n2=10.0.0.2:9100.")
    return PeerNamed(name, read_advertised(address))


class Loan(Struct, frozen=True):
    """What one node lends."""

    peer: PeerNamed
    client: PeerClient
    desk: PeerStore
    lent: Lent


class Borrowed:
    """The stores of all nodes that lend. Made by `borrow`."""

    def __init__(self, dial: Callable[[str, str], PeerClient], node: str, tell: Tell) -> None:
        self._dial = dial
        self._node = node
        self._tell = tell
        self.loans: list[Loan] = []

    async def add(self, peer: PeerNamed, stack: AsyncExitStack) -> None:
        """Borrow from one node. Raises Busy when it runs or lends to another, Unavailable when it does not
        answer, Fenced and InvalidInput when it is not what was meant."""
        client = self._dial(str(peer.address), peer.name)
        stack.push_async_callback(client.close)
        await self._greet(client, peer)
        desk = PeerStore(DESK, client)
        try:
            await desk.put(TAKEN, [self._said()], timeout_s=ASK_TIMEOUT_S)
            raw = await _read(desk, WHO)
        except StoreFailed as error:
            raise _runs(peer.name, str(peer.address)) from error
        loan = Loan(peer, client, desk, msgspec.json.decode(raw, type=Lent))
        self.loans.append(loan)
        stack.push_async_callback(self._release, loan)

    async def _greet(self, client: PeerClient, peer: PeerNamed) -> None:
        try:
            await _greeted(client)
        except PeerRefused as error:
            kind = Fenced if error.refusal is Refusal.FOREIGN_CLUSTER else InvalidInput
            raise kind(f"Node {peer.name} at {peer.address}: {error.message}", hint=error.hint) from None
        except HoldfastError as error:
            raise Unavailable(
                f"Node {peer.name} lends no stores: {error.message}",
                hint=f"Run `holdfast recover --lend` on {peer.name}; or leave --peer {peer.name}=... out, if "
                "it is lost.",
            ) from None

    async def _release(self, loan: Loan) -> None:
        with suppress(HoldfastError):  # it is gone, or done
            await loan.desk.put(RELEASED, [self._said()], timeout_s=GREET_TIMEOUT_S)

    @property
    def stores(self) -> dict[StoreId, Store]:
        """All of them."""
        return {
            store.store: PeerStore(store.store, loan.client)
            for loan in self.loans
            for store in loan.lent.stores
        }

    def noted(self) -> set[str]:
        """The incarnations that their nodes know."""
        return {incarnation for loan in self.loans for incarnation in loan.lent.noted}

    async def note(self, incarnation: str, revision: int) -> None:
        """Have all of them note a new index; single stores that do not are told of. Raises Unavailable where
        a node does not say that it has."""

        async def one(loan: Loan) -> None:
            said, name = self._said(incarnation, revision), loan.peer.name
            try:
                await loan.desk.put(NOTED, [said], timeout_s=NOTE_TIMEOUT_S)
                failed = msgspec.json.decode(await _read(loan.desk, TROUBLE), type=list[str])
            except HoldfastError as error:
                raise Unavailable(
                    f"Node {name} does not say that it has noted the new index: {error.message}",
                    hint=f"Run `holdfast recover --lend` on {name} again, and give this again.",
                ) from error
            for sentence in failed:
                self._tell(f"{name}/{sentence}")

        await asyncio.gather(*[one(loan) for loan in self.loans])

    async def done(self, incarnation: str) -> None:
        """Tell all that lend that the index is there."""

        async def one(loan: Loan) -> None:
            try:
                await loan.desk.put(DONE, [self._said(incarnation)], timeout_s=ASK_TIMEOUT_S)
            except HoldfastError as error:
                self._tell(f"{loan.peer.name} does not hear that all is done; stop it there: {error}")

        await asyncio.gather(*[one(loan) for loan in self.loans])

    async def look_for_others(self, known: Iterable[KnownNode], own: str) -> list[NodeFound]:
        """What became of the nodes that the rows know. Raises Busy when one of them runs, InvalidInput when
        one lends its stores and was not named."""
        lending = {loan.peer.name: loan for loan in self.loans}
        found: list[NodeFound] = []
        for node in known:
            stores = tuple(store.slot for store in node.stores)
            if node.name == own:
                found.append(NodeFound(node.name, node.peer, stores, "here"))
            elif (loan := lending.get(node.name)) is not None:
                found.append(NodeFound(node.name, str(loan.peer.address), stores, "lends"))
            else:
                found.append(NodeFound(node.name, node.peer, stores, await self._find(node)))
        return found

    async def _find(self, node: KnownNode) -> str:
        """Why a node takes no part."""
        if not node.peer:
            return "no address is known of it"
        client = self._dial(node.peer, node.name)
        try:
            await _greeted(client)
        except HoldfastError as error:
            await client.close()
            return error.message if isinstance(error, PeerRefused) else "it does not answer"
        try:
            await PeerStore(DESK, client).size(WHO, timeout_s=ASK_TIMEOUT_S)
        except HoldfastError:
            raise _runs(node.name, node.peer) from None
        finally:
            await client.close()
        raise InvalidInput(
            f"Node {node.name} lends its stores, and was not named:",
            hint=f"say --peer {node.name}={node.peer}, too.",
        )

    def _said(self, incarnation: str = "", revision: int = 0) -> bytes:
        return msgspec.json.encode(Said(self._node, incarnation, revision))


async def _read(desk: PeerStore, name: str) -> bytes:
    size = await desk.size(name, timeout_s=ASK_TIMEOUT_S)
    (raw,) = await desk.get(name, [Range(0, size)], timeout_s=ASK_TIMEOUT_S)
    return bytes(raw)


async def _greeted(client: PeerClient) -> None:
    """Once it has answered: asked more than once, because one who is there may be slow. Raises PeerRefused at
    once, and at last what keeps it from answering."""
    for left in reversed(range(GREETINGS)):
        try:
            await client.greet(timeout_s=GREET_TIMEOUT_S)
        except PeerRefused:
            raise
        except HoldfastError:
            if not left:
                raise
            continue
        return


def _runs(name: str, address: str) -> Busy:
    return Busy(
        f"Node {name} runs, at {address}.",
        hint="Stop it, and run `holdfast recover --lend` there; while a node runs, its index may be there.",
    )


async def borrow(
    config: Config,
    cluster: str,
    uuid: str,
    secrets: Sequence[bytes],
    peers: Iterable[PeerNamed],
    randomness: Randomness,
    stack: AsyncExitStack,
    tell: Tell,
) -> Borrowed:
    """Borrow from all `peers`. Raises as `Borrowed.add`."""
    assert config.cluster is not None
    tls: ssl.SSLContext | None = client_tls(config.cluster.tls) if config.cluster.tls is not None else None
    identity = PeerIdentity(cluster, config.name, uuid, randomness.token(8).hex())

    roots = Roots(secrets, cluster)

    def dial(address: str, name: str) -> PeerClient:
        return PeerClient(address, name, identity, roots, randomness, tls=tls)

    borrowed = Borrowed(dial, config.name, tell)
    seen: Mapping[str, PeerNamed] = {}
    for peer in peers:
        if peer.name in seen or peer.name == config.name:
            raise InvalidInput(f"--peer names {peer.name} twice, or this node itself.")
        seen = {**seen, peer.name: peer}
        await borrowed.add(peer, stack)
    return borrowed
