"""Which of Envoy's hundreds of statistics are kept, and what they mean. Envoy counts only these."""

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EnvoyStatistic:
    """A family of Envoy's page, with the text that Envoy lacks."""

    name: str
    """As on Envoy's page; a counter gets `_total` where it has none, which checkers of the format want."""
    stat: str
    """Regular expression for Envoy's own names of it."""
    help: str


_CLUSTER, _HTTP = r"cluster\.[^.]+\.", r"http\.public\."

ENVOY_STATISTICS = (
    EnvoyStatistic("envoy_http_downstream_rq_xx", _HTTP + r"downstream_rq_[1-5]xx", "Answers by class of HTTP status."),
    EnvoyStatistic("envoy_http_downstream_rq_total", _HTTP + "downstream_rq_total", "Requests that arrived."),
    EnvoyStatistic("envoy_http_downstream_rq_active", _HTTP + "downstream_rq_active", "Requests being answered now."),
    EnvoyStatistic(
        "envoy_http_downstream_rq_time", _HTTP + "downstream_rq_time", "Milliseconds from a request's start to its end."
    ),
    EnvoyStatistic("envoy_http_downstream_rq_timeout", _HTTP + "downstream_rq_timeout", "Requests not sent in time."),
    EnvoyStatistic("envoy_http_downstream_rq_too_large", _HTTP + "downstream_rq_too_large", "Bodies over the limit."),
    EnvoyStatistic("envoy_http_downstream_cx_total", _HTTP + "downstream_cx_total", "Connections that were opened."),
    EnvoyStatistic("envoy_http_downstream_cx_active", _HTTP + "downstream_cx_active", "Connections open now."),
    EnvoyStatistic(
        "envoy_http_downstream_cx_rx_bytes_total", _HTTP + "downstream_cx_rx_bytes_total", "Bytes received."
    ),
    EnvoyStatistic("envoy_http_downstream_cx_tx_bytes_total", _HTTP + "downstream_cx_tx_bytes_total", "Bytes sent."),
    EnvoyStatistic(
        "envoy_http_downstream_cx_protocol_error",
        _HTTP + "downstream_cx_protocol_error",
        "Connections ended because the peer broke the protocol.",
    ),
    EnvoyStatistic(
        "envoy_http_fault_aborts_injected",
        _HTTP + r"fault\.aborts_injected",
        "Requests that Envoy refused for the inference front, which had more than it can answer.",
    ),
    EnvoyStatistic("envoy_http_no_route", _HTTP + "no_route", "Requests for a path at which nothing is served."),
    EnvoyStatistic(
        "envoy_cluster_upstream_rq_xx", _CLUSTER + r"upstream_rq_[1-5]xx", "Answers of a process by class of status."
    ),
    EnvoyStatistic("envoy_cluster_upstream_rq_total", _CLUSTER + "upstream_rq_total", "Requests passed to a process."),
    EnvoyStatistic("envoy_cluster_upstream_rq_active", _CLUSTER + "upstream_rq_active", "Requests at a process now."),
    EnvoyStatistic(
        "envoy_cluster_upstream_rq_time", _CLUSTER + "upstream_rq_time", "Milliseconds until a process had answered."
    ),
    EnvoyStatistic(
        "envoy_cluster_upstream_rq_timeout", _CLUSTER + "upstream_rq_timeout", "Requests a process took too long for."
    ),
    EnvoyStatistic("envoy_cluster_upstream_rq_retry", _CLUSTER + "upstream_rq_retry", "Requests that were sent again."),
    EnvoyStatistic(
        "envoy_cluster_upstream_rq_retry_success",
        _CLUSTER + "upstream_rq_retry_success",
        "Requests that were answered after being sent again.",
    ),
    EnvoyStatistic(
        "envoy_cluster_upstream_rq_pending_overflow",
        _CLUSTER + "upstream_rq_pending_overflow",
        "Requests refused because too many were waiting for a process.",
    ),
    EnvoyStatistic(
        "envoy_cluster_upstream_cx_connect_fail",
        _CLUSTER + "upstream_cx_connect_fail",
        "Connections to a process that could not be opened.",
    ),
    EnvoyStatistic(
        "envoy_cluster_upstream_cx_active", _CLUSTER + "upstream_cx_active", "Open connections to a process."
    ),
    EnvoyStatistic("envoy_cluster_membership_healthy", _CLUSTER + "membership_healthy", "Addresses that get requests."),
    EnvoyStatistic(
        "envoy_cluster_outlier_detection_ejections_active",
        _CLUSTER + r"outlier_detection\.ejections_active",
        "Addresses left out because they fail.",
    ),
    EnvoyStatistic(
        "envoy_cluster_grpc",
        _CLUSTER + r"grpc\..+\.[0-9]+",
        "Calls of a gRPC method by its status, a number.",
    ),
    EnvoyStatistic(
        "envoy_vhost_route_upstream_rq_xx",
        r"vhost\.public\.route\.[^.]+\.upstream_rq_[1-5]xx",
        "Answers to requests for one deployment, by class of HTTP status.",
    ),
    EnvoyStatistic(
        "envoy_vhost_route_upstream_rq_time",
        r"vhost\.public\.route\.[^.]+\.upstream_rq_time",
        "Milliseconds until requests for one deployment were answered.",
    ),
    EnvoyStatistic(
        "envoy_control_plane_connected_state",
        r"control_plane\.connected_state",
        "1 while Envoy is connected to maas_gateway.",
    ),
    EnvoyStatistic(
        "envoy_listener_manager_lds_update_rejected",
        r"listener_manager\.lds\.update_rejected",
        "Listeners that Envoy refused.",
    ),
    EnvoyStatistic(
        "envoy_cluster_manager_cds_update_rejected",
        r"cluster_manager\.cds\.update_rejected",
        "Clusters that Envoy refused.",
    ),
    EnvoyStatistic(
        "envoy_http_rds_update_rejected", _HTTP + r"rds\.public\.update_rejected", "Routes that Envoy refused."
    ),
    EnvoyStatistic("envoy_server_live", r"server\.live", "1 while Envoy serves."),
    EnvoyStatistic("envoy_server_uptime", r"server\.uptime", "Seconds since Envoy started."),
    EnvoyStatistic("envoy_server_memory_allocated", r"server\.memory_allocated", "Bytes in use on Envoy's heap."),
    EnvoyStatistic(
        "envoy_server_memory_physical_size", r"server\.memory_physical_size", "Bytes of memory that Envoy's heap holds."
    ),
    EnvoyStatistic("envoy_server_concurrency", r"server\.concurrency", "Worker threads."),
)

KNOWN_TAGS = (
    "envoy.cluster_name",
    "envoy.http_conn_manager_prefix",
    "envoy.response_code_class",
    "envoy.virtual_host",
    "envoy.route",
)
"""Parts of names that Envoy knows how to turn into labels."""

GRPC_TAGS = {
    "grpc_service": r"^cluster\.[^.]+\.grpc\.((.+)\.)[^.]+\.[0-9]+$",
    "grpc_method": r"^cluster\.[^.]+\.grpc\..+(\.([^.]+))\.[0-9]+$",
    "grpc_status": r"^cluster\.[^.]+\.grpc\..+(\.([0-9]+))$",
}
"""Labels for the counts of gRPC calls: the first group leaves the name, the second is the label's value. Envoy's own
rule for them takes no dots in a service's name."""

COUNTED = "|".join(statistic.stat for statistic in ENVOY_STATISTICS)
"""Regular expression for Envoy's names of everything that is kept."""


def readable(page: str) -> str:
    """Return Envoy's page with only what is kept, each family with a text, each counter ending in `_total`."""
    kept = {statistic.name: statistic for statistic in ENVOY_STATISTICS}
    lines: list[str] = []
    family, shown = "", ""
    for line in page.split("\n"):
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ", 3)
            family = name if name in kept else ""
            shown = f"{name}_total" if kind == "counter" and not name.endswith("_total") else name
            if family:
                lines += [f"# HELP {shown} {kept[family].help}", f"# TYPE {shown} {kind}"]
        elif family and line.startswith(family):
            # A histogram's samples go on after the family's name: `_bucket`, `_sum`, `_count`.
            lines.append(shown + line.removeprefix(family) if re.match(r"[{ ]", line[len(family) :]) else line)
    return "\n".join([*lines, ""])
