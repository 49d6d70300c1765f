"""`python -m maas_training`: serves TrainingService and works on its jobs."""

from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas.training.v1.training_service_pb2_grpc import add_TrainingServiceServicer_to_server
from maas_jobs.job import Step
from maas_jobs.process import open_jobs
from maas_jobs.settings import JobSettings
from maas_runtime.channel import open_channel
from maas_runtime.metrics import process_metrics
from maas_runtime.server import GrpcService, run_process, serve
from maas_training.messages import COLLECTION
from maas_training.servicer import TrainingServicer

STEPS = (
    Step("fetch", "maas_training.fetch", 0.03),
    Step("train", "maas_training.run", 0.94),
    Step("register", "maas_training.register", 0.03),
)


async def main(settings: JobSettings) -> None:
    """Serve until told to stop."""
    metrics = process_metrics()
    async with (
        open_channel(settings.registry_address) as registry,
        open_jobs(settings, "training", COLLECTION, STEPS, metrics) as jobs,
    ):
        servicer = TrainingServicer(jobs, RegistryServiceStub(registry))
        service = GrpcService(
            "maas.training.v1.TrainingService",
            lambda server: add_TrainingServiceServicer_to_server(servicer, server),
            jobs.end_watches,
        )
        await serve(settings.process, [service], metrics)


if __name__ == "__main__":
    run_process("maas_training", JobSettings.from_env, main)
