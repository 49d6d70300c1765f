"""RolloutService as its process wires it, beside a real registry, called through the stub."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf import field_mask_pb2
from prometheus_client import CollectorRegistry

from maas.errors import MaasError, from_rpc_error
from maas.registry.v1 import blob_pb2, registry_service_pb2, version_pb2
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas.rollout.v1 import deployment_pb2
from maas.rollout.v1 import rollout_service_pb2 as messages
from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceStub
from maas_package.manifest import FileEntry, Manifest, Servable, TensorSpec
from maas_registry.__main__ import open_registry
from maas_registry.settings import Settings as RegistrySettings
from maas_rollout.__main__ import open_rollout
from maas_rollout.settings import Settings
from maas_runtime.server import GrpcService, build_server

if TYPE_CHECKING:
    from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceAsyncStub
    from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceAsyncStub

READY, LOADING, FAILED = (
    deployment_pb2.TARGET_STATE_READY,
    deployment_pb2.TARGET_STATE_LOADING,
    deployment_pb2.TARGET_STATE_FAILED,
)
ONNX = b"\x0a\x22onnx, as far as the registry looks"
MANIFEST = Manifest(
    task="text-classification",
    inputs=(TensorSpec("input_ids", "INT64", (-1, -1)),),
    outputs=(TensorSpec("logits", "FP32", (-1, 2)),),
    servables=(Servable("onnxruntime", "fp32", "model.onnx"),),
    files=(FileEntry("model.onnx", hashlib.sha256(ONNX).hexdigest(), len(ONNX)),),
).to_json()


def variables_in(folder: Path, process: str) -> dict[str, str]:
    return {
        "MAAS_HOME": str(folder),
        "MAAS_LISTEN": f"unix:{folder}/{process}.sock",
        "MAAS_METRICS_LISTEN": f"unix:{folder}/{process}-metrics.sock",
        "MAAS_REGISTRY_ADDRESS": f"unix:{folder}/registry.sock",
    }


@asynccontextmanager
async def served(service: GrpcService, listen: str) -> AsyncIterator[None]:
    server, _ = build_server([service], CollectorRegistry())
    server.add_insecure_port(listen)
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator["RegistryServiceAsyncStub"]:
    """A registry with the models `a` (versions 1 and 2, alias `best` to 2) and `b` (version 1)."""
    settings = RegistrySettings.from_env(variables_in(tmp_path, "registry"))
    async with (
        open_registry(settings, CollectorRegistry()) as service,
        served(service, settings.process.listen),
        grpc.aio.insecure_channel(settings.process.listen) as channel,
    ):
        stub = RegistryServiceStub(channel)
        files = [
            blob_pb2.File(path=path, blob=await put(stub, content))
            for path, content in (("model.onnx", ONNX), ("manifest.json", MANIFEST))
        ]
        for model_id, count in (("a", 2), ("b", 1)):
            await stub.CreateModel(registry_service_pb2.CreateModelRequest(model_id=model_id), timeout=5)
            for _ in range(count):
                await stub.CreateVersion(
                    registry_service_pb2.CreateVersionRequest(
                        parent=f"models/{model_id}", version=version_pb2.Version(files=files)
                    ),
                    timeout=5,
                )
        await stub.SetAlias(
            registry_service_pb2.SetAliasRequest(name="models/a/aliases/best", version="models/a/versions/2"), timeout=5
        )
        yield stub


async def put(registry: "RegistryServiceAsyncStub", content: bytes) -> str:
    name = f"blobs/{hashlib.sha256(content).hexdigest()}"
    header = registry_service_pb2.UploadHeader(name=name, size_bytes=len(content))
    requests = [
        registry_service_pb2.UploadBlobRequest(header=header),
        registry_service_pb2.UploadBlobRequest(chunk=content),
    ]
    await registry.UploadBlob(iter(requests), timeout=5)
    return name


@asynccontextmanager
async def rollout_in(folder: Path) -> AsyncIterator["RolloutServiceAsyncStub"]:
    settings = Settings.from_env(variables_in(folder, "rollout"))
    async with (
        open_rollout(settings) as rollout,
        served(rollout.service, settings.process.listen),
        grpc.aio.insecure_channel(settings.process.listen) as channel,
    ):
        yield RolloutServiceStub(channel)


@pytest.fixture
async def rollout(registry: "RegistryServiceAsyncStub", tmp_path: Path) -> AsyncIterator["RolloutServiceAsyncStub"]:
    async with rollout_in(tmp_path) as stub:
        yield stub


def targets(*weights: tuple[str, int]) -> deployment_pb2.Deployment:
    return deployment_pb2.Deployment(
        targets=[deployment_pb2.Target(version=f"models/{name}", weight=weight) for name, weight in weights]
    )


async def create(
    rollout: "RolloutServiceAsyncStub", deployment_id: str = "reviews", version: str = "a/versions/1"
) -> deployment_pb2.Deployment:
    request = messages.CreateDeploymentRequest(
        deployment_id=deployment_id, deployment=targets((version, 1)), actor="ann", reason="first"
    )
    return await rollout.CreateDeployment(request, timeout=5)


async def update(
    rollout: "RolloutServiceAsyncStub", *weights: tuple[str, int], etag: str = "", paths: tuple[str, ...] = ()
) -> deployment_pb2.Deployment:
    deployment = targets(*weights)
    deployment.name, deployment.etag = "deployments/reviews", etag
    request = messages.UpdateDeploymentRequest(
        deployment=deployment, update_mask=field_mask_pb2.FieldMask(paths=paths), actor="bob"
    )
    return await rollout.UpdateDeployment(request, timeout=5)


async def configure(
    rollout: "RolloutServiceAsyncStub", serving: deployment_pb2.ServingSettings, *paths: str
) -> deployment_pb2.ServingSettings:
    deployment = targets(("a/versions/1", 1))
    deployment.name = "deployments/reviews"
    deployment.serving.CopyFrom(serving)
    request = messages.UpdateDeploymentRequest(
        deployment=deployment, update_mask=field_mask_pb2.FieldMask(paths=paths), actor="bob"
    )
    return (await rollout.UpdateDeployment(request, timeout=5)).serving


async def get(rollout: "RolloutServiceAsyncStub", name: str = "deployments/reviews") -> deployment_pb2.Deployment:
    return await rollout.GetDeployment(messages.GetDeploymentRequest(name=name), timeout=5)


async def report(rollout: "RolloutServiceAsyncStub", **states: "deployment_pb2.TargetState.ValueType") -> None:
    statuses = [
        deployment_pb2.TargetStatus(version=f"models/a/versions/{version[1:]}", state=state, message="why")
        for version, state in states.items()
    ]
    request = messages.ReportReplicaRequest(
        replica="r", deployments=[messages.DeploymentReport(deployment="deployments/reviews", statuses=statuses)]
    )
    await rollout.ReportReplica(request, timeout=5)


async def error_of(call: Any) -> MaasError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


async def test_serving_settings_are_changed_as_far_as_the_mask_says(rollout: "RolloutServiceAsyncStub") -> None:
    given = deployment_pb2.ServingSettings
    await create(rollout)
    always = deployment_pb2.LOAD_POLICY_ALWAYS
    assert (await get(rollout)).serving == given(load_policy=always)
    first = given(max_batch_rows=64, engine="openvino:bf16", load_policy=always)
    assert await configure(rollout, first) == first
    assert await configure(rollout, given(max_batch_rows=9, max_queue_rows=5), "serving.max_queue_rows") == given(
        max_batch_rows=64, engine="openvino:bf16", max_queue_rows=5, load_policy=always
    )
    assert await configure(rollout, given(max_batch_rows=9), "targets") == (await get(rollout)).serving
    assert (await get(rollout)).serving.max_batch_rows == 64
    assert await configure(rollout, given(), "serving") == given(load_policy=always)
    listed = await rollout.ListDeploymentEvents(
        messages.ListDeploymentEventsRequest(parent="deployments/reviews"), timeout=5
    )
    assert [event.action for event in listed.deployment_events] == ["configured"] * 3 + ["created"]


async def test_serving_settings_out_of_their_ranges_are_refused(rollout: "RolloutServiceAsyncStub") -> None:
    await create(rollout)
    too_long = deployment_pb2.ServingSettings()
    too_long.compute_timeout.seconds = 3601
    wrong = [
        deployment_pb2.ServingSettings(max_batch_rows=1025),
        deployment_pb2.ServingSettings(engine="Open VINO"),
        deployment_pb2.ServingSettings(worker_memory_bytes=1),
        too_long,
    ]
    for serving in wrong:
        with pytest.raises(grpc.RpcError) as caught:
            await configure(rollout, serving)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.RpcError) as caught:
        await configure(rollout, deployment_pb2.ServingSettings(), "serving.nothing")
    assert from_rpc_error(caught.value).reason == "UPDATE_MASK_INVALID"


async def test_a_deployment_is_created_read_changed_listed_and_ended(rollout: "RolloutServiceAsyncStub") -> None:
    made = await create(rollout, version="a/aliases/best")
    assert (made.name, made.state) == ("deployments/reviews", deployment_pb2.DEPLOYMENT_STATE_PENDING)
    assert [(target.version, target.weight) for target in made.targets] == [("models/a/versions/2", 1)]
    assert made.create_time == made.update_time
    assert await get(rollout) == made
    changed = await update(rollout, ("a/versions/1", 9), ("a/aliases/best", 1), etag=made.etag, paths=("targets",))
    assert [target.weight for target in changed.targets] == [9, 1]
    assert (await rollout.ListDeployments(messages.ListDeploymentsRequest(), timeout=5)).deployments == [changed]
    await rollout.DeleteDeployment(messages.DeleteDeploymentRequest(name=made.name, actor="eve"), timeout=5)
    error = await error_of(get(rollout))
    assert (error.code, error.reason) == ("NOT_FOUND", "DEPLOYMENT_NOT_FOUND")
    listed = await rollout.ListDeploymentEvents(
        messages.ListDeploymentEventsRequest(parent=made.name, page_size=2), timeout=5
    )
    rest = await rollout.ListDeploymentEvents(
        messages.ListDeploymentEventsRequest(parent=made.name, page_token=listed.next_page_token), timeout=5
    )
    events = [*listed.deployment_events, *rest.deployment_events]
    assert [(event.action, event.actor, event.reason) for event in events] == [
        ("deleted", "eve", ""),
        ("updated", "bob", ""),
        ("created", "ann", "first"),
    ]
    assert list(events[1].targets_before) == list(made.targets)
    assert list(events[1].targets_after) == list(changed.targets)


@pytest.mark.parametrize(
    ("version", "code", "reason"),
    [
        ("a/versions/9", "NOT_FOUND", "VERSION_NOT_FOUND"),
        ("a/aliases/worst", "NOT_FOUND", "ALIAS_NOT_FOUND"),
        ("c/versions/1", "NOT_FOUND", "MODEL_NOT_FOUND"),
        ("a", "INVALID_ARGUMENT", "RESOURCE_NAME_INVALID"),
    ],
)
async def test_a_version_that_is_not_there_is_the_registrys_failure(
    rollout: "RolloutServiceAsyncStub", version: str, code: str, reason: str
) -> None:
    error = await error_of(create(rollout, version=version))
    assert (error.code, error.reason) == (code, reason)


async def test_a_change_that_is_wrong_says_how(rollout: "RolloutServiceAsyncStub") -> None:
    made = await create(rollout)
    await update(rollout, ("a/versions/2", 1))
    one = ("a/versions/1", 1)
    for call, code, reason in (
        (create(rollout), "ALREADY_EXISTS", "DEPLOYMENT_EXISTS"),
        (update(rollout, one, etag=made.etag), "ABORTED", "ETAG_MISMATCH"),
        (update(rollout, one, paths=("targets", "state")), "INVALID_ARGUMENT", "UPDATE_MASK_INVALID"),
        (update(rollout, one, ("b/versions/1", 1)), "INVALID_ARGUMENT", "TARGETS_INVALID"),
        (update(rollout, one, one), "INVALID_ARGUMENT", "TARGETS_INVALID"),
        (update(rollout, ("a/versions/1", 0)), "INVALID_ARGUMENT", "TARGETS_INVALID"),
        (update(rollout, ("a/versions/1", -1)), "INVALID_ARGUMENT", "REQUEST_INVALID"),
        (update(rollout), "INVALID_ARGUMENT", "REQUEST_INVALID"),
    ):
        error = await error_of(call)
        assert (error.code, error.reason) == (code, reason)


async def test_a_page_token_of_another_query_is_refused(rollout: "RolloutServiceAsyncStub") -> None:
    for deployment_id in ("a", "b"):
        await create(rollout, deployment_id)
    token = (await rollout.ListDeployments(messages.ListDeploymentsRequest(page_size=1), timeout=5)).next_page_token
    page = await rollout.ListDeployments(messages.ListDeploymentsRequest(page_token=token), timeout=5)
    assert [deployment.name for deployment in page.deployments] == ["deployments/b"]
    request = messages.ListDeploymentEventsRequest(parent="deployments/a", page_token=token)
    assert (await error_of(rollout.ListDeploymentEvents(request, timeout=5))).reason == "PAGE_TOKEN_INVALID"


async def test_reports_show_in_state_message_and_statuses(rollout: "RolloutServiceAsyncStub") -> None:
    await create(rollout)
    await report(rollout, v1=LOADING)
    assert (await get(rollout)).state == deployment_pb2.DEPLOYMENT_STATE_LOADING
    await report(rollout, v1=FAILED)
    failed = await get(rollout)
    assert failed.state == deployment_pb2.DEPLOYMENT_STATE_FAILED
    assert failed.message == "models/a/versions/1 cannot be loaded on r: why"
    await report(rollout, v1=READY)
    ready = await get(rollout)
    assert (ready.state, ready.message) == (deployment_pb2.DEPLOYMENT_STATE_READY, "")
    assert [(status.replica, status.version, status.state) for status in ready.statuses] == [
        ("r", "models/a/versions/1", READY)
    ]
    error = await error_of(report(rollout, v1=deployment_pb2.TARGET_STATE_UNSPECIFIED))
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "TARGET_STATE_MISSING")


async def test_a_watch_sends_a_snapshot_then_changes_and_resumes_across_a_restart(
    registry: "RegistryServiceAsyncStub", tmp_path: Path
) -> None:
    async with rollout_in(tmp_path) as rollout:
        await create(rollout, "one")
        watch = rollout.WatchDeployments(messages.WatchDeploymentsRequest(), timeout=30)
        snapshot = await watch.read()
        assert isinstance(snapshot, messages.WatchDeploymentsResponse)
        assert (snapshot.snapshot, [deployment.name for deployment in snapshot.deployments]) == (
            True,
            ["deployments/one"],
        )
        await create(rollout, "two")
        change = await watch.read()
        assert isinstance(change, messages.WatchDeploymentsResponse)
        assert (change.snapshot, [deployment.name for deployment in change.deployments]) == (False, ["deployments/two"])
        # The connection breaks, and what happens now is not heard.
        watch.cancel()
        await rollout.DeleteDeployment(messages.DeleteDeploymentRequest(name="deployments/one"), timeout=5)
        await create(rollout, "three")
    async with rollout_in(tmp_path) as rollout:
        watch = rollout.WatchDeployments(messages.WatchDeploymentsRequest(resume_token=change.resume_token), timeout=30)
        missed = await watch.read()
        assert isinstance(missed, messages.WatchDeploymentsResponse)
        assert not missed.snapshot
        assert [deployment.name for deployment in missed.deployments] == ["deployments/three"]
        assert list(missed.deleted) == ["deployments/one"]
        watch.cancel()
        unknown = rollout.WatchDeployments(messages.WatchDeploymentsRequest(resume_token="unknown"), timeout=30)
        snapshot = await unknown.read()
        assert isinstance(snapshot, messages.WatchDeploymentsResponse)
        assert snapshot.snapshot
        assert {deployment.name for deployment in snapshot.deployments} == {"deployments/two", "deployments/three"}
        unknown.cancel()


async def test_after_a_restart_a_deployment_is_where_it_was(
    registry: "RegistryServiceAsyncStub", tmp_path: Path
) -> None:
    async with rollout_in(tmp_path) as rollout:
        await create(rollout)
        await report(rollout, v1=READY)
    async with rollout_in(tmp_path) as rollout:
        found = await get(rollout)
        assert (found.state, list(found.statuses)) == (deployment_pb2.DEPLOYMENT_STATE_READY, [])


async def test_a_registry_that_is_away_is_unavailable(tmp_path: Path) -> None:
    async with rollout_in(tmp_path) as rollout:
        request = messages.CreateDeploymentRequest(deployment_id="reviews", deployment=targets(("a/versions/1", 1)))
        call = rollout.CreateDeployment(request, timeout=0.5)
        error = await error_of(call)
        assert error.code in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


async def test_fifty_updates_at_once_are_fifty_changes_in_one_line(rollout: "RolloutServiceAsyncStub") -> None:
    await create(rollout)
    await asyncio.gather(*(update(rollout, (f"a/versions/{1 + number % 2}", number)) for number in range(2, 52)))
    listed = await rollout.ListDeploymentEvents(
        messages.ListDeploymentEventsRequest(parent="deployments/reviews", page_size=1000), timeout=5
    )
    events = list(reversed(listed.deployment_events))
    assert len(events) == 51
    for before, after in pairwise(events):
        assert list(before.targets_after) == list(after.targets_before)
    assert list((await get(rollout)).targets) == list(events[-1].targets_after)


async def test_a_deployed_version_is_kept_until_it_is_not_deployed_any_more(
    registry: "RegistryServiceAsyncStub", rollout: "RolloutServiceAsyncStub"
) -> None:
    await create(rollout)
    await update(rollout, ("a/versions/1", 9), ("a/versions/2", 1))
    name = "models/a/versions/1"
    delete = registry_service_pb2.DeleteVersionRequest(name=name)
    error = await error_of(registry.DeleteVersion(delete, timeout=5))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "VERSION_IN_USE")
    assert "deployments/reviews" in error.message
    await update(rollout, ("a/versions/2", 1))
    async with asyncio.timeout(10):
        version = registry_service_pb2.GetVersionRequest(name=name)
        while (await registry.GetVersion(version, timeout=5)).held_by:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await registry.DeleteVersion(delete, timeout=5)
    error = await error_of(update(rollout, ("a/versions/1", 1)))
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "VERSION_DELETED")
    history = await registry.ListChanges(registry_service_pb2.ListChangesRequest(resource=name), timeout=5)
    assert [list(change.version.held_by) for change in history.changes] == [[], [], ["deployments/reviews"], []]


async def test_holds_that_a_crash_left_or_lost_are_put_right_at_the_start(
    registry: "RegistryServiceAsyncStub", tmp_path: Path
) -> None:
    async with rollout_in(tmp_path) as rollout:
        await create(rollout)
    hold = registry_service_pb2.SetHoldsRequest
    await registry.SetHolds(hold(holder="deployments/reviews"), timeout=5)
    await registry.SetHolds(hold(holder="deployments/never-made", versions=["models/b/versions/1"]), timeout=5)
    async with rollout_in(tmp_path), asyncio.timeout(10):
        while True:
            listed = await registry.ListHolds(registry_service_pb2.ListHoldsRequest(), timeout=5)
            if [(one.holder, one.version) for one in listed.holds] == [("deployments/reviews", "models/a/versions/1")]:
                break
            await asyncio.sleep(0.01)
