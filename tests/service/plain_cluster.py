"""A cluster in one gRPC server, with plain behaviour kept in dictionaries: what the command is tested against."""

import hashlib
import io
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pyarrow.parquet
from google.protobuf import empty_pb2
from google.rpc import code_pb2, status_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from maas.compression.v1 import compression_job_pb2, compression_service_pb2, compression_service_pb2_grpc
from maas.inference.v1 import inference_service_pb2, inference_service_pb2_grpc
from maas.jobs.v1 import job_state_pb2
from maas.names import ModelName
from maas.oip.v2 import grpc_service_pb2 as oip
from maas.registry.v1 import (
    blob_pb2,
    dataset_pb2,
    model_pb2,
    registry_service_pb2,
    registry_service_pb2_grpc,
    version_pb2,
)
from maas.rollout.v1 import deployment_pb2, rollout_service_pb2, rollout_service_pb2_grpc
from maas.training.v1 import training_job_pb2, training_service_pb2, training_service_pb2_grpc
from maas_runtime.errors import wire_error
from maas_runtime.failures import AlreadyExists, Failure, NotFound, Unavailable


def fail(context: grpc.ServicerContext, failure: Failure) -> Any:
    error = wire_error(failure, request_id="request-1")
    context.set_trailing_metadata(error.trailing_metadata())
    context.abort(error.code, error.message)


class Missing(NotFound):
    reason = "PLAIN_MISSING"


class Taken(AlreadyExists):
    reason = "PLAIN_TAKEN"


class Away(Unavailable):
    reason = "PLAIN_AWAY"


class PlainCluster:
    """All services' state. `unavailable` calls are refused first, by method name."""

    def __init__(self) -> None:
        self.models: dict[str, model_pb2.Model] = {}
        self.versions: dict[str, version_pb2.Version] = {}
        self.aliases: dict[str, model_pb2.Alias] = {}
        self.datasets: dict[str, dataset_pb2.Dataset] = {}
        self.dataset_versions: dict[str, dataset_pb2.DatasetVersion] = {}
        self.blobs: dict[str, bytes] = {}
        self.training: dict[str, training_job_pb2.TrainingJob] = {}
        self.compression: dict[str, compression_job_pb2.CompressionJob] = {}
        self.deployments: dict[str, deployment_pb2.Deployment] = {}
        self.events: list[deployment_pb2.DeploymentEvent] = []
        self.unavailable: dict[str, int] = {}
        self.called: list[str] = []
        self.failing_job = False

    def find(self, table: dict[str, Any], name: str, context: grpc.ServicerContext) -> Any:
        return table[name] if name in table else fail(context, Missing(f"there is no {name}", name=name))

    def refuse_at_first(self, method: str, context: grpc.ServicerContext) -> None:
        self.called.append(method)
        if self.unavailable.get(method, 0) > 0:
            self.unavailable[method] -= 1
            fail(context, Away("restarting", retry_after_seconds=0.1))


class Registry(registry_service_pb2_grpc.RegistryServiceServicer):
    def __init__(self, cluster: PlainCluster) -> None:
        self.cluster = cluster

    def CreateModel(self, request: Any, context: Any) -> model_pb2.Model:
        name = f"models/{request.model_id}"
        self.cluster.refuse_at_first("CreateModel", context)
        if name in self.cluster.models:
            fail(context, Taken(f"{name} is taken", name=name))
        self.cluster.models[name] = model_pb2.Model(name=name)
        return self.cluster.models[name]

    def GetModel(self, request: Any, context: Any) -> model_pb2.Model:
        self.cluster.refuse_at_first("GetModel", context)
        return self.cluster.find(self.cluster.models, request.name, context)

    def ListModels(self, request: Any, context: Any) -> Any:
        self.cluster.refuse_at_first("ListModels", context)
        names = sorted(self.cluster.models)
        begin = int(request.page_token or 0)
        page = names[begin : begin + 2]  # short pages, so that clients have to turn them
        return registry_service_pb2.ListModelsResponse(
            models=[self.cluster.models[name] for name in page],
            next_page_token=str(begin + 2) if begin + 2 < len(names) else "",
        )

    def CreateVersion(self, request: Any, context: Any) -> version_pb2.Version:
        model = self.cluster.find(self.cluster.models, request.parent, context)
        model.version_count += 1
        name = f"{request.parent}/versions/{model.version_count}"
        version = version_pb2.Version()
        version.CopyFrom(request.version)
        version.name = model.latest_version = name
        for file in version.files:
            file.size_bytes = len(self.cluster.find(self.cluster.blobs, file.blob, context))
        version.size_bytes = sum(file.size_bytes for file in version.files)
        version.signature.labels.extend(["negative", "positive"])
        version.create_time.GetCurrentTime()
        self.cluster.versions[name] = version
        return version

    def GetVersion(self, request: Any, context: Any) -> version_pb2.Version:
        name = request.name
        if "/aliases/" in name:
            name = self.cluster.find(self.cluster.aliases, name, context).version
        return self.cluster.find(self.cluster.versions, name, context)

    def ListVersions(self, request: Any, context: Any) -> Any:
        self.cluster.find(self.cluster.models, request.parent, context)
        found = [one for name, one in self.cluster.versions.items() if name.startswith(request.parent + "/")]
        return registry_service_pb2.ListVersionsResponse(versions=reversed(found))

    def SetAlias(self, request: Any, context: Any) -> model_pb2.Alias:
        self.cluster.find(self.cluster.versions, request.version, context)
        self.cluster.aliases[request.name] = model_pb2.Alias(name=request.name, version=request.version)
        return self.cluster.aliases[request.name]

    def ListAliases(self, request: Any, context: Any) -> Any:
        found = [one for name, one in self.cluster.aliases.items() if name.startswith(request.parent + "/")]
        return registry_service_pb2.ListAliasesResponse(aliases=found)

    def DeleteAlias(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.cluster.find(self.cluster.aliases, request.name, context)
        del self.cluster.aliases[request.name]
        return empty_pb2.Empty()

    def CreateDataset(self, request: Any, context: Any) -> dataset_pb2.Dataset:
        name = f"datasets/{request.dataset_id}"
        self.cluster.datasets[name] = dataset_pb2.Dataset(name=name, description=request.dataset.description)
        return self.cluster.datasets[name]

    def GetDataset(self, request: Any, context: Any) -> dataset_pb2.Dataset:
        return self.cluster.find(self.cluster.datasets, request.name, context)

    def ListDatasets(self, request: Any, context: Any) -> Any:
        return registry_service_pb2.ListDatasetsResponse(datasets=self.cluster.datasets.values())

    def CreateDatasetVersion(self, request: Any, context: Any) -> dataset_pb2.DatasetVersion:
        number = sum(name.startswith(request.parent + "/") for name in self.cluster.dataset_versions) + 1
        version = dataset_pb2.DatasetVersion()
        version.CopyFrom(request.dataset_version)
        version.name = f"{request.parent}/versions/{number}"
        for split in version.splits:
            content = self.cluster.find(self.cluster.blobs, split.file.blob, context)
            shape = pyarrow.parquet.ParquetFile(io.BytesIO(content))
            split.row_count, split.file.size_bytes = shape.metadata.num_rows, len(content)
            columns = [dataset_pb2.Column(name=one.name, type=str(one.type)) for one in shape.schema_arrow]
            del version.columns[:]
            version.columns.extend(columns)
        self.cluster.datasets[request.parent].latest_version = version.name
        self.cluster.dataset_versions[version.name] = version
        return version

    def GetDatasetVersion(self, request: Any, context: Any) -> dataset_pb2.DatasetVersion:
        return self.cluster.find(self.cluster.dataset_versions, request.name, context)

    def GetBlob(self, request: Any, context: Any) -> blob_pb2.Blob:
        content = self.cluster.find(self.cluster.blobs, request.name, context)
        return blob_pb2.Blob(name=request.name, size_bytes=len(content), committed=True)

    def UploadBlob(self, request_iterator: Any, context: Any) -> blob_pb2.Blob:
        header = next(request_iterator).header
        content = b"".join(message.chunk for message in request_iterator)
        assert header.name == f"blobs/{hashlib.sha256(content).hexdigest()}"
        self.cluster.blobs[header.name] = content
        return blob_pb2.Blob(name=header.name, size_bytes=len(content), committed=True)

    def DownloadBlob(self, request: Any, context: Any) -> Iterator[Any]:
        content = self.cluster.find(self.cluster.blobs, request.name, context)
        yield registry_service_pb2.DownloadBlobResponse(chunk=content[request.offset :])


def evaluation(value: float) -> version_pb2.Evaluation:
    return version_pb2.Evaluation(
        metric="accuracy", value=value, low=value - 0.02, high=value + 0.02, row_count=2000, split="test"
    )


def measurement(size_bytes: int) -> version_pb2.Measurement:
    return version_pb2.Measurement(servable_bytes=size_bytes, latency_p50_ms=0.5, throughput_rows=5000)


def story(job: Any, failing: bool) -> Iterator[Any]:
    """Yield a job as it goes from queued to its end."""
    job.status.state = job_state_pb2.JOB_STATE_QUEUED
    yield job
    job.status.state, job.status.phase, job.status.progress = job_state_pb2.JOB_STATE_RUNNING, "work", 0.5
    job.status.metrics.add(name="loss", value=0.25)
    job.status.log_lines.add(number=1, text="half of it is done")
    yield job
    if failing:
        job.status.state = job_state_pb2.JOB_STATE_FAILED
        job.status.error.CopyFrom(status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="the data is empty"))
    else:
        job.status.state, job.status.progress = job_state_pb2.JOB_STATE_SUCCEEDED, 1.0
    yield job


class Training(training_service_pb2_grpc.TrainingServiceServicer):
    def __init__(self, cluster: PlainCluster) -> None:
        self.cluster = cluster

    def CreateTrainingJob(self, request: Any, context: Any) -> training_job_pb2.TrainingJob:
        self.cluster.refuse_at_first("CreateTrainingJob", context)
        job = request.training_job
        job.name = f"trainingJobs/t{len(self.cluster.training) + 1}"
        job.status.create_time.GetCurrentTime()
        self.cluster.training[job.name] = job
        return job

    def GetTrainingJob(self, request: Any, context: Any) -> training_job_pb2.TrainingJob:
        return self.cluster.find(self.cluster.training, request.name, context)

    def ListTrainingJobs(self, request: Any, context: Any) -> Any:
        return training_service_pb2.ListTrainingJobsResponse(training_jobs=self.cluster.training.values())

    def WatchTrainingJob(self, request: Any, context: Any) -> Iterator[Any]:
        job = self.cluster.find(self.cluster.training, request.name, context)
        for state in story(job, self.cluster.failing_job):
            if state.status.state == job_state_pb2.JOB_STATE_SUCCEEDED:
                state.result_version = f"{job.model}/versions/1"
                state.evaluation.CopyFrom(evaluation(0.75))
            else:
                # Breaks in the middle, once when it was told so.
                self.cluster.refuse_at_first("WatchTrainingJob", context)
            yield training_service_pb2.WatchTrainingJobResponse(training_job=state)

    def CancelTrainingJob(self, request: Any, context: Any) -> Any:
        job = self.cluster.find(self.cluster.training, request.name, context)
        job.status.state = job_state_pb2.JOB_STATE_CANCELLING
        return training_service_pb2.CancelTrainingJobResponse(training_job=job)


class Compression(compression_service_pb2_grpc.CompressionServiceServicer):
    def __init__(self, cluster: PlainCluster) -> None:
        self.cluster = cluster

    def CreateCompressionJob(self, request: Any, context: Any) -> compression_job_pb2.CompressionJob:
        job = request.compression_job
        job.name = f"compressionJobs/c{len(self.cluster.compression) + 1}"
        job.status.create_time.GetCurrentTime()
        self.cluster.compression[job.name] = job
        return job

    def GetCompressionJob(self, request: Any, context: Any) -> compression_job_pb2.CompressionJob:
        return self.cluster.find(self.cluster.compression, request.name, context)

    def ListCompressionJobs(self, request: Any, context: Any) -> Any:
        return compression_service_pb2.ListCompressionJobsResponse(compression_jobs=self.cluster.compression.values())

    def WatchCompressionJob(self, request: Any, context: Any) -> Iterator[Any]:
        job = self.cluster.find(self.cluster.compression, request.name, context)
        for state in story(job, self.cluster.failing_job):
            if state.status.state == job_state_pb2.JOB_STATE_SUCCEEDED:
                state.result_version = f"{ModelName(job.source_version.split('/')[1])}/versions/2"
                state.report.before.CopyFrom(measurement(4_000_000))
                state.report.after.CopyFrom(measurement(1_000_000))
                state.report.quality_before.CopyFrom(evaluation(0.75))
                state.report.quality_after.CopyFrom(evaluation(0.748))
                state.report.verdict = "4.0 times smaller at 0.2 points of accuracy"
            yield compression_service_pb2.WatchCompressionJobResponse(compression_job=state)


class Rollout(rollout_service_pb2_grpc.RolloutServiceServicer):
    def __init__(self, cluster: PlainCluster) -> None:
        self.cluster = cluster

    def CreateDeployment(self, request: Any, context: Any) -> deployment_pb2.Deployment:
        name = f"deployments/{request.deployment_id}"
        return self._store(name, "created", request, context)

    def UpdateDeployment(self, request: Any, context: Any) -> deployment_pb2.Deployment:
        self.cluster.find(self.cluster.deployments, request.deployment.name, context)
        return self._store(request.deployment.name, "updated", request, context)

    def _store(self, name: str, action: str, request: Any, context: Any) -> deployment_pb2.Deployment:
        stored = deployment_pb2.Deployment(name=name, state=deployment_pb2.DEPLOYMENT_STATE_LOADING)
        if name in self.cluster.deployments:
            stored.serving.CopyFrom(self.cluster.deployments[name].serving)
            request.update_mask.MergeMessage(request.deployment, stored, replace_message_field=True)
            del stored.targets[:]
        else:
            stored.serving.CopyFrom(request.deployment.serving)
        for target in request.deployment.targets:
            version = target.version
            if "/aliases/" in version:
                version = self.cluster.find(self.cluster.aliases, version, context).version
            self.cluster.find(self.cluster.versions, version, context)
            stored.targets.add(version=version, weight=target.weight)
        self.cluster.events.append(
            deployment_pb2.DeploymentEvent(
                deployment=name,
                action=action,
                targets_after=stored.targets,
                actor=request.actor,
                reason=request.reason,
            )
        )
        self.cluster.deployments[name] = stored
        return stored

    def GetDeployment(self, request: Any, context: Any) -> deployment_pb2.Deployment:
        found = self.cluster.find(self.cluster.deployments, request.name, context)
        seen = deployment_pb2.Deployment()
        seen.CopyFrom(found)
        if found.state == deployment_pb2.DEPLOYMENT_STATE_LOADING:  # ready at the second look
            found.state = deployment_pb2.DEPLOYMENT_STATE_READY
        return seen

    def ListDeployments(self, request: Any, context: Any) -> Any:
        return rollout_service_pb2.ListDeploymentsResponse(deployments=self.cluster.deployments.values())

    def DeleteDeployment(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.cluster.find(self.cluster.deployments, request.name, context)
        del self.cluster.deployments[request.name]
        return empty_pb2.Empty()

    def ListDeploymentEvents(self, request: Any, context: Any) -> Any:
        found = [event for event in self.cluster.events if event.deployment == request.parent]
        return rollout_service_pb2.ListDeploymentEventsResponse(deployment_events=reversed(found))


class Inference(inference_service_pb2_grpc.InferenceServiceServicer):
    def __init__(self, cluster: PlainCluster) -> None:
        self.cluster = cluster

    def GetReplica(self, request: Any, context: Any) -> inference_service_pb2.Replica:
        return inference_service_pb2.Replica(
            replica="one",
            loaded_versions=[
                inference_service_pb2.LoadedVersion(
                    deployment=name,
                    version=deployment.targets[0].version,
                    state="ready",
                    engine="onnxruntime",
                    precision="fp32",
                    pid=7,
                    memory_bytes=60_000_000,
                )
                for name, deployment in self.cluster.deployments.items()
            ],
        )

    def infer(self, request: oip.ModelInferRequest, context: Any) -> oip.ModelInferResponse:
        """A text is positive when it says so; tensors come back as they are."""
        self.cluster.refuse_at_first("ModelInfer", context)
        deployment = self.cluster.find(self.cluster.deployments, f"deployments/{request.model_name}", context)
        response = oip.ModelInferResponse(
            model_name=request.model_name,
            model_version=request.model_version or deployment.targets[0].version.rpartition("/")[2],
        )
        if request.inputs[0].name != "text":
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
                response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
                response.raw_output_contents.append(raw)
            return response
        raw, position, logits = request.raw_input_contents[0], 0, []
        while position < len(raw):
            (length,) = struct.unpack_from("<I", raw, position)
            logits += [0.0, 1.0 if b"good" in raw[position + 4 : position + 4 + length] else -1.0]
            position += 4 + length
        response.outputs.add(name="logits", datatype="FP32", shape=[len(logits) // 2, 2])
        response.raw_output_contents.append(struct.pack(f"<{len(logits)}f", *logits))
        return response


@contextmanager
def serving(cluster: PlainCluster) -> Iterator[str]:
    """Serve the cluster and give its endpoint."""
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    registry_service_pb2_grpc.add_RegistryServiceServicer_to_server(Registry(cluster), server)
    training_service_pb2_grpc.add_TrainingServiceServicer_to_server(Training(cluster), server)
    compression_service_pb2_grpc.add_CompressionServiceServicer_to_server(Compression(cluster), server)
    rollout_service_pb2_grpc.add_RolloutServiceServicer_to_server(Rollout(cluster), server)
    inference = Inference(cluster)
    inference_service_pb2_grpc.add_InferenceServiceServicer_to_server(inference, server)
    handler = grpc.unary_unary_rpc_method_handler(
        inference.infer,
        request_deserializer=oip.ModelInferRequest.FromString,
        response_serializer=oip.ModelInferResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("inference.GRPCInferenceService", {"ModelInfer": handler})]
    )
    told = health.HealthServicer()
    for name in ("", "maas.registry.v1.RegistryService", "maas.rollout.v1.RolloutService"):
        told.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(told, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
