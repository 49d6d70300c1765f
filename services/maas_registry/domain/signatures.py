"""Signatures of versions: checked when they are stored, and never changed or removed."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from maas.names import SignatureName, VersionName
from maas.signatures import PublicKey, PublicKeyInvalid, SignatureInvalid, verify
from maas_registry.domain.changes import Clock
from maas_registry.domain.version_rules import Versions
from maas_runtime.failures import InvalidInput, NotAllowedNow, NotFound

MAX_SIGNATURES = 16


class SignatureNotFound(NotFound):
    """The version has no signature of that key."""

    reason = "SIGNATURE_NOT_FOUND"


class SignatureRefused(InvalidInput):
    """The key is none, or it did not sign this version and its files."""

    reason = "SIGNATURE_INVALID"


class TooManySignatures(NotAllowedNow):
    """The version has as many signatures as a version may have."""

    reason = "TOO_MANY_SIGNATURES"


@dataclass(frozen=True, slots=True)
class VersionSignature:
    """One key's word that a version is exactly its files."""

    name: SignatureName
    public_key: str
    bundle: bytes
    create_time: datetime


class SignatureStore(Protocol):
    """Where signatures are kept. Each method is one transaction; what it returned is on disk."""

    async def add(self, signature: VersionSignature, max_signatures: int) -> VersionSignature | None:
        """Store a signature and return it, or the one that its key made before.

        None, and nothing stored, when it would be one too many for its version.
        """
        ...

    async def get(self, name: SignatureName) -> VersionSignature | None:
        """Return the signature; None when there is none."""
        ...

    async def list(self, version: VersionName, after: SignatureName | None, limit: int) -> Sequence[VersionSignature]:
        """Return the first signatures behind `after`, ordered by name."""
        ...


class Signatures:
    """The rules of signatures."""

    def __init__(self, store: SignatureStore, versions: Versions, clock: Clock) -> None:
        self._store = store
        self._versions = versions
        self._clock = clock

    async def create(self, name: VersionName, public_key: str, bundle: bytes) -> VersionSignature:
        """Check a signature and attach it to its version. One that the key made before is returned instead.

        Raises ModelNotFound, VersionNotFound, SignatureRefused or TooManySignatures.
        """
        version = await self._versions.get(name)
        members = {file.path: file.blob.sha256 for file in version.content.files}
        try:
            key = PublicKey.parse(public_key)
            verify(bundle, key, str(name), members)
        except (PublicKeyInvalid, SignatureInvalid) as error:
            raise SignatureRefused(str(error)) from error
        signature = VersionSignature(
            SignatureName(name.model_id, name.number, key.fingerprint), key.pem, bundle, self._clock()
        )
        stored = await self._store.add(signature, MAX_SIGNATURES)
        if stored is None:
            raise TooManySignatures(f"{name} has {MAX_SIGNATURES} signatures already", name=str(name))
        return stored

    async def get(self, name: SignatureName) -> VersionSignature:
        """Return the signature. Raises ModelNotFound, VersionNotFound or SignatureNotFound."""
        signature = await self._store.get(name)
        if signature is not None:
            return signature
        await self._versions.get(name.version)
        raise SignatureNotFound(f"{name.version} has no signature of key {name.fingerprint}", name=str(name))

    async def list(self, version: VersionName, after: SignatureName | None, limit: int) -> Sequence[VersionSignature]:
        """Return the first signatures behind `after`, ordered by name. Raises ModelNotFound or VersionNotFound."""
        await self._versions.get(version)
        return await self._store.list(version, after, limit)
