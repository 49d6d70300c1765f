"""A cluster for benches, and the ways to reach its inference.

gateway   the embedded default: the gateway's filters and the front in one Envoy
direct    a second inference front alone in an Envoy of its own, connected to the same workers
apart     a gateway in a process and an Envoy of its own, before the direct front
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from load import Question
from processes import Processes

from maas.client import Client
from maas.errors import MaasError
from maas.rollout.v1.deployment_pb2 import ServingSettings
from maas_package.package import Package

Way = Literal["direct", "gateway", "apart"]
SERVICES = ("registry", "training", "compression", "rollout", "inference")
_STOP_SECONDS = 60


class Cluster:
    """`maas up` in a folder that may have been used before, and further fronts and gateways beside it."""

    def __init__(self, home: Path, processes: Processes) -> None:
        self.home = home
        self.processes = processes
        self.ports: dict[Way, int] = {"gateway": free_port()}

    @property
    def client(self) -> Client:
        """A client of the gateway."""
        return Client(f"127.0.0.1:{self.ports['gateway']}", retry_seconds=30)

    def deploy(self, name: str, package: Package, engine: str = "") -> None:
        """Serve a package; `engine` (`torch`, `openvino:bf16`) instead of the fastest that it has."""
        with self.client as client:
            version = client.push_package(package.folder, name).name
            client.deploy(name, [version], serving=ServingSettings(engine=engine))
            client.wait_until_ready(name)

    def question(self, name: str, model: str = "seed") -> Question:
        """Return the question about a model for the deployment of that name."""
        return Question("grpc", model, name)

    def start_direct(self, command: Sequence[str] = ("-m", "maas_inference.front")) -> None:
        """Start a front of its own: Python with these arguments."""
        port = self.ports["direct"] = free_port()
        environment = {"MAAS_RUN_DIR": str(self._run_dir), "MAAS_PUBLIC_LISTEN": f"127.0.0.1:{port}"}
        self.processes.start("direct", [sys.executable, *command], environment)

    def start_apart(self) -> None:
        """Start a gateway of its own before the direct front."""
        port = self.ports["apart"] = free_port()
        own = self.home.parent / f"{self.home.name}-apart"
        own.mkdir(exist_ok=True)
        environment = {
            "MAAS_HOME": str(own),
            "MAAS_RUN_DIR": str(own),
            "MAAS_LISTEN": f"unix:{own}/gateway.sock",
            "MAAS_HTTP_LISTEN": f"unix:{own}/http.sock",
            "MAAS_PUBLIC_LISTEN": f"127.0.0.1:{port}",
            "MAAS_FRONT_ADDRESSES": f"127.0.0.1:{self.ports['direct']}",
        }
        for service in SERVICES:
            environment[f"MAAS_{service.upper()}_ADDRESS"] = f"unix:{self._run_dir}/{service}.sock"
        for module in ("maas_gateway", "maas_gateway.envoy"):
            self.processes.start(f"apart-{module}", [sys.executable, "-m", module], environment)

    def metrics(self) -> dict[str, float]:
        """Return /metrics of the whole cluster, by name and labels as they are written."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports['gateway']}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if line and not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def worker_pids(self) -> dict[str, int]:
        """Return the engine workers' process ids by deployment."""
        with self.client as client:
            return {
                loaded.deployment.rpartition("/")[2]: loaded.pid
                for loaded in client.replica().loaded_versions
                if loaded.pid
            }

    def engines(self) -> dict[str, str]:
        """Return what each deployment computes with, as `onnxruntime fp32`."""
        with self.client as client:
            loaded = client.replica().loaded_versions
        return {one.deployment.rpartition("/")[2]: f"{one.engine} {one.precision}" for one in loaded if one.engine}

    def pids_of(self, pattern: str) -> list[int]:
        """Return the processes whose command line has the pattern."""
        return [pid for pid, command in self.processes.commands().items() if re.search(pattern, command)]

    @property
    def _run_dir(self) -> Path:
        return self.home / "run"


@contextlib.contextmanager
def running_cluster(home: Path | None = None, environment: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Start a cluster, in a folder of its own if none is given, and end all that was started with it."""
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as folder:
        home = home or Path(folder, "home")
        processes = Processes(Path(folder))
        cluster = Cluster(home, processes)
        port = str(cluster.ports["gateway"])
        maas = [sys.executable, "-m", "maas.cli"]
        try:
            processes.start("up", [*maas, "up", "--home", str(home), "--port", port], environment)
            with cluster.client as client:
                until(client.is_serving, 60, "the cluster serves")
            yield cluster
        finally:
            down = [*maas, "down", "--home", str(home)]
            subprocess.run(down, env=os.environ, capture_output=True, timeout=_STOP_SECONDS, check=False)
            processes.stop()


def until(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Ask again until it holds."""
    end = time.monotonic() + seconds
    while True:
        try:
            if holds():
                return
        except (MaasError, OSError):
            pass
        if time.monotonic() > end:
            raise RuntimeError(f"not within {seconds:g} s: {what}")
        time.sleep(0.02)


def free_port() -> int:
    """Return a port that nobody holds now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
