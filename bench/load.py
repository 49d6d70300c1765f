"""A closed loop of gRPC inference requests, made by h2load (Debian's nghttp2-client)."""

import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(frozen=True, slots=True)
class Load:
    """What one loop measured."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    failed: int


def need_h2load() -> None:
    """End the process with a sentence when h2load is missing."""
    if shutil.which("h2load") is None:
        sys.exit("h2load is missing: apt-get install nghttp2-client")


def run_load(port: int, message: bytes, answer_bytes: int, in_flight: int, seconds: float, warm: float = 1.0) -> Load:
    """Send one message again and again over `in_flight` connections of one stream each.

    The first `warm` seconds are not counted. `answer_bytes` is the length of a good answer's body: gRPC errors come
    with HTTP status 200 and no body, so what is missing from the bytes received counts as failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(b"\0" + struct.pack(">I", len(message)) + message)
        command = ["h2load", "-t", "1", "-c", str(in_flight), "-m", "1", "-D", str(round(seconds + warm))]
        command += ["-d", str(body), "--log-file", str(log)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers", f"http://127.0.0.1:{port}{METHOD}"]
        printed = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds + warm + 30, check=True
        ).stdout
        rows = [line.split("\t") for line in log.read_text().splitlines()]
    good = [(int(start), int(micros)) for start, status, micros in rows if status == "200"]
    if len(good) < 2:
        raise RuntimeError(f"no request was answered:\n{printed}")
    traffic = next(line for line in printed.splitlines() if line.startswith("traffic:"))
    data_bytes = int(traffic.rsplit("(", 1)[1].split(")")[0])
    failed = len(rows) - len(good) + max(0, round(len(good) - data_bytes / answer_bytes))
    first = min(start for start, _ in good)
    counted = [(start, micros) for start, micros in good if start > first + warm * 1e6]
    ends = [start + micros for start, micros in counted]
    times = sorted(micros / 1000 for _, micros in counted)
    return Load(
        (len(counted) - 1) / ((max(ends) - min(ends)) / 1e6),
        statistics.median(times),
        times[min(len(times) - 1, int(len(times) * 0.99))],
        failed,
    )
