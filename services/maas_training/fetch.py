"""The step `fetch`: the dataset's splits into the job's folder."""

from maas_jobs.job import JsonObject
from maas_jobs.step import Reporter, StepRequest, run_step
from maas_jobs.transfer import download_splits, registry_channel
from maas_training.spec import SPLITS, TrainingSpec


def fetch(request: StepRequest, report: Reporter) -> JsonObject:
    """Download what is not there yet."""
    spec = TrainingSpec.from_json(request.spec)
    with registry_channel(request.registry_address) as channel:
        download_splits(channel, str(spec.dataset_version), SPLITS, request.folder, report)
    return {}


if __name__ == "__main__":
    run_step(fetch)
