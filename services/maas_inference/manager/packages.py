"""Packages on this machine's disk, fetched from the registry when they are first needed."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

import grpc

from maas.blobs import download_blob
from maas.errors import MaasError, from_rpc_error
from maas.names import BlobName, VersionName
from maas.registry.v1.registry_service_pb2 import GetVersionRequest
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas_package.manifest import check_path
from maas_package.package import read_package
from maas_runtime.channel import failure_of
from maas_runtime.failures import Overloaded

logger = logging.getLogger(__name__)

_CALL_SECONDS = 10.0


class PackageStoreFailed(Overloaded):
    """The package cannot be written to this machine's disk."""

    reason = "PACKAGE_STORE_FAILED"


class PackageStore:
    """Packages under one folder, `<model>/<version>` each. Its methods block."""

    def __init__(self, folder: Path, registry: grpc.Channel, bound_bytes: int) -> None:
        self._folder = folder
        self._registry = registry
        self._bound_bytes = bound_bytes

    def fetch(self, version: VersionName) -> Path:
        """Return the version's folder, downloaded and checked if it is not there.

        Raises what the registry raises, what read_package raises, and PackageStoreFailed.
        """
        folder = self._path(version)
        try:
            if not folder.is_dir():
                self._download(version, folder)
            os.utime(folder)
        except MaasError as error:
            raise failure_of(error) from error
        except OSError as error:
            raise PackageStoreFailed(f"cannot store {version} in {self._folder}: {error.strerror}") from error
        return folder

    def discard(self, version: VersionName) -> None:
        """Remove a version that turned out to be damaged, so that it is fetched again."""
        shutil.rmtree(self._path(version), ignore_errors=True)

    def trim(self, needed: Collection[VersionName]) -> None:
        """Remove the packages that were not used for longest, until what nobody needs is within the bound."""
        needed_folders = {self._path(version) for version in needed}
        unneeded = [folder for folder in self._folder.glob("*/*") if folder not in needed_folders and folder.is_dir()]
        unneeded.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
        total = 0
        for folder in unneeded:
            total += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            if total > self._bound_bytes:
                logger.info("package removed", extra={"folder": str(folder)})
                shutil.rmtree(folder, ignore_errors=True)

    def _path(self, version: VersionName) -> Path:
        return self._folder / version.model_id / str(version.number)

    def _download(self, version: VersionName, folder: Path) -> None:
        try:
            stored = RegistryServiceStub(self._registry).GetVersion(
                GetVersionRequest(name=str(version)), timeout=_CALL_SECONDS
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=self._folder))
        try:
            for file in stored.files:
                path = partial.joinpath(*check_path(file.path, "files.path").split("/"))
                download_blob(self._registry, BlobName.parse(file.blob), path)
            read_package(partial)
            with contextlib.suppress(FileExistsError):
                os.rename(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
