"""What Envoy is told about clients: where they come, what may be sent again, what must not be touched.

Pure: settings in, Envoy's own JSON out (its API, v3). What must hold:

- a request reaches a node as it was signed: path, query, Host and every header that a client may sign stay
  as they came. What is taken away or added are names that are ours (`holdfast-*`), what concerns one
  connection only, and `Expect`, which no client signs: Envoy asks for the body itself, to keep it;
- bodies stream; of a write at most `retry_body_bytes` are kept, and only where its length says that this is
  all of it;
- a request has one id for all its tries, and no client can choose it.
"""

from holdfast.balance import patience
from holdfast.balance.nodes_cluster import (
    BUFFER_BYTES,
    CLUSTER,
    HEADERS_MAX,
    KEEP_CASE,
    TYPES,
    Json,
    from_file,
    seconds,
    socket_address,
)
from holdfast.balance.settings import Settings
from holdfast.wire.balancing import BALANCER_HEADER, REQUEST_HEADER

LISTENER = "s3"
SECRET_NAME = "certificate"  # noqa: S105 - the name of a resource
BALANCER_PATH = "/-/balancer"
"""Answered by the balancer itself: 200 while it takes requests, 503 when about to stop or without nodes."""
_KEPT_OF_LARGE_BYTES = 1 << 20
"""Of bodies that are not kept whole: what may have come before it is known that nobody listens at a node."""
assert _KEPT_OF_LARGE_BYTES > 2 * BUFFER_BYTES
_TOO_MUCH_KEPT = 507
_COME_BACK_S = 1
"""What clients are told to wait when no node could be asked."""


def listener(settings: Settings, secret_path: str) -> Json:
    """Where clients come. `secret_path` is the file that has the certificate, where there is one."""
    chain: Json = {"filters": [{"name": "http", "typed_config": _http(settings)}]}
    if settings.tls is not None:
        chain["transport_socket"] = {
            "name": "tls",
            "typed_config": {
                "@type": f"{TYPES}envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
                    "tls_certificate_sds_secret_configs": [
                        {"name": SECRET_NAME, "sds_config": from_file(secret_path)}
                    ],
                },
            },
        }
    return {
        "@type": f"{TYPES}envoy.config.listener.v3.Listener",
        "name": LISTENER,
        "address": socket_address(settings.listen_host, settings.listen_port),
        "per_connection_buffer_limit_bytes": BUFFER_BYTES,
        "filter_chains": [chain],
    }


def certificate(chain: str, key: str) -> Json:
    """The certificate and its key, as a resource."""
    return {
        "@type": f"{TYPES}envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": SECRET_NAME,
        "tls_certificate": {
            "certificate_chain": {"inline_string": chain},
            "private_key": {"inline_string": key},
        },
    }


def _http(settings: Settings) -> Json:
    manager: Json = {
        "@type": f"{TYPES}envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": LISTENER,
        "codec_type": "AUTO",
        "normalize_path": False,
        "merge_slashes": False,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "server_header_transformation": "PASS_THROUGH",
        "generate_request_id": False,
        # The client's own address is the one that it connected from, whatever it says.
        "use_remote_address": True,
        "http_protocol_options": {"header_key_format": KEEP_CASE, "accept_http_10": True},
        "http2_protocol_options": {
            "max_concurrent_streams": 256,
            "initial_stream_window_size": 1 << 20,
            "initial_connection_window_size": 16 << 20,
        },
        "common_http_protocol_options": {
            "idle_timeout": seconds(patience.CLIENT_IDLE_S),
            "max_headers_count": HEADERS_MAX,
        },
        "max_request_headers_kb": 64,
        "request_headers_timeout": seconds(patience.HEAD_S),
        "stream_idle_timeout": seconds(patience.STREAM_STILL_S),
        "http_filters": [_health(), _router()],
        "route_config": _routes(settings),
        "local_reply_config": _own_answers(),
    }
    if settings.access_log is not None:
        manager["access_log"] = [_access_log(str(settings.access_log))]
    return manager


def _health() -> Json:
    return {
        "name": "health",
        "typed_config": {
            "@type": f"{TYPES}envoy.extensions.filters.http.health_check.v3.HealthCheck",
            "pass_through_mode": False,
            "cluster_min_healthy_percentages": {CLUSTER: {"value": 1}},
            "headers": [{"name": ":path", "string_match": {"exact": BALANCER_PATH}}],
        },
    }


def _router() -> Json:
    return {
        "name": "router",
        "typed_config": {
            "@type": f"{TYPES}envoy.extensions.filters.http.router.v3.Router",
            "suppress_envoy_headers": True,
        },
    }


def _routes(settings: Settings) -> Json:
    routes = [
        _route(_methods("GET|HEAD"), _again(patience.HEDGE_READ_S), timeout_s=0.0, kept_bytes=BUFFER_BYTES)
    ]
    if settings.secret:
        # Nodes know a second try of these by its id, and give it the answer that the first one earned.
        again = _again(patience.HEDGE_WRITE_S)
        short: Json = {"range_match": {"start": 0, "end": settings.retry_body_bytes + 1}}
        lengths: tuple[Json, ...] = ({"name": "content-length", **short},)
        kept = max(settings.retry_body_bytes, BUFFER_BYTES)
        copies: Json = {"name": "x-amz-copy-source", "present_match": True, "invert_match": True}
        bare: Json = {"name": "content-length", "present_match": True, "invert_match": True}
        routes += [
            _route(match, again, timeout_s=patience.REQUEST_S, kept_bytes=kept)
            for match in (
                _methods("DELETE", bare),
                _methods("DELETE", *lengths),
                _methods("PUT|POST", *lengths, copies),
            )
        ]
    # At once: while nobody takes the body, what comes of it would soon be more than is kept.
    unseen: Json = {"retry_on": "connect-failure,refused-stream", **_elsewhere("0.001s")}
    everything: Json = {"prefix": "/"}
    routes.append(
        _route(everything, {"retry_policy": unseen}, timeout_s=0.0, kept_bytes=_KEPT_OF_LARGE_BYTES)
    )
    taken = [] if settings.secret else [REQUEST_HEADER, BALANCER_HEADER]
    return {
        "name": LISTENER,
        "virtual_hosts": [
            {"name": LISTENER, "domains": ["*"], "routes": routes, "include_request_attempt_count": True}
        ],
        "request_headers_to_remove": taken,
        "request_headers_to_add": _stamps(settings),
    }


def _stamps(settings: Settings) -> list[Json]:
    if not settings.secret:
        return []
    return [
        {"header": {"key": name, "value": value}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
        for name, value in ((REQUEST_HEADER, "%UNIQUE_ID%"), (BALANCER_HEADER, settings.secret))
    ]


def _methods(regex: str, *headers: Json) -> Json:
    method: Json = {"name": ":method", "string_match": {"safe_regex": {"regex": regex}}}
    return {"prefix": "/", "headers": [method, *headers]}


def _route(match: Json, again: Json, *, timeout_s: float, kept_bytes: int) -> Json:
    return {
        "match": match,
        "route": {"cluster": CLUSTER, "timeout": seconds(timeout_s), **again},
        "request_body_buffer_limit": kept_bytes,
    }


def _again(hedge_s: float) -> Json:
    return {
        "retry_policy": {
            "retry_on": "connect-failure,refused-stream,reset,retriable-status-codes",
            "retriable_status_codes": [500, 502, 503, 504],
            "per_try_timeout": seconds(hedge_s),
            **_elsewhere("0.025s"),
        },
        "hedge_policy": {"hedge_on_per_try_timeout": True},
    }


def _elsewhere(wait: str) -> Json:
    """Ask another node than those that were asked already."""
    return {
        "num_retries": patience.TRIES_AGAIN,
        "host_selection_retry_max_attempts": 5,
        "retry_host_predicate": [
            {
                "name": "previous",
                "typed_config": {
                    "@type": f"{TYPES}envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                },
            }
        ],
        "retry_back_off": {"base_interval": wait, "max_interval": "0.25s"},
    }


def _own_answers() -> Json:
    """What Envoy itself answers when no node did: in the words of S3, so that clients know what to do."""
    told = {
        # Its own word for a body that grew beyond what is kept before any node took it: nothing is full.
        _TOO_MUCH_KEPT: ("EQ", "ServiceUnavailable", "No node could be asked. Please try again."),
        500: ("GE", "ServiceUnavailable", "No node could be asked. Please try again."),
        408: ("EQ", "RequestTimeout", "The request did not arrive in time."),
        400: ("GE", "BadRequest", "The request is not HTTP as it should be."),
    }
    return {
        "mappers": [_mapper(op, status, _error(*words)) for status, (op, *words) in told.items()],
        "body_format": {"text_format_source": {"inline_string": "%LOCAL_REPLY_BODY%"}},
    }


def _mapper(op: str, status: int, body: Json) -> Json:
    comparison: Json = {
        "op": op,
        "value": {"default_value": status, "runtime_key": f"holdfast.told_{status}"},
    }
    again: list[Json] = [
        {
            "header": {"key": "Retry-After", "value": str(_COME_BACK_S)},
            "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
        }
    ]
    found: Json = {
        "filter": {"status_code_filter": {"comparison": comparison}},
        "body_format_override": body,
        "headers_to_add": again if status >= 500 else [],
    }
    return found | ({"status_code": 503} if status == _TOO_MUCH_KEPT else {})


def _error(code: str, message: str) -> Json:
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    )
    return {"text_format_source": {"inline_string": text}, "content_type": "application/xml"}


def _access_log(path: str) -> Json:
    """The query is left out: the signature of a link that anybody may use is in it."""
    fields = {
        "time": "%START_TIME%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS%",
        "method": "%REQ(:METHOD)%",
        "host": "%REQ(:AUTHORITY)%",
        "path": "%PATH(NQ)%",
        "protocol": "%PROTOCOL%",
        "status": "%RESPONSE_CODE%",
        "flags": "%RESPONSE_FLAGS%",
        "bytes_in": "%BYTES_RECEIVED%",
        "bytes_out": "%BYTES_SENT%",
        "ms": "%DURATION%",
        "node": "%UPSTREAM_HOST%",
        "node_ms": "%RESPONSE_DURATION%",
        "tries": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
        "request": f"%REQ({REQUEST_HEADER})%",
        "s3_request": "%RESP(X-AMZ-REQUEST-ID)%",
        "agent": "%REQ(USER-AGENT)%",
    }
    return {
        "name": "access",
        "typed_config": {
            "@type": f"{TYPES}envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "path": path,
            "log_format": {"json_format": fields},
        },
    }
