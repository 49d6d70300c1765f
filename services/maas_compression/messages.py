"""Compression jobs as messages."""

from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import ParseDict

from maas.compression.v1 import advice_pb2, search_pb2, sensitivity_pb2
from maas.compression.v1 import compression_job_pb2 as messages
from maas.names import JobName
from maas.registry.v1 import version_pb2
from maas_compression.limits import Limits
from maas_compression.recipe import technique_from_proto, technique_to_proto
from maas_compression.spec import (
    AdviceWork,
    CompressionSpec,
    RecipeWork,
    SearchWork,
    SensitivityWork,
    Work,
)
from maas_jobs.job import Job
from maas_jobs.messages import status_to_proto

COLLECTION = "compressionJobs"


def job_to_proto(job: Job) -> messages.CompressionJob:
    """Return the job with every default filled in, and its source's name in place of an alias."""
    spec = CompressionSpec.from_json(job.spec)
    result = job.result or {}
    message = messages.CompressionJob(
        name=str(JobName(COLLECTION, job.job_id)),
        source_version=str(spec.source_version),
        dataset_version=str(spec.dataset_version or ""),
        unlabelled_dataset_version=str(spec.unlabelled_dataset_version or ""),
        limits=limits_to_proto(spec.limits),
        allow_no_gain=spec.allow_no_gain,
        status=status_to_proto(job),
        result_version=result.get("version", ""),
        report=ParseDict(result["report"], version_pb2.CompressionReport()) if "report" in result else None,
        advised=ParseDict(result["advised"], advice_pb2.Advice()) if "advised" in result else None,
        search_report=ParseDict(result["search"], search_pb2.SearchReport()) if "search" in result else None,
        sensitivity_report=ParseDict(result["sensitivity"], sensitivity_pb2.SensitivityReport())
        if "sensitivity" in result
        else None,
    )
    match spec.work:
        case RecipeWork(recipe):
            message.recipe.CopyFrom(messages.Recipe(techniques=map(technique_to_proto, recipe)))
        case SearchWork() as work:
            message.search.CopyFrom(
                messages.SearchSettings(
                    objective=work.objective,
                    time_budget=_duration(work.time_budget_seconds),
                    allow_training=work.allow_training,
                    most_trials=work.most_trials,
                    workers=work.workers or None,
                    seed=work.seed,
                )
            )
        case AdviceWork(allow_training):
            message.advice.CopyFrom(messages.AdviceSettings(allow_training=allow_training))
        case SensitivityWork(bits):
            message.sensitivity.CopyFrom(messages.SensitivitySettings(bits=bits))
    return message


def work_from_proto(message: messages.CompressionJob) -> Work:
    """Return the work that the message chooses; the contract's rules see to it that it chooses one."""
    match message.WhichOneof("work"):
        case "recipe":
            return RecipeWork(tuple(technique_from_proto(technique) for technique in message.recipe.techniques))
        case "search":
            return _search_from_proto(message.search)
        case "advice":
            return AdviceWork(message.advice.allow_training)
        case "sensitivity":
            settings = message.sensitivity
            return SensitivityWork(settings.bits) if settings.HasField("bits") else SensitivityWork()
    raise ValueError("a job without work passed validation")


def limits_from_proto(message: messages.Limits) -> Limits:
    """Return the limits that are given."""
    given = {field.name for field, _ in message.ListFields()}
    return Limits(
        max_size_bytes=message.max_size_bytes if "max_size_bytes" in given else None,
        max_p50_seconds=_seconds(message.max_p50) if "max_p50" in given else None,
        max_p99_seconds=_seconds(message.max_p99) if "max_p99" in given else None,
        min_throughput_rows=message.min_throughput_rows if "min_throughput_rows" in given else None,
        max_memory_bytes=message.max_memory_bytes if "max_memory_bytes" in given else None,
        max_quality_loss=message.max_quality_loss if "max_quality_loss" in given else None,
    )


def limits_to_proto(limits: Limits) -> messages.Limits:
    """Return the limits as a message."""
    return messages.Limits(
        max_size_bytes=limits.max_size_bytes,
        max_p50=_duration(limits.max_p50_seconds),
        max_p99=_duration(limits.max_p99_seconds),
        min_throughput_rows=limits.min_throughput_rows,
        max_memory_bytes=limits.max_memory_bytes,
        max_quality_loss=limits.max_quality_loss,
    )


def _search_from_proto(message: messages.SearchSettings) -> SearchWork:
    given = {field.name: value for field, value in message.ListFields()}
    if "time_budget" in given:
        given["time_budget_seconds"] = _seconds(given.pop("time_budget"))
    return SearchWork(**given)


def _seconds(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e9


def _duration(seconds: float | None) -> Duration | None:
    if seconds is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(round(seconds * 1e9))
    return duration
