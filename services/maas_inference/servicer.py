"""The manager's rpcs: what of the Open Inference Protocol is not hot, and the replica's state."""

from collections.abc import Callable
from typing import Any, NoReturn

import grpc
from google.protobuf import timestamp_pb2
from google.protobuf.json_format import ParseDict

from maas.inference.v1 import inference_service_pb2
from maas.inference.v1.inference_service_pb2_grpc import InferenceServiceServicer
from maas.oip.v2 import grpc_service_pb2 as oip
from maas_inference.description import model_config, model_metadata, server_metadata
from maas_inference.manager.fronts import Fronts
from maas_inference.manager.replica import Replica
from maas_inference.repository import Repository

OIP_SERVICE = "inference.GRPCInferenceService"
INFERENCE_SERVICE = "maas.inference.v1.InferenceService"

Context = grpc.aio.ServicerContext[Any, Any]

_NOT_OFFERED = {
    "shared memory is not offered: send tensors in the request": (
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
    ),
    "traces and logs are set where the server is started, not by a call": ("TraceSetting", "LogSettings"),
    "the inference manager computes nothing: call the cluster's public port, where inference fronts answer": (
        "ModelInfer",
        "ModelStreamInfer",
    ),
}
"""What clients of the protocol may call and get UNIMPLEMENTED for, by what they are told."""


class OipServicer:
    """GRPCInferenceService without what fronts answer."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:
        """Say that it is."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:
        """Say whether each deployment has a warm version."""
        table = self._repository.table
        ready = table.revision > 0 and all(
            any(version.answers for version in deployment.versions) for deployment in table.deployments
        )
        return oip.ServerReadyResponse(ready=ready)

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:
        """Say whether a version, or any, is warm."""
        version = self._repository.version(request.name, request.version)
        return oip.ModelReadyResponse(ready=version.state == "ready")

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Context) -> oip.ServerMetadataResponse:
        """Say what this server is."""
        return ParseDict(server_metadata(self._repository.table), oip.ServerMetadataResponse())

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:
        """Say what a deployment takes and gives."""
        version = self._repository.described(request.name, request.version)
        versions = [version.version for version in self._repository.deployment(request.name).versions]
        return ParseDict(model_metadata(request.name, versions, version), oip.ModelMetadataResponse())

    async def ModelConfig(self, request: oip.ModelConfigRequest, context: Context) -> oip.ModelConfigResponse:
        """Say the same as a Triton model configuration."""
        version = self._repository.described(request.name, request.version)
        return ParseDict({"config": model_config(request.name, version)}, oip.ModelConfigResponse())

    async def ModelStatistics(
        self, request: oip.ModelStatisticsRequest, context: Context
    ) -> oip.ModelStatisticsResponse:
        """Say what was answered, as fronts reported it within the last second."""
        statistics = self._repository.statistics(request.name, request.version)
        return ParseDict({"model_stats": statistics}, oip.ModelStatisticsResponse())

    async def RepositoryIndex(
        self, request: oip.RepositoryIndexRequest, context: Context
    ) -> oip.RepositoryIndexResponse:
        """Say which versions there are."""
        index = self._repository.index(ready_only=request.ready)
        return ParseDict({"models": index}, oip.RepositoryIndexResponse())

    async def RepositoryModelLoad(
        self, request: oip.RepositoryModelLoadRequest, context: Context
    ) -> oip.RepositoryModelLoadResponse:
        """Give a deployment's versions workers."""
        await self._repository.load(request.model_name)
        return oip.RepositoryModelLoadResponse()

    async def RepositoryModelUnload(
        self, request: oip.RepositoryModelUnloadRequest, context: Context
    ) -> oip.RepositoryModelUnloadResponse:
        """End a deployment's workers."""
        await self._repository.unload(request.model_name)
        return oip.RepositoryModelUnloadResponse()


def add_oip_servicer(servicer: OipServicer, server: grpc.aio.Server) -> None:
    """Offer the methods under the name that Open Inference Protocol clients call, not under our package's."""
    methods: dict[str, tuple[Callable[..., Any], Any]] = {
        "ServerLive": (servicer.ServerLive, oip.ServerLiveRequest),
        "ServerReady": (servicer.ServerReady, oip.ServerReadyRequest),
        "ModelReady": (servicer.ModelReady, oip.ModelReadyRequest),
        "ServerMetadata": (servicer.ServerMetadata, oip.ServerMetadataRequest),
        "ModelMetadata": (servicer.ModelMetadata, oip.ModelMetadataRequest),
        "ModelConfig": (servicer.ModelConfig, oip.ModelConfigRequest),
        "ModelStatistics": (servicer.ModelStatistics, oip.ModelStatisticsRequest),
        "RepositoryIndex": (servicer.RepositoryIndex, oip.RepositoryIndexRequest),
        "RepositoryModelLoad": (servicer.RepositoryModelLoad, oip.RepositoryModelLoadRequest),
        "RepositoryModelUnload": (servicer.RepositoryModelUnload, oip.RepositoryModelUnloadRequest),
    }
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        name: grpc.unary_unary_rpc_method_handler(
            method,
            request_deserializer=request.FromString,
            response_serializer=lambda response: response.SerializeToString(),
        )
        for name, (method, request) in methods.items()
    }
    for sentence, names in _NOT_OFFERED.items():
        for name in names:
            handlers[name] = grpc.unary_unary_rpc_method_handler(_refusing(sentence))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(OIP_SERVICE, handlers),))


def _refusing(sentence: str) -> Callable[[bytes, Context], Any]:
    async def refuse(_: bytes, context: Context) -> NoReturn:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, sentence)
        raise AssertionError("abort raises")

    return refuse


class InferenceServicer(InferenceServiceServicer):
    """InferenceService, answered from the replica."""

    def __init__(self, replica: Replica, fronts: Fronts, name: str) -> None:
        self._replica = replica
        self._fronts = fronts
        self._name = name

    async def GetReplica(
        self, request: inference_service_pb2.GetReplicaRequest, context: Context
    ) -> inference_service_pb2.Replica:
        """Return all held versions with what they cost."""
        start_time = timestamp_pb2.Timestamp()
        start_time.FromMilliseconds(int(self._replica.start_time * 1000))
        reply = inference_service_pb2.Replica(
            replica=self._name,
            start_time=start_time,
            front_count=self._fronts.count,
            memory_budget_bytes=self._replica.memory_budget_bytes,
            memory_used_bytes=self._replica.memory_used_bytes(),
        )
        for (deployment, version), keeper in sorted(self._replica.keepers.items()):
            keeping = keeper.keeping
            served = keeper.served(0)
            reply.loaded_versions.add(
                deployment=str(deployment),
                version=str(version),
                state=keeping.state,
                message=keeping.message,
                engine=served.engine,
                precision=served.precision,
                pid=keeping.pid,
                memory_bytes=self._replica.memory_bytes(keeper),
                load_seconds=keeping.load_seconds,
                cost_curve=[
                    inference_service_pb2.BatchCost(rows=rows, milliseconds=seconds * 1000)
                    for rows, seconds in served.cost_curve
                ],
                restart_count=keeping.restart_count,
            )
        return reply
