"""The whole inference family as processes: manager, Envoy with the front, engine workers.

Rollout and registry are small real gRPC servers in the test's own loop.
"""

import asyncio
import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import grpc
import numpy as np
import onnxruntime
import pytest
import pytest_asyncio
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http

from maas.errors import from_rpc_error
from maas.inference.v1.inference_service_pb2 import GetReplicaRequest
from maas.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from maas.oip.v2 import grpc_service_pb2 as oip
from maas.registry.v1 import blob_pb2, registry_service_pb2, version_pb2
from maas.registry.v1.registry_service_pb2_grpc import (
    RegistryServiceServicer,
    add_RegistryServiceServicer_to_server,
)
from maas.rollout.v1 import deployment_pb2, rollout_service_pb2
from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server

pytestmark = pytest.mark.asyncio(loop_scope="module")

INFER = "/inference.GRPCInferenceService/ModelInfer"
ONNX = "servables/onnxruntime/model.onnx"
TEXTS = ("I don't like this film, it's a bore!", "A great and moving story.", "Is it great? It isn't.")


def make_package(folder: Path, seed: int) -> None:
    import torch

    from maas_package.architectures import load_architecture
    from maas_package.text import build_word_tokenizer
    from maas_package.trainable import package_trained_model

    torch.set_num_threads(1)
    config = {"vocabulary_size": 40, "embedding_size": 6, "hidden_size": 8}
    architecture = load_architecture("lstm-text-classifier")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = architecture.build(config)
    package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=build_word_tokenizer(TEXTS, vocabulary_size=40, max_tokens=32),
        labels=("negative", "positive"),
    )


class Registry(RegistryServiceServicer):
    """Versions are folders; the blob of a path that is in `damaged` is sent with a wrong byte."""

    def __init__(self) -> None:
        self.folders: dict[str, Path] = {}
        self.blobs: dict[str, bytes] = {}
        self.damaged: set[str] = set()

    def add(self, version: str, folder: Path) -> None:
        self.folders[version] = folder

    async def GetVersion(self, request: registry_service_pb2.GetVersionRequest, context: Any) -> version_pb2.Version:
        folder = self.folders.get(request.name)
        if folder is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no version {request.name}")
        assert folder is not None
        version = version_pb2.Version(name=request.name)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                content = path.read_bytes()
                name = f"blobs/{hashlib.sha256(content).hexdigest()}"
                self.blobs[name] = content
                version.files.append(
                    blob_pb2.File(path=path.relative_to(folder).as_posix(), blob=name, size_bytes=len(content))
                )
        return version

    async def DownloadBlob(
        self, request: registry_service_pb2.DownloadBlobRequest, context: Any
    ) -> AsyncIterator[registry_service_pb2.DownloadBlobResponse]:
        yield registry_service_pb2.DownloadBlobResponse(chunk=self.blobs[request.name][request.offset :])


class Rollout(RolloutServiceServicer):
    """What is wanted is a dict; each change is sent as a snapshot to whoever watches."""

    def __init__(self) -> None:
        self.wanted: dict[str, list[tuple[str, int]]] = {}
        self.serving: dict[str, deployment_pb2.ServingSettings] = {}
        self.reports: dict[tuple[str, str], deployment_pb2.TargetStatus] = {}
        self._revision = 0
        self._changed = asyncio.Condition()

    async def want(
        self, deployment: str, *targets: tuple[str, int], serving: deployment_pb2.ServingSettings | None = None
    ) -> None:
        async with self._changed:
            if targets:
                self.wanted[deployment] = list(targets)
                self.serving[deployment] = serving or deployment_pb2.ServingSettings()
            else:
                del self.wanted[deployment]
            self._revision += 1
            self._changed.notify_all()

    async def WatchDeployments(
        self, request: rollout_service_pb2.WatchDeploymentsRequest, context: Any
    ) -> AsyncIterator[rollout_service_pb2.WatchDeploymentsResponse]:
        sent = -1
        while True:
            async with self._changed:
                while self._revision == sent:
                    await self._changed.wait()
                sent = self._revision
            yield rollout_service_pb2.WatchDeploymentsResponse(
                snapshot=True,
                deployments=[
                    deployment_pb2.Deployment(
                        name=f"deployments/{name}",
                        targets=[deployment_pb2.Target(version=version, weight=weight) for version, weight in targets],
                        serving=self.serving[name],
                    )
                    for name, targets in self.wanted.items()
                ],
                resume_token=str(sent),
            )

    async def ReportReplica(
        self, request: rollout_service_pb2.ReportReplicaRequest, context: Any
    ) -> rollout_service_pb2.ReportReplicaResponse:
        self.reports = {
            (report.deployment.removeprefix("deployments/"), status.version): status
            for report in request.deployments
            for status in report.statuses
        }
        return rollout_service_pb2.ReportReplicaResponse()

    def state(self, deployment: str, version: str) -> int:
        status = self.reports.get((deployment, version))
        return status.state if status else deployment_pb2.TARGET_STATE_UNSPECIFIED


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.02)


@dataclass
class Rig:
    folder: Path
    port: int
    registry: Registry
    rollout: Rollout
    environment: dict[str, str]
    http: aiohttp.ClientSession
    channel: grpc.aio.Channel
    manager_channel: grpc.aio.Channel
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, name: str, module: str) -> None:
        self.processes[name] = subprocess.Popen([sys.executable, "-m", module], env=self.environment)

    async def is_serving(self, path: str = "/v2/health/ready") -> bool:
        try:
            async with self.http.get(self.url + path) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def deploy(self, deployment: str, *targets: tuple[str, int]) -> None:
        await self.rollout.want(deployment, *targets)
        await until(
            lambda: all(
                self.rollout.state(deployment, version) == deployment_pb2.TARGET_STATE_READY for version, _ in targets
            )
        )

    async def infer(self, request: oip.ModelInferRequest, timeout: float = 20.0) -> oip.ModelInferResponse:
        call = self.channel.unary_unary(
            INFER,
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        response: oip.ModelInferResponse = await call(request, timeout=timeout)
        return response

    async def replica(self) -> Any:
        return await InferenceServiceStub(self.manager_channel).GetReplica(GetReplicaRequest(), timeout=5)  # type: ignore[misc]

    async def post(self, path: str, body: object, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.http.post(self.url + path, data=io.BytesIO(data), headers=headers) as response:
            return response.status, json.loads(await response.read())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packages")
    for seed in (1, 2):
        make_package(folder / str(seed), seed)
    return {"models/tiny/versions/1": folder / "1", "models/tiny/versions/2": folder / "2"}


@asynccontextmanager
async def started_rig(packages: Mapping[str, Path], **settings: str) -> AsyncIterator[Rig]:
    """Start manager and front, with these variables on top of the usual ones; nothing is deployed."""
    async with AsyncExitStack() as stack:
        # A socket's path has at most 107 bytes, and pytest's folders are deep.
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="maas-")))
        registry, rollout = Registry(), Rollout()
        for version, package in packages.items():
            registry.add(version, package)
        control = grpc.aio.server()
        add_RegistryServiceServicer_to_server(registry, control)
        add_RolloutServiceServicer_to_server(rollout, control)
        control_port = control.add_insecure_port("127.0.0.1:0")
        await control.start()
        stack.push_async_callback(control.stop, None)
        port = free_port()
        environment = {
            **os.environ,
            "MAAS_HOME": str(folder / "home"),
            "MAAS_RUN_DIR": str(folder / "run"),
            "MAAS_LISTEN": f"unix:{folder / 'inference.sock'}",
            "MAAS_METRICS_LISTEN": f"unix:{folder / 'metrics.sock'}",
            "MAAS_ROLLOUT_ADDRESS": f"127.0.0.1:{control_port}",
            "MAAS_REGISTRY_ADDRESS": f"127.0.0.1:{control_port}",
            "MAAS_PUBLIC_LISTEN": f"127.0.0.1:{port}",
            "MAAS_LOG_LEVEL": "WARNING",
            **settings,
        }
        rig = Rig(
            folder,
            port,
            registry,
            rollout,
            environment,
            await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30))),
            await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}")),
            await stack.enter_async_context(grpc.aio.insecure_channel(environment["MAAS_LISTEN"])),
        )
        rig.start("manager", "maas_inference")
        rig.start("front", "maas_inference.front")
        try:
            yield rig
        finally:
            for process in rig.processes.values():
                process.terminate()
            for process in rig.processes.values():
                await asyncio.to_thread(process.wait, 20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rig(packages: dict[str, Path]) -> AsyncIterator[Rig]:
    async with started_rig(packages) as rig:
        await rig.deploy("reviews", ("models/tiny/versions/1", 1))
        await until(rig.is_serving)
        yield rig


def tokens_request(
    tokens: np.ndarray[Any, np.dtype[np.int64]], name: str = "reviews", version: str = ""
) -> oip.ModelInferRequest:
    request = oip.ModelInferRequest(model_name=name, model_version=version, id="7")
    request.inputs.add(name="tokens", datatype="INT64", shape=tokens.shape)
    request.raw_input_contents.append(tokens.tobytes())
    return request


def logits_of(response: oip.ModelInferResponse) -> np.ndarray[Any, Any]:
    return np.frombuffer(response.raw_output_contents[0], np.float32).reshape(tuple(response.outputs[0].shape))


def direct(package: Path, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(package / ONNX, providers=["CPUExecutionProvider"])
    answer: np.ndarray[Any, Any] = session.run(None, {"tokens": tokens})[0]
    return answer


def some_tokens(seed: int, rows: int = 1, length: int = 5) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(1, 20, (rows, length), dtype=np.int64)


async def test_triton_over_grpc_reads_metadata_and_infers_what_a_direct_call_does(
    rig: Rig, packages: dict[str, Path]
) -> None:
    tokens = some_tokens(1, rows=3)

    def call() -> np.ndarray[Any, Any]:
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{rig.port}") as client:
            sent = triton_grpc.InferInput("tokens", list(tokens.shape), "INT64")
            sent.set_data_from_numpy(tokens)
            answer: np.ndarray[Any, Any] = client.infer("reviews", [sent], request_id="a").as_numpy("logits")
            return answer

    np.testing.assert_allclose(await asyncio.to_thread(call), direct(packages["models/tiny/versions/1"], tokens))


async def test_triton_over_http_infers_in_binary_and_in_json(rig: Rig, packages: dict[str, Path]) -> None:
    tokens = some_tokens(2, rows=2)

    def call(binary: bool, compression: str | None) -> np.ndarray[Any, Any]:
        client = triton_http.InferenceServerClient(f"127.0.0.1:{rig.port}")
        try:
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("reviews")
            metadata = client.get_model_metadata("reviews", "1")
            assert [tensor["name"] for tensor in metadata["inputs"]] == ["tokens", "text"]
            assert metadata["platform"] == "onnxruntime_fp32"
            sent = triton_http.InferInput("tokens", list(tokens.shape), "INT64")
            sent.set_data_from_numpy(tokens, binary_data=binary)
            wanted = triton_http.InferRequestedOutput("logits", binary_data=binary)
            answer: np.ndarray[Any, Any] = client.infer(
                "reviews", [sent], outputs=[wanted], request_compression_algorithm=compression
            ).as_numpy("logits")
            return answer
        finally:
            client.close()

    expected = direct(packages["models/tiny/versions/1"], tokens)
    for binary in (True, False):
        for compression in (None, "gzip", "deflate"):
            np.testing.assert_allclose(
                await asyncio.to_thread(call, binary, compression), expected, rtol=1e-5, atol=1e-6
            )


async def test_a_text_is_answered_the_same_over_predict_rest_and_grpc(rig: Rig) -> None:
    status, predicted = await rig.post("/predict", {"text": TEXTS[1]})
    assert status == 200
    assert predicted["label"] == ("negative", "positive")[predicted["predicted"]]
    assert (predicted["model"], predicted["version"]) == ("reviews", "1")
    assert sum(predicted["probabilities"]) == pytest.approx(1)

    request = oip.ModelInferRequest(model_name="reviews")
    request.inputs.add(name="text", datatype="BYTES", shape=[1]).contents.bytes_contents.append(TEXTS[1].encode())
    response = await rig.infer(request)
    assert not response.raw_output_contents
    logits = np.array(response.outputs[0].contents.fp32_contents)
    exponents = np.exp(logits - logits.max())
    np.testing.assert_allclose(predicted["probabilities"], exponents / exponents.sum(), atol=1e-5)

    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [TEXTS[1]]}], "id": "x"}
    status, answered = await rig.post("/v2/models/reviews/infer", body)
    assert (status, answered["id"]) == (200, "x")
    np.testing.assert_allclose(answered["outputs"][0]["data"], logits, atol=1e-6)


async def test_a_list_of_texts_is_answered_by_a_list_in_its_order(rig: Rig) -> None:
    alone = [(await rig.post("/predict/reviews", {"text": text}))[1] for text in TEXTS]
    for body in ({"texts": TEXTS}, {"text": TEXTS}):
        status, together = await rig.post("/predict", body, **{"maas-model": "reviews"})
        assert status == 200
        assert [answer["predicted"] for answer in together] == [answer["predicted"] for answer in alone]


async def test_a_megabyte_of_text_is_cut_and_more_is_refused(rig: Rig) -> None:
    status, cut = await rig.post("/predict", {"text": "great story " * 87_000})
    assert status == 200
    assert cut["predicted"] == (await rig.post("/predict", {"text": "great story " * 16}))[1]["predicted"]
    status, refused = await rig.post("/predict", {"text": "a" * (2**20 + 1)})
    assert (status, refused["reason"]) == (400, "TEXT_TOO_LONG")


@pytest.mark.parametrize(
    ("path", "body", "status", "reason"),
    [
        ("/predict", b'{"text": ', 400, "JSON_INVALID"),
        ("/predict", b'{"text": "\xff"}', 400, "JSON_INVALID"),
        ("/predict", b"{}", 400, "FIELD_MISSING"),
        ("/predict", b'{"text": 3}', 400, "FIELD_INVALID"),
        ("/predict", b'{"text": " \\n"}', 400, "TEXT_BLANK"),
        ("/predict", b'{"texts": []}', 400, "SHAPE_WRONG"),
        ("/predict", b'{"text": "\\ud800"}', 400, "JSON_INVALID"),
        ("/predict/nobody", b'{"text": "a"}', 404, "SERVED_MODEL_NOT_FOUND"),
        ("/v2/models/reviews/versions/99/infer", b'{"inputs": []}', 404, "SERVED_VERSION_NOT_FOUND"),
        ("/v2/models/reviews/infer", b'{"inputs": []}', 400, "TENSOR_MISSING"),
        ("/v2/nothing", b"", 404, "PATH_NOT_FOUND"),
        ("/v2/health/live", b"", 405, "METHOD_NOT_ALLOWED"),
        ("/nothing", b"", 404, "PATH_NOT_FOUND"),
    ],
)
async def test_each_wrong_rest_request_has_its_reason(
    rig: Rig, path: str, body: bytes, status: int, reason: str
) -> None:
    got, content = await rig.post(path, body)
    assert content["reason"] == reason, content
    assert got == status
    assert content["error"]


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        ({"model_name": "nobody"}, "NOT_FOUND", "SERVED_MODEL_NOT_FOUND"),
        ({"model_version": "99"}, "NOT_FOUND", "SERVED_VERSION_NOT_FOUND"),
        ({"datatype": "INT32"}, "INVALID_ARGUMENT", "DATATYPE_WRONG"),
        ({"shape": [5]}, "INVALID_ARGUMENT", "SHAPE_WRONG"),
        ({"shape": [1, 6]}, "INVALID_ARGUMENT", "CONTENTS_WRONG"),
        ({"shape": [0, 5]}, "INVALID_ARGUMENT", "SHAPE_WRONG"),
        ({"name": "words"}, "INVALID_ARGUMENT", "TENSOR_UNKNOWN"),
        ({"output": "words"}, "INVALID_ARGUMENT", "OUTPUT_UNKNOWN"),
        ({"tokens": [[1, 2, 3, 4, 4_000]]}, "INVALID_ARGUMENT", "INPUT_VALUE_INVALID"),
    ],
)
async def test_each_wrong_grpc_request_has_its_status_and_reason(
    rig: Rig, change: dict[str, Any], status: str, reason: str
) -> None:
    request = tokens_request(np.array(change.pop("tokens", [[1, 2, 3, 4, 5]]), np.int64))
    if "output" in change:
        request.outputs.add(name=change.pop("output"))
    for name, value in change.items():
        if name == "shape":
            request.inputs[0].shape[:] = value
        elif name in ("datatype", "name"):
            setattr(request.inputs[0], name, value)
        else:
            setattr(request, name, value)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.infer(request)
    error = from_rpc_error(caught.value)
    assert (error.code, error.reason) == (status, reason)


async def test_a_path_that_is_not_text_is_refused_at_once(rig: Rig) -> None:
    async with rig.http.get(rig.url + "/v2/%ff", timeout=aiohttp.ClientTimeout(5)) as response:
        assert response.status == 403


async def test_compressed_grpc_is_taken_and_an_unknown_encoding_is_refused(rig: Rig) -> None:
    call = rig.channel.unary_unary(INFER)
    request = tokens_request(some_tokens(3)).SerializeToString()
    assert await call(request, timeout=10, compression=grpc.Compression.Gzip)


async def test_replies_of_64_callers_with_mixed_shapes_never_mix(rig: Rig, packages: dict[str, Path]) -> None:
    session = onnxruntime.InferenceSession(packages["models/tiny/versions/1"] / ONNX)

    async def caller(number: int) -> None:
        for turn in range(6):
            tokens = some_tokens(number * 100 + turn, rows=1 + number % 3, length=2 + (number + turn) % 5)
            request = tokens_request(tokens)
            request.id = f"{number}-{turn}"
            response = await rig.infer(request)
            assert response.id == request.id
            expected = session.run(None, {"tokens": tokens})[0]
            np.testing.assert_allclose(logits_of(response), expected, rtol=1e-4, atol=1e-6)

    await asyncio.gather(*(caller(number) for number in range(64)))


async def test_a_bad_row_fails_only_its_own_caller(rig: Rig) -> None:
    bad = tokens_request(np.array([[1, 2, 3, 4, 10_000]], np.int64))

    async def good() -> None:
        assert logits_of(await rig.infer(tokens_request(some_tokens(5)))).shape == (1, 2)

    async def refused() -> None:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rig.infer(bad)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT

    await asyncio.gather(*(refused() if number % 8 == 0 else good() for number in range(64)))


async def test_callers_that_cancel_or_run_out_of_time_harm_nobody(rig: Rig) -> None:
    async def stays(number: int) -> None:
        assert logits_of(await rig.infer(tokens_request(some_tokens(number)))).shape == (1, 2)

    async def leaves(number: int) -> None:
        task = asyncio.ensure_future(rig.infer(tokens_request(some_tokens(number))))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})

    async def hurries(number: int) -> None:
        try:
            await rig.infer(tokens_request(some_tokens(number)), timeout=0.002)
        except grpc.aio.AioRpcError as error:
            assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED

    kinds = (stays, leaves, hurries)
    await asyncio.gather(*(kinds[number % 3](number) for number in range(150)))


async def test_a_caller_that_sends_slowly_holds_up_nobody(rig: Rig) -> None:
    message = tokens_request(some_tokens(4)).SerializeToString()
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    body = b'{"text": "great"}'
    writer.write(
        b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: " + str(len(body)).encode() + b"\r\n\r\n" + body[:5]
    )
    await writer.drain()
    call = rig.channel.unary_unary(INFER)
    for _ in range(20):
        assert await call(message, timeout=5)
    writer.write(body[5:])
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.close()


async def test_a_killed_worker_loses_no_answer_under_load(rig: Rig) -> None:
    stop = False
    answered = 0

    async def caller(number: int) -> None:
        nonlocal answered
        while not stop:
            assert logits_of(await rig.infer(tokens_request(some_tokens(number)))).shape == (1, 2)
            answered += 1

    async with asyncio.TaskGroup() as callers:
        for number in range(16):
            callers.create_task(caller(number))
        before = (await rig.replica()).loaded_versions[0]
        await until(lambda: answered > 100)
        os.kill(before.pid, signal.SIGKILL)

        async def is_back() -> bool:
            version = (await rig.replica()).loaded_versions[0]
            return version.state == "ready" and version.pid != before.pid

        await until(is_back, seconds=10)
        seen = answered
        await until(lambda: answered > seen + 100)
        stop = True
    after = (await rig.replica()).loaded_versions[0]
    assert after.restart_count == before.restart_count + 1


async def test_a_new_version_takes_over_with_no_failed_request(rig: Rig) -> None:
    stop = False
    versions: set[str] = set()

    async def caller(number: int) -> None:
        while not stop:
            versions.add((await rig.infer(tokens_request(some_tokens(number)))).model_version)

    async with asyncio.TaskGroup() as callers:
        for number in range(8):
            callers.create_task(caller(number))
        await until(lambda: versions == {"1"})
        await rig.deploy("reviews", ("models/tiny/versions/2", 1))
        await until(lambda: versions == {"1", "2"})

        async def only_new() -> bool:
            loaded = (await rig.replica()).loaded_versions
            return [version.version for version in loaded] == ["models/tiny/versions/2"]

        await until(only_new)
        stop = True
    await rig.deploy("reviews", ("models/tiny/versions/1", 1))


async def test_requests_are_split_by_weight_and_a_version_can_be_pinned(rig: Rig, packages: dict[str, Path]) -> None:
    await rig.deploy("split", ("models/tiny/versions/1", 3), ("models/tiny/versions/2", 1))
    await until(lambda: rig.is_serving("/v2/models/split/versions/2/ready"))
    tokens = some_tokens(9)
    answers = [await rig.infer(tokens_request(tokens, "split")) for _ in range(40)]
    assert [answer.model_version for answer in answers].count("1") == 30
    for version in ("1", "2"):
        pinned = await rig.infer(tokens_request(tokens, "split", version))
        assert pinned.model_version == version
        np.testing.assert_allclose(
            logits_of(pinned), direct(packages[f"models/tiny/versions/{version}"], tokens), rtol=1e-4, atol=1e-6
        )
    status, content = await rig.post("/predict", {"text": "great"})
    assert (status, content["reason"]) == (400, "MODEL_NOT_NAMED")
    assert "reviews, split" in content["error"]
    await rig.rollout.want("split")

    async def is_gone() -> bool:
        return (await rig.post("/predict/split", {"text": "great"}))[0] == 404

    await until(is_gone)


async def test_a_version_that_cannot_be_loaded_is_reported_and_the_old_one_answers_on(
    rig: Rig, packages: dict[str, Path], tmp_path: Path
) -> None:
    damaged = "models/tiny/versions/3"
    shutil.copytree(packages["models/tiny/versions/1"], tmp_path / "3")
    (tmp_path / "3" / ONNX).write_bytes(b"no onnx")
    rig.registry.add(damaged, tmp_path / "3")
    await rig.rollout.want("reviews", (damaged, 1))
    await until(lambda: rig.rollout.state("reviews", damaged) == deployment_pb2.TARGET_STATE_FAILED)
    assert ONNX in rig.rollout.reports["reviews", damaged].message
    assert (await rig.infer(tokens_request(some_tokens(1)))).model_version == "1"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await rig.infer(tokens_request(some_tokens(1), version="3"))
    assert from_rpc_error(caught.value).reason == "VERSION_NOT_READY"
    await rig.deploy("reviews", ("models/tiny/versions/1", 1))


async def test_a_killed_manager_comes_back_without_rollout_and_loses_no_answer(rig: Rig) -> None:
    stop = False
    answered = 0

    async def caller(number: int) -> None:
        nonlocal answered
        while not stop:
            assert logits_of(await rig.infer(tokens_request(some_tokens(number)))).shape == (1, 2)
            answered += 1

    async with asyncio.TaskGroup() as callers:
        for number in range(8):
            callers.create_task(caller(number))
        await until(lambda: answered > 50)
        rig.processes["manager"].kill()
        rig.processes["manager"].wait()
        own = rig.environment
        rig.environment = {**own, "MAAS_ROLLOUT_ADDRESS": f"unix:{rig.folder / 'nobody'}"}
        rig.start("manager", "maas_inference")
        seen = answered
        await until(lambda: answered > seen + 50)
        stop = True
    rig.processes["manager"].terminate()
    await asyncio.to_thread(rig.processes["manager"].wait, 10)
    rig.environment = own
    rig.start("manager", "maas_inference")
    await until(lambda: rig.is_serving("/v2/models/reviews/ready"))


async def test_metrics_of_the_manager_and_its_front_are_what_prometheus_reads(rig: Rig) -> None:
    await rig.infer(tokens_request(some_tokens(1)))
    connector = aiohttp.UnixConnector(path=str(rig.folder / "metrics.sock"))
    async with aiohttp.ClientSession(connector=connector) as session:

        async def text() -> str:
            async with session.get("http://maas/metrics") as response:
                return await response.text()

        async def is_complete() -> bool:
            return "maas_inference_total_seconds_count{" in await text()

        await until(is_complete)
        shown = await text()
    for name in ("queue_seconds", "batch_wait_seconds", "compute_seconds", "batch_rows", "worker_memory_bytes"):
        assert f"maas_inference_{name}" in shown
    assert 'maas_inference_requests_total{deployment="reviews",front="0",status="OK",version="1"}' in shown
    if promtool := shutil.which("promtool"):
        check = await asyncio.create_subprocess_exec(
            promtool, "check", "metrics", stdin=PIPE, stdout=PIPE, stderr=STDOUT
        )
        said, _ = await check.communicate(shown.encode())
        assert check.returncode == 0, said.decode()


async def test_the_manager_answers_metadata_and_sends_infer_elsewhere(rig: Rig) -> None:
    channel = rig.manager_channel

    async def call(method: str, request: Any, response: Any) -> Any:
        return await channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )(request, timeout=5)

    assert (await call("ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse)).live
    await until(lambda: rig.is_serving())
    assert (await call("ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse)).ready
    assert (await call("ModelReady", oip.ModelReadyRequest(name="reviews"), oip.ModelReadyResponse)).ready
    assert (await call("ServerMetadata", oip.ServerMetadataRequest(), oip.ServerMetadataResponse)).name == "maas"
    metadata = await call("ModelMetadata", oip.ModelMetadataRequest(name="reviews"), oip.ModelMetadataResponse)
    assert [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs] == [
        ("tokens", "INT64", [-1, -1]),
        ("text", "BYTES", [-1]),
    ]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call("ModelInfer", tokens_request(some_tokens(1)), oip.ModelInferResponse)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call("ModelMetadata", oip.ModelMetadataRequest(name="nobody"), oip.ModelMetadataResponse)
    assert from_rpc_error(caught.value).reason == "DEPLOYMENT_NOT_SERVED"
    replica = await rig.replica()
    assert replica.front_count == 1
    loaded = replica.loaded_versions[0]
    assert (loaded.engine, loaded.precision, loaded.state) == ("onnxruntime", "fp32", "ready")
    assert loaded.memory_bytes > 10_000_000
    assert [cost.rows for cost in loaded.cost_curve] == [1, 2, 4, 8, 16, 32]
