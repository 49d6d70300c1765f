"""`python -m maas_compression`: serves CompressionService and works on its jobs."""

from maas.compression.v1.compression_service_pb2_grpc import add_CompressionServiceServicer_to_server
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_compression.messages import COLLECTION
from maas_compression.servicer import CompressionServicer
from maas_jobs.job import Step
from maas_jobs.process import open_jobs
from maas_jobs.settings import JobSettings
from maas_runtime.channel import open_channel
from maas_runtime.metrics import process_metrics
from maas_runtime.server import GrpcService, run_process, serve

STEPS = (
    Step("fetch", "maas_compression.fetch", 0.1),
    Step("compress", "maas_compression.run", 0.8),
    Step("register", "maas_compression.register", 0.1),
)


async def main(settings: JobSettings) -> None:
    """Serve until told to stop."""
    metrics = process_metrics()
    async with (
        open_channel(settings.registry_address) as registry,
        open_jobs(settings, "compression", COLLECTION, STEPS, metrics) as jobs,
    ):
        servicer = CompressionServicer(jobs, RegistryServiceStub(registry))
        service = GrpcService(
            "maas.compression.v1.CompressionService",
            lambda server: add_CompressionServiceServicer_to_server(servicer, server),
            jobs.end_watches,
        )
        await serve(settings.process, [service], metrics)


if __name__ == "__main__":
    run_process("maas_compression", JobSettings.from_env, main)
