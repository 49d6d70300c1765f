"""gRPC reflection for everything at the public port, in both versions of its protocol, which differ by name only."""

from typing import Any

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from maas_gateway.api.contract import reflected

_NEWER_NAME = "grpc.reflection.v1.ServerReflection"


def add_reflection(server: grpc.aio.Server) -> None:
    """Have the server answer for all services of the cluster, whoever serves them."""
    names, pool = reflected()
    reflection.enable_server_reflection(names, server, pool)
    servicer: Any = reflection.aio.ReflectionServicer(names, pool=pool)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                _NEWER_NAME,
                {
                    "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
                        servicer.ServerReflectionInfo,
                        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
                        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
                    )
                },
            ),
        )
    )
