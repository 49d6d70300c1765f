"""What the registry is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from maas_runtime.database.database import DatabaseLocation
from maas_runtime.database.location import parse_database_url
from maas_runtime.database.sqlite import SqliteFile
from maas_runtime.settings import Environment, ProcessSettings


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of maas_registry, from MAAS_* variables."""

    process: ProcessSettings
    database: DatabaseLocation
    """Where models, versions, aliases and datasets are recorded."""
    max_blob_bytes: int
    """Largest blob that is taken."""
    disk_threads: int
    """How many files are read or written at once."""

    @property
    def folder(self) -> Path:
        """What the registry keeps on this machine."""
        return self.process.home / "registry"

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> Self:
        """Read the variables. Raises SettingsInvalid with every bad value."""
        environment = Environment(variables)
        process = ProcessSettings.read(environment)
        file: DatabaseLocation = SqliteFile(process.home / "registry" / "registry.sqlite")
        settings = cls(
            process=process,
            database=environment.parsed("MAAS_REGISTRY_DATABASE_URL", parse_database_url, file),
            max_blob_bytes=environment.integer("MAAS_REGISTRY_MAX_BLOB_BYTES", 4 * 2**30, low=1, high=2**50),
            disk_threads=environment.integer("MAAS_REGISTRY_DISK_THREADS", 4, low=1, high=64),
        )
        environment.check()
        return settings
