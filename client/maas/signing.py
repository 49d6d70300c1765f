"""Keys, and signatures made with them. Only who signs imports this: `model_signing` brings all of Sigstore's client."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from model_signing import hashing
from model_signing import signing as model_signing
from model_signing._hashing.hashing import Digest
from model_signing.manifest import FileManifestItem, Manifest, SerializationType

from maas.errors import AlreadyExistsError, InvalidInputError
from maas.signatures import PublicKey


class PrivateKeyInvalid(InvalidInputError):
    """A file is no private key that can sign, or its password is missing or wrong."""

    def __init__(self, message: str) -> None:
        super().__init__(message, code="INVALID_ARGUMENT", reason="PRIVATE_KEY_INVALID")


def make_key_pair(path: Path) -> PublicKey:
    """Write a new private key to `path`, which only its owner can read, and its public key to `path`.pub.

    Nothing is overwritten. Raises AlreadyExistsError.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    public = PublicKey.parse(
        private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    )
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for target, content, mode in ((path, pem, 0o600), (public_path(path), public.pem.encode(), 0o644)):
        try:
            with open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
                file.write(content)
        except FileExistsError as error:
            raise AlreadyExistsError(
                f"{target} is there already: name another file", code="ALREADY_EXISTS", reason="KEY_EXISTS"
            ) from error
    return public


def public_path(path: Path) -> Path:
    """Return where the public key of a private one lies."""
    return path.with_name(f"{path.name}.pub")


def is_encrypted(private_key: Path) -> bool:
    """Whether the file says that it needs a password."""
    return b"ENCRYPTED" in private_key.read_bytes()[:4096]


def sign(
    private_key: Path, version: str, members: Mapping[str, str], password: str | None = None
) -> tuple[PublicKey, bytes]:
    """Return the public key, and its signature that `version` is `members`: each path with its SHA-256.

    Nothing of the model is read: its files stand in the registry under their SHA-256. Raises PrivateKeyInvalid.
    """
    secret = None if password is None else password.encode()
    public = _public_key_of(private_key, secret)
    config = model_signing.Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_signer(private_key=private_key, password=secret)  # type: ignore[arg-type]  # it wants bytes
    config.set_hashing_config(_KnownHashes(version, members))
    with tempfile.TemporaryDirectory(prefix="maas-sign-") as folder:
        bundle = Path(folder, "bundle")
        config.sign(version, bundle)
        return public, bundle.read_bytes()


class _KnownHashes(hashing.Config):
    """Gives the library hashes that are known, where it would read files and hash them."""

    def __init__(self, version: str, members: Mapping[str, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._version = version
        self._members = members

    def hash(self, *_: object, **__: object) -> Manifest:
        """Return what is known."""
        items = [
            FileManifestItem(path=PurePosixPath(path), digest=Digest("sha256", bytes.fromhex(sha256)))
            for path, sha256 in self._members.items()
        ]
        return Manifest(
            self._version,
            items,
            SerializationType.from_args({"method": "files", "hash_type": "sha256", "allow_symlinks": False}),
        )


def _public_key_of(private_key: Path, password: bytes | None) -> PublicKey:
    try:
        private = load_pem_private_key(private_key.read_bytes(), password)
        public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    except (OSError, ValueError, TypeError) as error:
        raise PrivateKeyInvalid(
            f"{private_key} cannot be used as a private key: {error}; `maas keys make` makes a pair"
        ) from error
    return PublicKey.parse(public.decode())
