"""How a running balancer sees the nodes, from what Envoy answers."""

from pathlib import Path
from typing import cast

from msgspec import Struct

from holdfast.balance.admin import Admin
from holdfast.balance.bootstrap import Files
from holdfast.balance.listener import LISTENER
from holdfast.balance.nodes_cluster import CLUSTER, Json
from holdfast.base.errors import Unavailable


class NodeView(Struct, frozen=True):
    """One node as the balancer sees it. `state` is a word: ready, not ready, left out (by live traffic),
    draining. `nearness` is 0 for the nearest. `errors` count answers of 5xx and broken connections."""

    name: str
    address: str
    region: str
    zone: str
    nearness: int
    state: str
    requests: int
    active: int
    errors: int


class BalancerStatus(Struct, frozen=True):
    """A running balancer. `again` are tries beside or after the first; `unanswered` those that were not made
    for lack of budget."""

    endpoint: str
    envoy: str
    uptime_s: int
    nodes: tuple[NodeView, ...]
    connections: int
    active: int
    requests: int
    again: int
    again_refused: int
    everybody_asked: bool


def is_serving(admin: Admin) -> bool:
    """Whether Envoy has all that it needs and listens."""
    try:
        return admin.ask("/ready").strip() == b"LIVE" and bool(endpoint_of(admin))
    except Unavailable:
        return False


def endpoint_of(admin: Admin) -> str:
    """Where it listens, as `host:port`; empty while it does not."""
    found = cast("list[Json]", admin.document("/listeners?format=json").get("listener_statuses", []))
    for one in found:
        if one.get("name") == LISTENER:
            address = cast("Json", cast("Json", one["local_address"])["socket_address"])
            host = str(address["address"])
            return f"[{host}]:{address['port_value']}" if ":" in host else f"{host}:{address['port_value']}"
    return ""


def read_status(directory: Path, *, tls: bool) -> BalancerStatus:
    """Ask the balancer that runs in `directory`. Raises Unavailable when there is none."""
    admin = Admin(Files(directory).admin)
    try:
        info = admin.document("/server_info")
    except Unavailable:
        raise Unavailable(
            f"No balancer runs in {directory}.", hint="Start one with `holdfast balance`, or check --config."
        ) from None
    clusters = cast("list[Json]", admin.document("/clusters?format=json").get("cluster_statuses", []))
    hosts: list[Json] = []
    for cluster in clusters:
        if cluster.get("name") == CLUSTER:
            hosts = cast("list[Json]", cluster.get("host_statuses", []))
    nodes = tuple(sorted((_node(host) for host in hosts), key=lambda node: (node.nearness, node.name)))
    return BalancerStatus(
        endpoint=f"{'https' if tls else 'http'}://{endpoint_of(admin)}",
        envoy=str(info.get("version", "")).split("/")[1:2][0] if "/" in str(info.get("version")) else "",
        uptime_s=int(str(info.get("uptime_current_epoch", "0s")).rstrip("s") or 0),
        nodes=nodes,
        connections=admin.number(f"http.{LISTENER}.downstream_cx_active"),
        active=admin.number(f"http.{LISTENER}.downstream_rq_active"),
        requests=admin.number(f"http.{LISTENER}.downstream_rq_total"),
        again=admin.number(f"cluster.{CLUSTER}.upstream_rq_retry"),
        again_refused=admin.number(f"cluster.{CLUSTER}.upstream_rq_retry_overflow"),
        everybody_asked=bool(nodes) and all(node.state != "ready" for node in nodes),
    )


def _node(host: Json) -> NodeView:
    address = cast("Json", cast("Json", host["address"])["socket_address"])
    health = cast("Json", host.get("health_status", {}))
    where = cast("Json", host.get("locality", {}))
    figures = {
        str(stat["name"]): int(str(stat.get("value", 0)))
        for stat in cast("list[Json]", host.get("stats", []))
    }
    if health.get("eds_health_status") == "DRAINING":
        state = "draining"
    elif health.get("failed_active_health_check"):
        state = "not ready"
    elif health.get("failed_outlier_check"):
        state = "left out"
    else:
        state = "ready"
    at = f"{address['address']}:{address['port_value']}"
    return NodeView(
        name=str(host.get("hostname") or at),
        address=at,
        region=str(where.get("region", "")),
        zone=str(where.get("zone", "")),
        nearness=int(str(host.get("priority", 0))),
        state=state,
        requests=figures.get("rq_total", 0),
        active=figures.get("rq_active", 0),
        errors=figures.get("rq_error", 0),
    )
