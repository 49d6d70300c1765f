"""The step `register`: the package in the job's folder becomes a version of the model."""

from google.protobuf.json_format import ParseDict

from maas.registry.v1 import version_pb2
from maas_jobs.job import JsonObject
from maas_jobs.step import Reporter, StepRequest, run_step
from maas_jobs.transfer import create_model_if_missing, create_version, registry_channel, upload_folder
from maas_training.spec import PACKAGE_FOLDER, TrainingSpec


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
                source_job=request.job_name,
                dataset_version=str(spec.dataset_version),
                evaluation=ParseDict(evaluation, version_pb2.Evaluation()),
            ),
            request_id=request.job_name,
        )
    report.log(f"registered {version.name}")
    return {"version": version.name, "evaluation": evaluation}


if __name__ == "__main__":
    run_step(register)
