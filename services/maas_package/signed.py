"""Whether a version may be deployed where only signed ones may."""

from collections.abc import Mapping, Sequence

from maas.names import SignatureName, VersionName
from maas.signatures import PublicKey, signer_of
from maas.signatures import VersionNotSigned as NoSigner
from maas_runtime.failures import NotAllowedNow


class VersionNotSigned(NotAllowedNow):
    """None of the keys that a deployment trusts signed the version."""

    reason = "VERSION_NOT_SIGNED"


def signature_names(version: VersionName, trusted: Sequence[PublicKey]) -> list[SignatureName]:
    """Return the signatures that the version may have of these keys."""
    return [SignatureName(version.model_id, version.number, key.fingerprint) for key in trusted]


def check_signed(
    version: VersionName, members: Mapping[str, str], bundles: Mapping[str, bytes], trusted: Sequence[PublicKey]
) -> None:
    """Return if a trusted key signed the version; `bundles` are the signatures there are, by fingerprint of the key.

    Raises VersionNotSigned.
    """
    try:
        signer_of(str(version), members, bundles, trusted)
    except NoSigner as error:
        raise VersionNotSigned(str(error), name=str(version)) from error
