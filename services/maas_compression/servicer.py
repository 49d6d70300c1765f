"""CompressionService: what a request asks for is checked here, as far as it can be known before the work."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from maas.compression.v1 import compression_job_pb2
from maas.compression.v1 import compression_service_pb2 as messages
from maas.compression.v1.compression_service_pb2_grpc import CompressionServiceServicer
from maas.names import DatasetVersionName, VersionName, parse_version_or_alias
from maas.registry.v1 import dataset_pb2, registry_service_pb2, version_pb2
from maas_compression.messages import COLLECTION, job_to_proto, limits_from_proto, work_from_proto
from maas_compression.recipe import check_recipe
from maas_compression.spec import (
    CHOOSING_SPLIT,
    JUDGING_SPLIT,
    LEARNING_SPLIT,
    CompressionSpec,
    RecipeWork,
    SearchWork,
    judging_columns,
)
from maas_jobs.dataset import TEXT_COLUMN, check_splits
from maas_jobs.jobs import Jobs
from maas_jobs.messages import parse_job_id
from maas_runtime.failures import FieldViolation, InvalidInput

if TYPE_CHECKING:  # the stubs' type for grpc.aio is in the .pyi only
    from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub

Context = grpc.aio.ServicerContext[Any, Any]


class JudgingDataUnknown(InvalidInput):
    """The request names no data, and the source does not say what it was trained on."""

    reason = "JUDGING_DATA_UNKNOWN"


class DatasetOfNoUse(InvalidInput):
    """The request names data for a source that takes no texts, which is what datasets hold."""

    reason = "DATASET_OF_NO_USE"


class CompressionServicer(CompressionServiceServicer):
    """CompressionService, answered by Jobs."""

    def __init__(self, jobs: Jobs, registry: "RegistryServiceAsyncStub") -> None:
        self._jobs = jobs
        self._registry = registry

    async def CreateCompressionJob(
        self, request: messages.CreateCompressionJobRequest, context: Context
    ) -> compression_job_pb2.CompressionJob:
        job = await self._jobs.find(request.request_id)
        if job is None:
            spec = await self._checked_spec(request.compression_job)
            job = await self._jobs.create(spec.to_json(), request.request_id)
        return job_to_proto(job)

    async def GetCompressionJob(
        self, request: messages.GetCompressionJobRequest, context: Context
    ) -> compression_job_pb2.CompressionJob:
        return job_to_proto(await self._jobs.get(parse_job_id(request.name, COLLECTION)))

    async def ListCompressionJobs(
        self, request: messages.ListCompressionJobsRequest, context: Context
    ) -> messages.ListCompressionJobsResponse:
        page = self._jobs.page(request.page_size, request.page_token)
        jobs = [job_to_proto(job) for job in page.jobs]
        for job in jobs:
            if job.HasField("search_report"):
                job.search_report.ClearField("trials")
        return messages.ListCompressionJobsResponse(compression_jobs=jobs, next_page_token=page.next_page_token)

    async def WatchCompressionJob(
        self, request: messages.WatchCompressionJobRequest, context: Context
    ) -> AsyncIterator[messages.WatchCompressionJobResponse]:
        async for job in self._jobs.watch(parse_job_id(request.name, COLLECTION)):
            yield messages.WatchCompressionJobResponse(compression_job=job_to_proto(job))

    async def CancelCompressionJob(
        self, request: messages.CancelCompressionJobRequest, context: Context
    ) -> messages.CancelCompressionJobResponse:
        job = await self._jobs.cancel(parse_job_id(request.name, COLLECTION))
        return messages.CancelCompressionJobResponse(compression_job=job_to_proto(job))

    async def _checked_spec(self, wanted: compression_job_pb2.CompressionJob) -> CompressionSpec:
        name = str(parse_version_or_alias(wanted.source_version))
        source = await self._registry.GetVersion(registry_service_pb2.GetVersionRequest(name=name))
        work = work_from_proto(wanted)
        if isinstance(work, RecipeWork):
            check_recipe(work.recipe, has_trainable_form=bool(source.signature.architecture))
        dataset_version, unlabelled = _judging_data(wanted, source), _unlabelled_data(wanted, source)
        if dataset_version is not None:
            splits = [JUDGING_SPLIT, CHOOSING_SPLIT] if isinstance(work, SearchWork) else [JUDGING_SPLIT]
            check_splits(await self._dataset(dataset_version), splits, judging_columns(source.signature.task))
        if unlabelled is not None:
            check_splits(await self._dataset(unlabelled), [LEARNING_SPLIT], [TEXT_COLUMN])
        return CompressionSpec(
            VersionName.parse(source.name),
            work,
            limits_from_proto(wanted.limits),
            dataset_version,
            unlabelled,
            wanted.allow_no_gain,
        )

    async def _dataset(self, name: DatasetVersionName) -> dataset_pb2.DatasetVersion:
        return await self._registry.GetDatasetVersion(registry_service_pb2.GetDatasetVersionRequest(name=str(name)))


def _judging_data(wanted: compression_job_pb2.CompressionJob, source: version_pb2.Version) -> DatasetVersionName | None:
    """Return the data that judges; None for a source that takes no texts: made-up inputs do."""
    if not source.signature.text_input:
        _refuse_data("dataset_version", wanted.dataset_version, source)
        return None
    name = wanted.dataset_version or source.dataset_version
    if not name:
        raise JudgingDataUnknown(
            f"{source.name} does not say what it was trained on; name the data that judges the result",
            violations=(FieldViolation("compression_job.dataset_version", "is needed here"),),
        )
    return DatasetVersionName.parse(name)


def _unlabelled_data(
    wanted: compression_job_pb2.CompressionJob, source: version_pb2.Version
) -> DatasetVersionName | None:
    name = wanted.unlabelled_dataset_version
    if not source.signature.text_input:
        _refuse_data("unlabelled_dataset_version", name, source)
    return DatasetVersionName.parse(name) if name else None


def _refuse_data(field: str, name: str, source: version_pb2.Version) -> None:
    if name:
        raise DatasetOfNoUse(
            f"{source.name} takes no texts, so {name} cannot be put to it: leave the dataset out, and made-up inputs "
            "judge the result",
            violations=(FieldViolation(f"compression_job.{field}", "must be left out here"),),
        )
