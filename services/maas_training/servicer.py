"""TrainingService: what a request asks for is checked here, as far as it can be known before the work."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from maas.names import DatasetName, DatasetVersionName, ModelName, NameInvalid
from maas.registry.v1 import dataset_pb2, registry_service_pb2
from maas.training.v1 import training_job_pb2
from maas.training.v1 import training_service_pb2 as messages
from maas.training.v1.training_service_pb2_grpc import TrainingServiceServicer
from maas_jobs.dataset import check_splits
from maas_jobs.jobs import Jobs
from maas_jobs.messages import parse_job_id
from maas_package.architectures import ArchitectureUnknown, architecture_names
from maas_runtime.failures import InvalidInput
from maas_training.messages import COLLECTION, hyperparameters_from_proto, job_to_proto
from maas_training.spec import DEFAULT_ARCHITECTURE, SPLITS, TrainingSpec

if TYPE_CHECKING:  # the stubs' type for grpc.aio is in the .pyi only
    from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

Context = grpc.aio.ServicerContext[Any, Any]


class DatasetWithoutVersion(InvalidInput):
    """The dataset has no version yet."""

    reason = "DATASET_WITHOUT_VERSION"


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
        architecture = wanted.architecture or DEFAULT_ARCHITECTURE
        if architecture not in architecture_names():
            raise ArchitectureUnknown(
                f"no architecture {architecture!r} is installed; there are: {', '.join(architecture_names())}",
                name=architecture,
            )
        model = ModelName.parse(wanted.model)
        dataset = await self._find_dataset(wanted.dataset_version)
        check_splits(dataset, SPLITS)
        return TrainingSpec(
            model,
            DatasetVersionName.parse(dataset.name),
            architecture,
            hyperparameters_from_proto(wanted.hyperparameters),
        )

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
