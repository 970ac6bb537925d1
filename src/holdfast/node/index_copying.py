"""`holdfast index copy`: from one engine to another, each named by its address, or `embedded` for the index
on the stores of the node that is configured here, which must not be running.

What must hold: the new index knows that it was made from the old one, so that stores and data folders of all
nodes believe it; and passwords are in no message and in no row.
"""

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from msgspec.structs import replace

from holdfast.base.clock import Clock
from holdfast.base.errors import InvalidInput
from holdfast.base.randomness import Randomness
from holdfast.health.events import Kind
from holdfast.index.copying import Copied, Source, Step, Target, copy_index
from holdfast.index.sqlite.moving import SqliteSource, SqliteTarget
from holdfast.index.sqlite.refounding import new_incarnation
from holdfast.node.config import Config
from holdfast.node.config_cluster import Engine, IndexAddress, read_index
from holdfast.node.index import Members, open_index
from holdfast.node.keeper import Keeper
from holdfast.node.runtime import DataLock
from holdfast.recovery.format import FORMAT, LINEAGE_ROW, LineageRow, decode_lineage, encode_lineage

if TYPE_CHECKING:
    from holdfast.index.etcd.moving import EtcdEnd
    from holdfast.index.postgres.moving import PostgresEnd

EMBEDDED = "embedded"
SPOOL_NAME = "index-copy.tmp"


async def copy_between(
    source: str,
    target: str,
    config: Config,
    clock: Clock,
    randomness: Randomness,
    done: Callable[[Step], None] = lambda _: None,
) -> Copied:
    """Copy the index named `source` to `target`. Raises InvalidInput, Busy, Fenced, Unavailable, Damaged."""
    if source == target:
        raise InvalidInput("From and to are the same index.", hint="Name another target.")
    async with AsyncExitStack() as stack:
        ends = _Ends(config, clock, randomness, stack)
        copied = await copy_index(
            await ends.source(source),
            await ends.target(target),
            new_incarnation=new_incarnation(randomness),
            lineage=Ancestors(),
            done=done,
        )
        ends.remember(copied)
        return copied


class Ancestors:
    """The row of the lineage of a copy: what the old index was made from, and the old index."""

    key = LINEAGE_ROW

    def value(self, incarnation: str, old: bytes | None) -> bytes:
        """As `copying` says."""
        made = decode_lineage(old) if old is not None else LineageRow(FORMAT, 0, (), 0)
        return encode_lineage(LineageRow(FORMAT, made.number + 1, (*made.ancestors, incarnation), 0))


class _Ends:
    """Opens what is named; closed by `stack`."""

    def __init__(self, config: Config, clock: Clock, randomness: Randomness, stack: AsyncExitStack) -> None:
        self._config = replace(config, index=None, cluster=None)
        self._managed = config.index_managed
        self._clock = clock
        self._randomness = randomness
        self._stack = stack
        self._keeper: Keeper | None = None
        self._members: Members | None = None

    async def source(self, name: str) -> Source:
        """Where rows come from."""
        if name != EMBEDDED:
            return await self._shared(name)
        members, shown = await self._embedded()
        index = await open_index(members, self._clock, self._randomness)
        self._stack.push_async_callback(index.close)
        return SqliteSource(index, shown)

    async def target(self, name: str) -> Target:
        """Where they go to."""
        if name != EMBEDDED:
            return await self._shared(name)
        members, shown = await self._embedded()
        accesses = [members.all[one] for one in members.first]
        return SqliteTarget(accesses, self._config.data / SPOOL_NAME, shown, self._randomness)

    async def _embedded(self) -> tuple[Members, str]:
        """The stores of the node that is configured here, and the places of its index."""
        if self._keeper is not None:
            raise InvalidInput("A node has one embedded index.", hint="Name another target.")
        config = self._config
        config.data.mkdir(exist_ok=True)
        lock = DataLock(config.data)
        self._stack.callback(lock.release)
        self._keeper = keeper = Keeper(
            config, clock=self._clock, randomness=self._randomness, on_event=_untold
        )
        self._stack.push_async_callback(keeper.close)
        await keeper.open()
        self._members = Members(config, keeper)
        return self._members, f"{EMBEDDED} in {config.data}"

    async def _shared(self, name: str) -> "EtcdEnd | PostgresEnd":
        config = replace(self._config, index_managed=self._managed)
        end = await shared_end(read_index(name), config, self._clock, self._randomness)
        self._stack.push_async_callback(end.close)
        return end

    def remember(self, copied: Copied) -> None:
        """Let the data folder know which index it has now."""
        if self._keeper is not None and self._members is not None and copied.target.startswith(EMBEDDED):
            self._keeper.remember_index(self._members.first, copied.incarnation)


async def shared_end(
    address: IndexAddress, config: Config, clock: Clock, randomness: Randomness
) -> "EtcdEnd | PostgresEnd":
    """The index at `address`, whatever state it is in; whoever asks closes it."""
    match address.engine:
        case Engine.ETCD:
            # Each engine's driver is loaded by those who use it.
            from holdfast.index.etcd.moving import etcd_end
            from holdfast.node.etcd_index import etcd_access

            where, options = etcd_access(address.address, config.etcd)
            return await etcd_end(where, address.shown, clock=clock, randomness=randomness, options=options)
        case Engine.POSTGRES:
            from holdfast.index.postgres.moving import postgres_end

            return postgres_end(address.address, address.shown, managed=config.index_managed)


def _untold(
    text: str,
    *,
    kind: str = Kind.NOTE,
    subject: str = "",
    before: str = "",
    after: str = "",
    evidence: Mapping[str, str] | None = None,
) -> None:
    """Nobody follows events while no node runs."""
