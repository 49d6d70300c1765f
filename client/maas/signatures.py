"""Signatures of versions: which key says that a version is exactly these files.

A signature is a Sigstore bundle as the OpenSSF's `model_signing` writes it: a DSSE envelope around an in-toto
statement, whose subject is the version's name and whose resources are the path and SHA-256 of every member,
manifest.json among them. So hashes are all that is needed to check it. maas.signing makes bundles; what is here checks
them with `cryptography` alone, imported where it is used: processes that run for months check signatures, and one that
never does pays nothing.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

    from maas.registry.v1.blob_pb2 import File

MAX_BUNDLE_BYTES = 2**20

_BUNDLE_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_MAX_KEY_CHARACTERS = 4096


class PublicKeyInvalid(ValueError):
    """A text is no public key that can check signatures."""


class SignatureInvalid(ValueError):
    """A signature is not of this key, this version or these files; the message says which."""


class VersionNotSigned(ValueError):
    """A version is signed by none of the keys that are trusted; the message says what to do."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that checks signatures. Its fingerprint is the SHA-256 of its PEM text: `sha256sum key.pub` gives it."""

    pem: str
    fingerprint: str

    @classmethod
    def parse(cls, pem: str) -> "PublicKey":
        """Return the key in a PEM text, an elliptic curve key on P-256, P-384 or P-521. Raises PublicKeyInvalid."""
        key = _load(pem)
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        canonical = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return cls(canonical.decode(), hashlib.sha256(canonical).hexdigest())


def members_of(files: "Iterable[File]") -> dict[str, str]:
    """Return the SHA-256 of each of a version's files by its path."""
    return {file.path: file.blob.removeprefix("blobs/") for file in files}


def verify(bundle: bytes, key: PublicKey, version: str, members: Mapping[str, str]) -> None:
    """Return if `key` signed that `version` is `members`, each path with its SHA-256, and no others.

    Raises SignatureInvalid.
    """
    envelope, fingerprint = _envelope(bundle)
    if fingerprint != key.fingerprint:
        raise SignatureInvalid(f"the signature is of key {fingerprint}, not of {key.fingerprint}")
    payload = _signed_payload(envelope, key)
    try:
        statement = json.loads(payload)
        _check_statement(statement, version, members)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise SignatureInvalid(f"what is signed is no statement about a model: {error!r}") from error


def signer_of(
    version: str, members: Mapping[str, str], bundles: Mapping[str, bytes], trusted: Sequence[PublicKey]
) -> PublicKey:
    """Return the first trusted key that signed the version; `bundles` are its signatures by their keys' fingerprints.

    Raises VersionNotSigned.
    """
    wrong = []
    for key in trusted:
        if key.fingerprint in bundles:
            try:
                verify(bundles[key.fingerprint], key, version, members)
            except SignatureInvalid as error:
                wrong.append(str(error))
            else:
                return key
    keys = ", ".join(key.fingerprint[:16] for key in trusted)
    found = f"; {'; '.join(wrong)}" if wrong else ""
    raise VersionNotSigned(
        f"{version} is signed by none of the trusted keys ({keys}){found}: sign it with `maas models sign`, "
        "or take a version that is"
    )


def _load(pem: str) -> "EllipticCurvePublicKey":
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if len(pem) > _MAX_KEY_CHARACTERS:
        raise PublicKeyInvalid(f"a public key has at most {_MAX_KEY_CHARACTERS} characters")
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PublicKeyInvalid(
            "this is no public key in PEM form (-----BEGIN PUBLIC KEY-----); `maas keys make` makes a pair"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(
        key.curve, ec.SECP256R1 | ec.SECP384R1 | ec.SECP521R1
    ):
        raise PublicKeyInvalid("the key has to be of an elliptic curve, P-256, P-384 or P-521")
    return key


def _envelope(bundle: bytes) -> tuple[dict[str, Any], str]:
    """Return a bundle's envelope, and the fingerprint of the key that it says it is of. Raises SignatureInvalid."""
    if len(bundle) > MAX_BUNDLE_BYTES:
        raise SignatureInvalid(f"a signature has at most {MAX_BUNDLE_BYTES} bytes")
    try:
        content = json.loads(bundle)
        media_type = content["mediaType"]
        envelope, fingerprint = content["dsseEnvelope"], content["verificationMaterial"]["publicKey"]["hint"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise SignatureInvalid(f"this is no Sigstore bundle that a key made: {error!r}") from error
    if media_type != _BUNDLE_TYPE:
        raise SignatureInvalid(f"the bundle is of type {str(media_type)[:100]!r}, not {_BUNDLE_TYPE}")
    if not isinstance(envelope, dict) or not isinstance(fingerprint, str):
        raise SignatureInvalid("this is no Sigstore bundle that a key made")
    return envelope, fingerprint[:64]


def _signed_payload(envelope: Mapping[str, Any], key: PublicKey) -> bytes:
    """Return what an envelope holds if `key` signed it. Raises SignatureInvalid."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        (signature,) = envelope["signatures"]
        payload_type = envelope["payloadType"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signed = base64.b64decode(signature["sig"], validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        raise SignatureInvalid(f"the bundle's envelope cannot be read: {error!r}") from error
    if payload_type != _PAYLOAD_TYPE:
        raise SignatureInvalid(f"the envelope holds {str(payload_type)[:100]!r}, not {_PAYLOAD_TYPE}")
    public = _load(key.pem)
    digests: dict[int, hashes.HashAlgorithm] = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}
    # DSSE's pre-authentication encoding.
    message = b"DSSEv1 %d %b %d %b" % (len(_PAYLOAD_TYPE), _PAYLOAD_TYPE.encode(), len(payload), payload)
    try:
        public.verify(signed, message, ec.ECDSA(digests[public.curve.key_size]))
    except InvalidSignature as error:
        raise SignatureInvalid("the signature is not what the key would have made of what it signs") from error
    return payload


def _check_statement(statement: Mapping[str, Any], version: str, members: Mapping[str, str]) -> None:
    if (statement["_type"], statement["predicateType"]) != (_STATEMENT_TYPE, _PREDICATE_TYPE):
        raise SignatureInvalid("what is signed is not a statement about a model's files")
    (subject,) = statement["subject"]
    if subject["name"] != version:
        raise SignatureInvalid(f"the signature is of {str(subject['name'])[:200]}, not of {version}")
    predicate = statement["predicate"]
    if predicate["serialization"]["method"] != "files":
        raise SignatureInvalid("the signature is not over whole files")
    signed: dict[str, str] = {}
    root = hashlib.sha256()
    for resource in predicate["resources"]:
        if resource["algorithm"] != "sha256" or resource["name"] in signed:
            raise SignatureInvalid("the signature names a file twice, or by another hash than SHA-256")
        signed[resource["name"]] = resource["digest"]
        root.update(bytes.fromhex(resource["digest"]))
    if subject["digest"] != {"sha256": root.hexdigest()}:
        raise SignatureInvalid("the signed hashes are not those of the signed files")
    for path in sorted(signed.keys() | members.keys()):
        if path not in members:
            raise SignatureInvalid(f"{path} is signed, and {version} does not have it")
        if path not in signed:
            raise SignatureInvalid(f"{path} of {version} is not signed")
        if signed[path] != members[path]:
            raise SignatureInvalid(f"{path} has SHA-256 {members[path]}, signed is {str(signed[path])[:64]}")
