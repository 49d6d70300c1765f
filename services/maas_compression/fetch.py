"""The step `fetch`: the source's package and the data that judges the result, into the job's folder."""

import grpc

from maas.names import DatasetVersionName
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_compression.spec import CHOOSING_SPLIT, JUDGING_SPLIT, LEARNING_SPLIT, SOURCE_FOLDER, CompressionSpec
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
        if spec.dataset_version is not None:
            splits = _splits_there(channel, spec.dataset_version)
            download_splits(channel, str(spec.dataset_version), splits, request.folder, report)
    read_package(folder)
    return {"dataset_version": source.dataset_version}


def _splits_there(channel: grpc.Channel, name: DatasetVersionName) -> list[str]:
    """Return the splits that a technique can use: the one that judges, and the others where they are."""
    dataset = RegistryServiceStub(channel).GetDatasetVersion(
        messages.GetDatasetVersionRequest(name=str(name)), timeout=CALL_SECONDS, wait_for_ready=True
    )
    there = {split.split_id for split in dataset.splits}
    return [JUDGING_SPLIT, *(split for split in (LEARNING_SPLIT, CHOOSING_SPLIT) if split in there)]


if __name__ == "__main__":
    run_step(fetch)
