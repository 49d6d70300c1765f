"""The step `register`: the package in the job's folder becomes a version of the model."""

from typing import Any

from google.protobuf.json_format import ParseDict

from maas.registry.v1 import version_pb2
from maas_jobs.job import JsonObject
from maas_jobs.step import Reporter, StepRequest, run_step
from maas_jobs.transfer import create_model_if_missing, create_version, registry_channel, upload_folder
from maas_training.spec import PACKAGE_FOLDER, TrainingSpec

FINE_TUNED_FROM = "fine_tuned_from"
"""The tag that names the version of another model whose weights training began with."""


def register(request: StepRequest, report: Reporter) -> JsonObject:
    """Upload the package and create the version, once however often this is done."""
    spec = TrainingSpec.from_json(request.spec)
    evaluation = request.previous["evaluation"]
    with registry_channel(request.registry_address) as channel:
        files = upload_folder(channel, request.folder / PACKAGE_FOLDER, report, "register")
        create_model_if_missing(channel, spec.model)
        version = create_version(
            channel,
            spec.model,
            version_pb2.Version(
                files=files,
                **_lineage(spec),
                source_job=request.job_name,
                dataset_version=str(spec.dataset_version),
                evaluation=ParseDict(evaluation, version_pb2.Evaluation()),
            ),
            request_id=request.job_name,
        )
    report.log(f"registered {version.name}")
    return {"version": version.name, "evaluation": evaluation}


def _lineage(spec: TrainingSpec) -> dict[str, Any]:
    """Return the parent, or a tag where the source is of another model: a parent never is."""
    if spec.source_version is None:
        return {}
    if spec.source_version.model == spec.model:
        return {"parent_version": str(spec.source_version)}
    return {"tags": {FINE_TUNED_FROM: str(spec.source_version)}}


if __name__ == "__main__":
    run_step(register)
