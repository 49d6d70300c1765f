"""Signing a version and requiring signatures, with the command, the library and the services that take part."""

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner, Result

from maas.cli.app import app
from maas.client import Client
from maas.errors import InvalidInputError, MaasError, NotAllowedNowError, NotFoundError, from_rpc_error
from maas.names import VersionName
from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas.registry.v1.version_signature_pb2 import VersionSignature
from maas.rollout.v1.deployment_pb2 import Deployment, Target
from maas.rollout.v1.rollout_service_pb2 import CreateDeploymentRequest
from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceStub
from maas.signatures import members_of
from maas.signing import make_key_pair, public_path, sign
from maas_inference.manager.packages import PackageStore, TrustedKeyUnreadable
from maas_package.manifest import Manifest, Servable, TensorSpec
from maas_package.package import write_package
from maas_package.signed import VersionNotSigned
from maas_registry.__main__ import open_registry
from maas_registry.settings import Settings as RegistrySettings
from maas_rollout.__main__ import open_rollout
from maas_rollout.settings import Settings as RolloutSettings
from maas_runtime.failures import Unavailable
from maas_runtime.server import build_server

Maas = Callable[..., Result]


async def serve(folder: Path, ports: list[int], started: threading.Event, stop: threading.Event) -> None:
    variables = {
        "MAAS_HOME": str(folder),
        "MAAS_LISTEN": f"unix:{folder}/s.sock",
        "MAAS_METRICS_LISTEN": f"unix:{folder}/m.sock",
    }
    metrics = CollectorRegistry()
    variables["MAAS_REGISTRY_ADDRESS"] = variables["MAAS_LISTEN"]
    async with (
        open_registry(RegistrySettings.from_env(variables), metrics) as registry,
        open_rollout(RolloutSettings.from_env(variables)) as rollout,
    ):
        server, _ = build_server([registry, rollout.service], metrics)
        server.add_insecure_port(variables["MAAS_LISTEN"])
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        started.set()
        await asyncio.to_thread(stop.wait)
        rollout.feed.close()
        await server.stop(None)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, ports = tmp_path_factory.mktemp("signing"), list[int]()
    started, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(serve(folder, ports, started, stop)))
    thread.start()
    assert started.wait(30)
    yield f"127.0.0.1:{ports[0]}"
    stop.set()
    thread.join(30)


@pytest.fixture
def client(endpoint: str) -> Iterator[Client]:
    with Client(endpoint) as client:
        yield client


@pytest.fixture
def maas(endpoint: str, tmp_path: Path) -> Maas:
    """Run a command; unless told otherwise it has to succeed."""

    def run(*arguments: str, status: int = 0, stdin: str | None = None) -> Result:
        environment = {"MAAS_ENDPOINT": endpoint, "MAAS_HOME": str(tmp_path / "home")}
        result = CliRunner().invoke(app, list(arguments), env=environment, input=stdin)
        assert result.exit_code == status, (result.stdout, result.stderr, result.exception)
        return result

    return run


@pytest.fixture
def key(tmp_path: Path) -> Path:
    make_key_pair(tmp_path / "key")
    return tmp_path / "key"


@pytest.fixture
def version(client: Client, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A version of a model that only this test has."""
    folder = tmp_path / "package"
    (folder / "servables").mkdir(parents=True)
    (folder / "servables" / "model.onnx").write_bytes(b"\x0a\x22onnx, as far as the registry looks")
    write_package(
        folder,
        Manifest(
            task="tensors",
            inputs=(TensorSpec("x", "FP32", (-1, 3)),),
            outputs=(TensorSpec("y", "FP32", (-1, 2)),),
            servables=(Servable("onnxruntime", "fp32", "servables/model.onnx"),),
        ),
    )
    model = f"m-{hashlib.sha256(request.node.name.encode()).hexdigest()[:12]}"
    return client.push_package(folder, model).name


def test_a_version_is_signed_listed_and_verified(maas: Maas, version: str, key: Path) -> None:
    made = json.loads(maas("models", "sign", version, "--private-key", str(key), "--json").stdout)
    assert made["version"] == version
    assert made["fingerprint"] == hashlib.sha256(public_path(key).read_bytes()).hexdigest()
    assert json.loads(maas("models", "signatures", version, "--json").stdout) == [made]
    verified = json.loads(maas("models", "verify", version, "--public-key", str(public_path(key)), "--json").stdout)
    assert verified.items() >= made.items()
    assert verified["files"] == 2
    assert "is what key" in maas("models", "verify", version, "--public-key", str(public_path(key))).stderr
    assert made["fingerprint"] in maas("models", "signatures", version).stdout


def test_keys_are_made_by_the_command(maas: Maas, tmp_path: Path, version: str) -> None:
    file = tmp_path / "pair"
    made = json.loads(maas("keys", "make", str(file), "--json").stdout)
    assert made["public_key"] == str(public_path(file))
    maas("keys", "make", str(file), status=1)
    maas("models", "sign", version, "--private-key", str(file))
    assert made["fingerprint"] in maas("models", "signatures", version).stdout


def test_a_version_that_no_trusted_key_signed_is_not_verified(client: Client, version: str, key: Path) -> None:
    with pytest.raises(NotAllowedNowError) as caught:
        client.verify(version, [public_path(key)])
    assert (caught.value.reason, caught.value.resource_name) == ("VERSION_NOT_SIGNED", version)
    client.sign(version, key)
    make_key_pair(key.with_name("other"))
    with pytest.raises(NotAllowedNowError):
        client.verify(version, [public_path(key.with_name("other"))])
    assert client.verify(version, [public_path(key.with_name("other")), public_path(key)])
    with pytest.raises(InvalidInputError) as refused:
        client.verify(version, [key])
    assert refused.value.reason == "PUBLIC_KEY_INVALID", "a private key is no public one"


def test_several_keys_sign_and_the_first_word_of_each_stays(client: Client, version: str, key: Path) -> None:
    make_key_pair(key.with_name("other"))
    first = client.sign(version, key)
    client.sign(version, key.with_name("other"))
    assert client.sign(version, key) == first
    assert len(list(client.signatures(version))) == 2


def refusal(endpoint: str, version: str, signature: VersionSignature) -> MaasError:
    with grpc.insecure_channel(endpoint) as channel, pytest.raises(grpc.RpcError) as caught:
        RegistryServiceStub(channel).CreateVersionSignature(
            messages.CreateVersionSignatureRequest(parent=version, version_signature=signature), timeout=10
        )
    return from_rpc_error(caught.value)


def test_a_signature_that_does_not_hold_is_not_stored(client: Client, endpoint: str, version: str, key: Path) -> None:
    members = members_of(client.version(version).files)
    public, right = sign(key, version, members)
    wrong = (
        VersionSignature(public_key=public.pem, bundle=sign(key, "models/other/versions/1", members)[1]),
        VersionSignature(public_key=public.pem, bundle=sign(key, version, members | {"manifest.json": "0" * 64})[1]),
        VersionSignature(public_key=make_key_pair(key.with_name("other")).pem, bundle=right),
        VersionSignature(public_key="none", bundle=right),
        VersionSignature(public_key=public.pem, bundle=b"[" * 2**20),
    )
    for signature in wrong:
        error = refusal(endpoint, version, signature)
        assert (error.code, error.reason) == ("INVALID_ARGUMENT", "SIGNATURE_INVALID")
    assert list(client.signatures(version)) == []
    with pytest.raises(NotFoundError):
        list(client.signatures("models/nothing/versions/1"))


def test_a_version_has_a_bounded_number_of_signatures(client: Client, version: str, key: Path) -> None:
    for number in range(16):
        make_key_pair(key.with_name(f"key-{number}"))
        client.sign(version, key.with_name(f"key-{number}"))
    with pytest.raises(NotAllowedNowError) as caught:
        client.sign(version, key)
    assert caught.value.reason == "TOO_MANY_SIGNATURES"


def name_of(version: str) -> str:
    """A deployment that only this version's test has."""
    return f"d-{version.split('/')[1]}"


def events_of(client: Client, deployment: str) -> list[tuple[str, list[str], list[str]]]:
    return [
        (event.action, list(event.trusted_keys_before), list(event.trusted_keys_after))
        for event in client.deployment_events(deployment)
    ]


def test_a_deployment_that_requires_signatures_takes_what_is_signed_and_nothing_else(
    maas: Maas, client: Client, version: str, key: Path
) -> None:
    name, public = name_of(version), str(public_path(key))
    refused = maas("--verbose", "deploy", name, version, "--no-wait", "--require-signature", public, status=1)
    assert "VERSION_NOT_SIGNED" in refused.stderr
    assert "maas models sign" in refused.stderr
    with pytest.raises(NotFoundError):
        client.deployment(name)
    client.sign(version, key)
    maas("deploy", name, version, "--no-wait", "--require-signature", public)
    fingerprint = hashlib.sha256(public_path(key).read_bytes()).hexdigest()
    assert client.deployment(name).trusted_keys == [public_path(key).read_text()]
    assert fingerprint in maas("deployments", "show", name).stdout
    assert events_of(client, name) == [("created", [], [fingerprint])]
    model = version.split("/")[1]
    other = client.push_package(key.with_name("package"), model).name
    with pytest.raises(NotAllowedNowError) as caught:
        client.deploy(name, [other])
    assert (caught.value.reason, caught.value.resource_name) == ("VERSION_NOT_SIGNED", other)
    assert [target.version for target in client.deployment(name).targets] == [version]


def test_a_change_of_the_trusted_keys_is_checked_and_recorded(
    maas: Maas, client: Client, version: str, key: Path
) -> None:
    name, other = name_of(version), key.with_name("other")
    make_key_pair(other)
    client.sign(version, key)
    client.deploy(name, [version], trusted_keys=[public_path(key)])
    with pytest.raises(NotAllowedNowError):
        client.deploy(name, [version], trusted_keys=[public_path(other)])
    client.sign(version, other)
    client.deploy(name, [version], trusted_keys=[public_path(other)])
    maas("deploy", name, version, "--no-wait", "--allow-unsigned", "--reason", "an experiment")
    first, second = (hashlib.sha256(public_path(one).read_bytes()).hexdigest() for one in (key, other))
    assert events_of(client, name) == [
        ("configured", [second], []), ("configured", [first], [second]), ("created", [], [first])
    ]  # fmt: skip
    assert "unsigned allowed" in maas("deployments", "events", name).stdout
    assert not client.deployment(name).trusted_keys
    maas("deploy", name, version, "--allow-unsigned", "--require-signature", str(public_path(key)), status=1)


def test_a_trusted_key_that_is_none_is_refused(endpoint: str, version: str) -> None:
    with grpc.insecure_channel(endpoint) as channel, pytest.raises(grpc.RpcError) as caught:
        RolloutServiceStub(channel).CreateDeployment(
            CreateDeploymentRequest(
                deployment_id=name_of(version),
                deployment=Deployment(targets=[Target(version=version, weight=1)], trusted_keys=["none"]),
            ),
            timeout=10,
        )
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "TRUSTED_KEY_INVALID")
    assert error.violations[0][0] == "deployment.trusted_keys[0]"


def test_a_host_loads_only_what_a_trusted_key_signed_whatever_rollout_says(
    client: Client, endpoint: str, version: str, key: Path, tmp_path: Path
) -> None:
    name, trusted = VersionName.parse(version), [public_path(key).read_text()]
    with grpc.insecure_channel(endpoint) as channel:
        packages = PackageStore(tmp_path / "packages", channel, 2**30)
        with pytest.raises(VersionNotSigned):
            packages.fetch(name, trusted)
        assert not list((tmp_path / "packages").rglob("*.onnx")), "it was not even downloaded"
        folder = packages.fetch(name)
        with pytest.raises(VersionNotSigned):
            packages.fetch(name, trusted)
        client.sign(version, key)
        assert packages.fetch(name, trusted) == folder
        with pytest.raises(TrustedKeyUnreadable):
            packages.fetch(name, ["none"])
        manifest = (folder / "manifest.json").read_bytes()
        (folder / "manifest.json").write_bytes(manifest.replace(b'"fp32"', b'"int8"'))
        with pytest.raises(VersionNotSigned):
            packages.fetch(name, trusted)
        packages.discard(name)
        assert packages.fetch(name, trusted) == folder
    with grpc.insecure_channel("127.0.0.1:1") as channel:
        away = PackageStore(tmp_path / "packages", channel, 2**30)
        assert away.fetch(name, trusted) == folder, "its signature is kept beside it"
        make_key_pair(key.with_name("other"))
        with pytest.raises(Unavailable):
            away.fetch(name, [public_path(key.with_name("other")).read_text()])
        away.trim([])
        assert away.fetch(name, trusted) == folder
    PackageStore(tmp_path / "packages", channel, 0).trim([])
    assert not list((tmp_path / "packages").rglob("*.json")), "a package goes with its signatures"
