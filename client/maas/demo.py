"""`make demo`: the whole loop on real reviews. Says what it does and how long each step takes; leaves nothing running.

Start a cluster, store 10,605 rated sentences, train, deploy, compress three ways, move the deployment to the smallest
version while requests flow, call it by REST and by gRPC, compare, stop.
"""

import json
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from maas.cli.data_commands import example_folder
from maas.cli.output import bytes_text, short_version, write_table
from maas.cli.progress import follow_job
from maas.client import Client, raise_unless_succeeded
from maas.compression.v1.compression_job_pb2 import CompressionJob
from maas.errors import MaasError
from maas.example_data import prepare_example
from maas.registry.v1.version_pb2 import Evaluation
from maas.supervisor.cluster import check_port_free
from maas.supervisor.failures import PortTaken
from maas.supervisor.run import start_detached, stop_cluster
from maas.training.v1.training_job_pb2 import TrainingJob

NAME = "reviews"
TEXT = "This is a sample text."
USUAL_PORT = 8080

# What the project promises of this demo.
LEAST_ACCURACY = 0.735
LEAST_SHRINKING = 3.0
MOST_ACCURACY_LOST = 0.01

_MOVED_ANSWERS = 50
"""How many answers the new version has to give before the move counts as done, and within which time."""
_MOVED_SECONDS = 10.0

JobT = TypeVar("JobT", TrainingJob, CompressionJob)


class PromiseBroken(MaasError):
    """The loop ran, but a result is not what the project promises."""


class Steps:
    """Says what is being done, and how long each thing took."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._count = 0

    @contextmanager
    def step(self, what: str) -> Iterator[None]:
        """Say what begins, and when it has ended."""
        self._count += 1
        started = time.monotonic()
        print(f"==> {self._count}. {what}", flush=True)
        yield
        print(f"    {time.monotonic() - started:.1f} s", flush=True)

    def total_seconds(self) -> float:
        """Return the time since the first step."""
        return time.monotonic() - self._started


@dataclass(slots=True)
class Traffic:
    """Requests that are sent one after the other in the background, and how they ended."""

    endpoint: str
    answered: dict[str, int]
    """By version."""
    failed: int = 0

    @contextmanager
    def flowing(self) -> Iterator[None]:
        """Send requests while the context is open."""
        stop = threading.Event()
        thread = threading.Thread(target=self._send, args=(stop,))
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _send(self, stop: threading.Event) -> None:
        with Client(self.endpoint, retry_seconds=0.0) as client:
            while not stop.is_set():
                try:
                    version = client.predict(NAME, TEXT).version
                    self.answered[version] = self.answered.get(version, 0) + 1
                except MaasError:
                    self.failed += 1
                time.sleep(0.002)


def main() -> None:
    """Run the demo; the exit status says whether all of it worked."""
    steps = Steps()
    home = Path(tempfile.mkdtemp(prefix="maas-demo-"))
    try:
        run(home, steps)
    except MaasError as error:
        print(f"demo: {error.message}", file=sys.stderr)
        print(f"demo: what the processes wrote is in {home / 'logs'}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        shutil.rmtree(home)
        print("demo: stopped", file=sys.stderr)
        sys.exit(130)
    shutil.rmtree(home)
    print(f"\nThe whole loop took {steps.total_seconds():.0f} s. A cluster of your own: {_command()} up --detach")


def run(home: Path, steps: Steps) -> None:
    """Do everything in a home folder. Raises MaasError; the cluster is stopped in any case."""
    with steps.step("start a cluster: registry, training, compression, rollout, inference, gateway, Envoy"):
        state = start_detached(home, usual_or_free_port())
        print(f"    it answers at {state.endpoint}, REST and gRPC")
    try:
        with Client(state.endpoint) as client:
            _loop(client, steps)
    finally:
        with steps.step("stop"):
            stop_cluster(home)


def _loop(client: Client, steps: Steps) -> None:
    with steps.step("fetch 10,605 movie-review sentences rated by people, check their hash, store them"):
        made = prepare_example(example_folder())
        data = client.push_dataset(NAME, {file.name: file.path for file in made.files})
        counts = ", ".join(f"{split.row_count:,} to {split.split_id}" for split in data.splits)
        print(f"    {data.name}: {counts}{' (fetched before)' if made.reused else ''}")
    with steps.step("train an LSTM text classifier: 10 epochs at most, the best on validation is kept"):
        trained = _follow(client, client.train(NAME, data.name))
        print(f"    {short_version(trained.result_version)}: {_quality(trained.evaluation)}")
    with steps.step("deploy it as it is"):
        client.deploy(NAME, [trained.result_version], actor="demo", reason="first version")
        client.wait_until_ready(NAME)
    with steps.step("compress it three ways: clip, fixed_point, int8"):
        # clip alone is neither smaller nor faster; the demo shows that the report says so.
        techniques = ("clip", "fixed_point", "int8")
        started = [client.compress(trained.result_version, [one], allow_no_gain=True) for one in techniques]
        compressed = [_follow(client, job) for job in started]
        for job in compressed:
            print(f"    {short_version(job.result_version)} {_recipe(job)}: {job.report.verdict}")
    with steps.step("move the deployment to int8 while requests flow: the new version starts before the old one stops"):
        traffic = _move(client, compressed[-1].result_version)
    with steps.step("call it by REST"):
        body = json.dumps({"text": TEXT})
        print(f"    curl -X POST -H 'Content-Type: application/json' -d '{body}' {client.endpoint}/predict")
        print(f"    {json.dumps(_call_by_rest(client.endpoint))}")
    with steps.step("call it by gRPC, over the Open Inference Protocol"):
        for text in ("A gripping, beautiful film.", "Dull, long and badly acted."):
            found = client.predict(NAME, text)
            probability = found.probabilities[found.predicted]
            print(f"    {text!r}: {found.predicted}, probability {probability:.3f}, version {found.version}")
    print()
    _show(trained, compressed)
    _check(trained.evaluation, compressed[-1], traffic)


def _move(client: Client, version: str) -> Traffic:
    """Let another version answer, and return how requests fared meanwhile."""
    traffic = Traffic(client.endpoint, {})
    with traffic.flowing():
        client.deploy(NAME, [version], actor="demo", reason="smaller and faster")
        client.wait_until_ready(NAME)
        number = version.rpartition("/")[2]
        end = time.monotonic() + _MOVED_SECONDS
        while traffic.answered.get(number, 0) < _MOVED_ANSWERS and time.monotonic() < end:
            time.sleep(0.01)
    answered = ", ".join(f"{count} by version {version}" for version, count in sorted(traffic.answered.items()))
    print(f"    answered: {answered}; failed: {traffic.failed}")
    if traffic.answered.get(number, 0) < _MOVED_ANSWERS:
        raise PromiseBroken(f"version {number} was ready, but gave too few answers within {_MOVED_SECONDS:g} s")
    return traffic


def usual_or_free_port() -> int:
    """Return the usual port if nobody has it, else 0: any that is free."""
    try:
        check_port_free(USUAL_PORT)
    except PortTaken:
        return 0
    return USUAL_PORT


def _follow(client: Client, job: JobT) -> JobT:
    """Wait until a job has succeeded, with a bar where somebody looks."""
    last = cast(JobT, follow_job(client, job))
    raise_unless_succeeded(last)
    return last


def _call_by_rest(endpoint: str) -> dict[str, Any]:
    request = urllib.request.Request(
        f"http://{endpoint}/predict",
        data=json.dumps({"text": TEXT}).encode(),
        headers={"Content-Type": "application/json"},
        method="POST",
    )
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    if answer.get("predicted") not in (0, 1):
        raise PromiseBroken(f"/predict answered {answer}")
    return answer


def _command() -> str:
    """Return how to call `maas` from where the demo was called."""
    path = Path(sys.executable).with_name("maas")
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _recipe(job: CompressionJob) -> str:
    return ", ".join(str(technique.WhichOneof("technique")) for technique in job.recipe.techniques)


def _quality(evaluation: Evaluation) -> str:
    return f"{evaluation.metric} {evaluation.value:.3f} [{evaluation.low:.3f}, {evaluation.high:.3f}]"


def _show(trained: TrainingJob, compressed: Sequence[CompressionJob]) -> None:
    """Write the table: each child beside its parent, measured in the same run."""
    rows = [
        (
            short_version(job.result_version),
            _recipe(job),
            f"{job.report.quality_before.value:.3f} -> {_quality(job.report.quality_after).partition(' ')[2]}",
            f"{bytes_text(job.report.before.servable_bytes)} -> {bytes_text(job.report.after.servable_bytes)}",
            f"{job.report.before.latency_p50_ms:.2f} -> {job.report.after.latency_p50_ms:.2f} ms",
            f"{job.report.before.throughput_rows:,.0f} -> {job.report.after.throughput_rows:,.0f}",
            f"{job.report.agreement:.2%}",
        )
        for job in compressed
    ]
    hardware = compressed[-1].report.after.hardware
    print(f"{short_version(trained.result_version)} -> each child, measured in turn in the same run on {hardware}:")
    columns = ("VERSION", "RECIPE", "ACCURACY [95 %]", "SERVED FILE", "P50 OF 1 ROW", "ROWS/S BY 32", "AGREEMENT")
    write_table(columns, rows)


def _check(trained: Evaluation, smallest: CompressionJob, traffic: Traffic) -> None:
    """Raise PromiseBroken if a result is not what the project promises."""
    report = smallest.report
    shrinking = report.before.servable_bytes / report.after.servable_bytes
    lost = report.quality_before.value - report.quality_after.value
    print(f"int8 is {shrinking:.1f} times smaller and costs {100 * lost:.1f} points of accuracy.")
    if trained.value < LEAST_ACCURACY:
        raise PromiseBroken(f"the accuracy is {trained.value:.3f}, less than {LEAST_ACCURACY}")
    if shrinking < LEAST_SHRINKING or lost > MOST_ACCURACY_LOST:
        raise PromiseBroken(f"int8 is {shrinking:.1f} times smaller and lost {lost:.3f} of accuracy")
    if traffic.failed:
        raise PromiseBroken(f"{traffic.failed} requests failed while the deployment moved")


if __name__ == "__main__":
    main()
