"""Compression jobs as messages."""

from google.protobuf.json_format import ParseDict

from maas.compression.v1 import compression_job_pb2 as messages
from maas.names import JobName
from maas.registry.v1 import version_pb2
from maas_compression.recipe import Clip, FixedPoint, Int8, Technique
from maas_compression.spec import CompressionSpec
from maas_jobs.job import Job
from maas_jobs.messages import status_to_proto

COLLECTION = "compressionJobs"


def job_to_proto(job: Job) -> messages.CompressionJob:
    """Return the job with every default filled in, and its source's name in place of an alias."""
    spec = CompressionSpec.from_json(job.spec)
    result = job.result or {}
    return messages.CompressionJob(
        name=str(JobName(COLLECTION, job.job_id)),
        source_version=str(spec.source_version),
        recipe=[_technique_to_proto(technique) for technique in spec.recipe],
        dataset_version=str(spec.dataset_version),
        status=status_to_proto(job),
        result_version=result.get("version", ""),
        report=ParseDict(result["report"], version_pb2.CompressionReport()) if "report" in result else None,
    )


def technique_from_proto(message: messages.Technique) -> Technique:
    """Return the technique that the message chooses; the contract's rules see to it that it chooses one."""
    match message.WhichOneof("technique"):
        case "clip":
            return Clip()
        case "fixed_point":
            settings = message.fixed_point
            return FixedPoint(settings.fractional_bits) if settings.HasField("fractional_bits") else FixedPoint()
        case "int8":
            return Int8()
    raise ValueError("a technique without a choice passed validation")


def _technique_to_proto(technique: Technique) -> messages.Technique:
    match technique:
        case Clip():
            return messages.Technique(clip=messages.Clip())
        case FixedPoint(fractional_bits):
            return messages.Technique(fixed_point=messages.FixedPoint(fractional_bits=fractional_bits))
        case Int8():
            return messages.Technique(int8=messages.Int8())
