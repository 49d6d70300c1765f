"""What rollout is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from maas_runtime.settings import Environment, ProcessSettings


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of maas_rollout, from MAAS_* variables."""

    process: ProcessSettings
    registry_address: str
    """Where versions and aliases are looked up."""

    @property
    def folder(self) -> Path:
        """Where deployments are kept."""
        return self.process.home / "rollout"

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> Self:
        """Read the variables. Raises SettingsInvalid with every bad value."""
        environment = Environment(variables)
        settings = cls(
            process=ProcessSettings.read(environment),
            registry_address=environment.address("MAAS_REGISTRY_ADDRESS"),
        )
        environment.check()
        return settings
