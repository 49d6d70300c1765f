"""What callers get when Envoy itself has to answer: the same errors as from every service, for REST and for gRPC."""

import base64
from collections.abc import Iterator
from dataclasses import dataclass

from envoy.config.accesslog.v3 import accesslog_pb2
from envoy.config.core.v3 import base_pb2, substitution_format_string_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.type.matcher.v3 import string_pb2
from google.protobuf import struct_pb2
from google.protobuf.wrappers_pb2 import UInt32Value
from google.rpc import code_pb2, error_details_pb2, status_pb2

from maas.errors import ERROR_DOMAIN
from maas_gateway.api.packing import seconds


@dataclass(frozen=True, slots=True)
class LocalReply:
    """One kind of failure that Envoy finds itself."""

    reason: str
    code: str
    """The gRPC status."""
    http_status: int
    sentence: str
    """What the caller reads."""
    flags: tuple[str, ...] = ()
    """It is this kind when Envoy has set one of these response flags;"""
    statuses: tuple[range, ...] = ()
    """or when Envoy's HTTP status is in one of these."""
    grpc_code: str = ""
    """The gRPC status for gRPC calls, where it is another one than `code`."""
    explained: bool = False
    """Whether Envoy's own words say more, which REST callers then get behind the sentence."""

    @property
    def retryable(self) -> bool:
        """Whether the same request may be answered a second later."""
        return self.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


LOCAL_REPLIES = (
    LocalReply(
        "QUEUE_TOO_LONG",
        "RESOURCE_EXHAUSTED",
        429,
        "what waits already takes longer than the caller's time; retry later or allow more time",
        flags=("FI",),
    ),
    LocalReply(
        "UPSTREAM_UNAVAILABLE",
        "UNAVAILABLE",
        503,
        "the service behind this path is away for the moment; try again",
        flags=("UH", "UF", "UC", "LR", "UR", "UO", "NC", "UPE", "OM"),
    ),
    LocalReply(
        "REQUEST_TIMEOUT",
        "DEADLINE_EXCEEDED",
        504,
        "there was no answer in time",
        flags=("UT", "DT", "SI", "UMSDR"),
        # A deadline that the caller set sets no flag.
        statuses=(range(408, 409), range(504, 505)),
    ),
    LocalReply(
        "PATH_UNKNOWN",
        "NOT_FOUND",
        404,
        "nothing is served at this path",
        statuses=(range(404, 405),),
        grpc_code="UNIMPLEMENTED",
    ),
    LocalReply("REQUEST_TOO_LARGE", "RESOURCE_EXHAUSTED", 413, "the request is too large", statuses=(range(413, 414),)),
    LocalReply("RATE_LIMITED", "RESOURCE_EXHAUSTED", 429, "there were too many requests", statuses=(range(429, 430),)),
    LocalReply(
        "REQUEST_REFUSED", "INVALID_ARGUMENT", 400, "the request is wrong", statuses=(range(400, 500),), explained=True
    ),
    LocalReply(
        "FRONT_AWAY", "UNAVAILABLE", 503, "inference is away for the moment; try again", statuses=(range(503, 504),)
    ),
    LocalReply("GATEWAY_FAILED", "INTERNAL", 500, "the gateway could not answer", statuses=(range(500, 600),)),
)
"""Tried in order."""


def local_reply_config() -> http_connection_manager_pb2.LocalReplyConfig:
    """Return what makes Envoy answer so."""
    return http_connection_manager_pb2.LocalReplyConfig(
        mappers=[mapper for reply in LOCAL_REPLIES for mapper in (_for_grpc(reply), _for_rest(reply))]
    )


def _for_grpc(reply: LocalReply) -> http_connection_manager_pb2.ResponseMapper:
    code = code_pb2.Code.Value(reply.grpc_code or reply.code)
    status = status_pb2.Status(code=code, message=reply.sentence)
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reply.reason, domain=ERROR_DOMAIN))
    if reply.retryable:
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=seconds(1)))
    details = base64.b64encode(status.SerializeToString(deterministic=True)).decode().rstrip("=")
    return http_connection_manager_pb2.ResponseMapper(
        filter=accesslog_pb2.AccessLogFilter(
            and_filter=accesslog_pb2.AndFilter(filters=[*_sent_as_grpc(), _condition(reply)])
        ),
        body=base_pb2.DataSource(inline_string=reply.sentence),
        body_format_override=substitution_format_string_pb2.SubstitutionFormatString(
            text_format_source=base_pb2.DataSource(inline_string="%LOCAL_REPLY_BODY%")
        ),
        headers_to_add=[_header("grpc-status", str(code)), _header("grpc-status-details-bin", details)],
    )


def _for_rest(reply: LocalReply) -> http_connection_manager_pb2.ResponseMapper:
    body = struct_pb2.Struct()
    body.update(
        {
            "error": f"{reply.sentence}: %LOCAL_REPLY_BODY%" if reply.explained else reply.sentence,
            "reason": reply.reason,
            "code": reply.code,
        }
    )
    return http_connection_manager_pb2.ResponseMapper(
        filter=_condition(reply),
        status_code=UInt32Value(value=reply.http_status),
        body_format_override=substitution_format_string_pb2.SubstitutionFormatString(
            json_format=body, content_type="application/json"
        ),
        headers_to_add=[_header("retry-after", "1")] if reply.retryable else [],
    )


def _sent_as_grpc() -> Iterator[accesslog_pb2.AccessLogFilter]:
    yield _header_filter(
        route_components_pb2.HeaderMatcher(
            name="content-type", string_match=string_pb2.StringMatcher(prefix="application/grpc")
        )
    )
    # The transcoder makes gRPC of REST and leaves this header.
    yield _header_filter(
        route_components_pb2.HeaderMatcher(name="x-envoy-original-path", present_match=True, invert_match=True)
    )


def _header_filter(matcher: route_components_pb2.HeaderMatcher) -> accesslog_pb2.AccessLogFilter:
    return accesslog_pb2.AccessLogFilter(header_filter=accesslog_pb2.HeaderFilter(header=matcher))


def _condition(reply: LocalReply) -> accesslog_pb2.AccessLogFilter:
    filters = [_within(statuses) for statuses in reply.statuses]
    if reply.flags:
        flags = accesslog_pb2.ResponseFlagFilter(flags=reply.flags)
        filters.append(accesslog_pb2.AccessLogFilter(response_flag_filter=flags))
    if len(filters) == 1:
        return filters[0]
    return accesslog_pb2.AccessLogFilter(or_filter=accesslog_pb2.OrFilter(filters=filters))


def _within(statuses: range) -> accesslog_pb2.AccessLogFilter:
    comparison = accesslog_pb2.ComparisonFilter
    bounds = [
        accesslog_pb2.AccessLogFilter(
            status_code_filter=accesslog_pb2.StatusCodeFilter(
                comparison=comparison(
                    op=operator,
                    # The key only names a runtime override, which nobody sets.
                    value=base_pb2.RuntimeUInt32(default_value=bound, runtime_key="maas.unused"),
                )
            )
        )
        for operator, bound in ((comparison.GE, statuses.start), (comparison.LE, statuses.stop - 1))
    ]
    return accesslog_pb2.AccessLogFilter(and_filter=accesslog_pb2.AndFilter(filters=bounds))


def _header(name: str, value: str) -> base_pb2.HeaderValueOption:
    return base_pb2.HeaderValueOption(
        header=base_pb2.HeaderValue(key=name, value=value),
        append_action=base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD,
    )
