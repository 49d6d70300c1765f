"""Serves the bench's seed model for `../shared/bench/compare`, which runs peers side by side:

    ../shared/bench/compare triton --model seed \\
        --own 'maas|oip-grpc|.venv/bin/python bench/peer_server.py {port} {model}'

Reads BENCH_MODELS/seed.pt, starts a cluster in a folder of its own on the port, deploys the model as `seed` (with
`--int8` its 8-bit form) and stays in the foreground until SIGTERM.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from seed import seed_package

from maas.client import Client
from maas_compression.int8 import apply_int8
from maas_compression.recipe import Int8

# The peers' names of the same tensors.
NAMES = {"emb.weight": "embedding.weight", "out.weight": "output.weight", "out.bias": "output.bias"}


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("model", choices=["seed"])
    parser.add_argument("--int8", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with tempfile.TemporaryDirectory(prefix="maas-peer-") as folder:
        home = Path(folder, "home")
        command = [sys.executable, "-m", "maas.cli", "up", "--home", str(home), "--port", str(arguments.port)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as cluster:
            try:
                weights = torch.load(Path(os.environ["BENCH_MODELS"], "seed.pt"), weights_only=True)
                named = {NAMES.get(name, name): tensor for name, tensor in weights.items()}
                package = seed_package(Path(folder, "seed"), named)
                if arguments.int8:
                    package = apply_int8(package, Int8(), Path(folder, "int8"))
                with Client(f"127.0.0.1:{arguments.port}", retry_seconds=60) as client:
                    client.deploy("seed", [client.push_package(package.folder, "seed").name])
                cluster.wait()
            finally:
                cluster.terminate()


if __name__ == "__main__":
    main()
