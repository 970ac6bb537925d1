"""What `/-/metrics` says of a node's part in its cluster: its server for peers, the way to each of them.

A node that is alone has the names and no samples.
"""

from collections.abc import Iterable

from holdfast.node.joining import Joining
from holdfast.node.metrics import Family, Kind, Labels, counter, gauge, one
from holdfast.node.peer_accounting import CallAccount
from holdfast.node.secrets import Secrets
from holdfast.stores.peer import REFUSALS


def cluster_families(secrets: Secrets, joining: Joining | None) -> Iterable[Family]:
    """All of it."""
    yield gauge(
        "holdfast_cluster_secrets",
        "Secrets of the cluster that count at this node: 2 while the cluster changes its secret.",
        one(len(secrets.known)) if secrets.known else [],
    )
    yield from served_families(joining.peer_accounts.calls if joining is not None else {})
    server = joining.server if joining is not None else None
    yield gauge(
        "holdfast_peer_connections",
        "Connections that other nodes have to this one.",
        one(server.connections) if server is not None else [],
    )
    yield gauge(
        "holdfast_peer_requests_in_flight",
        "Requests of other nodes under way.",
        one(server.in_flight) if server is not None else [],
    )
    yield gauge(
        "holdfast_peer_content_bytes",
        "Bytes of large contents of requests and answers of other nodes in memory.",
        one(server.face.content_bytes) if server is not None else [],
    )
    yield from _reached(joining)


def served_families(calls: dict[str, CallAccount]) -> Iterable[Family]:
    """What other nodes asked of this one's stores, and got."""
    named: list[tuple[Labels, CallAccount]] = [({"call": name}, account) for name, account in calls.items()]
    yield counter(
        "holdfast_peer_requests_total",
        "Requests of other nodes, by call (none: not understood, or no room) and by result: good, the kind "
        "of error that was answered, broken off by us, or gone with their caller.",
        [
            ({**labels, "result": result}, count)
            for labels, account in named
            for result, count in account.results.items()
        ],
    )
    yield counter(
        "holdfast_peer_refused_total",
        "Hellos and requests of who could not prove to be another node of the cluster, or changed on their "
        "way, by reason.",
        [
            ({"reason": reason}, sum(account.results.get(reason, 0) for account in calls.values()))
            for reason in (REFUSALS if calls else ())
        ],
    )
    yield Family(
        "holdfast_peer_request_seconds",
        Kind.HISTOGRAM,
        "How long good requests of other nodes took, from their head to the end of the answer.",
        [(labels, account.latency) for labels, account in named],
    )
    yield counter(
        "holdfast_peer_received_bytes_total",
        "Bytes of contents that other nodes sent.",
        [(labels, account.bytes_in) for labels, account in named],
    )
    yield counter(
        "holdfast_peer_sent_bytes_total",
        "Bytes of contents that other nodes were sent.",
        [(labels, account.bytes_out) for labels, account in named],
    )


def _reached(joining: Joining | None) -> Iterable[Family]:
    peers = joining.peers if joining is not None else None
    others = [member for member in joining.members.values() if member.name != joining.name] if joining else []
    yield gauge(
        "holdfast_node_alive",
        "Whether another node beats in the index, as this one sees it.",
        [({"node": member.name}, int(member.is_alive)) for member in others],
    )
    yield gauge(
        "holdfast_node_connections",
        "Connections of this node to each other one.",
        [({"node": name}, count) for name, count in sorted(peers.connections.items())] if peers else [],
    )
    yield gauge(
        "holdfast_node_cut_off",
        "Whether this node does not reach most of those that the index shows alive.",
        one(int(peers.is_cut_off)) if peers else [],
    )
