"""The gateway's two processes with a real Envoy, real gRPC servers behind it, and requests through the public port."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import pytest
import pytest_asyncio
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry
from yarl import URL

from maas.errors import from_rpc_error
from maas.jobs.v1 import job_state_pb2
from maas.oip.v2 import grpc_service_pb2 as oip
from maas.registry.v1 import blob_pb2, model_pb2
from maas.registry.v1 import registry_service_pb2 as registry_pb2
from maas.registry.v1.registry_service_pb2_grpc import (
    RegistryServiceServicer,
    RegistryServiceStub,
    add_RegistryServiceServicer_to_server,
)
from maas.rollout.v1 import deployment_pb2, rollout_service_pb2
from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from maas.training.v1 import training_job_pb2, training_service_pb2
from maas.training.v1.training_service_pb2_grpc import TrainingServiceServicer, add_TrainingServiceServicer_to_server
from maas_runtime.exit_status import EXIT_CANNOT_START
from maas_runtime.failures import NotFound
from maas_runtime.metrics import metrics_page, process_metrics
from maas_runtime.server import GrpcService, build_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

GET_MODEL = "/maas.registry.v1.RegistryService/GetModel"
PATIENCE_SECONDS = 20.0


class GatewayTestModelMissing(NotFound):
    """The model is not there."""

    reason = "GATEWAY_TEST_MODEL_MISSING"


class Registry(RegistryServiceServicer):
    def __init__(self) -> None:
        self.request_ids: list[str] = []

    async def GetModel(self, request: registry_pb2.GetModelRequest, context: Any) -> model_pb2.Model:
        self.request_ids.append(dict(context.invocation_metadata())["x-request-id"])
        match request.name:
            case "models/missing":
                raise GatewayTestModelMissing('no "model" called missing\n', name=request.name)
            case "models/slow":
                await asyncio.sleep(60)
        return model_pb2.Model(name=request.name, description="from the registry")

    async def CreateModel(self, request: registry_pb2.CreateModelRequest, context: Any) -> model_pb2.Model:
        return model_pb2.Model(name=f"models/{request.model_id}", description=request.model.description)

    async def ListModels(
        self, request: registry_pb2.ListModelsRequest, context: Any
    ) -> registry_pb2.ListModelsResponse:
        return registry_pb2.ListModelsResponse(models=[model_pb2.Model(name="models/a")][: request.page_size or 1])

    async def UploadBlob(self, request_iterator: Any, context: Any) -> blob_pb2.Blob:
        return blob_pb2.Blob(received_bytes=sum([len(message.chunk) async for message in request_iterator]))


class Training(TrainingServiceServicer):
    async def WatchTrainingJob(
        self, request: training_service_pb2.WatchTrainingJobRequest, context: Any
    ) -> AsyncIterator[training_service_pb2.WatchTrainingJobResponse]:
        for progress in (0.5, 1.0):
            job = training_job_pb2.TrainingJob(name=request.name, status=job_state_pb2.JobStatus(progress=progress))
            yield training_service_pb2.WatchTrainingJobResponse(training_job=job)


class Rollout(RolloutServiceServicer):
    """Sends what `deployments` holds, and again whenever it is told to."""

    def __init__(self) -> None:
        self.deployments: tuple[str, ...] = ()
        self.changed = asyncio.Condition()

    async def set(self, *deployments: str) -> None:
        async with self.changed:
            self.deployments = deployments
            self.changed.notify_all()

    async def WatchDeployments(
        self, request: rollout_service_pb2.WatchDeploymentsRequest, context: Any
    ) -> AsyncIterator[rollout_service_pb2.WatchDeploymentsResponse]:
        while True:
            sent = self.deployments
            yield rollout_service_pb2.WatchDeploymentsResponse(
                snapshot=True,
                deployments=[deployment_pb2.Deployment(name=f"deployments/{name}") for name in sent],
                resume_token=",".join(sent),
            )
            async with self.changed:
                while self.deployments == sent:
                    await self.changed.wait()


class Front(grpc.GenericRpcHandler):
    """An inference front elsewhere: tells by which name it was reached, and fails when told to."""

    def __init__(self) -> None:
        self.answered = 0

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any]":
        async def answer(request: bytes, context: Any) -> bytes:
            self.answered += 1
            named = dict(context.invocation_metadata()).get("maas-model", "")
            return f"{named} {len(request)}".encode()

        return grpc.unary_unary_rpc_method_handler(answer)


@dataclass
class Cluster:
    """Processes in one folder, which goes with them."""

    folder: Path
    port: int
    environment: dict[str, str]
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, module: str) -> None:
        """Start `python -m module`; its log is a file in the folder."""
        with (self.folder / f"{module}.log").open("ab") as log:
            self.processes[module] = subprocess.Popen(
                [sys.executable, "-m", module], env=self.environment, stdout=log, stderr=log, cwd=self.folder
            )

    async def end(self, module: str, number: int = signal.SIGTERM) -> int:
        """End a process and return its exit status."""
        process = self.processes.pop(module)
        process.send_signal(number)
        try:
            return await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def log(self, module: str) -> str:
        return (self.folder / f"{module}.log").read_text()

    def socket(self, name: str) -> str:
        return f"unix:{self.folder}/{name}.sock"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Ask again and again until it is so."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not await condition():  # noqa: ASYNC110 (processes do not set events)
            await asyncio.sleep(0.02)


async def answers(cluster: Cluster) -> bool:
    try:
        async with aiohttp.ClientSession() as session, session.get(f"{cluster.url}/nothing"):
            return True
    except aiohttp.ClientError:
        return False


@asynccontextmanager
async def gateway(**environment: str) -> AsyncIterator[Cluster]:
    """Run maas_gateway and its Envoy; what is behind them is not there."""
    folder, port = Path(tempfile.mkdtemp(prefix="maas-gw-")), free_port()
    cluster = Cluster(
        folder,
        port,
        {
            **os.environ,
            "MAAS_HOME": str(folder / "home"),
            "MAAS_RUN_DIR": str(folder),
            "MAAS_LISTEN": f"unix:{folder}/gateway.sock",
            "MAAS_HTTP_LISTEN": f"unix:{folder}/gateway-http.sock",
            "MAAS_PUBLIC_LISTEN": f"127.0.0.1:{port}",
            "MAAS_METRICS_TARGETS": f"registry=unix:{folder}/metrics.sock,training=unix:{folder}/away.sock",
            "MAAS_ENVOY_CONCURRENCY": "1",
            **{
                f"MAAS_{name}_ADDRESS": f"unix:{folder}/{name.lower()}.sock"
                for name in ("REGISTRY", "TRAINING", "COMPRESSION", "ROLLOUT", "INFERENCE")
            },
            **environment,
        },
    )
    try:
        cluster.start("maas_gateway")
        cluster.start("maas_gateway.envoy")
        await until(lambda: answers(cluster))
        yield cluster
    finally:
        for module in list(cluster.processes):
            await cluster.end(module)
        shutil.rmtree(folder)


@asynccontextmanager
async def served(address: str, *services: GrpcService) -> AsyncIterator[None]:
    server, health = build_server(services, CollectorRegistry())
    server.add_insecure_port(address)
    await server.start()
    for service in services:
        await health.set(service.full_name, health_pb2.HealthCheckResponse.SERVING)
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    try:
        yield
    finally:
        await server.stop(0)


def registry_service(servicer: Registry) -> GrpcService:
    return GrpcService(
        "maas.registry.v1.RegistryService", lambda server: add_RegistryServiceServicer_to_server(servicer, server)
    )


def rollout_service(servicer: Rollout) -> GrpcService:
    return GrpcService(
        "maas.rollout.v1.RolloutService", lambda server: add_RolloutServiceServicer_to_server(servicer, server)
    )


@dataclass
class Embedded:
    cluster: Cluster
    registry: Registry
    rollout: Rollout
    channel: grpc.aio.Channel
    http: aiohttp.ClientSession
    registry_server: AsyncExitStack

    async def restart_registry(self, away_seconds: float) -> None:
        await self.registry_server.aclose()
        await asyncio.sleep(away_seconds)
        await self.registry_server.enter_async_context(
            served(self.cluster.socket("registry"), registry_service(self.registry))
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def embedded() -> AsyncIterator[Embedded]:
    """One Envoy with the inference front inside; registry, training and rollout behind it, compression away."""
    async with AsyncExitStack() as stack:
        cluster = await stack.enter_async_context(gateway())
        registry, rollout, registry_server = Registry(), Rollout(), AsyncExitStack()  # type: ignore[abstract]
        await stack.enter_async_context(registry_server)
        await registry_server.enter_async_context(served(cluster.socket("registry"), registry_service(registry)))
        training = GrpcService(
            "maas.training.v1.TrainingService",
            lambda server: add_TrainingServiceServicer_to_server(Training(), server),  # type: ignore[abstract]
        )
        await stack.enter_async_context(served(cluster.socket("training"), training))
        await stack.enter_async_context(served(cluster.socket("rollout"), rollout_service(rollout)))
        await stack.enter_async_context(metrics_page(process_metrics(), cluster.socket("metrics")))
        channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{cluster.port}"))
        http = await stack.enter_async_context(aiohttp.ClientSession(cluster.url))
        yield Embedded(cluster, registry, rollout, channel, http, registry_server)


async def failure(call: Awaitable[Any]) -> tuple[str, str]:
    """Status and reason of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = from_rpc_error(caught.value)
    return error.code, error.reason


def raw(channel: grpc.aio.Channel, method: str) -> Callable[..., Awaitable[bytes]]:
    """A unary call of a method, whatever it is, with bytes as messages."""
    return channel.unary_unary(method)


def get_model(channel: grpc.aio.Channel, name: str, timeout: float | None = 10.0) -> Awaitable[model_pb2.Model]:
    return RegistryServiceStub(channel).GetModel(registry_pb2.GetModelRequest(name=name), timeout=timeout)


async def test_a_grpc_call_reaches_its_service(embedded: Embedded) -> None:
    assert (await get_model(embedded.channel, "models/reviews")).description == "from the registry"


async def test_a_rest_path_is_answered_by_the_same_service(embedded: Embedded) -> None:
    async with embedded.http.get("/v1/models/reviews") as response:
        assert response.status == 200
        assert response.content_type == "application/json"
        assert (await response.json())["name"] == "models/reviews"
    async with embedded.http.post("/v1/models?modelId=new", json={"description": "a new one"}) as response:
        assert (await response.json())["description"] == "a new one"
    async with embedded.http.get("/v1/models?page_size=1") as response:
        assert [model["name"] for model in (await response.json())["models"]] == ["models/a"]


async def test_a_stream_arrives_over_rest_as_lines(embedded: Embedded) -> None:
    async with embedded.http.get("/v1/trainingJobs/job-1:watch") as response:
        jobs = [json.loads(line)["trainingJob"] async for line in response.content]
    assert [job["status"]["progress"] for job in jobs] == [0.5, 1.0]


async def test_a_failure_of_a_service_has_one_form_over_rest(embedded: Embedded) -> None:
    async with embedded.http.get("/v1/models/missing") as response:
        assert response.status == 404
        body = await response.json()
    assert body["error"] == 'no "model" called missing\n'
    assert (body["reason"], body["code"]) == ("GATEWAY_TEST_MODEL_MISSING", "NOT_FOUND")


async def test_a_failure_of_a_service_passes_unchanged_over_grpc(embedded: Embedded) -> None:
    assert await failure(get_model(embedded.channel, "models/missing")) == ("NOT_FOUND", "GATEWAY_TEST_MODEL_MISSING")


async def test_a_field_that_breaks_a_rule_is_invalid_argument_over_rest(embedded: Embedded) -> None:
    async with embedded.http.post("/v1/models?modelId=Not-An-Id", json={}) as response:
        assert response.status == 400
        body = await response.json()
    assert body["code"] == "INVALID_ARGUMENT"
    assert "model_id" in json.dumps(body["details"])


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/models", "{bad"), ("/v1/models", '{"description": 1}'), ("/v1/models?nothing=1", "{}")]
)
async def test_what_the_contract_does_not_know_is_refused(embedded: Embedded, path: str, body: str) -> None:
    async with embedded.http.post(path, data=body, headers={"Content-Type": "application/json"}) as response:
        assert response.status == 400
        answer = await response.json()
    assert (answer["reason"], answer["code"]) == ("REQUEST_REFUSED", "INVALID_ARGUMENT")
    assert answer["error"]


@pytest.mark.parametrize("path", ["/", "/nothing", "/v1/nothing", "/v1", "/v2x"])
async def test_an_unknown_path_is_not_found(embedded: Embedded, path: str) -> None:
    async with embedded.http.get(path) as response:
        assert response.status == 404
        body = await response.json()
    assert (body["reason"], body["code"]) == ("PATH_UNKNOWN", "NOT_FOUND")


async def test_an_unknown_method_is_unimplemented(embedded: Embedded) -> None:
    status, _ = await failure(raw(embedded.channel, "/maas.nothing.v1.Nothing/Get")(b"", timeout=5))
    assert status == "UNIMPLEMENTED"


@pytest.mark.parametrize("path", ["/predict", "/predict/nothing", "/v2/models/nothing/infer"])
async def test_inference_over_rest_reaches_the_front_inside_envoy(embedded: Embedded, path: str) -> None:
    async with embedded.http.post(path, json={"text": "a text", "inputs": []}) as response:
        body = await response.json()
    # Without a manager the front knows no deployment yet, and it is the front who says so.
    assert (response.status, body["reason"]) == (503, "FRONT_NOT_READY"), body


async def test_inference_over_grpc_reaches_the_front_inside_envoy(embedded: Embedded) -> None:
    infer = raw(embedded.channel, "/inference.GRPCInferenceService/ModelInfer")
    answer = await failure(infer(oip.ModelInferRequest(model_name="nothing").SerializeToString(), timeout=5))
    assert answer == ("UNAVAILABLE", "FRONT_NOT_READY")


async def test_a_path_beyond_ascii_is_refused_at_once(embedded: Embedded) -> None:
    async with embedded.http.get(URL(f"{embedded.cluster.url}/v2/%ff", encoded=True)) as response:
        assert response.status == 400
        assert (await response.json())["reason"] == "REQUEST_REFUSED"


async def test_a_request_id_is_kept_and_otherwise_made(embedded: Embedded) -> None:
    async with embedded.http.get("/v1/models/reviews", headers={"x-request-id": "mine-1"}) as response:
        assert response.headers["x-request-id"] == "mine-1"
    assert embedded.registry.request_ids[-1] == "mine-1"
    async with embedded.http.get("/v1/models/reviews") as response:
        assert response.headers["x-request-id"] == embedded.registry.request_ids[-1] != "mine-1"


async def test_an_upload_of_many_megabytes_passes_as_a_stream(embedded: Embedded) -> None:
    chunk = registry_pb2.UploadBlobRequest(chunk=b"x" * 2**18)

    async def chunks() -> AsyncIterator[registry_pb2.UploadBlobRequest]:
        for _ in range(64):
            yield chunk

    blob = await RegistryServiceStub(embedded.channel).UploadBlob(chunks(), timeout=30)
    assert blob.received_bytes == 64 * 2**18


async def test_the_callers_deadline_counts(embedded: Embedded) -> None:
    # The header alone: a client of grpc would itself give up first.
    async with embedded.http.post(
        GET_MODEL,
        data=b"\0\0\0\0\x0d" + registry_pb2.GetModelRequest(name="models/slow").SerializeToString(),
        headers={"Content-Type": "application/grpc", "TE": "trailers", "grpc-timeout": "200m"},
    ) as response:
        assert response.headers["grpc-status"] == str(grpc.StatusCode.DEADLINE_EXCEEDED.value[0])


async def test_a_service_that_restarts_is_not_seen_by_callers(embedded: Embedded) -> None:
    restarting = asyncio.create_task(embedded.restart_registry(away_seconds=0.5))
    await until(lambda: asyncio.to_thread(lambda: not (embedded.cluster.folder / "registry.sock").exists()))
    over_rest = embedded.http.get("/v1/models/reviews")
    async with over_rest as response:
        assert response.status == 200
    assert (await get_model(embedded.channel, "models/reviews")).name == "models/reviews"
    await restarting


async def test_a_service_that_stays_away_is_unavailable(embedded: Embedded) -> None:
    async with embedded.http.get("/v1/compressionJobs") as response:
        assert response.status == 503
        assert response.headers["retry-after"] == "1"
        body = await response.json()
    assert (body["reason"], body["code"]) == ("UPSTREAM_UNAVAILABLE", "UNAVAILABLE")
    call = raw(embedded.channel, "/maas.compression.v1.CompressionService/ListCompressionJobs")
    assert await failure(call(b"", timeout=10)) == ("UNAVAILABLE", "UPSTREAM_UNAVAILABLE")


async def test_health_is_asked_of_the_process_that_serves(embedded: Embedded) -> None:
    health = health_pb2_grpc.HealthStub(embedded.channel)

    async def status(service: str) -> int:
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return int(answer.status)

    assert await status("maas.registry.v1.RegistryService") == health_pb2.HealthCheckResponse.SERVING
    assert await status("maas.compression.v1.CompressionService") == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await status("") == health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await failure(status("maas.nothing.v1.Nothing")))[0] == "NOT_FOUND"
    async for answer in health.Watch(health_pb2.HealthCheckRequest(service="maas.nothing.v1.Nothing"), timeout=5):
        assert answer.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        break


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_knows_all_services_and_the_inference_protocol_by_its_public_name(
    embedded: Embedded, version: str
) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(embedded.channel)
    if version == "v1":
        stub.ServerReflectionInfo = embedded.channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
    ]
    listed, found = [answer async for answer in stub.ServerReflectionInfo(iter(questions), timeout=5)]
    names = {service.name for service in listed.list_services_response.service}
    assert {"maas.registry.v1.RegistryService", "inference.GRPCInferenceService", "grpc.health.v1.Health"} <= names
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(file)
        for file in found.file_descriptor_response.file_descriptor_proto
    ]
    assert [file.package for file in files] == ["inference"]


async def test_metrics_of_the_whole_cluster_are_one_valid_page(embedded: Embedded) -> None:
    await get_model(embedded.channel, "models/reviews")

    page = ""

    async def counted() -> bool:
        nonlocal page
        async with embedded.http.get("/metrics") as response:
            page = await response.text()
        return 'envoy_cluster_grpc_total{process="envoy"' in page

    await until(counted)  # Envoy's threads hand their counts over now and then
    assert 'maas_gateway_scrape_up{process="registry"} 1' in page
    assert 'maas_gateway_scrape_up{process="training"} 0' in page
    assert 'maas_gateway_scrape_up{process="envoy"} 1' in page
    assert 'process_resident_memory_bytes{process="registry"}' in page
    assert 'process_resident_memory_bytes{process="gateway"}' in page
    assert 'maas_gateway_xds_refused_total{process="gateway",type="listener"} 0.0' in page
    assert 'envoy_http_downstream_rq_time_bucket{process="envoy"' in page
    if promtool := shutil.which("promtool"):
        checked = await asyncio.to_thread(
            subprocess.run, [promtool, "check", "metrics"], input=page.encode(), capture_output=True, check=False
        )
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


async def test_envoy_goes_on_while_the_control_plane_is_killed_and_is_sent_nothing_it_has(embedded: Embedded) -> None:
    await embedded.cluster.end("maas_gateway", signal.SIGKILL)
    for _ in range(20):
        assert (await get_model(embedded.channel, "models/reviews")).name == "models/reviews"
    embedded.cluster.start("maas_gateway")

    page = ""

    async def reconnected() -> bool:
        nonlocal page
        async with embedded.http.get("/metrics") as response:
            page = await response.text()
        return 'maas_gateway_envoys{process="gateway"} 1.0' in page

    await until(reconnected)
    for kind in ("listener", "cluster", "routes"):
        assert f'maas_gateway_xds_sent_total{{process="gateway",type="{kind}"}} 0.0' in page


async def test_no_configuration_was_refused_and_no_bug_was_logged(embedded: Embedded) -> None:
    for line in embedded.cluster.log("maas_gateway").splitlines():
        assert json.loads(line)["level"] in ("DEBUG", "INFO", "WARNING"), line


async def test_a_port_in_use_is_said_in_one_sentence_with_a_status_of_its_own(embedded: Embedded) -> None:
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "maas_gateway.envoy"],
        env=embedded.cluster.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == EXIT_CANNOT_START
    (sentence,) = ended.stderr.splitlines()
    assert str(embedded.cluster.port) in sentence
    assert "--port" in sentence


@dataclass
class Split:
    cluster: Cluster
    fronts: tuple[Front, Front]
    rollout: Rollout
    channel: grpc.aio.Channel

    async def infer(self, *, model: str = "", size: int = 10, path: str = "ModelInfer") -> str:
        """Ask and return what the front said: the name in the header, and the bytes it got."""
        method = path if path.startswith("/") else f"/inference.GRPCInferenceService/{path}"
        metadata = (("maas-model", model),) if model else ()
        return (await raw(self.channel, method)(b"x" * size, timeout=10, metadata=metadata)).decode()

    async def statistics(self) -> str:
        connector = aiohttp.UnixConnector(str(self.cluster.folder / "gateway-http.sock"))
        async with aiohttp.ClientSession(connector=connector) as session, session.get("http://x/metrics") as response:
            return await response.text()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def split() -> AsyncIterator[Split]:
    """An Envoy without a front, and two fronts elsewhere."""
    async with AsyncExitStack() as stack:
        fronts, addresses = (Front(), Front()), []
        for front in fronts:
            server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
            server.add_generic_rpc_handlers((front,))
            addresses.append(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
            await server.start()
            stack.push_async_callback(server.stop, 0)
        cluster = await stack.enter_async_context(
            gateway(MAAS_FRONT_ADDRESSES=",".join(addresses), MAAS_ACCESS_LOG="on")
        )
        rollout = Rollout()  # type: ignore[abstract]
        await stack.enter_async_context(served(cluster.socket("rollout"), rollout_service(rollout)))
        options = [("grpc.max_send_message_length", -1)]
        channel = await stack.enter_async_context(
            grpc.aio.insecure_channel(f"127.0.0.1:{cluster.port}", options=options)
        )
        yield Split(cluster, fronts, rollout, channel)


async def test_fronts_elsewhere_share_the_requests(split: Split) -> None:
    before = [front.answered for front in split.fronts]
    for _ in range(10):
        assert await split.infer() == " 10"
    assert [front.answered - count for front, count in zip(split.fronts, before, strict=True)] == [5, 5]


async def test_the_access_log_is_a_line_of_json_for_each_request(split: Split) -> None:
    await split.infer(model="logged", path="/predict/logged")

    async def logged() -> bool:
        lines = [json.loads(line) for line in split.cluster.log("maas_gateway.envoy").splitlines()]
        return any(line.get("path") == "/predict/logged" and line["status"] == 200 for line in lines)

    await until(logged)


async def test_a_message_over_every_buffer_passes(split: Split) -> None:
    assert await split.infer(size=20 * 2**20) == f" {20 * 2**20}"


async def test_a_deployment_has_a_route_of_its_own_by_header_and_by_path(split: Split) -> None:
    await split.rollout.set("reviews", "other")

    async def counted(name: str, at_least: int) -> bool:
        count = 0
        for line in (await split.statistics()).splitlines():
            if line.startswith("envoy_vhost_route_upstream_rq_xx") and f'"{name}"' in line:
                count = int(line.rpartition(" ")[2])
        if count < at_least:
            await split.infer(model=name)
        return count >= at_least

    await until(lambda: counted("reviews", 1))
    # The path counts more than the header.
    assert await split.infer(path="/v2/models/other/infer", model="reviews") == "other 10"
    assert await split.infer(path="/predict/other") == "other 10"
    await until(lambda: counted("other", 2))
    assert await split.infer(path="/v2/models/unknown/infer") == "unknown 10"
    assert await split.infer(path="/v2/health/live") == " 10"


async def test_no_request_is_lost_while_routes_change(split: Split) -> None:
    finished = asyncio.Event()
    answered = 0

    async def call() -> None:
        nonlocal answered
        while not finished.is_set():
            assert await split.infer(model="changing") == "changing 10"
            answered += 1

    async with asyncio.TaskGroup() as callers:
        for _ in range(4):
            callers.create_task(call())
        for turn in range(20):
            await split.rollout.set("reviews", *(["changing"] if turn % 2 else []), f"turn-{turn}")
            target = answered + 20
            await until(lambda target=target: asyncio.sleep(0, answered >= target))  # type: ignore[misc]
        finished.set()

    async def routed() -> bool:
        page = await split.statistics()
        return 'maas_gateway_deployments{process="gateway"} 3.0' in page

    await until(routed)
    assert 'maas_gateway_xds_sent_total{process="gateway",type="listener"} 1.0' in await split.statistics()
    assert 'maas_gateway_xds_refused_total{process="gateway",type="routes"} 0.0' in await split.statistics()


async def test_deployments_are_known_after_a_restart_without_rollout(split: Split) -> None:
    stored = json.loads((split.cluster.folder / "home" / "gateway" / "deployments.json").read_text())
    assert set(stored["deployments"]) == set(split.rollout.deployments)
    assert stored["resume_token"] == ",".join(split.rollout.deployments)
