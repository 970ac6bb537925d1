"""Collects what `/-/metrics` says from the parts that know it, a group of families at a time.

Names are in Prometheus's style: `holdfast_` first, units and `_total` last. What must hold: everything shown
was counted elsewhere, so that looking costs only the one who looks; what is not known is left out, never
shown as 0; and each group is quick, since it is made on the loop.
"""

import os
import resource
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from holdfast import __version__
from holdfast.base.clock import Clock
from holdfast.chores.chore import ChoreState, ChoreStatus
from holdfast.chores.repair import Repair
from holdfast.chores.scrub import Scrub
from holdfast.health import StoreHealth, StoreState
from holdfast.health.accounting import Flow, StoreAccounts
from holdfast.index.port import IndexState, IndexStatus
from holdfast.node.accounting import CLASSES, RequestAccounts
from holdfast.node.background import Background
from holdfast.node.keeper import Keeper
from holdfast.node.ledger_keeping import LedgerKeeper
from holdfast.node.metrics import (
    CONTENT_TYPE,
    Family,
    Kind,
    Labels,
    counter,
    gauge,
    one,
    render,
)
from holdfast.node.metrics_token import holds_token
from holdfast.node.report import store_statuses
from holdfast.node.status import PacksStatus, StoreStatus, is_copy
from holdfast.node.watching import IndexAccount, Watching
from holdfast.s3.face import AdminAnswer, AdminRequest

REMOVED = "removed"
"""The state of a store that nobody expects to be there."""

NO_OPERATION = "none"
"""The operation of requests that were not admitted."""

_CANARY_RESULTS = ("failed", "good")


class Metrics:
    """Answers `/-/metrics`. `token` is what who asks must hold, None for nothing; `cluster` tells of a node's
    part in its cluster."""

    def __init__(
        self,
        watching: Watching,
        keeper: Keeper,
        health: StoreHealth,
        index: Callable[[], IndexStatus],
        background: Background,
        in_flight: Callable[[], int],
        clock: Clock,
        token: str | None,
        cluster: Callable[[], Iterable[Family]],
    ) -> None:
        self._watching = watching
        self._keeper = keeper
        self._health = health
        self._index = index
        self._background = background
        self._in_flight = in_flight
        self._clock = clock
        self._token = token
        self._cluster = cluster
        self._started_wall = clock.wall()

    async def answer(self, request: AdminRequest) -> AdminAnswer:
        """The text, for who may read it."""
        if self._token is not None and not holds_token(request.headers, self._token):
            text = b"Say `Authorization: Bearer ...` with the token in metrics-token in the data folder.\n"
            return AdminAnswer(401, text, "text/plain; charset=utf-8")
        return AdminAnswer(200, (await self.text()).encode(), CONTENT_TYPE)

    async def text(self) -> str:
        """All families."""
        watching, background = self._watching, self._background
        slots = list(self._keeper.held.values())
        statuses = [
            status
            for status in await store_statuses(slots, self._keeper.cluster, self._health)
            if status.state != REMOVED
        ]
        groups: Sequence[Callable[[], Iterable[Family]]] = (
            lambda: process_families(self._started_wall),
            lambda: request_families(watching.requests, self._in_flight()),
            lambda: store_families(statuses),
            lambda: store_call_families(statuses, watching.stores),
            lambda: index_families(self._index(), watching.index),
            lambda: pack_families(background.packs_status()),
            lambda: repair_families(background.repair, background.scrub),
            lambda: chore_families(background.runner.status()),
            lambda: ledger_families(watching.keeping),
            self._cluster,
        )
        parts = []
        for group in groups:
            parts.append(render(group()))
            await self._clock.sleep(0)
        return "".join(parts)


def process_families(started_wall: float) -> Iterable[Family]:
    """The process, under the names that every exporter uses for it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield gauge("holdfast_build_info", "The version that runs; always 1.", [({"version": __version__}, 1)])
    yield gauge("process_start_time_seconds", "When the node started, since 1970 UTC.", one(started_wall))
    yield counter("process_cpu_seconds_total", "Processor time used.", one(usage.ru_utime + usage.ru_stime))
    resident = _resident_bytes()
    if resident is not None:
        yield gauge("process_resident_memory_bytes", "Memory in use.", one(resident))


def _resident_bytes() -> int | None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def request_families(requests: RequestAccounts, in_flight: int) -> Iterable[Family]:
    """What clients asked and got."""
    accounts = {name or NO_OPERATION: account for name, account in requests.operations.items()}
    yield counter(
        "holdfast_requests_total",
        "Requests of S3, by operation (none: not admitted) and by how they ended: the class of the status, "
        "broken off by us, or gone with their client.",
        [
            ({"operation": name, "result": result}, count)
            for name, account in accounts.items()
            for result, count in zip(CLASSES, account.classes, strict=True)
            if count
        ],
    )
    yield counter(
        "holdfast_requests_measured_total",
        "Requests that count for availability: admitted ones that were not given up, and failed ones.",
        [({"operation": name}, account.measured) for name, account in accounts.items()],
    )
    yield counter(
        "holdfast_requests_failed_total",
        "Requests that failed and count against availability.",
        [({"operation": name}, account.failures) for name, account in accounts.items()],
    )
    yield counter(
        "holdfast_requests_slow_total",
        "Requests whose first byte came later than is good for their operation.",
        [({"operation": name}, account.slow) for name, account in accounts.items()],
    )
    yield Family(
        "holdfast_request_wait_seconds",
        Kind.HISTOGRAM,
        "From the last byte of a request to the first byte of its answer.",
        [({"operation": name}, account.latency) for name, account in accounts.items()],
    )
    yield Family(
        "holdfast_request_duration_seconds",
        Kind.HISTOGRAM,
        "From the head of a request to the end of its answer, as slow as its client.",
        [({"operation": name}, account.whole) for name, account in accounts.items()],
    )
    yield counter(
        "holdfast_request_received_bytes_total",
        "Bytes of request bodies.",
        [({"operation": name}, account.bytes_in) for name, account in accounts.items()],
    )
    yield counter(
        "holdfast_response_sent_bytes_total",
        "Bytes of response bodies.",
        [({"operation": name}, account.bytes_out) for name, account in accounts.items()],
    )
    yield gauge("holdfast_requests_in_flight", "Requests of S3 under way.", one(in_flight))


def store_families(statuses: Sequence[StoreStatus]) -> Iterable[Family]:
    """How the stores are."""
    named = [({"store": status.slot}, status) for status in statuses]
    words = sorted({state.value for state in StoreState} | {status.state for status in statuses})
    yield gauge(
        "holdfast_store_up",
        "Whether a store takes part in reads and writes.",
        [(labels, int(status.well or status.state == "full")) for labels, status in named],
    )
    yield gauge(
        "holdfast_store_state",
        "1 for the state that a store is in, 0 for the others.",
        [
            ({**labels, "state": word}, int(status.state == word))
            for labels, status in named
            for word in words
        ],
    )
    yield gauge(
        "holdfast_store_size_bytes",
        "Size of a store; missing while it does not answer.",
        [(labels, status.bytes_total) for labels, status in named if status.bytes_total is not None],
    )
    yield gauge(
        "holdfast_store_free_bytes",
        "What may still be written to a store, above its reserve.",
        [(labels, status.bytes_free) for labels, status in named if status.bytes_free is not None],
    )
    yield counter(
        "holdfast_store_wrong_blocks_total",
        "Blocks that a store answered with other bytes than were written.",
        [(labels, status.wrong_blocks) for labels, status in named],
    )
    yield counter(
        "holdfast_store_overdue_reads_total",
        "Reads that took so long that others were asked.",
        [(labels, status.overdue) for labels, status in named],
    )


def store_call_families(statuses: Sequence[StoreStatus], accounts: StoreAccounts) -> Iterable[Family]:
    """What the stores did."""
    flows: list[tuple[Labels, Flow]] = []
    for status in statuses:
        if status.store is not None:
            account = accounts.of(status.store)
            flows.append(({"store": status.slot, "kind": "read"}, account.reads))
            flows.append(({"store": status.slot, "kind": "write"}, account.writes))
    yield counter(
        "holdfast_store_calls_total",
        "Calls of a store that ended; deletes and probes count as writes.",
        [(labels, flow.calls) for labels, flow in flows],
    )
    yield counter(
        "holdfast_store_errors_total",
        "Calls of a store that failed.",
        [(labels, flow.errors) for labels, flow in flows],
    )
    yield counter(
        "holdfast_store_slow_total",
        "Calls of a store that took longer than is good.",
        [(labels, flow.slow) for labels, flow in flows],
    )
    yield counter(
        "holdfast_store_moved_bytes_total",
        "Bytes read from and written to a store.",
        [(labels, flow.bytes_moved) for labels, flow in flows],
    )
    yield Family(
        "holdfast_store_call_seconds",
        Kind.HISTOGRAM,
        "How long calls of a store took that worked.",
        [(labels, flow.latency) for labels, flow in flows],
    )


def index_families(status: IndexStatus, account: IndexAccount) -> Iterable[Family]:
    """The index."""
    log = [member for member in status.members if not is_copy(member)]
    current = sum(member.state == "current" for member in log)
    yield gauge(
        "holdfast_index_serving", "Whether the index takes commits.", one(status.state is IndexState.SERVING)
    )
    yield gauge("holdfast_index_revision", "How far the index is.", one(status.revision))
    yield gauge("holdfast_index_members", "Members that the log of the index should have.", one(len(log)))
    yield gauge("holdfast_index_members_current", "Members of the log that have all of it.", one(current))
    yield gauge(
        "holdfast_index_losses_survivable",
        "Members that may still be lost.",
        one(status.losses_survivable),
    )
    yield Family(
        "holdfast_index_commit_seconds",
        Kind.HISTOGRAM,
        "How long commits took; many transactions can share one.",
        [({}, account.latency)],
    )
    yield counter("holdfast_index_transactions_total", "Transactions decided.", one(account.transactions))
    yield counter("holdfast_index_commit_errors_total", "Commits that failed.", one(account.errors))


def pack_families(packs: PacksStatus) -> Iterable[Family]:
    """The packs, as last counted."""
    yield gauge("holdfast_packs", "Packs.", one(packs.packs))
    yield gauge("holdfast_packs_stored_bytes", "Bytes in packs, before redundancy.", one(packs.bytes_stored))
    yield gauge("holdfast_packs_degraded", "Packs with fewer shards than they should.", one(packs.degraded))
    yield gauge("holdfast_packs_unreadable", "Packs with too few shards to read.", one(packs.unreadable))
    yield gauge(
        "holdfast_packs_debts", "Packs written with less than was promised, to be mended.", one(packs.debts)
    )
    yield gauge("holdfast_shards_missing", "Shards that packs should have.", one(packs.shards_missing))
    if packs.losses_survivable is not None:
        yield gauge(
            "holdfast_packs_losses_survivable",
            "Stores that the weakest pack may still lose.",
            one(packs.losses_survivable),
        )
    yield gauge("holdfast_packs_counted_seconds_ago", "Age of these numbers.", one(packs.counted_s_ago))
    yield gauge("holdfast_packs_mergeable", "Packs that are small or mostly dead.", one(packs.mergeable))
    yield gauge(
        "holdfast_objects_dead_bytes",
        "Bytes of objects that were let go, in packs that live on.",
        one(packs.bytes_dead),
    )
    yield counter(
        "holdfast_reclaimed_bytes_total", "Bytes on stores that were given back.", one(packs.bytes_reclaimed)
    )
    yield gauge("holdfast_repairs_waiting", "Packs that wait to be repaired.", one(packs.repairs_waiting))
    yield counter("holdfast_repairs_total", "Packs repaired.", one(packs.repaired))
    yield counter("holdfast_debts_paid_total", "Debts paid.", one(packs.debts_paid))


def repair_families(repair: Repair, scrub: Scrub) -> Iterable[Family]:
    """What is to be mended, by how near it is to being lost, and what is read to find more."""
    waiting = repair.waiting_by_losses_left()
    yield gauge(
        "holdfast_repair_waiting_packs",
        "Packs that wait to be repaired, by how many more stores each may lose.",
        [({"losses_left": str(left)}, packs) for left, (packs, _) in waiting.items()],
    )
    yield gauge(
        "holdfast_repair_waiting_bytes",
        "Bytes of packs that wait to be repaired, by how many more stores each may lose.",
        [({"losses_left": str(left)}, size) for left, (_, size) in waiting.items()],
    )
    age_s = scrub.oldest_age_s
    yield gauge(
        "holdfast_scrub_oldest_seconds",
        "How long ago the shard was read that was read longest ago; missing until all were read once.",
        [] if age_s is None else one(age_s),
    )
    yield counter("holdfast_scrub_read_bytes_total", "Bytes read to verify them.", one(scrub.bytes_read))
    yield counter("holdfast_scrub_packs_total", "Packs read to verify them.", one(scrub.packs_read))
    yield counter(
        "holdfast_scrub_faults_total", "Shards that were found missing or wrong.", one(scrub.faults_found)
    )


def chore_families(chores: Sequence[ChoreStatus]) -> Iterable[Family]:
    """Work in the background."""
    yield gauge(
        "holdfast_chore_state",
        "1 for the state that a chore is in, 0 for the others.",
        [
            ({"chore": chore.name, "state": state.value}, int(chore.state is state))
            for chore in chores
            for state in ChoreState
        ],
    )
    yield counter(
        "holdfast_chore_work_seconds_total",
        "Time that a chore was at work.",
        [({"chore": chore.name}, chore.worked_s) for chore in chores],
    )
    yield counter(
        "holdfast_chore_units_total",
        "Units of work that a chore did.",
        [({"chore": chore.name}, chore.units_done) for chore in chores],
    )
    yield counter(
        "holdfast_chore_errors_total",
        "Units of work that failed, to be tried again.",
        [({"chore": chore.name}, chore.errors) for chore in chores],
    )
    yield gauge(
        "holdfast_chore_left_seconds",
        "How long a chore still needs at its rate of late, where that is known.",
        [({"chore": chore.name}, chore.left_s) for chore in chores if chore.left_s is not None],
    )


def ledger_families(keeping: LedgerKeeper) -> Iterable[Family]:
    """The ledger, the canary and the loop."""
    buckets = keeping.ledger.buckets
    yield counter(
        "holdfast_bucket_requests_total",
        "Requests that count for availability, by bucket; told once a minute.",
        [
            ({"bucket": name, "result": result}, count)
            for name, counts in buckets.items()
            for result, count in zip(("good", "failed"), counts, strict=True)
        ],
    )
    yield counter(
        "holdfast_canary_total",
        "Canaries sent in minutes in which nobody asked.",
        [
            ({"result": result}, count)
            for result, count in zip(_CANARY_RESULTS, keeping.canaries, strict=True)
        ],
    )
    yield counter("holdfast_ledger_records_total", "Records kept.", one(keeping.records_written))
    yield counter(
        "holdfast_ledger_records_lost_total", "Records that could not be kept.", one(keeping.records_lost)
    )
    yield counter("holdfast_clock_jumps_total", "Jumps of the wall clock.", one(keeping.ledger.clock_jumps))
    yield Family(
        "holdfast_loop_lag_seconds",
        Kind.HISTOGRAM,
        "How late the event loop was, measured each second.",
        [({}, keeping.lag)],
    )
