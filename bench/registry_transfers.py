"""Upload and download of one large artifact by the client library, beside `sha256sum` of the same file."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from registry_processes import RegistryProcess
from report import median, say, table

from maas.blobs import download_blob, sha256_of, upload_blob
from maas.calls import open_channel
from maas.names import BlobName

TARGET_RATIO = 0.6
TARGET_MB = 150.0
_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Transfers:
    """What one registry showed, a number a round."""

    stores: str
    size_bytes: int
    sha256sum_seconds: list[float]
    upload_seconds: list[float]
    """From the call of the library, which hashes the file first, to the acknowledged commit."""
    download_seconds: list[float]
    """To a file that was checked and is on disk."""
    registry_mb: float
    """The most memory of the registry's process."""
    client_mb: float

    @property
    def upload_ratio(self) -> float:
        """How many times as fast as `sha256sum`; the median of the rounds."""
        return _ratio(self.sha256sum_seconds, self.upload_seconds)

    @property
    def download_ratio(self) -> float:
        """How many times as fast as `sha256sum`; the median of the rounds."""
        return _ratio(self.sha256sum_seconds, self.download_seconds)


def measure_transfers(stores: str, registry: RegistryProcess, size_bytes: int, rounds: int) -> Transfers:
    """Move a file there and back; each round has other bytes, since a blob that is there is not sent again."""
    sums, uploads, downloads, clients = [], [], [], [0.0]
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as folder:
        source, target = Path(folder, "source"), Path(folder, "target")
        for number in range(rounds):
            _write_other_bytes(source, size_bytes, number)
            sums.append(_seconds_of(lambda: subprocess.run(["sha256sum", source], check=True, capture_output=True)))
            seconds, client_mb = _in_a_process(_upload, registry.endpoint, source)
            uploads.append(seconds)
            clients.append(client_mb)
            seconds, client_mb = _in_a_process(_download, registry.endpoint, sha256_of(source), target)
            downloads.append(seconds)
            clients.append(client_mb)
            if sha256_of(target) != sha256_of(source):
                raise RuntimeError("other bytes came back than went there")
            target.unlink()
            say(f"{stores}: sha256sum {sums[-1]:.1f} s, upload {uploads[-1]:.1f} s, download {downloads[-1]:.1f} s")
    return Transfers(stores, size_bytes, sums, uploads, downloads, peak_mb(registry.pid), max(clients))


def describe_transfers(measured: list[Transfers]) -> str:
    """Return the Markdown."""
    head = ["stores", "sha256sum MB/s", "upload MB/s", "x", "download MB/s", "x", "registry peak MB", "client peak MB"]
    rows = []
    for one in measured:
        rates = [
            one.size_bytes / 1e6 / median(seconds)
            for seconds in (one.sha256sum_seconds, one.upload_seconds, one.download_seconds)
        ]
        rows.append(
            [
                one.stores,
                f"{rates[0]:,.0f}",
                f"{rates[1]:,.0f}",
                f"{one.upload_ratio:.2f}",
                f"{rates[2]:,.0f}",
                f"{one.download_ratio:.2f}",
                f"{one.registry_mb:.0f}",
                f"{one.client_mb:.0f}",
            ]
        )
    return table(head, rows)


def peak_mb(pid: int) -> float:
    """Return the most memory that a process has had, resident."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise ProcessLookupError(pid)


def _write_other_bytes(path: Path, size_bytes: int, number: int) -> None:
    # One block over and over, each copy begun with its place: quick to make, and no two blocks are the same.
    block = bytearray(_BLOCK_BYTES)
    with Path("/dev/urandom").open("rb") as random, path.open("wb") as file:
        random.readinto(block)
        for start in range(0, size_bytes, _BLOCK_BYTES):
            block[:16] = start.to_bytes(8) + number.to_bytes(8)
            file.write(block[: size_bytes - start])


def _upload(endpoint: str, source: Path) -> None:
    with open_channel(endpoint) as channel:
        upload_blob(channel, source)


def _download(endpoint: str, sha256: str, target: Path) -> None:
    with open_channel(endpoint) as channel:
        download_blob(channel, BlobName(sha256), target)


def _in_a_process(work: Callable[..., None], *arguments: object) -> tuple[float, float]:
    """Return how long the work took in a client's process, without its start, and the most memory it had in MB."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_timed, work, arguments).result(timeout=600)


def _timed(work: Callable[..., None], arguments: tuple[object, ...]) -> tuple[float, float]:
    seconds = _seconds_of(lambda: work(*arguments))
    return seconds, peak_mb(os.getpid())  # not ru_maxrss: that begins with its parent's


def _seconds_of(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _ratio(sums: list[float], seconds: list[float]) -> float:
    return median(one / other for one, other in zip(sums, seconds, strict=True))
