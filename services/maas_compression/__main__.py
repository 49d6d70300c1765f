"""`python -m maas_compression`: serves CompressionService and works on its jobs."""

from maas.compression.v1 import compression_service_pb2
from maas.compression.v1.compression_service_pb2_grpc import add_CompressionServiceServicer_to_server
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_compression.messages import COLLECTION
from maas_compression.servicer import CompressionServicer
from maas_jobs.durable import DurableJobs
from maas_jobs.job import Step
from maas_jobs.jobs import Jobs
from maas_jobs.metrics import JobMetrics
from maas_jobs.settings import JobSettings
from maas_runtime.channel import open_channel
from maas_runtime.metrics import process_metrics
from maas_runtime.server import GrpcService, run_process, serve


async def main(settings: JobSettings) -> None:
    """Serve until told to stop."""
    home = settings.process.home / "compression"
    metrics = process_metrics()
    limits = settings.step_seconds, settings.step_memory_bytes
    steps = [
        Step("fetch", "maas_compression.fetch", 0.1, *limits),
        Step("compress", "maas_compression.run", 0.8, *limits),
        Step("register", "maas_compression.register", 0.1, *limits),
    ]
    async with (
        open_channel(settings.registry_address) as registry,
        DurableJobs(
            "maas-compression", home / "jobs.sqlite", [step.name for step in steps], settings.concurrent_jobs
        ) as store,
        Jobs(COLLECTION, steps, store, home / "jobs", settings.registry_address, JobMetrics(metrics)) as jobs,
    ):
        servicer = CompressionServicer(jobs, RegistryServiceStub(registry))
        service = GrpcService(
            compression_service_pb2.DESCRIPTOR.services_by_name["CompressionService"].full_name,
            lambda server: add_CompressionServiceServicer_to_server(servicer, server),
        )
        await serve(settings.process, [service], metrics)


if __name__ == "__main__":
    run_process("maas_compression", JobSettings.from_env, main)
