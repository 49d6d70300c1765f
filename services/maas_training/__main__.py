"""`python -m maas_training`: serves TrainingService and works on its jobs."""

from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas.training.v1 import training_service_pb2
from maas.training.v1.training_service_pb2_grpc import add_TrainingServiceServicer_to_server
from maas_jobs.durable import DurableJobs
from maas_jobs.job import Step
from maas_jobs.jobs import Jobs
from maas_jobs.metrics import JobMetrics
from maas_jobs.settings import JobSettings
from maas_runtime.channel import open_channel
from maas_runtime.metrics import process_metrics
from maas_runtime.server import GrpcService, run_process, serve
from maas_training.messages import COLLECTION
from maas_training.servicer import TrainingServicer


async def main(settings: JobSettings) -> None:
    """Serve until told to stop."""
    home = settings.process.home / "training"
    metrics = process_metrics()
    limits = settings.step_seconds, settings.step_memory_bytes
    steps = [
        Step("fetch", "maas_training.fetch", 0.03, *limits),
        Step("train", "maas_training.run", 0.94, *limits),
        Step("register", "maas_training.register", 0.03, *limits),
    ]
    async with (
        open_channel(settings.registry_address) as registry,
        DurableJobs(
            "maas-training", home / "jobs.sqlite", [step.name for step in steps], settings.concurrent_jobs
        ) as store,
        Jobs(COLLECTION, steps, store, home / "jobs", settings.registry_address, JobMetrics(metrics)) as jobs,
    ):
        servicer = TrainingServicer(jobs, RegistryServiceStub(registry))
        service = GrpcService(
            training_service_pb2.DESCRIPTOR.services_by_name["TrainingService"].full_name,
            lambda server: add_TrainingServiceServicer_to_server(servicer, server),
        )
        await serve(settings.process, [service], metrics)


if __name__ == "__main__":
    run_process("maas_training", JobSettings.from_env, main)
