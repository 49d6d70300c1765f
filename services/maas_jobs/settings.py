"""What a process that works on jobs is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import psutil

from maas_runtime.settings import Environment, ProcessSettings

_DAY_SECONDS = 24 * 3600


@dataclass(frozen=True, slots=True)
class JobSettings:
    """Settings of maas_training and maas_compression."""

    process: ProcessSettings
    registry_address: str
    concurrent_jobs: int
    """How many jobs are worked on at once."""
    step_seconds: float
    """How long one step may take."""
    step_memory_bytes: int
    """How much resident memory one step may have, with its child processes."""

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> Self:
        """Read all settings. Raises SettingsInvalid with every wrong one."""
        environment = Environment(variables)
        # Three quarters of the machine, unless somebody says otherwise: a step never takes the services with it.
        memory_mib = psutil.virtual_memory().total * 3 // 4 // 2**20
        settings = cls(
            process=ProcessSettings.read(environment),
            registry_address=environment.address("MAAS_REGISTRY_ADDRESS"),
            concurrent_jobs=environment.integer("MAAS_JOBS_CONCURRENT", 1, low=1, high=64),
            step_seconds=environment.number("MAAS_JOBS_STEP_SECONDS", _DAY_SECONDS, low=1, high=30 * _DAY_SECONDS),
            step_memory_bytes=environment.integer("MAAS_JOBS_STEP_MEMORY_MIB", memory_mib, low=64, high=2**24) * 2**20,
        )
        environment.check()
        return settings
