"""50 clients that register versions of one model at once: no number is given twice, left out or lost."""

import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import grpc
import numpy as np
from registry_packages import SmallPackage, small_package, upload_requests
from registry_processes import RegistryProcess
from report import say, table

from maas.registry.v1 import registry_service_pb2 as messages
from maas.registry.v1.registry_service_pb2_grpc import RegistryServiceStub

MODEL = "models/written"
PROCESSES = 5
_TIMEOUT_SECONDS = 60.0
_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)  # a connection for each client, in one process too


@dataclass(frozen=True, slots=True)
class Writers:
    """What came of all of them."""

    stores: str
    clients: int
    versions: int
    """Of each."""
    registered: int
    failed: int
    doubled: int
    """Numbers that two clients were given."""
    gaps: int
    """Numbers up to the highest that nobody was given."""
    changed: int
    """Versions that are listed with other content than their client sent."""
    p50_ms: float
    p99_ms: float
    per_second: float


def measure_writers(stores: str, registry: RegistryProcess, clients: int, versions: int) -> Writers:
    """Let them all begin, wait for the last, and read what is there."""
    with grpc.insecure_channel(registry.endpoint) as channel:
        stub = RegistryServiceStub(channel)
        for content in _package().members.values():
            stub.UploadBlob(upload_requests(content), timeout=_TIMEOUT_SECONDS)
        stub.CreateModel(messages.CreateModelRequest(model_id=MODEL.partition("/")[2]), timeout=_TIMEOUT_SECONDS)
        each = clients // PROCESSES
        with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
            shares = [
                pool.submit(_register_together, registry.endpoint, range(first, first + each), versions)
                for first in range(0, clients, each)
            ]
            done = [one for share in shares for one in share.result(timeout=600)]
        listed = _all_versions(stub)
    given = {name: description for name, description, _, _ in done if name}
    numbers = sorted(int(name.rpartition("/")[2]) for name, _, _, _ in done if name)
    taken = [ended - begun for _, _, begun, ended in done]
    p50, p99 = np.percentile(taken, [50, 99]) * 1000
    result = Writers(
        stores,
        clients,
        versions,
        registered=len(numbers),
        failed=sum(not name for name, _, _, _ in done),
        doubled=len(numbers) - len(set(numbers)),
        gaps=max(numbers, default=0) - len(set(numbers)),
        changed=sum(listed.get(name) != description for name, description in given.items())
        + len(listed.keys() - given.keys()),
        p50_ms=float(p50),
        p99_ms=float(p99),
        per_second=len(numbers) / (max(ended for *_, ended in done) - min(begun for *_, begun, _ in done)),
    )
    say(f"{stores}: {result.registered} registered, {result.per_second:.0f}/s")
    return result


def describe_writers(measured: list[Writers]) -> str:
    """Return the Markdown."""
    head = ["stores", "clients x versions", "registered", "failed", "number twice", "gaps", "lost or changed"]
    head += ["versions/s", "p50 / p99 ms"]
    return table(
        head,
        [
            [
                one.stores,
                f"{one.clients} x {one.versions}",
                f"{one.registered:,}",
                *(str(count) for count in (one.failed, one.doubled, one.gaps, one.changed)),
                f"{one.per_second:,.0f}",
                f"{one.p50_ms:.0f} / {one.p99_ms:.0f}",
            ]
            for one in measured
        ],
    )


def _package() -> SmallPackage:
    return small_package(b"what all of them register")


def _register_together(endpoint: str, clients: range, versions: int) -> list[tuple[str, str, float, float]]:
    """Return what each registration was given and for what, and when it was sent and answered."""
    together = threading.Barrier(len(clients))
    with ThreadPoolExecutor(len(clients)) as threads:
        running = [threads.submit(_register, endpoint, client, versions, together) for client in clients]
        return [one for client in running for one in client.result()]


def _register(
    endpoint: str, client: int, versions: int, together: threading.Barrier
) -> list[tuple[str, str, float, float]]:
    done = []
    package = _package()
    with grpc.insecure_channel(endpoint, options=_OPTIONS) as channel:
        registry = RegistryServiceStub(channel)
        registry.GetModel(messages.GetModelRequest(name=MODEL), timeout=_TIMEOUT_SECONDS)
        together.wait()
        for number in range(versions):
            description = f"client {client}, number {number}"
            request = messages.CreateVersionRequest(
                parent=MODEL, version=package.version(description), request_id=f"{client}-{number}"
            )
            begun = time.time()
            try:
                name = registry.CreateVersion(request, timeout=_TIMEOUT_SECONDS).name
            except grpc.RpcError as error:
                say(f"client {client}: {error.code().name} {error.details()}")
                name = ""
            done.append((name, description, begun, time.time()))
    return done


def _all_versions(registry: RegistryServiceStub) -> dict[str, str]:
    """Return the descriptions of all versions by their names."""
    found = {}
    request = messages.ListVersionsRequest(parent=MODEL, page_size=1000)
    while True:
        page = registry.ListVersions(request, timeout=_TIMEOUT_SECONDS)
        found.update({version.name: version.description for version in page.versions})
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token
