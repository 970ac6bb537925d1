"""What recovery found and did: one value, for JSON and for people."""

from msgspec import Struct

from holdfast.recovery.applying import Told


class StoreFound(Struct, frozen=True):
    """One store that was named. `state` is `used`, or why it was not."""

    path: str
    slot: str
    store: str
    state: str


class NodeFound(Struct, frozen=True):
    """A node that the rows know, where peers find it, and the slots of its stores. `part` is `here` for the
    one that recovers, `lends`, or why it takes no part."""

    name: str
    peer: str
    stores: tuple[str, ...]
    part: str


class Report(Struct, frozen=True, kw_only=True):
    """All of it. Times are milliseconds since 1970 UTC, by the wall clock of the node that is gone.
    `missing_from_ms` to `missing_to_ms` is when changes may have been made that are not there any more;
    `log_changes` were read behind the journal's end from `log_member`, which was left of the index.
    `first_snapshot` is what the new index can be made again from before the node has written anything; where
    it could not be written, `first_snapshot_failed` says why. `nodes` are all of a cluster, none of a node
    that is alone."""

    dry_run: bool
    cluster: str
    stores: tuple[StoreFound, ...]
    incarnation_before: str
    incarnation: str
    lineage: int
    snapshot: str
    snapshot_revision: int
    snapshot_rows: int
    snapshot_written_ms: int
    journal_pieces: int
    journal_revision: int
    journal_written_ms: int
    gap: str
    log_member: str
    log_changes: int
    passed_over: tuple[str, ...]
    packs: int
    shards: int
    packs_degraded: int
    packs_short: int
    packs_short_named: tuple[str, ...]
    packs_moved: int
    packs_added: int
    packs_left: int
    packs_unreadable: int
    pieces_left: int
    applied: tuple[Told, ...]
    applied_count: int
    relocated: tuple[Told, ...]
    relocated_count: int
    doubtful: tuple[Told, ...]
    doubtful_count: int
    incomplete: tuple[Told, ...]
    incomplete_count: int
    buckets_made: tuple[str, ...]
    buckets: int
    objects: int
    uploads: int
    rows: int
    revision: int
    members: tuple[str, ...]
    set_aside: tuple[str, ...]
    first_snapshot: str
    first_snapshot_failed: str
    credentials: str
    missing_from_ms: int
    missing_to_ms: int | None
    seconds: float
    nodes: tuple[NodeFound, ...] = ()
