"""A real inference server for black-box tests: Envoy with the front, the manager, and a worker for each of two models.

`reviews` takes text and is the seed's LSTM with random weights; `everything` gives every tensor back that it was sent,
one of each datatype, from an ONNX file that this project did not make.
"""

import contextlib
import hashlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import grpc
import numpy as np
import onnx

from maas.registry.v1 import blob_pb2, registry_service_pb2, version_pb2
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceServicer, add_RegistryServiceServicer_to_server
from maas.rollout.v1 import deployment_pb2, rollout_service_pb2
from maas.rollout.v1.rollout_service_pb2_grpc import RolloutServiceServicer, add_RolloutServiceServicer_to_server
from maas_package.manifest import TENSORS, Manifest, Servable, TensorSpec
from maas_package.package import write_package

DATATYPES: dict[str, Any] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "BYTES": np.object_,
}
"""What `everything` takes and gives, as `in-NAME` and `out-NAME` of shape [-1, 2]."""
TEXTS = ("I don't like this film, it's a bore!", "A great and moving story.", "Is it great? It isn't.")


@dataclass(frozen=True)
class OipServer:
    """Where it listens."""

    folder: Path
    port: int
    manager_address: str
    front: "subprocess.Popen[bytes]"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"


@contextlib.contextmanager
def oip_server() -> Iterator[OipServer]:
    with contextlib.ExitStack() as stack:
        # A socket's path has at most 107 bytes, and pytest's folders are deep.
        folder = Path(tempfile.mkdtemp(prefix="maas-oip-"))
        stack.callback(shutil.rmtree, folder)
        _text_package(folder / "reviews")
        _tensor_package(folder / "everything")
        control = grpc.server(ThreadPoolExecutor(8))
        add_RegistryServiceServicer_to_server(_Registry(folder), control)  # type: ignore[abstract]
        rollout = _Rollout()  # type: ignore[abstract]
        add_RolloutServiceServicer_to_server(rollout, control)
        control_port = control.add_insecure_port("127.0.0.1:0")
        control.start()
        stack.callback(lambda: control.stop(None).wait(5))
        stack.callback(rollout.ended.set)
        port = _free_port()
        manager = f"unix:{folder / 'inference.sock'}"
        environment = {
            **os.environ,
            "MAAS_HOME": str(folder / "home"),
            "MAAS_RUN_DIR": str(folder / "run"),
            "MAAS_LISTEN": manager,
            "MAAS_INFERENCE_ADDRESS": manager,
            "MAAS_METRICS_LISTEN": f"unix:{folder / 'metrics.sock'}",
            "MAAS_ROLLOUT_ADDRESS": f"127.0.0.1:{control_port}",
            "MAAS_REGISTRY_ADDRESS": f"127.0.0.1:{control_port}",
            "MAAS_PUBLIC_LISTEN": f"127.0.0.1:{port}",
            "MAAS_LOG_LEVEL": "WARNING",
        }
        processes = [
            stack.enter_context(_process(module, environment)) for module in ("maas_inference.front", "maas_inference")
        ]
        server = OipServer(folder, port, manager, processes[0])
        until(lambda: all(_is_ready(server, model) for model in ("reviews", "everything")))
        yield server


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "not in time"
        time.sleep(0.02)


def _is_ready(server: OipServer, model: str) -> bool:
    try:
        with urlopen(f"{server.url}/v2/models/{model}/ready", timeout=5) as response:
            ready: bool = response.status == 200
            return ready
    except OSError:
        return False


@contextlib.contextmanager
def _process(module: str, environment: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-m", module], env=environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _text_package(folder: Path) -> None:
    import torch

    from maas_package.architectures import load_architecture
    from maas_package.text import build_word_tokenizer
    from maas_package.trainable import package_trained_model

    torch.set_num_threads(1)
    config = {"vocabulary_size": 40, "embedding_size": 6, "hidden_size": 8}
    architecture = load_architecture("lstm-text-classifier")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module = architecture.build(config)
    package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=module,
        tokenizer=build_word_tokenizer(TEXTS, vocabulary_size=40, max_tokens=32),
        labels=("negative", "positive"),
    )


def _tensor_package(folder: Path) -> None:
    helper = onnx.helper
    inputs, outputs, nodes, specs = [], [], [], []
    for datatype, numpy_type in DATATYPES.items():
        element = helper.np_dtype_to_tensor_dtype(np.dtype(numpy_type))
        inputs.append(helper.make_tensor_value_info(f"in-{datatype}", element, ["rows", 2]))
        outputs.append(helper.make_tensor_value_info(f"out-{datatype}", element, ["rows", 2]))
        nodes.append(helper.make_node("Identity", [f"in-{datatype}"], [f"out-{datatype}"]))
        specs.append(
            (TensorSpec(f"in-{datatype}", datatype, (-1, 2)), TensorSpec(f"out-{datatype}", datatype, (-1, 2)))
        )
    graph = helper.make_graph(nodes, "everything", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    path = "servables/onnxruntime/model.onnx"
    (folder / path).parent.mkdir(parents=True)
    onnx.save(model, folder / path)
    manifest = Manifest(
        task=TENSORS,
        inputs=tuple(taken for taken, _ in specs),
        outputs=tuple(given for _, given in specs),
        servables=(Servable("onnxruntime", "fp32", path),),
    )
    write_package(folder, manifest)


class _Registry(RegistryServiceServicer):
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._blobs: dict[str, Path] = {}

    def GetVersion(self, request: registry_service_pb2.GetVersionRequest, context: Any) -> version_pb2.Version:
        folder = self._folder / request.name.split("/")[1]
        version = version_pb2.Version(name=request.name)
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                name = f"blobs/{hashlib.sha256(path.read_bytes()).hexdigest()}"
                self._blobs[name] = path
                file = blob_pb2.File(
                    path=path.relative_to(folder).as_posix(), blob=name, size_bytes=path.stat().st_size
                )
                version.files.append(file)
        return version

    def DownloadBlob(
        self, request: registry_service_pb2.DownloadBlobRequest, context: Any
    ) -> Iterator[registry_service_pb2.DownloadBlobResponse]:
        yield registry_service_pb2.DownloadBlobResponse(chunk=self._blobs[request.name].read_bytes()[request.offset :])


class _Rollout(RolloutServiceServicer):
    def __init__(self) -> None:
        self.ended = threading.Event()

    def WatchDeployments(
        self, request: rollout_service_pb2.WatchDeploymentsRequest, context: Any
    ) -> Iterator[rollout_service_pb2.WatchDeploymentsResponse]:
        yield rollout_service_pb2.WatchDeploymentsResponse(
            snapshot=True,
            deployments=[
                deployment_pb2.Deployment(
                    name=f"deployments/{name}",
                    targets=[deployment_pb2.Target(version=f"models/{name}/versions/1", weight=1)],
                )
                for name in ("reviews", "everything")
            ],
            resume_token="1",
        )
        self.ended.wait()

    def ReportReplica(
        self, request: rollout_service_pb2.ReportReplicaRequest, context: Any
    ) -> rollout_service_pb2.ReportReplicaResponse:
        return rollout_service_pb2.ReportReplicaResponse()
