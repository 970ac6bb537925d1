"""What Envoy is told about the nodes: who they are, how to see how they are, when to leave one out.

Pure: settings and a view in, Envoy's own JSON out (its API, v3). What must hold:

- a node that says it is not ready gets nothing more at once; one that cannot be reached is found by live
  traffic before the next check of it;
- passive checks may leave out at most half of the nodes, and when all look bad all are asked: then it is the
  observer who is wrong, or there is nothing to lose;
- an S3 error that is the client's doing, or a node that asks for patience, says nothing against the node.
"""

from holdfast.balance import patience
from holdfast.balance.settings import Settings
from holdfast.balance.view import Endpoint, View, distance

Json = dict[str, object]

CLUSTER = "nodes"
READY_PATH = "/-/ready"
TYPES = "type.googleapis.com/"
EJECT_AFTER = 5
EJECT_PERCENT_MAX = 50
LEFT_OUT_S = 3.0
"""For how long a node is left out at first; so much longer each time that it is left out again soon."""
HEADERS_MAX = 1000
BUFFER_BYTES = 256 << 10
_MANY = 1_000_000


def seconds(value: float) -> str:
    """A duration as Envoy writes it."""
    return f"{value:.3f}".rstrip("0").rstrip(".") + "s"


def cluster(endpoints_path: str) -> Json:
    """The nodes as one cluster, whose members are in a file of their own."""
    return {
        "@type": f"{TYPES}envoy.config.cluster.v3.Cluster",
        "name": CLUSTER,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": from_file(endpoints_path)},
        "connect_timeout": seconds(patience.CONNECT_S),
        "lb_policy": "LEAST_REQUEST",
        "least_request_lb_config": {"choice_count": 2, "slow_start_config": {"slow_start_window": "10s"}},
        # What is seen of a node counts at once, not together with what else is seen within a second.
        "common_lb_config": {"healthy_panic_threshold": {"value": 1}, "update_merge_window": "0s"},
        "ignore_health_on_host_removal": True,
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "upstream_connection_options": {
            "tcp_keepalive": {"keepalive_probes": 3, "keepalive_time": 10, "keepalive_interval": 5}
        },
        "health_checks": [_check()],
        "outlier_detection": _passive(),
        "circuit_breakers": {
            "thresholds": [
                {
                    # Nodes bound what they take themselves, and say so in S3's own words.
                    "max_connections": _MANY,
                    "max_pending_requests": _MANY,
                    "max_requests": _MANY,
                    "retry_budget": {"budget_percent": {"value": 20}, "min_retry_concurrency": 16},
                }
            ]
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPES}envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http_protocol_options": {"header_key_format": KEEP_CASE}},
                "common_http_protocol_options": {
                    "idle_timeout": seconds(patience.UPSTREAM_IDLE_S),
                    "max_headers_count": HEADERS_MAX,
                },
                "outlier_detection": {"error_matcher": _ERRORS},
            }
        },
    }


KEEP_CASE: Json = {
    "stateful_formatter": {
        "name": "preserve_case",
        "typed_config": {
            "@type": f"{TYPES}envoy.extensions.http.header_formatters.preserve_case.v3."
            "PreserveCaseFormatterConfig"
        },
    }
}
"""Names of headers as they were sent: some clients look for `ETag` and no other spelling of it."""


def _header(name: str, **match: object) -> Json:
    return {"http_response_headers_match": {"headers": [{"name": name, **match}]}}


_ERRORS: Json = {
    "and_match": {
        "rules": [
            _header(":status", string_match={"safe_regex": {"regex": "50[0234]"}}),
            {"not_match": _header("retry-after", present_match=True)},
        ]
    }
}
"""What counts against a node. Not 501, which a client can ask for at will; nor an answer that says when to
come back: a node that is asked too much would leave its share to others who have no more room than it has."""


def _check() -> Json:
    every = seconds(patience.CHECK_EVERY_S)
    return {
        "timeout": seconds(patience.CHECK_TIMEOUT_S),
        "interval": every,
        "interval_jitter_percent": round(100 * patience.CHECK_JITTER),
        "no_traffic_interval": every,
        "unhealthy_interval": every,
        "unhealthy_threshold": patience.CHECKS_FAILED,
        "healthy_threshold": 1,
        "http_health_check": {"path": READY_PATH},
    }


def _passive() -> Json:
    return {
        "consecutive_5xx": EJECT_AFTER,
        "enforcing_consecutive_5xx": 100,
        "enforcing_consecutive_gateway_failure": 0,
        "enforcing_success_rate": 0,
        "split_external_local_origin_errors": True,
        "consecutive_local_origin_failure": EJECT_AFTER,
        "enforcing_consecutive_local_origin_failure": 100,
        "enforcing_local_origin_success_rate": 0,
        "interval": "1s",
        "base_ejection_time": seconds(LEFT_OUT_S),
        "max_ejection_time": "60s",
        "max_ejection_time_jitter": "1s",
        "max_ejection_percent": EJECT_PERCENT_MAX,
        "always_eject_one_host": True,
        # By default a node that says it is ready is taken back with its next check, whatever its answers are.
        "successful_active_health_check_uneject_host": False,
    }


def endpoints(settings: Settings, view: View) -> Json:
    """The members, the nearest first: those further away get what the nearer cannot take."""
    near: dict[int, list[Endpoint]] = {}
    for endpoint in view:
        near.setdefault(distance(endpoint, settings.region, settings.zone), []).append(endpoint)
    localities: list[Json] = []
    for priority, where in enumerate(sorted(near)):
        for region, zone in sorted({(one.region, one.zone) for one in near[where]}):
            members = [one for one in near[where] if (one.region, one.zone) == (region, zone)]
            localities.append(
                {
                    "locality": {"region": region, "zone": zone},
                    "priority": priority,
                    "lb_endpoints": [_member(one) for one in members],
                }
            )
    return {
        "@type": f"{TYPES}envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": CLUSTER,
        "endpoints": localities,
    }


def _member(endpoint: Endpoint) -> Json:
    return {
        "endpoint": {"address": socket_address(endpoint.host, endpoint.port), "hostname": endpoint.name},
        "health_status": "DRAINING" if endpoint.draining else "UNKNOWN",
    }


def socket_address(host: str, port: int) -> Json:
    """An address of TCP."""
    return {"socket_address": {"address": host, "port_value": port}}


def from_file(path: str) -> Json:
    """A resource that lies in a file, and is read again when another is renamed over it."""
    return {"path_config_source": {"path": path}, "resource_api_version": "V3"}
