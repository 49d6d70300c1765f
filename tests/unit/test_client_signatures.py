"""What is signed with the library is taken by it and by us; whatever else is refused, by both where both look."""

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from model_signing import verifying

from maas.errors import AlreadyExistsError
from maas.signatures import PublicKey, PublicKeyInvalid, SignatureInvalid, VersionNotSigned, signer_of, verify
from maas.signing import PrivateKeyInvalid, is_encrypted, make_key_pair, public_path, sign

VERSION = "models/reviews/versions/2"
FILES = {"manifest.json": b"{}", "servables/onnxruntime/model.onnx": b"onnx", "tokenizer.json": b"[]"}
MEMBERS = {path: hashlib.sha256(content).hexdigest() for path, content in FILES.items()}


@pytest.fixture
def private_key(tmp_path: Path) -> Path:
    make_key_pair(tmp_path / "key")
    return tmp_path / "key"


def changed(bundle: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    content = json.loads(bundle)
    change(content)
    return json.dumps(content).encode()


def statement_changed(bundle: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    def within(content: dict[str, Any]) -> None:
        statement = json.loads(base64.b64decode(content["dsseEnvelope"]["payload"]))
        change(statement)
        content["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return changed(bundle, within)


def test_a_pair_is_made_once_and_its_private_half_is_its_owners(tmp_path: Path) -> None:
    made = make_key_pair(tmp_path / "key")
    public = public_path(tmp_path / "key").read_bytes()
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert made.fingerprint == hashlib.sha256(public).hexdigest()
    assert PublicKey.parse(public.decode()) == made
    with pytest.raises(AlreadyExistsError):
        make_key_pair(tmp_path / "key")
    assert public_path(tmp_path / "key").read_bytes() == public


def test_a_signature_holds_for_its_version_and_its_files_alone(private_key: Path) -> None:
    key, bundle = sign(private_key, VERSION, MEMBERS)
    verify(bundle, key, VERSION, MEMBERS)
    for version, members in (
        ("models/reviews/versions/3", MEMBERS),
        (VERSION, MEMBERS | {"tokenizer.json": "0" * 64}),
        (VERSION, MEMBERS | {"more.json": "0" * 64}),
        (VERSION, {"manifest.json": MEMBERS["manifest.json"]}),
    ):
        with pytest.raises(SignatureInvalid):
            verify(bundle, key, version, members)


def test_the_library_takes_a_signature_for_the_folder_that_was_pulled(private_key: Path, tmp_path: Path) -> None:
    _, bundle = sign(private_key, VERSION, MEMBERS)
    folder = tmp_path / "pulled"
    for path, content in FILES.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    (tmp_path / "bundle").write_bytes(bundle)
    library = verifying.Config().use_elliptic_key_verifier(public_key=public_path(private_key))
    library.verify(folder, tmp_path / "bundle")
    (folder / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match="mismatch"):
        library.verify(folder, tmp_path / "bundle")


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "no JSON": lambda bundle: bundle[:-2],
    "nested without end": lambda _: b"[" * 100_000,
    "too large": lambda bundle: bundle + b" " * 2**20,
    "other media type": lambda bundle: changed(bundle, lambda one: one.update(mediaType="application/json")),
    "other key": lambda bundle: changed(
        bundle, lambda one: one["verificationMaterial"]["publicKey"].update(hint="0" * 64)
    ),
    "no key": lambda bundle: changed(bundle, lambda one: one["verificationMaterial"].pop("publicKey")),
    "no signature": lambda bundle: changed(bundle, lambda one: one["dsseEnvelope"].update(signatures=[])),
    "two signatures": lambda bundle: changed(
        bundle, lambda one: one["dsseEnvelope"].update(signatures=one["dsseEnvelope"]["signatures"] * 2)
    ),
    "empty signature": lambda bundle: changed(
        bundle, lambda one: one["dsseEnvelope"]["signatures"][0].update(sig="")
    ),
    "signature of zeros": lambda bundle: changed(
        bundle, lambda one: one["dsseEnvelope"]["signatures"][0].update(sig=base64.b64encode(bytes(72)).decode())
    ),
    "other payload type": lambda bundle: changed(
        bundle, lambda one: one["dsseEnvelope"].update(payloadType="text/plain")
    ),
    "base64 with noise": lambda bundle: changed(
        bundle, lambda one: one["dsseEnvelope"].update(payload="!" + one["dsseEnvelope"]["payload"])
    ),
    "payload written otherwise": lambda bundle: statement_changed(bundle, lambda _: None),
    "other version": lambda bundle: statement_changed(
        bundle, lambda one: one["subject"][0].update(name="models/other/versions/1")
    ),
    "other hash": lambda bundle: statement_changed(
        bundle, lambda one: one["predicate"]["resources"][0].update(digest="0" * 64)
    ),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_bundle_that_was_changed_is_refused(private_key: Path, tmp_path: Path, change: str) -> None:
    key, bundle = sign(private_key, VERSION, MEMBERS)
    with pytest.raises(SignatureInvalid):
        verify(CHANGES[change](bundle), key, VERSION, MEMBERS)


def resigned(private: ec.EllipticCurvePrivateKey, key: PublicKey, bundle: bytes, change: Callable[[Any], Any]) -> bytes:
    """A bundle that says something else, signed with the very key."""
    from cryptography.hazmat.primitives import hashes

    said = json.loads(statement_changed(bundle, change))
    payload = base64.b64decode(said["dsseEnvelope"]["payload"])
    message = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    signature = private.sign(message, ec.ECDSA(hashes.SHA256()))
    said["dsseEnvelope"]["signatures"] = [{"sig": base64.b64encode(signature).decode()}]
    return json.dumps(said).encode()


STATEMENTS: dict[str, Callable[[Any], Any]] = {
    "two subjects": lambda one: one.update(subject=one["subject"] * 2),
    "other root": lambda one: one["subject"][0].update(digest={"sha256": "0" * 64}),
    "a file twice": lambda one: one["predicate"]["resources"].append(one["predicate"]["resources"][0]),
    "another algorithm": lambda one: one["predicate"]["resources"][0].update(algorithm="md5"),
    "shards": lambda one: one["predicate"]["serialization"].update(method="shards"),
    "another predicate": lambda one: one.update(predicateType="https://slsa.dev/provenance/v1"),
    "no predicate": lambda one: one.pop("predicate"),
    "a digest that is none": lambda one: one["predicate"]["resources"][0].update(digest="xyz"),
    "a digest that is a list": lambda one: one["predicate"]["resources"][0].update(digest=["x"]),
    "resources that are none": lambda one: one["predicate"].update(resources=7),
}  # fmt: skip


@pytest.mark.parametrize("change", STATEMENTS)
def test_a_key_that_signs_something_else_has_not_signed_the_version(private_key: Path, change: str) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key, bundle = sign(private_key, VERSION, MEMBERS)
    private = load_pem_private_key(private_key.read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    verify(resigned(private, key, bundle, lambda _: None), key, VERSION, MEMBERS)
    with pytest.raises(SignatureInvalid):
        verify(resigned(private, key, bundle, STATEMENTS[change]), key, VERSION, MEMBERS)


def test_keys_of_openssl_sign_too_with_their_password(tmp_path: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=tmp_path, check=True, capture_output=True, timeout=30)

    openssl("ecparam", "-name", "secp384r1", "-genkey", "-noout", "-out", "plain")
    openssl("pkcs8", "-topk8", "-in", "plain", "-out", "locked", "-passout", "pass:secret")
    openssl("ec", "-in", "plain", "-pubout", "-out", "public")
    key, bundle = sign(tmp_path / "locked", VERSION, MEMBERS, "secret")
    verify(bundle, key, VERSION, MEMBERS)
    assert key.fingerprint == hashlib.sha256((tmp_path / "public").read_bytes()).hexdigest()
    assert (is_encrypted(tmp_path / "locked"), is_encrypted(tmp_path / "plain")) == (True, False)
    for password in (None, "wrong"):
        with pytest.raises(PrivateKeyInvalid):
            sign(tmp_path / "locked", VERSION, MEMBERS, password)
    with pytest.raises(PrivateKeyInvalid):
        sign(tmp_path / "nothing", VERSION, MEMBERS)


def pem_of(key: Any) -> str:
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


@pytest.mark.parametrize(
    "pem",
    [
        "",
        "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        "x" * 10_000,
        pem_of(ed25519.Ed25519PrivateKey.generate()),
        pem_of(rsa.generate_private_key(65537, 2048)),
        pem_of(ec.generate_private_key(ec.SECP256K1())),
    ],
    ids=["nothing", "garbage", "long", "ed25519", "rsa", "other curve"],
)
def test_what_is_no_key_that_can_sign_versions_is_refused(pem: str) -> None:
    with pytest.raises(PublicKeyInvalid):
        PublicKey.parse(pem)


def test_one_trusted_key_is_enough_and_without_one_it_is_said_what_to_do(tmp_path: Path) -> None:
    first, second, third = (make_key_pair(tmp_path / name) for name in ("first", "second", "third"))
    bundles = {key.fingerprint: sign(tmp_path / name, VERSION, MEMBERS)[1]
               for name, key in (("first", first), ("second", second))}  # fmt: skip
    assert signer_of(VERSION, MEMBERS, bundles, [third, second]) == second
    with pytest.raises(VersionNotSigned, match="maas models sign"):
        signer_of(VERSION, MEMBERS, bundles, [third])
    with pytest.raises(VersionNotSigned, match=r"tokenizer.json has SHA-256"):
        signer_of(VERSION, MEMBERS | {"tokenizer.json": "0" * 64}, bundles, [first])
