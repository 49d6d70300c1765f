"""make bench: requests/s and p50/p99 of a real cluster at 1, 16 and 64 in flight, direct and through the gateway.

The model is the seed's LSTM (vocabulary 10,000, embedding 100, hidden 256) with random weights, 32 tokens a request, as
float32 and as int8, on onnxruntime with one thread. Ways to reach it:

  direct       a second inference front alone in an Envoy of its own, connected to the same workers
  gateway      the embedded default: the gateway's filters and the front in one Envoy
  two Envoys   the gateway in an Envoy of its own, before the direct front

Ways, models and concurrencies take turns within each round; the table holds medians over rounds, the ratios are to
`direct` of the same run. The load generator runs on the same cores.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from load import Load, need_h2load, run_load
from seed import seed_package

from maas.client import Client
from maas.oip.v2.grpc_service_pb2 import ModelInferRequest
from maas_compression.int8 import apply_int8
from maas_compression.recipe import Int8

TOKENS = 32
ANSWER_TIMEOUT_SECONDS = 30


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time of one load")
    parser.add_argument("--in-flight", default="1,16,64", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--json", action="store_true", help="print the single loads as JSON instead of the table")
    arguments = parser.parse_args()
    need_h2load()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as folder, cluster(Path(folder)) as ways:
        loads = measure(ways, arguments.in_flight, arguments.rounds, arguments.seconds)
    if arguments.json:
        keys = ("way", "model", "in_flight")
        print(
            json.dumps(
                [dict(zip(keys, key, strict=True)) | asdict(load) for key, cell in loads.items() for load in cell]
            )
        )
    else:
        print_table(loads, list(ways), arguments.in_flight)


Cells = dict[tuple[str, str, int], list[Load]]


def measure(ways: dict[str, int], in_flight: list[int], rounds: int, seconds: float) -> Cells:
    """Load every way to every model in turn."""
    cells: Cells = {}
    for number in range(rounds):
        for model in ("seed", "seed-int8"):
            message = infer_request(model)
            for way, port in ways.items():
                answer_bytes = 5 + len(ask(port, message))
                for count in in_flight:
                    load = run_load(port, message, answer_bytes, count, seconds)
                    cells.setdefault((way, model, count), []).append(load)
                    print(
                        f"# round {number + 1} {model} {way} {count} in flight: {load.requests_per_second:.0f}/s, "
                        f"p50 {load.p50_ms:.2f} ms, p99 {load.p99_ms:.2f} ms, {load.failed} failed",
                        file=sys.stderr,
                        flush=True,
                    )
    return cells


def print_table(cells: Cells, ways: list[str], in_flight: list[int]) -> None:
    """Print a Markdown table of medians."""
    heads = "".join(f" {count}: req/s | p50 / p99 ms |" for count in in_flight)
    most = max(in_flight)
    print(f"\n{platform.machine()}, {os.cpu_count()} cores, load generator included\n")
    print(f"| model | way |{heads} x direct at {most} | failed |")
    print("|---|---|" + "---|" * (2 * len(in_flight) + 2))
    for model in ("seed", "seed-int8"):
        for way in ways:
            row = [model, way]
            for count in in_flight:
                loads = cells[way, model, count]
                row.append(f"{statistics.median(load.requests_per_second for load in loads):,.0f}")
                p50 = statistics.median(load.p50_ms for load in loads)
                row.append(f"{p50:.2f} / {statistics.median(load.p99_ms for load in loads):.2f}")
            ratios = [
                load.requests_per_second / direct.requests_per_second
                for load, direct in zip(cells[way, model, most], cells["direct", model, most], strict=True)
            ]
            row.append(f"{statistics.median(ratios):.2f}")
            row.append(str(sum(load.failed for count in in_flight for load in cells[way, model, count])))
            print("| " + " | ".join(row) + " |")


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, int]]:
    """Start a cluster that serves both models and give the port of each way to it."""
    home = folder / "home"
    gateway, direct, before = free_port(), free_port(), free_port()
    environment = os.environ | {"MAAS_HOME": str(home)}
    command = [sys.executable, "-m", "maas.cli"]
    subprocess.run(
        [*command, "up", "--home", str(home), "--port", str(gateway), "--detach"],
        env=environment, stdout=sys.stderr, check=True, timeout=120,
    )  # fmt: skip
    children: list[subprocess.Popen[bytes]] = []
    try:
        seed = seed_package(folder / "seed")
        packages = {"seed": seed, "seed-int8": apply_int8(seed, Int8(), folder / "seed-int8")}
        with Client(f"127.0.0.1:{gateway}") as client:
            for name, package in packages.items():
                client.deploy(name, [client.push_package(package.folder, name).name])
                client.wait_until_ready(name)
        run_dir = home / "run"
        shared = environment | {"MAAS_RUN_DIR": str(run_dir)}
        children.append(start([sys.executable, "-m", "maas_inference.front"], folder,
                              shared | {"MAAS_PUBLIC_LISTEN": f"127.0.0.1:{direct}"}))  # fmt: skip
        own = folder / "own"
        own.mkdir()
        split = environment | {
            "MAAS_HOME": str(own),
            "MAAS_RUN_DIR": str(own),
            "MAAS_LISTEN": f"unix:{own}/gateway.sock",
            "MAAS_HTTP_LISTEN": f"unix:{own}/http.sock",
            "MAAS_PUBLIC_LISTEN": f"127.0.0.1:{before}",
            "MAAS_FRONT_ADDRESSES": f"127.0.0.1:{direct}",
        }
        for service in ("registry", "training", "compression", "rollout", "inference"):
            split[f"MAAS_{service.upper()}_ADDRESS"] = f"unix:{run_dir}/{service}.sock"
        children.append(start([sys.executable, "-m", "maas_gateway"], folder, split))
        children.append(start([sys.executable, "-m", "maas_gateway.envoy"], folder, split))
        for port in (direct, before):
            for model in packages:
                ask(port, infer_request(model))
        yield {"direct": direct, "gateway": gateway, "two Envoys": before}
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            child.wait(timeout=30)
        subprocess.run(
            [*command, "down", "--home", str(home)], env=environment, stdout=sys.stderr, check=True, timeout=60
        )


def infer_request(model: str) -> bytes:
    """Return a serialized ModelInfer with one row of 32 tokens."""
    tokens = np.random.default_rng(0).integers(2, 10_000, size=(1, TOKENS), dtype=np.int64)
    request = ModelInferRequest(model_name=model, raw_input_contents=[tokens.tobytes()])
    request.inputs.add(name="tokens", datatype="INT64", shape=list(tokens.shape))
    return request.SerializeToString()


def ask(port: int, message: bytes) -> bytes:
    """Send one request, again until the way to the model is open, and return the serialized answer."""
    import grpc

    end = time.monotonic() + ANSWER_TIMEOUT_SECONDS
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        while True:
            try:
                return call(message, timeout=5, wait_for_ready=True)
            except grpc.RpcError as error:
                if time.monotonic() > end:
                    raise RuntimeError(f"port {port} does not answer") from error
                time.sleep(0.1)


def start(command: list[str], folder: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a process whose output goes to a file beside the others."""
    with (folder / f"{command[-1]}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def free_port() -> int:
    """Return a port that nobody holds now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
