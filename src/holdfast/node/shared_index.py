"""An index that is kept by somebody else, and used by several nodes: opened, and told of.

What must hold: a node that cannot reach its index says so and ends, once it has waited for as long as the
engine's adapter says; and nothing here knows where the index lies, so that no store of ours counts for it.
"""

import asyncio
import logging

from holdfast.base.clock import Clock
from holdfast.base.errors import Unavailable
from holdfast.base.randomness import Randomness
from holdfast.index.port import Index, IndexStatus
from holdfast.node.config_cluster import Engine, IndexAddress
from holdfast.node.config_index import EtcdSettings

TOLD_AFTER_S = 2.0
"""A person who starts a node wants to know what it waits for."""

_LOG = logging.getLogger("holdfast.node")


async def open_shared(
    address: IndexAddress,
    clock: Clock,
    randomness: Randomness,
    *,
    managed: bool = False,
    etcd: EtcdSettings | None = None,
) -> Index:
    """The index at `address`. Raises Unavailable, InvalidInput, Fenced."""
    waiting = asyncio.get_running_loop().call_later(
        TOLD_AFTER_S, _LOG.info, "waiting for the index at %s", address.shown
    )
    try:
        match address.engine:
            case Engine.POSTGRES:
                # Each engine's driver is loaded by those who use it.
                from holdfast.index.postgres import PostgresOptions, open_postgres

                return await open_postgres(
                    address.address,
                    clock=clock,
                    randomness=randomness,
                    options=PostgresOptions(managed=managed),
                )
            case Engine.ETCD:
                from holdfast.index.etcd import open_etcd
                from holdfast.node.etcd_index import etcd_access

                where, options = etcd_access(address.address, etcd or EtcdSettings())
                return await open_etcd(where, clock=clock, randomness=randomness, options=options)
    except Unavailable as error:
        raise Unavailable(
            f"The index at {address.shown} cannot be reached. {error.message}", hint=error.hint, **error.facts
        ) from error
    finally:
        waiting.cancel()


class Elsewhere:
    """The place of an index that lies on none of our stores: none has to wait for it, none holds it."""

    def is_member(self, slot: str) -> bool:
        return False

    def arrived(self, slot: str) -> None:
        pass

    async def leave(self, slot: str) -> str | None:
        return None

    def left(self, slot: str) -> None:
        pass

    async def moved(self, slot: str) -> None:
        pass

    def check_can_do_without(self, slot: str) -> None:
        pass


def survives(status: IndexStatus) -> str:
    """What a shared index survives, in a sentence."""
    count = len(status.members)
    members = f"{count} member" if count == 1 else f"{count} members"
    if not status.losses_survivable:
        return f"The index is in {status.engine}, with {members}: without it nothing is read or written."
    return (
        f"The index is in {status.engine}, with {members}, and goes on without any "
        f"{status.losses_survivable} of them."
    )
