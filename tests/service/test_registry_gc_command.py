"""`maas registry gc`, beside a registry that is running."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from maas.blobs import download_blob, upload_blob
from maas.errors import NotFoundError

ONE_SECOND = {"MAAS_REGISTRY_GC_GRACE_SECONDS": "1"}


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[grpc.Channel]:
    listen = f"unix:{tmp_path}/r.sock"
    environment = os.environ | {
        "MAAS_HOME": str(tmp_path),
        "MAAS_LISTEN": listen,
        "MAAS_METRICS_LISTEN": f"unix:{tmp_path}/m.sock",
        "MAAS_LOG_LEVEL": "WARNING",
    }
    with subprocess.Popen([sys.executable, "-m", "maas_registry"], env=environment) as process:
        try:
            with grpc.insecure_channel(listen) as channel:
                grpc.channel_ready_future(channel).result(timeout=60)
                yield channel
        finally:
            process.terminate()


def collect(folder: Path, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "maas.cli", "registry", "gc", "--json", "--home", str(folder), *options]
    done = subprocess.run(command, env=os.environ | ONE_SECOND, capture_output=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_what_nobody_needs_goes_and_can_be_uploaded_again(channel: grpc.Channel, tmp_path: Path) -> None:
    file = tmp_path / "content"
    file.write_bytes(b"nobody needs it")
    name = upload_blob(channel, file)
    assert name.sha256 == hashlib.sha256(b"nobody needs it").hexdigest()
    assert collect(tmp_path, "--dry-run")["unused_bytes"] == 15
    while not (found := collect(tmp_path))["removed"]:
        assert found["unused"] == 1
    assert found["removed_bytes"] == 15
    with pytest.raises(NotFoundError):
        download_blob(channel, name, tmp_path / "again")
    assert upload_blob(channel, file) == name
    download_blob(channel, name, tmp_path / "again")
