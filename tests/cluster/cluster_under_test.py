"""A real cluster for tests: `maas up --detach` in a folder of its own, on a free port."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maas.errors import MaasError
from maas_package.architectures import load_architecture
from maas_package.package import Package
from maas_package.text import build_word_tokenizer
from maas_package.trainable import package_trained_model

T = TypeVar("T")

SERVICE_NAMES = [
    f"maas.{name}.v1.{name.capitalize()}Service"
    for name in ("registry", "training", "compression", "rollout", "inference")
]
WORDS = ["good", "bad", "film", "a", "the", "plot", "acting", "boring", "great", "it", "is", "was"]


def until(found: Callable[[], T | None], seconds: float, what: str) -> T:
    """Ask again until there is an answer that is true; the last exception is told when there is none in time."""
    end = time.monotonic() + seconds
    last: Exception | None = None
    while time.monotonic() < end:
        try:
            answer = found()
            if answer:
                return answer
        except (MaasError, grpc.RpcError, OSError, AssertionError, subprocess.SubprocessError) as error:
            last = error
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}; last: {last!r}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass(frozen=True)
class Cluster:
    """A running cluster and the command that a person would use on it."""

    home: Path
    port: int
    settings: Mapping[str, str] = field(default_factory=dict)
    """Variables that it is started with."""

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.port}"

    def maas(self, *arguments: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **self.settings, "MAAS_HOME": str(self.home), "MAAS_ENDPOINT": self.endpoint}
        result = subprocess.run(
            [sys.executable, "-m", "maas.cli", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check:
            assert result.returncode == 0, (
                f"maas {' '.join(arguments)}: {result.stdout}\n{result.stderr}\n{self.logs()}"
            )
        return result

    def json(self, *arguments: str) -> Any:
        return json.loads(self.maas(*arguments, "--json").stdout)

    def pids(self) -> dict[str, int]:
        """Process ids by process name, as the supervisor says."""
        state = json.loads((self.home / "run" / "state.json").read_text())
        return {process["name"]: process["pid"] for process in state["processes"]}

    def is_healthy(self) -> bool:
        """Whether every service says so at the gateway. Raises grpc.RpcError where one cannot be asked."""
        with grpc.insecure_channel(self.endpoint) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            answers = [
                stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2) for service in SERVICE_NAMES
            ]
        return all(answer.status == health_pb2.HealthCheckResponse.SERVING for answer in answers)

    def logs(self) -> str:
        lines = []
        for path in sorted((self.home / "logs").glob("*.log")):
            lines += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-15:]]
        return "\n".join(lines)


def small_package(folder: Path, seed: int) -> Package:
    """Make a real package of a small LSTM with random weights."""
    architecture = load_architecture("lstm-text-classifier")
    tokenizer = build_word_tokenizer([" ".join(WORDS)] * 2, vocabulary_size=50)
    config = architecture.default_config | {"vocabulary_size": 50, "embedding_size": 8, "hidden_size": 8}
    config = architecture.parse_config(config)
    torch.manual_seed(seed)
    return package_trained_model(
        folder,
        architecture=architecture,
        config=config,
        module=architecture.build(config).eval(),
        tokenizer=tokenizer,
        labels=("negative", "positive"),
    )


@contextlib.contextmanager
def started_cluster(**settings: str) -> Iterator[Cluster]:
    home = Path(tempfile.mkdtemp(prefix="maas-cluster-"))
    cluster = Cluster(home, free_port(), settings)
    try:
        cluster.maas("up", "--home", str(home), "--port", str(cluster.port), "--detach")
        yield cluster
    finally:
        cluster.maas("down", "--home", str(home), check=False)
        shutil.rmtree(home)
