"""Registry, training and compression as real processes on sockets, with small data to work on."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pyarrow
import pyarrow.parquet

from maas.blobs import upload_blob
from maas.compression.v1 import compression_service_pb2
from maas.compression.v1.compression_service_pb2_grpc import CompressionServiceStub
from maas.registry.v1 import blob_pb2, dataset_pb2, registry_service_pb2
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub
from maas.training.v1 import training_service_pb2
from maas.training.v1.training_service_pb2_grpc import TrainingServiceStub

_GOOD, _BAD = ("great", "moving", "fine", "funny"), ("dull", "awful", "weak", "boring")
_CHANNEL = (("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200))

Rows = Sequence[tuple[str, int]]


def reviews(rows: int) -> list[tuple[str, int]]:
    """Rows that are easy to learn: a word decides."""
    return [
        (f"a {words[row // 2 % 4]} film number {row % 7}", label)
        for row in range(rows)
        for label, words in [(row % 2, (_BAD, _GOOD)[row % 2])]
    ]


class JobCluster:
    """The three processes and stubs to them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.home = folder / "home"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.channel = grpc.insecure_channel(self._socket("registry"), options=_CHANNEL)
        self.registry = RegistryServiceStub(self.channel)
        self.training = TrainingServiceStub(grpc.insecure_channel(self._socket("training"), options=_CHANNEL))
        self.compression = CompressionServiceStub(grpc.insecure_channel(self._socket("compression"), options=_CHANNEL))

    def start(self, name: str, **settings: str) -> None:
        """Start a process with these environment variables; the next call waits for it."""
        environment = self._environment(name) | settings
        self._processes[name] = subprocess.Popen([sys.executable, "-m", f"maas_{name}"], env=environment)

    def wait_for(self, names: Iterable[str]) -> None:
        """Wait until the processes answer."""
        for name in names:
            match name:
                case "registry":
                    self.registry.ListModels(registry_service_pb2.ListModelsRequest(), timeout=30, wait_for_ready=True)
                case "training":
                    self.training.ListTrainingJobs(
                        training_service_pb2.ListTrainingJobsRequest(), timeout=30, wait_for_ready=True
                    )
                case "compression":
                    self.compression.ListCompressionJobs(
                        compression_service_pb2.ListCompressionJobsRequest(), timeout=30, wait_for_ready=True
                    )

    def kill(self, name: str) -> None:
        """kill -9 a process, and wait for its end."""
        self._processes[name].kill()
        self._processes[name].wait(10)

    def steps(self, name: str) -> list[psutil.Process]:
        """Return the processes in which a service works on jobs now."""
        return psutil.Process(self._processes[name].pid).children(recursive=True)

    def push(self, dataset_id: str, splits: dict[str, Rows], columns: tuple[str, str] = ("text", "label")) -> str:
        """Store a dataset and return its version's name."""
        with tempfile.TemporaryDirectory(dir=self._folder) as scratch:
            messages = [self._push_split(Path(scratch), name, rows, columns) for name, rows in splits.items()]
        self.registry.CreateDataset(registry_service_pb2.CreateDatasetRequest(dataset_id=dataset_id), timeout=10)
        return self.registry.CreateDatasetVersion(
            registry_service_pb2.CreateDatasetVersionRequest(
                parent=f"datasets/{dataset_id}", dataset_version=dataset_pb2.DatasetVersion(splits=messages)
            ),
            timeout=10,
        ).name

    def push_package(self, folder: Path) -> list[blob_pb2.File]:
        """Store a package's files and return them as members of a version."""
        return [
            blob_pb2.File(path=path.relative_to(folder).as_posix(), blob=str(upload_blob(self.channel, path)))
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]

    def stop(self) -> None:
        """End all, gently first."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(15)
            finally:
                process.kill()
        self.channel.close()

    def _push_split(self, scratch: Path, name: str, rows: Rows, columns: tuple[str, str]) -> dataset_pb2.Split:
        path = scratch / f"{name}.parquet"
        texts, labels = [text for text, _ in rows], [label for _, label in rows]
        table = pyarrow.table({columns[0]: pyarrow.array(texts, pyarrow.string()), columns[1]: pyarrow.array(labels)})
        pyarrow.parquet.write_table(table, path)
        blob = upload_blob(self.channel, path)
        return dataset_pb2.Split(
            split_id=name,
            file=blob_pb2.File(path=path.name, blob=str(blob)),
        )

    def _socket(self, name: str) -> str:
        return f"unix:{self._folder}/{name}.sock"

    def _environment(self, name: str) -> dict[str, str]:
        return os.environ | {
            "MAAS_HOME": str(self.home),
            "MAAS_LISTEN": self._socket(name),
            "MAAS_METRICS_LISTEN": f"unix:{self._folder}/{name}-metrics.sock",
            "MAAS_REGISTRY_ADDRESS": self._socket("registry"),
            "MAAS_LOG_LEVEL": "WARNING",
            # The steps inherit it: two small tests beside each other must not fight for cores.
            "OMP_NUM_THREADS": "1",
        }


@contextmanager
def job_cluster(names: Sequence[str]) -> Iterator[JobCluster]:
    """Give a cluster of these processes, in a folder whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="maas-jobs-") as folder:
        cluster = JobCluster(Path(folder))
        try:
            for name in names:
                cluster.start(name)
            cluster.wait_for(names)
            yield cluster
        finally:
            cluster.stop()


def failure_of(call: Callable[[], object]) -> tuple[str, str]:
    """Return status and reason of a call that fails."""
    from maas.errors import from_rpc_error

    try:
        call()
    except grpc.RpcError as error:
        translated = from_rpc_error(error)
        return translated.code, translated.reason
    raise AssertionError("the call succeeded")
