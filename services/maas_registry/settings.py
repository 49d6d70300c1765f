"""What the registry is told."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from maas_registry.storage.blob_location import BlobLocation, FolderLocation, parse_blobs_url
from maas_runtime.database.database import DatabaseLocation
from maas_runtime.database.location import parse_database_url
from maas_runtime.database.sqlite import SqliteFile
from maas_runtime.failures import InvalidInput
from maas_runtime.settings import Environment, ProcessSettings


class MoveToItself(InvalidInput):
    """A registry is to be moved to where it is."""

    reason = "MOVE_TO_ITSELF"


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
    gc_grace_seconds: int
    """How long a blob stays that nobody needs."""

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
            gc_grace_seconds=environment.integer("MAAS_REGISTRY_GC_GRACE_SECONDS", 24 * 3600, low=1, high=2**31),
        )

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> Self:
        """Read the variables, those of a process not among them. Raises SettingsInvalid with every bad value."""
        environment = Environment(variables)
        settings = cls.read(environment)
        environment.check()
        return settings

    def moved(self, database_url: str, blobs_url: str) -> Self:
        """Return where the registry goes that is moved to other stores. Raises SettingsInvalid or MoveToItself."""
        options = Environment({"--to-database": database_url, "--to-blobs": blobs_url})
        there = replace(
            self,
            database=options.parsed("--to-database", parse_database_url, self.database),
            blobs=options.parsed("--to-blobs", parse_blobs_url, self.blobs),
        )
        options.check()
        if there.database == self.database:
            raise MoveToItself(f"the records are in {self.database} already: name another database")
        return there


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of maas_registry, from MAAS_* variables."""

    process: ProcessSettings
    stores: StoreSettings
    max_blob_bytes: int
    """Largest blob that is taken."""
    gc_seconds: int
    """How often is looked for blobs that nobody needs."""

    @classmethod
    def from_env(cls, variables: Mapping[str, str]) -> Self:
        """Read the variables. Raises SettingsInvalid with every bad value."""
        environment = Environment(variables)
        settings = cls(
            process=ProcessSettings.read(environment),
            stores=StoreSettings.read(environment),
            max_blob_bytes=environment.integer("MAAS_REGISTRY_MAX_BLOB_BYTES", 4 * 2**30, low=1, high=2**50),
            gc_seconds=environment.integer("MAAS_REGISTRY_GC_SECONDS", 3600, low=1, high=2**31),
        )
        environment.check()
        return settings
