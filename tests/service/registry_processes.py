"""The registry as a process of its own on stores of its own, which may be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import grpc

from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

START_SECONDS = 60.0


class RegistryProcess:
    """`python -m maas_registry` in a folder; the variables say which stores it uses."""

    def __init__(self, folder: Path, variables: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.endpoint = f"127.0.0.1:{free_port()}"
        self.variables = {
            "MAAS_HOME": str(folder),
            "MAAS_LISTEN": self.endpoint,
            "MAAS_METRICS_LISTEN": f"unix:{folder}/m.sock",
            "MAAS_LOG_LEVEL": "WARNING",
            **(variables or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def database_url(self) -> str:
        """Where its records are."""
        return self.variables.get("MAAS_REGISTRY_DATABASE_URL") or f"sqlite:///{self.folder}/registry/registry.sqlite"

    @property
    def pid(self) -> int:
        """Its process id while it runs."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it; it does not answer yet."""
        command = [sys.executable, "-m", "maas_registry"]
        with (self.folder / "registry.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=os.environ | self.variables, stdout=log, stderr=log)

    def wait_until_it_answers(self) -> None:
        """Wait for the first answer. Raises RuntimeError, with what it logged, when it ends instead."""
        assert self._process is not None
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            with grpc.insecure_channel(self.endpoint) as channel:
                try:
                    RegistryServiceStub(channel).ListModels(messages.ListModelsRequest(page_size=1), timeout=5)
                    return
                except grpc.RpcError:
                    time.sleep(0.02)
        raise RuntimeError(f"the registry does not answer: {self.log()}")

    def kill(self) -> None:
        """Kill it as `kill -9` does, and wait until it is gone."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=30)

    def stop(self) -> int:
        """Ask it to stop and return its exit status."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(timeout=60)

    def log(self) -> str:
        """The end of what it said."""
        return (self.folder / "registry.log").read_text(errors="replace")[-4000:]

    def close(self) -> None:
        """Kill it if it still runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(timeout=30)


@contextmanager
def registry_process(variables: Mapping[str, str] | None = None) -> Iterator[RegistryProcess]:
    """A registry that answers, in a folder that goes with it."""
    # A short path, since a socket lies in it.
    with tempfile.TemporaryDirectory(prefix="maas-reg-") as folder:
        process = RegistryProcess(Path(folder), variables)
        try:
            process.start()
            process.wait_until_it_answers()
            yield process
        finally:
            process.close()


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
