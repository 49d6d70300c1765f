"""Packages on this machine's disk, fetched from the registry when they are first needed."""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import grpc

from maas.blobs import download_blob
from maas.errors import MaasError, from_rpc_error
from maas.names import BlobName, SignatureName, VersionName
from maas.registry.v1.registry_service_pb2 import GetVersionRequest, GetVersionSignatureRequest
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas.signatures import PublicKey, PublicKeyInvalid, members_of
from maas_package.manifest import MANIFEST_NAME, Manifest, check_path
from maas_package.package import read_package
from maas_package.signed import check_signed, signature_names
from maas_runtime.channel import failure_of
from maas_runtime.failures import InvalidInput, Overloaded

logger = logging.getLogger(__name__)

_CALL_SECONDS = 10.0
_BUNDLE_SUFFIX = ".sigstore.json"
_NO_SIGNATURE = "SIGNATURE_NOT_FOUND"


class PackageStoreFailed(Overloaded):
    """The package cannot be written to this machine's disk."""

    reason = "PACKAGE_STORE_FAILED"


class TrustedKeyUnreadable(InvalidInput):
    """A key that the deployment trusts is none."""

    reason = "TRUSTED_KEY_UNREADABLE"


class PackageStore:
    """Packages under one folder, `<model>/<version>` each, and beside each the signatures that were asked for.

    Its methods block.
    """

    def __init__(self, folder: Path, registry: grpc.Channel, bound_bytes: int) -> None:
        self._folder = folder
        self._registry = registry
        self._bound_bytes = bound_bytes

    def fetch(self, version: VersionName, trusted_keys: Sequence[str] = ()) -> Path:
        """Return the version's folder, downloaded and checked if it is not there.

        With trusted keys, in PEM form, one of them has to have signed what is there: that is checked each time, and
        before anything is downloaded. Raises what the registry raises, what read_package raises, VersionNotSigned,
        TrustedKeyUnreadable and PackageStoreFailed.
        """
        folder = self._path(version)
        trusted = _parsed(trusted_keys)
        try:
            if folder.is_dir():
                self._check_signed(version, _members_in(folder), trusted)
            else:
                self._download(version, folder, trusted)
            os.utime(folder)
        except MaasError as error:
            raise failure_of(error) from error
        except OSError as error:
            raise PackageStoreFailed(f"cannot store {version} in {self._folder}: {error.strerror}") from error
        return folder

    def discard(self, version: VersionName) -> None:
        """Remove a version that turned out to be damaged, so that it is fetched again."""
        _remove(self._path(version))

    def trim(self, needed: Collection[VersionName]) -> None:
        """Remove the packages that were not used for longest, until what nobody needs is within the bound."""
        needed_folders = {self._path(version) for version in needed}
        unneeded = [
            folder
            for folder in self._folder.glob("[!.]*/*")  # not what is being downloaded
            if folder not in needed_folders and folder.is_dir()
        ]
        unneeded.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
        total = 0
        for folder in unneeded:
            total += sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            if total > self._bound_bytes:
                logger.info("package removed", extra={"folder": str(folder)})
                _remove(folder)

    def _path(self, version: VersionName) -> Path:
        return self._folder / version.model_id / str(version.number)

    def _download(self, version: VersionName, folder: Path, trusted: Sequence[PublicKey]) -> None:
        try:
            stored = RegistryServiceStub(self._registry).GetVersion(
                GetVersionRequest(name=str(version)), timeout=_CALL_SECONDS
            )
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
        folder.parent.mkdir(parents=True, exist_ok=True)
        self._check_signed(version, members_of(stored.files), trusted)
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

    def _check_signed(self, version: VersionName, members: Mapping[str, str], trusted: Sequence[PublicKey]) -> None:
        """Return if there are no trusted keys, or one of them signed these members. Raises VersionNotSigned."""
        if trusted:
            bundles = {name.fingerprint: self._bundle(name) for name in signature_names(version, trusted)}
            check_signed(version, members, {key: bundle for key, bundle in bundles.items() if bundle}, trusted)

    def _bundle(self, name: SignatureName) -> bytes:
        """Return a signature, which is kept for the time when the registry is away; nothing when there is none."""
        kept = self._path(name.version).with_name(f"{name.number}.{name.fingerprint}{_BUNDLE_SUFFIX}")
        if kept.is_file():
            return kept.read_bytes()
        try:
            found = RegistryServiceStub(self._registry).GetVersionSignature(
                GetVersionSignatureRequest(name=str(name)), timeout=_CALL_SECONDS
            )
        except grpc.RpcError as error:
            failure = from_rpc_error(error)
            if failure.reason == _NO_SIGNATURE:
                return b""
            raise failure from error
        partial = kept.with_suffix(".partial")
        partial.write_bytes(found.bundle)
        os.replace(partial, kept)
        return found.bundle


def _parsed(trusted_keys: Sequence[str]) -> list[PublicKey]:
    try:
        return [PublicKey.parse(pem) for pem in trusted_keys]
    except PublicKeyInvalid as error:
        raise TrustedKeyUnreadable(f"a trusted key of the deployment cannot be read: {error}") from error


def _members_in(folder: Path) -> dict[str, str]:
    """Return what a package on disk says that it is; whether its files are so is checked when they are loaded."""
    content = (folder / MANIFEST_NAME).read_bytes()
    members = {entry.path: entry.sha256 for entry in Manifest.from_json(content).files}
    return members | {MANIFEST_NAME: hashlib.sha256(content).hexdigest()}


def _remove(folder: Path) -> None:
    """Remove a package and the signatures beside it."""
    shutil.rmtree(folder, ignore_errors=True)
    for bundle in folder.parent.glob(f"{folder.name}.*{_BUNDLE_SUFFIX}"):
        bundle.unlink(missing_ok=True)
