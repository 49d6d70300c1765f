"""TrainingService: what a request asks for is checked here, as far as it can be known before the work."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from maas.names import (
    DatasetName,
    DatasetVersionName,
    ModelName,
    NameInvalid,
    VersionName,
    parse_version_or_alias,
)
from maas.registry.v1 import dataset_pb2, registry_service_pb2, version_pb2
from maas.training.v1 import training_job_pb2
from maas.training.v1 import training_service_pb2 as messages
from maas.training.v1.training_service_pb2_grpc import TrainingServiceServicer
from maas_jobs.dataset import check_splits
from maas_jobs.jobs import Jobs
from maas_jobs.messages import parse_job_id
from maas_package.architectures import ArchitectureUnknown, architecture_names
from maas_runtime.failures import FieldViolation, InvalidInput
from maas_training.messages import COLLECTION, hyperparameters_from_proto, job_to_proto
from maas_training.spec import (
    CLASSIFIER_OF_ENCODER,
    DEFAULT_ARCHITECTURE,
    SPLITS,
    TrainingSpec,
    default_hyperparameters,
)

if TYPE_CHECKING:  # the stubs' type for grpc.aio is in the .pyi only
    from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

Context = grpc.aio.ServicerContext[Any, Any]


class DatasetWithoutVersion(InvalidInput):
    """The dataset has no version yet."""

    reason = "DATASET_WITHOUT_VERSION"


class SourceNotTrainable(InvalidInput):
    """Training cannot go on from this version."""

    reason = "SOURCE_NOT_TRAINABLE"


class ArchitectureNotOfSource(InvalidInput):
    """The architecture that is asked for is not what the source's weights fit into."""

    reason = "ARCHITECTURE_NOT_OF_SOURCE"


class TrainingServicer(TrainingServiceServicer):
    """TrainingService, answered by Jobs."""

    def __init__(self, jobs: Jobs, registry: "RegistryServiceAsyncStub") -> None:
        self._jobs = jobs
        self._registry = registry

    async def CreateTrainingJob(
        self, request: messages.CreateTrainingJobRequest, context: Context
    ) -> training_job_pb2.TrainingJob:
        job = await self._jobs.find(request.request_id)
        if job is None:
            spec = await self._checked_spec(request.training_job)
            job = await self._jobs.create(spec.to_json(), request.request_id)
        return job_to_proto(job)

    async def GetTrainingJob(
        self, request: messages.GetTrainingJobRequest, context: Context
    ) -> training_job_pb2.TrainingJob:
        return job_to_proto(await self._jobs.get(parse_job_id(request.name, COLLECTION)))

    async def ListTrainingJobs(
        self, request: messages.ListTrainingJobsRequest, context: Context
    ) -> messages.ListTrainingJobsResponse:
        page = self._jobs.page(request.page_size, request.page_token)
        return messages.ListTrainingJobsResponse(
            training_jobs=map(job_to_proto, page.jobs), next_page_token=page.next_page_token
        )

    async def WatchTrainingJob(
        self, request: messages.WatchTrainingJobRequest, context: Context
    ) -> AsyncIterator[messages.WatchTrainingJobResponse]:
        async for job in self._jobs.watch(parse_job_id(request.name, COLLECTION)):
            yield messages.WatchTrainingJobResponse(training_job=job_to_proto(job))

    async def CancelTrainingJob(
        self, request: messages.CancelTrainingJobRequest, context: Context
    ) -> messages.CancelTrainingJobResponse:
        job = await self._jobs.cancel(parse_job_id(request.name, COLLECTION))
        return messages.CancelTrainingJobResponse(training_job=job_to_proto(job))

    async def _checked_spec(self, wanted: training_job_pb2.TrainingJob) -> TrainingSpec:
        source = await self._find_source(wanted.source_version) if wanted.source_version else None
        architecture = _architecture_of(source) if source else wanted.architecture or DEFAULT_ARCHITECTURE
        if architecture not in architecture_names():
            raise ArchitectureUnknown(
                f"no architecture {architecture!r} is installed; there are: {', '.join(architecture_names())}",
                name=architecture,
            )
        if wanted.architecture and wanted.architecture != architecture:
            raise ArchitectureNotOfSource(
                f"what goes on from {wanted.source_version} is a {architecture}, not a {wanted.architecture}; leave "
                "the architecture out",
                violations=(FieldViolation("training_job.architecture", f"can only be {architecture}"),),
            )
        model = ModelName.parse(wanted.model)
        dataset = await self._find_dataset(wanted.dataset_version)
        check_splits(dataset, SPLITS)
        return TrainingSpec(
            model,
            DatasetVersionName.parse(dataset.name),
            architecture,
            hyperparameters_from_proto(
                wanted.hyperparameters, default_hyperparameters(architecture, has_source=source is not None)
            ),
            VersionName.parse(source.name) if source else None,
        )

    async def _find_source(self, name: str) -> version_pb2.Version:
        reference = str(parse_version_or_alias(name))
        return await self._registry.GetVersion(registry_service_pb2.GetVersionRequest(name=reference))

    async def _find_dataset(self, name: str) -> dataset_pb2.DatasetVersion:
        """Return the version that is named; a dataset's name stands for its newest."""
        try:
            version = str(DatasetName.parse(name))
        except NameInvalid:
            version = str(DatasetVersionName.parse(name))
        else:
            dataset = await self._registry.GetDataset(registry_service_pb2.GetDatasetRequest(name=name))
            version = dataset.latest_version
            if not version:
                raise DatasetWithoutVersion(f"{name} has no version yet; push data to it first", name=name)
        return await self._registry.GetDatasetVersion(registry_service_pb2.GetDatasetVersionRequest(name=version))


def _architecture_of(source: version_pb2.Version) -> str:
    """Return what the source becomes. Raises SourceNotTrainable."""
    signature = source.signature
    problem = ""
    if not signature.architecture:
        problem = "has no trainable form: take the version that it was made from"
    elif not signature.text_input:
        problem = "does not take texts"
    elif signature.architecture not in CLASSIFIER_OF_ENCODER and not signature.labels:
        problem = f"is a {signature.architecture} without labels, and no layer for classes can be put on it"
    if problem:
        raise SourceNotTrainable(
            f"{source.name} {problem}", violations=(FieldViolation("training_job.source_version", problem),)
        )
    return CLASSIFIER_OF_ENCODER.get(signature.architecture, signature.architecture)
