"""make bench: this project and its peers in turn, on the same models, one thread each; a table and a plot.

    python bench/serving.py                       # beside Triton
    python bench/serving.py --peers all           # and PyTriton, MLServer, LitServe, BentoML
    python bench/serving.py --models seed --rounds 1 --seconds 1

docs/benchmarks.md says how it is measured and how to read it. Peers are installed at their first use, each in a
virtual environment of its own under MAAS_BENCH_SCRATCH (default: the user's cache folder).
"""

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import models
import numpy as np
import torch
from cluster import Cluster, Way, running_cluster
from load import ANSWER_TIMEOUT_SECONDS, Load, Question, need_h2load, run_load
from packages import int8_package, minilm_package, seed_package, with_all_engines
from peers import PEERS, Peer
from plot import plot_serving
from processes import Processes, memory_mb
from report import FOLDER, add_arguments, machine, median, publish, say, table, today

IN_FLIGHT = (1, 16, 64)
BASE = [peer.name for peer in PEERS["triton"] if peer.instances == 1]
"""Triton's settings of which the best counts."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """One deployment of this project and the ways on which it is measured."""

    name: str
    label: str = ""
    """Empty: the engine that was chosen."""
    engine: str = ""
    ways: tuple[Way, ...] = ("direct", "gateway", "apart")


OWN = {
    "seed": (
        Deployed("seed-torch", "torch eager", "torch"),
        Deployed("seed"),
        Deployed("seed-int8", "int8"),
    ),
    "minilm": (Deployed("minilm", ways=("direct",)),),
}
ALSO_ONE_LANE = ("seed",)
"""A worker computes as many batches side by side as there are cores; of these models also one at a time, direct."""
SLOWER = {"minilm": 2}
"""A model whose batches take long is loaded so many times longer."""
WAYS = {"direct": "direct", "gateway": "gateway, one Envoy", "apart": "gateway apart"}


@dataclass(frozen=True, slots=True)
class Row:
    """What one server showed in one round."""

    server: str
    model: str
    loads: dict[int, Load]
    server_cores: float
    """Processor use of all of its processes at the most in flight."""
    memory_mb: float
    cold_seconds: float
    difference: float
    """Largest difference of an answer from torch's."""


def main() -> None:
    """Run the rounds; print and with --write keep the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", default="triton", help=f"all, none, or some of {','.join(PEERS)}")
    parser.add_argument("--models", default=",".join(OWN), type=lambda text: text.split(","))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="measured time of one load")
    add_arguments(parser)
    arguments = parser.parse_args()
    need_h2load()
    chosen = {"all": list(PEERS), "none": []}.get(arguments.peers, arguments.peers.split(","))
    peers = [peer for name in chosen for peer in PEERS[name]]
    scratch = models.scratch_folder()
    models.prepare(scratch / "models")
    for peer in peers:
        peer.setup(scratch)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="maas-bench-") as folder:
        homes = {model: prepared_home(model, scratch, Path(folder)) for model in arguments.models}
        rows = []
        for number in range(arguments.rounds):
            for model in arguments.models:
                seconds = arguments.seconds * SLOWER.get(model, 1)
                able = [peer for peer in peers if model in peer.models]
                # Ours in the midst, so that Triton's settings stand around our turn.
                for peer in able[: len(able) // 2]:
                    rows += peer_turn(peer, model, scratch, seconds)
                rows += own_turn(model, homes[model], scratch, seconds)
                if model in ALSO_ONE_LANE:
                    rows += own_turn(model, homes[model], scratch, seconds, one_lane=True)
                for peer in able[len(able) // 2 :]:
                    rows += peer_turn(peer, model, scratch, seconds)
            say(f"round {number + 1} of {arguments.rounds} done after {time.monotonic() - begun:.0f} s")
    versions = sorted({peer.versions(scratch) for peer in peers})
    text = describe(rows, arguments.models, versions, arguments)
    publish("serving", text, [asdict(row) for row in rows], arguments)
    if arguments.write:
        plot_serving(rows, FOLDER / "serving.png", machine())


def prepared_home(model: str, scratch: Path, folder: Path) -> Path:
    """Register and deploy this project's forms of a model; later turns start the cluster on what is stored there."""
    home = folder / model
    if model == "seed":
        weights = torch.load(scratch / "models" / "seed.pt", weights_only=True)
        seed = seed_package(folder / "seed-package", weights)
        int8 = int8_package(seed, folder / "seed-int8-package")
        seed = with_all_engines(seed)
        packages = {"seed": seed, "seed-torch": seed, "seed-int8": int8}
    else:
        packages = {"minilm": minilm_package(folder / "minilm-package", scratch / "models")}
    with running_cluster(home) as cluster:
        for deployed in OWN[model]:
            cluster.deploy(deployed.name, packages[deployed.name], deployed.engine)
    return home


def own_turn(model: str, home: Path, scratch: Path, seconds: float, *, one_lane: bool = False) -> Iterator[Row]:
    """Start the cluster and measure each deployment on each way; with one lane only direct."""
    begun = time.monotonic()
    with running_cluster(home, {"MAAS_ENGINE_LANES": "1"} if one_lane else None) as cluster:
        cold = {}
        for deployed in OWN[model]:
            cluster.question(deployed.name, model).until_answered(cluster.ports["gateway"])
            cold[deployed.name] = time.monotonic() - begun
        engines = cluster.engines()
        cluster.start_direct()
        if not one_lane:
            cluster.start_apart()
        for deployed in OWN[model]:
            question = cluster.question(deployed.name, model)
            for way in ("direct",) if one_lane else deployed.ways:
                question.until_answered(cluster.ports[way])
                label = deployed.label or f"chosen {engines[deployed.name]}"
                yield measure(
                    f"maas, {label}, {WAYS[way]}" + (", 1 lane" if one_lane else ""),
                    question,
                    cluster.ports[way],
                    cluster.processes,
                    scratch,
                    seconds,
                    cold[deployed.name],
                    path_pids(cluster, deployed.name, way),
                )


def path_pids(cluster: Cluster, deployment: str, way: Way) -> list[int]:
    """Return the processes that a request passes: Envoys and the worker."""
    envoys = cluster.pids_of(r"bin/envoy")
    listening = {port: [] for port in cluster.ports.values()}
    for pid in envoys:
        environ = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        listen = next(word for word in environ if word.startswith("MAAS_PUBLIC_LISTEN="))
        listening[int(listen.rpartition(":")[2])].append(pid)
    passed = {"direct": ("direct",), "gateway": ("gateway",), "apart": ("direct", "apart")}[way]
    return [cluster.worker_pids()[deployment], *(pid for name in passed for pid in listening[cluster.ports[name]])]


def peer_turn(peer: Peer, model: str, scratch: Path, seconds: float) -> Iterator[Row]:
    """Start a peer, measure it and stop it; one that does not come up is left out."""
    with tempfile.TemporaryDirectory(prefix="maas-peer-") as folder, contextlib.ExitStack() as stack:
        processes = Processes(Path(folder))
        stack.callback(processes.stop)
        port = free_neighbours()
        begun = time.monotonic()
        child = processes.start("peer", peer.command(scratch, model, port), peer.variables(scratch, Path(folder)))
        question = Question(peer.wire, model, model)
        while True:
            try:
                question.until_answered(port, 0.2)
                break
            except RuntimeError as error:
                late = time.monotonic() - begun > ANSWER_TIMEOUT_SECONDS
                if late or child.poll() is not None:
                    say(f"{peer.name} does not answer for {model}: {error}\n{processes.log('peer')}")
                    return
        cold = time.monotonic() - begun
        yield measure(peer.name, question, port, processes, scratch, seconds, cold)


def measure(
    server: str,
    question: Question,
    port: int,
    processes: Processes,
    scratch: Path,
    seconds: float,
    cold_seconds: float,
    pids: list[int] | None = None,
) -> Row:
    """Load a server that is up, one caller first."""
    answer, answer_bytes = question.until_answered(port)
    loads = {}
    cores = 0.0
    for count in IN_FLIGHT:
        before, begun = processes.cpu_seconds(), time.perf_counter()
        loads[count] = run_load(port, question, answer_bytes, count, seconds)
        cores = (processes.cpu_seconds() - before) / (time.perf_counter() - begun)
    reference = models.predict(models.load(question.model, folder=scratch / "models"), models.sample(question.model))
    row = Row(
        server,
        question.model,
        loads,
        cores,
        processes.memory_mb() if pids is None else sum(map(memory_mb, pids)),
        cold_seconds,
        float(np.abs(answer - reference).max()),
    )
    rates = ", ".join(
        f"{count}: {load.requests_per_second:.0f}/s {load.p50_ms:.2f} ms" for count, load in loads.items()
    )
    say(f"{question.model} {server}: {rates}, {sum(load.failed for load in loads.values())} failed")
    return row


def describe(rows: list[Row], names: list[str], versions: list[str], arguments: argparse.Namespace) -> str:
    """Return the Markdown: the machine, and a table for each model."""
    parts = [
        f"{today()}; {machine()}; load generator on the same cores. "
        f"Medians of {arguments.rounds} rounds of {arguments.seconds:g} s. Peers: {'; '.join(versions) or 'none'}.",
    ]
    for model in names:
        of_model = [row for row in rows if row.model == model]
        head = ["server"]
        for count in IN_FLIGHT:
            head += [f"{count}: req/s", "p50 / p99 ms", "x Triton"]
        head += [f"p99 at {max(IN_FLIGHT)} x Triton's", "cores", "PSS MB", "cold s", "failed", "max diff"]
        servers = list(dict.fromkeys(row.server for row in of_model))
        parts += [f"**{model}**", table(head, [_line(server, of_model) for server in servers])]
    return "\n\n".join(parts)


def _line(server: str, rows: list[Row]) -> list[str]:
    own = [row for row in rows if row.server == server]
    line = [server]
    for count in IN_FLIGHT:
        loads = [row.loads[count] for row in own]
        p50, p99 = median(load.p50_ms for load in loads), median(load.p99_ms for load in loads)
        line += [f"{median(load.requests_per_second for load in loads):,.0f}", f"{p50:.2f} / {p99:.2f}"]
        line.append(_number(ratio(server, rows, count, "requests_per_second")))
    line.append(_number(ratio(server, rows, max(IN_FLIGHT), "p99_ms")))
    line += [f"{median(row.server_cores for row in own):.2f}", f"{median(row.memory_mb for row in own):.0f}"]
    line.append(f"{median(row.cold_seconds for row in own):.1f}")
    line.append(str(sum(load.failed for row in own for load in row.loads.values())))
    line.append(f"{max(row.difference for row in own):.0e}")
    return line


def ratio(server: str, rows: list[Row], in_flight: int, number: str) -> float:
    """Return the median over rounds of a number beside Triton's, with whichever queue delay served more."""
    tritons: dict[str, list[Load]] = {}
    for row in rows:
        if row.server in BASE:
            tritons.setdefault(row.server, []).append(row.loads[in_flight])
    if not tritons:
        return float("nan")
    best = max(tritons.values(), key=lambda loads: median(load.requests_per_second for load in loads))
    own = [row.loads[in_flight] for row in rows if row.server == server]
    return median(getattr(a, number) / getattr(b, number) for a, b in zip(own, best, strict=False))


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2f}"


def free_neighbours(count: int = 3) -> int:
    """Return the first of neighbouring ports that nobody holds now."""
    import socket

    for base in range(21_000 + os.getpid() % 1000 * 8, 60_000, 8):
        try:
            for offset in range(count):
                with socket.socket() as listener:
                    listener.bind(("127.0.0.1", base + offset))
        except OSError:
            continue
        return base
    sys.exit("no free ports")


if __name__ == "__main__":
    main()
