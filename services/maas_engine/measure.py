"""How fast a servable answers, and how much memory it takes.

Two servables are compared within one run, turn by turn (A B, B A, A B, ...), so that whatever else the machine does
meets both.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maas_engine.predictor import Predictor, open_predictor
from maas_package.manifest import Measurement, Servable, TensorSpec
from maas_package.package import Package
from maas_package.tensors import Array, numpy_type
from maas_runtime.failures import InvalidInput

BATCH_ROWS = 32
COST_CURVE_ROWS = (1, 2, 4, 8, 16, 32)

_EXAMPLE_TOKENS = 24
_PROBE_TIMEOUT_SECONDS = 120.0

Batch = Mapping[str, Array]
Clock = Callable[[], float]


class MeasurementFailed(InvalidInput):
    """The servable could not be run by itself, so there is no measurement of it."""

    reason = "MEASUREMENT_FAILED"


@dataclass(frozen=True, slots=True)
class Speed:
    """Time of one row alone, and rows per second in batches of BATCH_ROWS: the medians of what was seen."""

    p50_seconds: float
    p99_seconds: float
    rows_per_second: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a fresh process that only loads and runs one servable.

    `peak_bytes`: the largest resident size. `loaded_bytes`: the proportional size (shared pages counted by share)
    after running. `baseline_bytes`: the resident size with the libraries imported, before loading.
    """

    peak_bytes: int
    loaded_bytes: int
    baseline_bytes: int


def measure(
    candidates: Sequence[tuple[Package, Servable]],
    texts: Sequence[str] = (),
    *,
    threads: int = 1,
    rounds: int = 10,
    calls_per_round: int = 50,
) -> tuple[Measurement, ...]:
    """Measure servables against each other in this process, and the memory of each in a process of its own.

    `texts` are sent as they are, so a call's time holds the tokenizer's; without them random tensors are. Raises
    MeasurementFailed, and what open_engine raises.
    """
    predictors: list[Predictor] = []
    try:
        for package, servable in candidates:
            predictors.append(open_predictor(package, servable, threads))
        speeds = compare_speed(predictors, texts, rounds=rounds, calls_per_round=calls_per_round)
    finally:
        for predictor in predictors:
            predictor.close()
    return tuple(
        Measurement(
            hardware=describe_hardware(),
            threads=threads,
            p50_seconds=speed.p50_seconds,
            p99_seconds=speed.p99_seconds,
            rows_per_second=speed.rows_per_second,
            peak_memory_bytes=measure_memory(package, servable, threads=threads).peak_bytes,
        )
        for (package, servable), speed in zip(candidates, speeds, strict=True)
    )


def compare_speed(
    predictors: Sequence[Predictor],
    texts: Sequence[str] = (),
    *,
    rounds: int = 10,
    calls_per_round: int = 50,
    clock: Clock = time.perf_counter,
) -> tuple[Speed, ...]:
    """Measure predictors turn by turn; each gets the same rows in the same order."""
    singles: list[list[float]] = [[] for _ in predictors]
    rates: list[list[float]] = [[] for _ in predictors]
    batches_per_round = max(1, calls_per_round // 10)
    for turn in range(-1, rounds):
        order = list(range(len(predictors)))
        for index in order if turn % 2 == 0 else reversed(order):
            predictor = predictors[index]
            first = max(turn, 0) * calls_per_round
            times = [_time_call(predictor, texts, first + call, 1, clock) for call in range(calls_per_round)]
            spent = sum(
                _time_call(predictor, texts, first + call, BATCH_ROWS, clock) for call in range(batches_per_round)
            )
            if turn >= 0:  # the turn before the first one warms up
                singles[index] += times
                rates[index].append(batches_per_round * BATCH_ROWS / spent)
    return tuple(
        Speed(float(np.percentile(times, 50)), float(np.percentile(times, 99)), float(np.median(rate)))
        for times, rate in zip(singles, rates, strict=True)
    )


def cost_curve(
    predictor: Predictor,
    rows: Sequence[int] = COST_CURVE_ROWS,
    *,
    repeats: int = 5,
    clock: Clock = time.perf_counter,
) -> dict[int, float]:
    """Return the seconds that a batch of each size takes, the median of `repeats`; this also warms the engine up."""
    curve = {}
    for count in rows:
        batch = example_batch(predictor, count, seed=count)
        predictor.run(batch)
        times = []
        for _ in range(repeats):
            begin = clock()
            predictor.run(batch)
            times.append(clock() - begin)
        curve[count] = float(np.median(times))
    return curve


def measure_memory(package: Package, servable: Servable, *, threads: int = 1) -> Memory:
    """Load and run the servable in a fresh process, 1 and BATCH_ROWS rows at a time. Raises MeasurementFailed."""
    command = [sys.executable, "-m", "maas_engine.memory_probe", str(package.folder), servable.path, str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise MeasurementFailed(f"{servable.path} did not run within {_PROBE_TIMEOUT_SECONDS:g} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MeasurementFailed(f"{servable.path} could not be run by itself: {lines[-1][:300]}")
    return Memory(**json.loads(done.stdout))


def example_batch(predictor: Predictor, rows: int, seed: int) -> dict[str, Array]:
    """Return random prepared inputs: word ids of the vocabulary, or small numbers; free sizes are 24 long."""
    generator = np.random.default_rng(seed)
    vocabulary_size = predictor.preparer.vocabulary_size
    return {
        spec.name: _example_tensor(spec, rows, vocabulary_size or 2, generator)
        for spec in predictor.package.manifest.inputs
    }


def describe_hardware() -> str:
    """Return what a measurement holds for: the processor's name and how many cores this process may use."""
    cores = len(os.sched_getaffinity(0))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {cores} cores"


def _time_call(predictor: Predictor, texts: Sequence[str], call: int, rows: int, clock: Clock) -> float:
    if texts:
        chosen = [texts[(call * rows + row) % len(texts)] for row in range(rows)]
        begin = clock()
        predictor.predict_texts(chosen)
        return clock() - begin
    batch = example_batch(predictor, rows, seed=call)
    begin = clock()
    predictor.run(batch)
    return clock() - begin


def _example_tensor(spec: TensorSpec, rows: int, vocabulary_size: int, generator: np.random.Generator) -> Array:
    rest = tuple(_EXAMPLE_TOKENS if size == -1 else size for size in spec.shape[1:])
    shape = (rows, *rest) if spec.shape else ()
    if spec.datatype.startswith("FP"):
        return generator.standard_normal(shape).astype(numpy_type(spec.datatype))
    # From 1: id 0 is padding, and a row of nothing but padding is not what a server sees.
    return generator.integers(1, max(vocabulary_size, 2), shape).astype(numpy_type(spec.datatype))
