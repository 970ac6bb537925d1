"""Collects what `Status` says from the parts that know it. Asks every store for its space, briefly."""

import asyncio
import os
from collections.abc import Iterable, Sequence

from holdfast import __version__
from holdfast.base.errors import HoldfastError
from holdfast.cluster.members import Member
from holdfast.health import StoreHealth
from holdfast.health.webhook import WebhookStatus
from holdfast.index.port import IndexStatus
from holdfast.node.bucket_report import bucket_status
from holdfast.node.cluster import Cluster, Draining
from holdfast.node.keeper import Held
from holdfast.node.others import Remote
from holdfast.node.status import Event, NodeStatus, PacksStatus, Promise, Status, StoreStatus, judge
from holdfast.recovery.keeping import RecoveryStatus
from holdfast.stores.port import Attachment, Usage

USAGE_TIMEOUT_S = 1.0
FULL_BELOW_BYTES = 4 << 20
"""With less above the reserve, a store does not take its shard of a large pack any more."""


async def store_statuses(
    slots: Sequence[Held], cluster: Cluster, health: StoreHealth
) -> tuple[StoreStatus, ...]:
    """One line for each slot, those that the configuration does not name any more at the end."""
    usages = await asyncio.gather(*[_usage(held) for held in slots])
    lines = [
        _store_status(held, _role(held, cluster), usage, health)
        for held, usage in zip(slots, usages, strict=True)
    ]
    named = {held.place.slot for held in slots}
    lines += [
        StoreStatus(
            slot=name,
            store=slot.store,
            path=slot.path,
            state="removed",
            reason="not in the configuration; what it held is written elsewhere",
        )
        for name, slot in cluster.slots.items()
        if name not in named and slot.store is not None
    ]
    return tuple(lines)


def other_statuses(others: Iterable[Remote], health: StoreHealth) -> tuple[StoreStatus, ...]:
    """One line for each store of another node, as this one sees it."""
    return tuple(_other_status(other, health) for other in others)


def _other_status(other: Remote, health: StoreHealth) -> StoreStatus:
    row, usage = other.row, other.usage
    state, reason = other.row.attachment, other.reason
    counts = health.counts(other.id) if other.id in health.stores else None
    if other.store is not None:
        state = health.state(other.id).value
        reason = "being emptied" if row.draining else ""
        if counts is not None and state not in ("healthy", "probation"):
            reason = health.reason(other.id) or counts.last_error
        elif usage is not None and usage.bytes_free < FULL_BELOW_BYTES:
            state, reason = "full", "nothing is left above the reserve"
        if not reason and health.nearness(other.id):
            reason = f"{1000 * health.trip_s(other.id):.0f} ms away"
    elif state == Attachment.READY.value:
        state = "missing"
    return StoreStatus(
        slot=other.slot,
        store=other.id,
        path=row.path,
        state=state,
        reason=reason,
        region=row.region,
        zone=row.zone,
        host=row.host,
        device=row.device,
        bytes_total=usage.bytes_total if usage else None,
        bytes_free=usage.bytes_free if usage else None,
        read_errors=counts.read_errors if counts else 0,
        write_errors=counts.write_errors if counts else 0,
        wrong_blocks=counts.wrong_blocks if counts else 0,
        overdue=counts.overdue if counts else 0,
        last_error=counts.last_error if counts else "",
        trip_ms=round(1000 * health.trip_s(other.id), 3),
    )


def node_statuses(members: Iterable[Member], own: str, ready: bool, now: float) -> tuple[NodeStatus, ...]:
    """One line for each node, by name; `ready` is what this one says of itself now."""
    return tuple(
        NodeStatus(
            name=member.name,
            state=_node_state(member, ready if member.name == own else None),
            since_s=now - member.since,
            version=member.row.version,
            client=member.row.client,
            peer=member.row.peer,
            stores=len(member.row.stores),
            stores_there=sum(store.attachment == Attachment.READY.value for store in member.row.stores),
            uuid=member.row.uuid,
            started_ms=member.row.started_ms,
        )
        for member in sorted(members, key=lambda member: member.name)
    )


def _node_state(member: Member, ready: bool | None) -> str:
    if not member.is_alive and ready is None:
        return "silent"
    if member.row.stopping:
        return "stopping"
    if member.row.draining:
        return "draining"
    says = ready if ready is not None else member.beat is not None and member.beat.ready
    return "ready" if says else "not ready"


def _role(held: Held, cluster: Cluster) -> str:
    """What a store is there for, where that is something special."""
    line = cluster.slots[held.place.slot]
    if line.draining is not Draining.NO:
        return "being emptied"
    return "a spare" if held.place.spare and not line.stands_in_for else ""


async def _usage(held: Held) -> Usage | None:
    if held.opened is None:
        return None
    try:
        return await held.opened.usage(timeout_s=USAGE_TIMEOUT_S)
    except HoldfastError:
        return None  # the line says "-", and health says why


def _store_status(held: Held, role: str, usage: Usage | None, health: StoreHealth) -> StoreStatus:
    place = held.place
    state, reason = held.attachment.value, held.reason
    counts = health.counts(held.id) if held.id is not None and held.id in health.stores else None
    if held.opened is not None and held.id is not None:
        state, reason = health.state(held.id).value, role
        if counts is not None and state not in ("healthy", "probation"):
            reason = health.reason(held.id) or counts.last_error
        if state == "healthy" and usage is not None and usage.bytes_free < FULL_BELOW_BYTES:
            state, reason = "full", "nothing is left above the reserve"
        elif state == "healthy" and health.is_full(held.id):
            state, reason = "full", "it refused a write that needs more than is left above the reserve"
    return StoreStatus(
        slot=place.slot,
        store=held.id,
        path=str(place.path),
        state=state,
        reason=reason,
        region=place.region,
        zone=place.zone,
        host=place.host,
        device=held.device,
        bytes_total=usage.bytes_total if usage else None,
        bytes_free=usage.bytes_free if usage else None,
        read_errors=counts.read_errors if counts else 0,
        write_errors=counts.write_errors if counts else 0,
        wrong_blocks=counts.wrong_blocks if counts else 0,
        overdue=counts.overdue if counts else 0,
        last_error=counts.last_error if counts else "",
        bucket=bucket_status(place.path, held.opened, None),
    )


def make_status(
    *,
    endpoint: str,
    uptime_s: float,
    scheme: str,
    stores: tuple[StoreStatus, ...],
    index: IndexStatus,
    packs: PacksStatus,
    promise: Promise,
    packs_survive: dict[str, int],
    events: tuple[Event, ...],
    recovery: RecoveryStatus | None = None,
    ahead: Sequence[str] = (),
    webhook: WebhookStatus | None = None,
    node: str = "",
    nodes: Sequence[NodeStatus] = (),
) -> Status:
    """The whole. What can still be lost is the least of what every pack can lose, and of what the index
    can: a member of the index is on one store, so at every level that is at most its own number (an index
    that is elsewhere speaks for itself). `ahead` are slots that have seen more of the index than there is."""
    state, sentences, actions = judge(stores, index, packs, recovery, ahead, nodes)
    if webhook is not None and webhook.failing_for_s is not None:
        sentences += (
            f"{webhook.waiting} events could not be told to {webhook.host} yet: {webhook.last_error}",
        )
    data = packs_survive or promise.data
    weakest = {
        level: min(
            count,
            promise.index.get(level, count),
            index.losses_survivable if level == "store" and not promise.elsewhere else count,
        )
        for level, count in data.items()
    }
    return Status(
        version=__version__,
        endpoint=endpoint,
        pid=os.getpid(),
        uptime_s=uptime_s,
        state=state,
        sentences=sentences,
        actions=actions,
        scheme=scheme,
        stores=stores,
        index=index,
        packs=packs,
        survives=weakest,
        domains=promise.domains,
        events=events,
        recovery=recovery,
        webhook=webhook,
        node=node,
        nodes=tuple(nodes),
    )
