"""Packs of the active, laid over the standby's own stores."""

from typing import Protocol

from msgspec import Struct

from holdfast.base.ids import PackId
from holdfast.index.port import Transaction
from holdfast.packs.storage import Packs
from holdfast.sites.source import PackCopy


class Landed(Struct, frozen=True):
    """A pack that is durable here and not known yet. `transaction` makes it known: it is committed together
    with what refers to the pack, or never."""

    transaction: Transaction


class Landing(Protocol):
    """Where packs go."""

    async def land(self, pack: PackId, copy: PackCopy) -> Landed:
        """Write the pack under its own id, in shards of names that were never used. Raises Unavailable when
        too few stores can be written."""
        ...


class PacksLanding:
    """The packs of a node."""

    def __init__(self, packs: Packs) -> None:
        self._packs = packs

    async def land(self, pack: PackId, copy: PackCopy) -> Landed:
        """See `Landing`."""
        return Landed(
            await self._packs.adopt(pack, copy.promised, copy.payload, copy.entries, copy.object_bytes)
        )
