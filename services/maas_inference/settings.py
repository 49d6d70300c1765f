"""Settings of the inference manager."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from maas_runtime.settings import Environment, ProcessSettings

_MOST_LANES = 4


def _default_lanes() -> int:
    return min(_MOST_LANES, len(os.sched_getaffinity(0)))


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """What the manager is told."""

    process: ProcessSettings
    rollout_address: str
    registry_address: str
    run_dir: Path
    """Folder of the sockets of workers and of the fronts' link."""
    replica: str
    """This replica's id towards rollout."""
    engine_threads: int
    """Threads that compute one batch."""
    engine_lanes: int
    """The most batches that one worker computes side by side; how many it does is tuned while it serves."""
    max_batch_rows: int
    package_cache_bytes: int
    """How much of the disk packages may take that no deployment needs."""

    @property
    def state_dir(self) -> Path:
        """Folder of what the manager remembers."""
        return self.process.home / "inference"

    @classmethod
    def read(cls, environment: Environment) -> Self:
        """Read the variables. Raises SettingsInvalid with all that is wrong."""
        settings = cls(
            process=ProcessSettings.read(environment),
            rollout_address=environment.address("MAAS_ROLLOUT_ADDRESS"),
            registry_address=environment.address("MAAS_REGISTRY_ADDRESS"),
            run_dir=environment.folder("MAAS_RUN_DIR"),
            replica=environment.text("MAAS_REPLICA", "local")[:63],
            engine_threads=environment.integer("MAAS_ENGINE_THREADS", 1, low=1, high=256),
            engine_lanes=environment.integer("MAAS_ENGINE_LANES", _default_lanes(), low=1, high=16),
            max_batch_rows=environment.integer("MAAS_MAX_BATCH_ROWS", 32, low=1, high=1024),
            package_cache_bytes=environment.integer("MAAS_PACKAGE_CACHE_BYTES", 10 * 2**30, low=0, high=2**60),
        )
        environment.check()
        return settings
