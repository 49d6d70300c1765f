"""The step `fetch`: the dataset's splits, and the version to go on from, into the job's folder."""

from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_jobs.job import JsonObject
from maas_jobs.step import Reporter, StepRequest, run_step
from maas_jobs.transfer import CALL_SECONDS, download_files, download_splits, registry_channel
from maas_training.spec import SOURCE_FOLDER, SPLITS, TrainingSpec


def fetch(request: StepRequest, report: Reporter) -> JsonObject:
    """Download what is not there yet."""
    spec = TrainingSpec.from_json(request.spec)
    with registry_channel(request.registry_address) as channel:
        if spec.source_version is not None:
            source = RegistryServiceStub(channel).GetVersion(
                messages.GetVersionRequest(name=str(spec.source_version)), timeout=CALL_SECONDS, wait_for_ready=True
            )
            download_files(channel, source.files, request.folder / SOURCE_FOLDER, report, "fetch")
        download_splits(channel, str(spec.dataset_version), SPLITS, request.folder, report)
    return {}


if __name__ == "__main__":
    run_step(fetch)
