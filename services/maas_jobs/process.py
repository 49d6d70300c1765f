"""What a process that works on jobs is wired of; its `__main__` adds its own servicer."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from maas_jobs.durable import DurableJobs
from maas_jobs.job import Step, StepLimits
from maas_jobs.jobs import Jobs
from maas_jobs.metrics import JobMetrics
from maas_jobs.settings import JobSettings
from maas_runtime.storage import translated_disk_errors


@asynccontextmanager
async def open_jobs(
    settings: JobSettings, name: str, collection: str, steps: Sequence[Step], metrics: CollectorRegistry
) -> AsyncIterator[Jobs]:
    """Give the jobs that lie in the folder `name` of the process's home; unfinished ones go on at once."""
    folder = settings.process.home / name
    limits = StepLimits(settings.step_seconds, settings.step_memory_bytes)
    with translated_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    async with (
        DurableJobs(
            f"maas-{name}", folder / "jobs.sqlite", [step.name for step in steps], settings.concurrent_jobs
        ) as store,
        Jobs(collection, steps, limits, store, folder / "jobs", settings.registry_address, JobMetrics(metrics)) as jobs,
    ):
        yield jobs
