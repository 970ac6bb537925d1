"""What a node says of itself: the values, and the sentences made of them. Pure.

`Status` is what `/-/status` answers and `holdfast status` prints. What must hold: it never says more than
is known. A store that has not answered is not healthy, a directory beside five others on one device is
not a disk of its own, and a number that was not counted lately says when it was.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from msgspec import Struct

from holdfast.base.ids import StoreId
from holdfast.base.wording import counted, of_all
from holdfast.health.webhook import WebhookStatus
from holdfast.index.port import IndexState, IndexStatus, MemberStatus
from holdfast.node.bucket_report import BucketStatus
from holdfast.recovery.keeping import RecoveryStatus, sentences_of
from holdfast.scheme import Scheme
from holdfast.topology import LEVELS, Level, Topology, place, survived

_PLURALS = {
    "node": "nodes",
    "region": "regions",
    "zone": "zones",
    "host": "hosts",
    "device": "devices",
    "store": "stores",
}


class NodeState(Enum):
    """The whole in one word."""

    ONLINE = "online"
    DEGRADED = "degraded"
    UNAVAILABLE = "unavailable"


class StoreStatus(Struct, frozen=True, kw_only=True):
    """One store. `state` is health's word, `full` for a healthy one without room, or `missing`, `foreign`,
    `swapped`, `removed` for one that is not attached; `reason` says why it is not healthy, or what it is
    there for, or how far away it is. Sizes are None when it does not answer. `trip_ms` is the least round
    trip to it lately, 0 for one of this node."""

    slot: str
    store: StoreId | None
    path: str
    state: str
    reason: str = ""
    region: str = ""
    zone: str = ""
    host: str = ""
    device: str = ""
    bytes_total: int | None = None
    bytes_free: int | None = None
    read_errors: int = 0
    write_errors: int = 0
    wrong_blocks: int = 0
    overdue: int = 0
    last_error: str = ""
    trip_ms: float = 0.0
    bucket: BucketStatus | None = None

    @property
    def well(self) -> bool:
        """Whether it takes part fully."""
        return self.state in ("healthy", "probation")


class NodeStatus(Struct, frozen=True, kw_only=True):
    """A node of the cluster as the one that was asked sees it. `state` is `ready`, `not ready` (it says so
    itself), `stopping`, `draining` or `silent`; `since_s` is for how long it has been heard, or not."""

    name: str
    state: str
    since_s: float
    version: str
    client: str
    peer: str
    stores: int
    stores_there: int
    uuid: str = ""
    started_ms: int = 0

    @property
    def well(self) -> bool:
        """Whether it serves; one whose stores are being emptied does."""
        return self.state in ("ready", "draining")


class PacksStatus(Struct, frozen=True, kw_only=True):
    """All packs, from their rows and the stores that are attached. `losses_survivable` is how many more
    stores the weakest pack may lose; None without packs. Repairs, debts paid and bytes reclaimed (on the
    stores) count from the start. `mergeable` packs are small or mostly dead, as of the last walk;
    `bytes_dead` (of objects) are let go and lie in packs that live on. `oldest_read_s` is how
    long ago scrub read the shard that it read longest ago; None while it never read one."""

    packs: int = 0
    bytes_stored: int = 0
    degraded: int = 0
    unreadable: int = 0
    debts: int = 0
    shards_missing: int = 0
    losses_survivable: int | None = None
    counted_s_ago: float = 0.0
    repairs_waiting: int = 0
    repaired: int = 0
    debts_paid: int = 0
    mergeable: int = 0
    bytes_dead: int = 0
    bytes_reclaimed: int = 0
    oldest_read_s: float | None = None


class Event(Struct, frozen=True):
    """Something that happened. `wall` is seconds since 1970 UTC."""

    wall: float
    text: str


class Status(Struct, frozen=True, kw_only=True):
    """Everything. `survives` maps a level to how many of its domains may still be lost, data and index
    together; `domains` to how many there are."""

    version: str
    endpoint: str
    pid: int
    uptime_s: float
    state: NodeState
    sentences: tuple[str, ...]
    actions: tuple[str, ...]
    scheme: str
    stores: tuple[StoreStatus, ...]
    index: IndexStatus
    packs: PacksStatus
    survives: dict[str, int]
    domains: dict[str, int]
    events: tuple[Event, ...] = ()
    recovery: RecoveryStatus | None = None
    webhook: WebhookStatus | None = None
    node: str = ""
    nodes: tuple[NodeStatus, ...] = ()


class Promise(Struct, frozen=True):
    """What a layout survives. `data` and `index` map levels to losses; `both` is the weaker one. An index
    that lies on none of the stores has no levels here; `elsewhere` says in a sentence what it survives."""

    data: dict[str, int]
    index: dict[str, int]
    domains: dict[str, int]
    elsewhere: str = ""

    @property
    def both(self) -> dict[str, int]:
        """The weaker of data and index, at each level."""
        return {level: min(count, self.index.get(level, count)) for level, count in self.data.items()}


def promise_of(
    topology: Topology, scheme: Scheme, index_topology: Topology | None, elsewhere: str = ""
) -> Promise:
    """What a full pack and the index survive when all is well. `index_topology` has one location for
    each member of the index: the store it lies on, or a place of its own; None for an index that is
    `elsewhere`."""
    homes = place(topology, scheme.n, topology.stores)
    index: dict[str, int] = {}
    if index_topology is not None:
        members = index_topology.stores
        index = _by_name(survived(index_topology, members, len(members) // 2 + 1))
    return Promise(
        data=_by_name(survived(topology, homes, scheme.k)),
        index=index,
        domains={level.value: topology.count(level) for level in reversed(LEVELS)},
        elsewhere=elsewhere,
    )


def _by_name(counts: Mapping[Level, int]) -> dict[str, int]:
    return {level.value: count for level, count in counts.items()}


def promise_sentences(promise: Promise) -> list[str]:
    """The promise for a person, narrowest level first, with what it does not cover said plainly."""
    lines = []
    both = promise.both
    for name, count in both.items():
        there = promise.domains[name]
        if name in ("region", "zone", "host") and there == 1:
            continue
        lines.append(f"{_lost(count)} of {_count(there, name)}{_weaker(promise, name)}")
    stores, devices = promise.domains["store"], promise.domains["device"]
    if devices == 1 and stores > 1:
        lines.append(
            f"All {stores} stores are on one device, so they are one disk: if it dies, everything on it is "
            "lost. Put stores on disks of their own with --store or holdfast.toml."
        )
    elif both["device"] == 0:
        lines.append("One device holds too much: if it dies, data or index is lost.")
    return [*lines, promise.elsewhere] if promise.elsewhere else lines


def _weaker(promise: Promise, name: str) -> str:
    data, index = promise.data[name], promise.index.get(name)
    if index is None or data == index:
        return ""
    return f" (data {data}, index {index})"


def _lost(count: int) -> str:
    return "none" if count == 0 else f"any {count}"


def _count(count: int, level: str) -> str:
    return f"{count} {level if count == 1 else _PLURALS[level]}"


def judge(
    stores: Sequence[StoreStatus],
    index: IndexStatus,
    packs: PacksStatus,
    recovery: RecoveryStatus | None = None,
    ahead: Sequence[str] = (),
    nodes: Sequence[NodeStatus] = (),
) -> tuple[NodeState, tuple[str, ...], tuple[str, ...]]:
    """The state in one word, what is the matter, and what to do about it."""
    state, sentences, actions = NodeState.ONLINE, [], []
    away = [store for store in stores if store.state in ("missing", "down", "removed")]
    foreign = [store for store in stores if store.state in ("foreign", "swapped", "stale")]
    ailing = [store for store in stores if store.state in ("suspect", "sitting-out")]
    if away:
        state = NodeState.DEGRADED
        sentences.append(f"{len(away)} of {_count(len(stores), 'store')} away: {_slots(away)}.")
        actions.append(
            "Bring the stores back, or put an empty directory in their place; it is then taken as new."
        )
    if foreign:
        state = NodeState.DEGRADED
        sentences.extend(f"{store.slot} is not what belongs there: {store.reason}" for store in foreign)
        actions.append("Put the right directory there; what is there now is left untouched.")
    if ailing:
        state = NodeState.DEGRADED
        sentences.append(f"Not well: {_slots(ailing)}; reads go round them.")
    if full := [store for store in stores if store.state == "full"]:
        state = NodeState.DEGRADED
        names = ", ".join(store.slot for store in full)
        sentences.append(
            f"Full: {names}. What is there is read; new objects go to other stores, if they can."
        )
        actions.append("Delete objects, or give the node more stores; freed space is there within seconds.")
    log = [member for member in index.members if not is_copy(member)]
    behind = [member.name for member in log if member.state != "current"]
    if behind:
        state = NodeState.DEGRADED
        sentences.append(f"The index does without {len(behind)} of {len(log)} members: {', '.join(behind)}.")
    if index.remark:
        sentences.append(index.remark)
    if wrong := [store for store in stores if store.wrong_blocks]:
        total = sum(store.wrong_blocks for store in wrong)
        found = f"{counted(total, 'wrong block')} {'was' if total == 1 else 'were'} found"
        sentences.append(f"{found} on {_slots(wrong)} and corrected from others.")
        actions.append("Run `holdfast verify` to see all of it; a disk that goes on like this is dying.")
    if packs.degraded:
        state = NodeState.DEGRADED
        sentences.append(
            f"{of_all(packs.degraded, packs.packs, 'pack', 'has', 'have')} less redundancy than "
            f"{'it' if packs.degraded == 1 else 'they'} should "
            f"({counted(packs.shards_missing, 'shard')} missing)."
        )
    if packs.debts:
        state = NodeState.DEGRADED
        sentences.append(
            f"{of_all(packs.debts, packs.packs, 'pack', 'was', 'were')} written with fewer stores than "
            "promised; this is mended when stores allow."
        )
    if packs.unreadable:
        state = NodeState.UNAVAILABLE
        packs_of_all = of_all(packs.unreadable, packs.packs, "pack", "cannot", "cannot")
        sentences.append(f"{packs_of_all} be read until stores return.")
    if index.state is not IndexState.SERVING:
        state = NodeState.UNAVAILABLE
        sentences.append(f"The index is {index.state.value}: nothing can be read or written.")
    elif recovery is not None and (worries := sentences_of(recovery)):
        state = NodeState.DEGRADED if state is NodeState.ONLINE else state
        sentences += worries
    if ahead:
        state = NodeState.DEGRADED if state is NodeState.ONLINE else state
        sentences.append(
            f"The index shows less than {', '.join(ahead)} have seen: it went back, and nothing is deleted "
            "on its word."
        )
        actions.append("Was an old copy of the index put back? Stop the node and bring back the newest one.")
    if unwell := [node for node in nodes if not node.well]:
        state = NodeState.DEGRADED if state is NodeState.ONLINE else state
        told = ", ".join(f"{node.name} ({node.state})" for node in unwell)
        sentences.append(f"{len(unwell)} of {_count(len(nodes), 'node')} not serving: {told}.")
    if not sentences:
        sentences.append("All is well.")
    return state, tuple(sentences), tuple(actions)


def is_copy(member: MemberStatus) -> bool:
    """Whether a line of the index's status is about a copy of its rows, which any other can replace, and
    not about a member of its log."""
    return member.name.startswith("copy ")


def _slots(stores: Iterable[StoreStatus]) -> str:
    return ", ".join(f"{store.slot} ({store.reason or store.state})" for store in stores)
