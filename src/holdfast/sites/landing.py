"""Packs of the active, laid over the standby's own stores."""

from typing import Protocol

from msgspec import Struct

from holdfast.base.ids import PackId
from holdfast.index.port import Transaction
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
