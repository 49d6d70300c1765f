"""One engine worker as a process, asked directly over its socket."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maas_inference.datatypes import BYTES, join_elements, split_elements
from maas_inference.wire import GREETING, Batch, FrameReader, Reply, TensorHeader, decode_reply, frame_head
from maas_package.tensors import Array, numpy_type

_SECONDS = 30.0


@dataclass(frozen=True)
class Worker:
    """A worker that has reported; it listens when its report has no failure."""

    report: Mapping[str, Any]
    socket_path: Path

    def ask(
        self, inputs: Mapping[str, tuple[str, Array]], rows: Sequence[int]
    ) -> list[tuple[Reply, dict[str, list[Any]]]]:
        """Send one batch, `rows` for each request, and return the replies with their tensors as lists."""
        headers, raws = [], []
        for name, (datatype, tensor) in inputs.items():
            raw = join_elements(tensor.ravel().tolist()) if datatype == BYTES else tensor.tobytes()
            headers.append(TensorHeader(name, datatype, tensor.shape, len(raw)))
            raws.append(raw)
        with closing(socket.socket(socket.AF_UNIX)) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(str(self.socket_path))
            assert connection.recv(len(GREETING), socket.MSG_WAITALL) == GREETING
            connection.sendall(b"".join([frame_head(Batch(1, tuple(rows), tuple(headers))), *raws]))
            frames, replies, answered = FrameReader(), [], 0
            while answered < len(rows):
                for header, payload in frames.feed(connection.recv(1 << 16)):
                    reply = decode_reply(header)
                    answered += reply.count
                    replies.append((reply, _lists(reply.tensors, payload)))
        return replies


@contextmanager
def running_worker(package: Path, run_dir: Path, *arguments: str, import_from: Path | None = None) -> Iterator[Worker]:
    """Start a worker for a package; `import_from` is a folder of distributions beside the installed ones."""
    socket_path = run_dir / "worker.sock"
    command = [sys.executable, "-m", "maas_inference.worker", f"--package={package}", f"--socket={socket_path}"]
    command += [f"--parent-pid={os.getpid()}", *arguments]
    environment = dict(os.environ)
    if import_from is not None:
        environment["PYTHONPATH"] = os.pathsep.join([str(import_from), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        try:
            assert process.stdout is not None
            yield Worker(json.loads(process.stdout.readline()), socket_path)
        finally:
            process.terminate()


def _lists(headers: Sequence[TensorHeader], payload: memoryview) -> dict[str, list[Any]]:
    tensors: dict[str, list[Any]] = {}
    for header in headers:
        raw, payload = payload[: header.size_bytes], payload[header.size_bytes :]
        if header.datatype == BYTES:
            tensors[header.name] = split_elements(raw)
        else:
            tensors[header.name] = np.frombuffer(raw, numpy_type(header.datatype)).reshape(header.shape).tolist()
    return tensors
