"""A closed loop of requests, made by h2load (Debian's nghttp2-client), the same generator for every server."""

import json
import math
import resource
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc
import models
import numpy as np

from maas.oip.v2.grpc_service_pb2 import ModelInferRequest, ModelInferResponse

METHOD = "/inference.GRPCInferenceService/ModelInfer"
ANSWER_TIMEOUT_SECONDS = 90.0
_FIRST_ANSWER_MS = 100
"""What h2load runs longer, for what goes before the first answer."""

Wire = Literal["grpc", "json"]
"""`grpc`: Open Inference Protocol v2; `json`: POST /predict over HTTP/1.1, for servers that have no v2."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one loop measured."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    failed: int
    generator_cores: float


@dataclass(frozen=True, slots=True)
class Question:
    """One request about one row, as a server's wire has it."""

    wire: Wire
    model: str
    """Whose network it is."""
    name: str
    """What the server calls it."""

    def body(self) -> bytes:
        tokens = models.sample(self.model)
        if self.wire == "json":
            return json.dumps({"inputs": tokens.tolist()}).encode()
        message = infer_request(self.name, models.SIGNATURES[self.model].input, tokens)
        return b"\0" + struct.pack(">I", len(message)) + message

    def url(self, port: int) -> str:
        return f"http://127.0.0.1:{port}{METHOD if self.wire == 'grpc' else '/predict'}"

    def ask(self, port: int, timeout: float = 5.0) -> tuple[np.ndarray, int]:
        """Ask once through an ordinary client: the answer, and the bytes of its body."""
        if self.wire == "json":
            headers = {"content-type": "application/json"}
            request = urllib.request.Request(self.url(port), data=self.body(), headers=headers)
            with urllib.request.urlopen(request, timeout=timeout) as response:
                raw = response.read()
            answer = json.loads(raw)
            return np.asarray(answer["outputs"] if isinstance(answer, dict) else answer, np.float32), len(raw)
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            raw = channel.unary_unary(METHOD)(self.body()[5:], timeout=timeout)
        response = ModelInferResponse.FromString(raw)
        wanted = models.SIGNATURES[self.model].output
        index = [output.name for output in response.outputs].index(wanted)
        if response.raw_output_contents:
            values = np.frombuffer(response.raw_output_contents[index], np.float32)
        else:
            values = np.array(response.outputs[index].contents.fp32_contents, np.float32)
        return values.reshape(tuple(response.outputs[index].shape)), len(raw) + 5

    def until_answered(self, port: int, seconds: float = ANSWER_TIMEOUT_SECONDS) -> tuple[np.ndarray, int]:
        """Ask again until there is an answer."""
        end = time.monotonic() + seconds
        while True:
            try:
                return self.ask(port)
            except (grpc.RpcError, OSError) as error:
                if time.monotonic() > end:
                    raise RuntimeError(f"{self.name} at port {port} does not answer: {error}") from error
                time.sleep(0.05)


def infer_request(name: str, input_name: str, tokens: np.ndarray) -> bytes:
    """Return a serialized ModelInfer."""
    request = ModelInferRequest(model_name=name, raw_input_contents=[tokens.tobytes()])
    request.inputs.add(name=input_name, datatype="INT64", shape=list(tokens.shape))
    return request.SerializeToString()


def need_h2load() -> None:
    """End the process with a sentence when h2load is missing."""
    if shutil.which("h2load") is None:
        sys.exit("h2load is missing: apt-get install nghttp2-client")


def run_load(
    port: int,
    question: Question,
    answer_bytes: int,
    in_flight: int,
    seconds: float,
    *,
    warm: float = 1.0,
    connections: int | None = None,
) -> Load:
    """Send one question again and again, `in_flight` at once, over as many connections or over `connections`.

    What is answered within `seconds` counts, beginning `warm` seconds after the first answer. `answer_bytes` is the
    length of a good gRPC answer's body: errors come with HTTP status 200 and no body, so what is missing from the bytes
    received counts as failed.
    """
    connections = connections or in_flight
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(question.body())
        command = ["h2load", "-t", "1", "-c", str(connections), "-m", str(in_flight // connections)]
        command += [
            "-D",
            f"{round((seconds + warm) * 1000) + _FIRST_ANSWER_MS}ms",
            "-d",
            str(body),
            "--log-file",
            str(log),
        ]
        if question.wire == "grpc":
            command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        else:
            command += ["--h1", "-H", "content-type: application/json"]
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        limit = seconds + warm + 30
        done = subprocess.run([*command, question.url(port)], capture_output=True, text=True, timeout=limit, check=True)
        after, spent = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begun
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    good = [(int(start), int(micros)) for start, status, micros in rows if status == "200"]
    if len(good) < 2:
        raise RuntimeError(f"no request was answered:\n{done.stdout}")
    failed = len(rows) - len(good)
    if question.wire == "grpc":
        failed += max(0, round(len(good) - _data_bytes(done.stdout) / answer_bytes))
    ends = [start + micros for start, micros in good]
    begin = min(ends) + warm * 1e6
    times = sorted(
        micros / 1000 for end, (_, micros) in zip(ends, good, strict=True) if begin < end <= begin + seconds * 1e6
    )
    return Load(
        len(times) / seconds,
        statistics.median(times) if times else math.nan,
        times[min(len(times) - 1, int(len(times) * 0.99))] if times else math.nan,
        failed,
        (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / spent,
    )


def _data_bytes(printed: str) -> int:
    traffic = next(line for line in printed.splitlines() if line.startswith("traffic:"))
    return int(traffic.rsplit("(", 1)[1].split(")")[0])
