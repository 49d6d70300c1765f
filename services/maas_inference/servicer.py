"""The manager's rpcs: what of the Open Inference Protocol is not hot, and the replica's state."""

from collections.abc import Callable
from typing import Any

import grpc
from google.protobuf import timestamp_pb2

from maas.inference.v1 import inference_service_pb2
from maas.inference.v1.inference_service_pb2_grpc import InferenceServiceServicer
from maas.oip.v2 import grpc_service_pb2 as oip
from maas_inference.manager.fronts import Fronts
from maas_inference.manager.replica import Replica
from maas_inference.table import ServedDeployment, ServedVersion, Tensor
from maas_runtime.failures import NotFound

OIP_SERVICE = "inference.GRPCInferenceService"
INFERENCE_SERVICE = "maas.inference.v1.InferenceService"
EXTENSIONS = ("binary_tensor_data",)

Context = grpc.aio.ServicerContext[Any, Any]


class DeploymentNotServed(NotFound):
    """The manager has no such deployment."""

    reason = "DEPLOYMENT_NOT_SERVED"


class VersionNotServed(NotFound):
    """The deployment has no such version."""

    reason = "VERSION_NOT_SERVED"


class OipServicer:
    """GRPCInferenceService without ModelInfer, which fronts answer."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    async def ServerLive(self, request: oip.ServerLiveRequest, context: Context) -> oip.ServerLiveResponse:
        """Say that it is."""
        return oip.ServerLiveResponse(live=True)

    async def ServerReady(self, request: oip.ServerReadyRequest, context: Context) -> oip.ServerReadyResponse:
        """Say whether each deployment has a warm version."""
        deployments = self._replica.table.deployments
        ready = self._replica.table.revision > 0 and all(
            any(version.answers for version in deployment.versions) for deployment in deployments
        )
        return oip.ServerReadyResponse(ready=ready)

    async def ModelReady(self, request: oip.ModelReadyRequest, context: Context) -> oip.ModelReadyResponse:
        """Say whether a version, or any, is warm."""
        deployment = self._deployment(request.name)
        versions = (_version(deployment, request.version),) if request.version else deployment.versions
        return oip.ModelReadyResponse(ready=any(version.state == "ready" for version in versions))

    async def ServerMetadata(self, request: oip.ServerMetadataRequest, context: Context) -> oip.ServerMetadataResponse:
        """Say what this server is."""
        return oip.ServerMetadataResponse(
            name="maas", version=self._replica.table.server_version, extensions=EXTENSIONS
        )

    async def ModelMetadata(self, request: oip.ModelMetadataRequest, context: Context) -> oip.ModelMetadataResponse:
        """Say what a deployment takes and gives."""
        deployment = self._deployment(request.name)
        if request.version:
            version = _version(deployment, request.version)
        else:
            version = max(deployment.versions, key=lambda version: (version.state == "ready", version.weight))
        inputs = [*version.inputs]
        if version.text_input:
            inputs.append(Tensor(version.text_input, "BYTES", (-1,)))
        return oip.ModelMetadataResponse(
            name=deployment.deployment,
            versions=[version.version for version in deployment.versions],
            platform=f"{version.engine}_{version.precision}",
            inputs=[_tensor(tensor) for tensor in inputs],
            outputs=[_tensor(tensor) for tensor in version.outputs],
        )

    async def ModelInfer(self, request: oip.ModelInferRequest, context: Context) -> oip.ModelInferResponse:
        """Refuse: the manager computes nothing."""
        await context.abort(
            grpc.StatusCode.UNIMPLEMENTED,
            "the inference manager answers no ModelInfer: send it to the cluster's public port, where fronts do",
        )
        raise AssertionError("abort raises")

    def _deployment(self, name: str) -> ServedDeployment:
        for deployment in self._replica.table.deployments:
            if deployment.deployment == name:
                return deployment
        names = ", ".join(deployment.deployment for deployment in self._replica.table.deployments[:20])
        raise DeploymentNotServed(
            f"no model {name[:80]!r} is served; there are: {names or 'none'}", name=f"deployments/{name[:80]}"
        )


def add_oip_servicer(servicer: OipServicer, server: grpc.aio.Server) -> None:
    """Offer the methods under the name that Open Inference Protocol clients call, not under our package's."""
    methods: dict[str, tuple[Callable[..., Any], Any, Any]] = {
        "ServerLive": (servicer.ServerLive, oip.ServerLiveRequest, oip.ServerLiveResponse),
        "ServerReady": (servicer.ServerReady, oip.ServerReadyRequest, oip.ServerReadyResponse),
        "ModelReady": (servicer.ModelReady, oip.ModelReadyRequest, oip.ModelReadyResponse),
        "ServerMetadata": (servicer.ServerMetadata, oip.ServerMetadataRequest, oip.ServerMetadataResponse),
        "ModelMetadata": (servicer.ModelMetadata, oip.ModelMetadataRequest, oip.ModelMetadataResponse),
        "ModelInfer": (servicer.ModelInfer, oip.ModelInferRequest, oip.ModelInferResponse),
    }
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            method, request_deserializer=request.FromString, response_serializer=response.SerializeToString
        )
        for name, (method, request, response) in methods.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(OIP_SERVICE, handlers),))


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


def _version(deployment: ServedDeployment, number: str) -> ServedVersion:
    for version in deployment.versions:
        if version.version == number:
            return version
    raise VersionNotServed(
        f"{deployment.deployment} has no version {number[:20]!r}", name=f"deployments/{deployment.deployment}"
    )


def _tensor(tensor: Tensor) -> oip.ModelMetadataResponse.TensorMetadata:
    return oip.ModelMetadataResponse.TensorMetadata(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
