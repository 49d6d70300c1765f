"""The step `register`: the result becomes a version of the source's model, as its child."""

from google.protobuf.json_format import ParseDict

from maas.registry.v1 import version_pb2
from maas_compression.spec import RESULT_FOLDER, CompressionSpec
from maas_jobs.job import JsonObject
from maas_jobs.step import Reporter, StepRequest, run_step
from maas_jobs.transfer import create_version, registry_channel, upload_folder


def register(request: StepRequest, report: Reporter) -> JsonObject:
    """Upload the result, if there is one, and create the version, once however often this is done."""
    spec = CompressionSpec.from_json(request.spec)
    if "report" not in request.previous:  # work that makes no version
        return request.previous
    findings = ParseDict(request.previous["report"], version_pb2.CompressionReport())
    with registry_channel(request.registry_address) as channel:
        version = create_version(
            channel,
            spec.source_version.model,
            version_pb2.Version(
                files=upload_folder(channel, request.folder / RESULT_FOLDER, report, "register"),
                parent_version=str(spec.source_version),
                source_job=request.job_name,
                dataset_version=request.previous["dataset_version"],
                recipe=request.previous["recipe"],
                evaluation=findings.quality_after,
                compression_report=findings,
            ),
            request_id=request.job_name,
        )
    report.log(f"registered {version.name}")
    return {**request.previous, "version": version.name}


if __name__ == "__main__":
    run_step(register)
