"""One look at who is slower than the others. Pure.

Each store's answers since the last look are held against its peers' of the last `PEERS_RECENT_S`, reads
against reads, writes against writes, probes against probes; a probe under way counts with the age it has
reached. What the way to a store takes is left out (`distance`). Those who sit out are judged, but are no
yardstick. What must hold: when more than half of all are beyond the fence, nobody is: then it is this machine
that is slow.
"""

from collections.abc import Mapping

from msgspec import Struct

from holdfast.base.ids import StoreId
from holdfast.health.distance import NEAR_S, YARDSTICK_MIN_S, allowed_s
from holdfast.health.fence import PEERS_MIN, SLOW_FACTOR, SLOW_FLOOR_S, upper_fence
from holdfast.health.record import JUDGED, Record
from holdfast.health.transitions import StoreState
from holdfast.stores.measured import Operation

LOOK_S = 0.25
"""How often to look."""

PEERS_RECENT_S = 1.5


class Comparison(Struct, frozen=True):
    """Stores beyond the fence, with what was seen, and those that answered as others do. Of who is in neither
    there is nothing new."""

    beyond: dict[StoreId, dict[str, str]]
    ordinary: frozenset[StoreId]


def compare(records: Mapping[StoreId, Record], looked_at: float, now: float) -> Comparison:
    """Look at `records`; the last look was at `looked_at`."""
    beyond: dict[StoreId, dict[str, str]] = {}
    ordinary: set[StoreId] = set()
    for operation in JUDGED:
        recent: dict[StoreId, float] | None = None
        for store, record in records.items():
            own = _own(record, operation, looked_at, now)
            if own is None:
                continue
            if own <= SLOW_FLOOR_S:
                ordinary.add(store)  # no fence is lower, whatever the peers do
                continue
            if recent is None:
                recent = _recent(records, operation, now)
            fence = _fence(records, recent, store)
            if fence is None or own <= fence:
                if record.lately[operation].typical(looked_at, lenient=True) is not None:
                    ordinary.add(store)  # a probe that is under way has not said how it ends
            else:
                beyond[store] = {"operation": operation.value, "latency": _ms(own), "fence": _ms(fence)}
    if 2 * len(beyond) > len(records):
        return Comparison({}, frozenset(ordinary | beyond.keys()))
    return Comparison(beyond, frozenset(ordinary))


def behind(records: Mapping[StoreId, Record], looked_at: float, now: float) -> frozenset[StoreId]:
    """Stores that lately needed `SLOW_FACTOR` times what the better half needs at most, each with an answer
    of its own that is newer than the last look. Unlike `compare` this also tells two stores apart, and as
    many as half of all: enough to prefer others for reads, too little to take anybody out of use."""
    found: set[StoreId] = set()
    for operation in JUDGED:
        recent = _recent(records, operation, now)
        if len(recent) < 2:
            continue
        middle = sorted(recent, key=recent.__getitem__)[(len(recent) - 1) // 2]
        better, farther_s = recent[middle], records[middle].trip_s
        for store in recent:
            own = _own(records[store], operation, looked_at, now)
            # Who is nearer may take as long as the way to the other: it would be no quicker to go there.
            spared_s = max(0.0, farther_s - records[store].trip_s)
            if own is not None and own > max(SLOW_FACTOR * better, SLOW_FLOOR_S) + SLOW_FACTOR * spared_s:
                found.add(store)
    return frozenset(found)


def _recent(records: Mapping[StoreId, Record], operation: Operation, now: float) -> dict[StoreId, float]:
    """What those who are a yardstick typically needed."""
    after = now - PEERS_RECENT_S
    return {
        store: typical if record.distance is None else record.distance.yardstick_s(typical)
        for store, record in records.items()
        if record.state is not StoreState.SITTING_OUT
        and (typical := record.lately[operation].typical(after, lenient=False)) is not None
    }


def _fence(
    records: Mapping[StoreId, Record], recent: Mapping[StoreId, float], store: StoreId
) -> float | None:
    """By what its peers needed: those that are no farther away, if there are enough. What is left over of a
    long way is mostly the way's, and would hide a great deal. What they need is not known better than the way
    to them varies; as far as that is not forgiven to the store anyway, it might all be theirs."""
    peers = [peer for peer in recent if peer != store]
    trip_s = records[store].trip_s
    near = [peer for peer in peers if records[peer].trip_s <= 2.0 * trip_s + NEAR_S]
    if len(near) >= PEERS_MIN:
        peers = near
    known = sorted(recent[peer] for peer in peers if not _hidden(records[peer], recent[peer]))
    # Whose answers are lost in the jitter of the way is taken to be like the others: scatter it is not.
    like = known[len(known) // 2] if known else YARDSTICK_MIN_S
    fence = upper_fence([*known, *[like] * (len(peers) - len(known))])
    if fence is None:
        return None
    jitter_s = sorted(records[peer].jitter_s for peer in peers)[len(peers) // 2]
    return fence + SLOW_FACTOR * max(0.0, jitter_s - trip_s)


def _hidden(record: Record, typical: float) -> bool:
    return record.distance is not None and typical <= YARDSTICK_MIN_S


def _own(record: Record, operation: Operation, looked_at: float, now: float) -> float | None:
    own = record.lately[operation].typical(looked_at, lenient=True)
    if operation is Operation.PROBE and own is None and record.probe_began is not None:
        age = now - record.probe_began - allowed_s(record.trip_s, 0)
        return age if age > LOOK_S / 2 else None
    return own


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"
