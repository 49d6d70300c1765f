"""The step `fetch`: the source's package and the data that its compression needs, into the job's folder."""

from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_compression.spec import (
    CHOOSING_SPLIT,
    JUDGING_SPLIT,
    LEARNING_SPLIT,
    SOURCE_FOLDER,
    UNLABELLED_FOLDER,
    CompressionSpec,
    judging_columns,
)
from maas_jobs.dataset import TEXT_COLUMN
from maas_jobs.job import JsonObject
from maas_jobs.step import Reporter, StepRequest, run_step
from maas_jobs.transfer import CALL_SECONDS, download_files, download_splits, registry_channel
from maas_package.package import read_package


def fetch(request: StepRequest, report: Reporter) -> JsonObject:
    """Download what is not there yet; the result says what the source was trained on."""
    spec = CompressionSpec.from_json(request.spec)
    folder = request.folder / SOURCE_FOLDER
    with registry_channel(request.registry_address) as channel:
        source = RegistryServiceStub(channel).GetVersion(
            messages.GetVersionRequest(name=str(spec.source_version)), timeout=CALL_SECONDS, wait_for_ready=True
        )
        download_files(channel, source.files, folder, report, "fetch")
        task = read_package(folder).manifest.task
        if spec.dataset_version is not None:
            download_splits(
                channel,
                str(spec.dataset_version),
                [JUDGING_SPLIT],
                request.folder,
                report,
                optional=[LEARNING_SPLIT, CHOOSING_SPLIT],
                columns=judging_columns(task),
            )
        if spec.unlabelled_dataset_version is not None:
            unlabelled = request.folder / UNLABELLED_FOLDER
            texts = str(spec.unlabelled_dataset_version)
            download_splits(channel, texts, [LEARNING_SPLIT], unlabelled, report, columns=[TEXT_COLUMN])
    return {"dataset_version": source.dataset_version}


if __name__ == "__main__":
    run_step(fetch)
