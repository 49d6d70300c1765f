"""What the registry is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from maas_registry.storage.blob_location import BlobLocation, FolderLocation, parse_blobs_url
from maas_runtime.database.database import DatabaseLocation
from maas_runtime.database.location import parse_database_url
from maas_runtime.database.sqlite import SqliteFile
from maas_runtime.settings import Environment, ProcessSettings


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where a registry is kept; also for programs that work on it while no registry runs."""

    folder: Path
    """What is kept on this machine."""
    database: DatabaseLocation
    """Where models, versions, aliases and datasets are recorded."""
    blobs: BlobLocation
    """Where committed blobs are."""
    cache_bytes: int
    """How much of a bucket is also kept on this machine's disk."""
    disk_threads: int
    """How many files are read or written at once."""

    @classmethod
    def read(cls, environment: Environment) -> Self:
        """Read the variables."""
        folder = environment.folder("MAAS_HOME") / "registry"
        file: DatabaseLocation = SqliteFile(folder / "registry.sqlite")
        blobs: BlobLocation = FolderLocation(folder)
        return cls(
            folder=folder,
            database=environment.parsed("MAAS_REGISTRY_DATABASE_URL", parse_database_url, file),
            blobs=environment.parsed("MAAS_REGISTRY_BLOBS_URL", parse_blobs_url, blobs),
            cache_bytes=environment.integer("MAAS_REGISTRY_CACHE_BYTES", 10 * 2**30, low=0, high=2**50),
            disk_threads=environment.integer("MAAS_REGISTRY_DISK_THREADS", 4, low=1, high=64),
        )

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> Self:
        """Read the variables, those of a process not among them. Raises SettingsInvalid with every bad value."""
        environment = Environment(variables)
        settings = cls.read(environment)
        environment.check()
        return settings


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of maas_registry, from MAAS_* variables."""

    process: ProcessSettings
    stores: StoreSettings
    max_blob_bytes: int
    """Largest blob that is taken."""

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> Self:
        """Read the variables. Raises SettingsInvalid with every bad value."""
        environment = Environment(variables)
        settings = cls(
            process=ProcessSettings.read(environment),
            stores=StoreSettings.read(environment),
            max_blob_bytes=environment.integer("MAAS_REGISTRY_MAX_BLOB_BYTES", 4 * 2**30, low=1, high=2**50),
        )
        environment.check()
        return settings
