"""A registry in a process of its own, reached directly."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc


@contextmanager
def running_registry(folder: Path) -> Iterator[str]:
    """Give the address of a registry that keeps its state in the folder."""
    address = f"unix:{folder}/r.sock"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAAS_")}
    environment |= {"MAAS_HOME": str(folder), "MAAS_LISTEN": address, "MAAS_METRICS_LISTEN": f"unix:{folder}/m.sock"}
    with subprocess.Popen([sys.executable, "-m", "maas_registry"], env=environment) as process:
        try:
            with grpc.insecure_channel(address) as channel:
                grpc.channel_ready_future(channel).result(timeout=30)
            yield address
        finally:
            process.terminate()
            process.wait(15)
