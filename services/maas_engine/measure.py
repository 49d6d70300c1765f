"""How fast a servable answers, and how much memory it takes.

Two servables are compared within one run, turn by turn (A B, B A, A B, ...), so that whatever else the machine does
meets both.
"""

import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from maas_engine.examples import Examples
from maas_engine.host import describe_hardware
from maas_engine.predictor import Predictor, open_predictor
from maas_package.manifest import Measurement, Servable
from maas_package.package import Package
from maas_runtime.failures import InvalidInput

BATCH_ROWS = 32
WARM_UP_SECONDS = 0.3

_COST_CURVE_RUNS = 6
_PROBE_TIMEOUT_SECONDS = 120.0

Clock = Callable[[], float]


class MeasurementFailed(InvalidInput):
    """The servable could not be run by itself, so there is no measurement of it."""

    reason = "MEASUREMENT_FAILED"


@dataclass(frozen=True, slots=True)
class Speed:
    """Time of one row alone, and rows per second in batches: the medians of what was seen."""

    p50_seconds: float
    p99_seconds: float
    rows_per_second: float


@dataclass(frozen=True, slots=True)
class Memory:
    """Of a fresh process that only loads and runs one servable.

    `peak_bytes`: the largest resident size. `loaded_bytes`: the proportional size (shared pages counted by share)
    after running. `baseline_bytes`: the resident size with the engine's library imported, before loading.
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
    seconds: float = math.inf,
) -> tuple[Measurement, ...]:
    """Measure servables against each other in this process, and the memory of each in a process of its own.

    `texts` are sent as they are, so a call's time holds the tokenizer's; without them random tensors are. `seconds` is
    for each servable, beside the memory. Raises MeasurementFailed, and what open_engine raises.
    """
    predictors: list[Predictor] = []
    try:
        for package, servable in candidates:
            predictors.append(open_predictor(package, servable, threads))
        speeds = compare_speed(predictors, texts, rounds=rounds, calls_per_round=calls_per_round, seconds=seconds)
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
    seconds: float = math.inf,
    batch_rows: int = BATCH_ROWS,
    clock: Clock = time.perf_counter,
) -> tuple[Speed, ...]:
    """Measure predictors turn by turn; each gets the same rows in the same order, alone and `batch_rows` at a time.

    After `seconds` for each predictor there is no further round; there is one at least.
    """
    if not all(one.package.manifest.joins_rows for one in predictors):
        batch_rows = 1
    examples = [Examples(predictor) for predictor in predictors]
    deadline = clock() + seconds * len(predictors)
    singles: list[list[float]] = [[] for _ in predictors]
    rates: list[list[float]] = [[] for _ in predictors]
    batches_per_round = max(1, calls_per_round // 10)
    for turn in range(-1, rounds):
        if turn > 0 and clock() >= deadline:
            break
        order = list(range(len(predictors)))
        for index in order if turn % 2 == 0 else reversed(order):
            first = max(turn, 0) * calls_per_round
            times = [_time_call(examples[index], texts, first + call, 1, clock) for call in range(calls_per_round)]
            spent = sum(
                _time_call(examples[index], texts, first + call, batch_rows, clock) for call in range(batches_per_round)
            )
            if turn >= 0:  # the turn before the first one warms up
                singles[index] += times
                rates[index].append(batches_per_round * batch_rows / spent)
    return tuple(
        Speed(float(np.percentile(times, 50)), float(np.percentile(times, 99)), float(np.median(rate)))
        for times, rate in zip(singles, rates, strict=True)
    )


def cost_curve(
    predictor: Predictor,
    rows: Sequence[int],
    *,
    seconds: float = WARM_UP_SECONDS,
    clock: Clock = time.perf_counter,
) -> dict[int, float]:
    """Return the seconds that a batch of each size takes, the median of some runs; this also warms the engine up.

    Ends after about `seconds`: a slow model is run fewer times, and not in the sizes that no time is left for. Only
    one row is computed, however long it takes, where the model does not let requests share a batch.
    """
    counts = tuple(rows) if predictor.package.manifest.joins_rows else (1,)
    examples = Examples(predictor)
    end = clock() + seconds
    curve: dict[int, float] = {}
    for index, count in enumerate(counts):
        begin = clock()
        # Rows that cost no less in a larger batch are what a slow model has.
        expected = next(reversed(curve.values()), 0.0) * 2
        if curve and begin + expected > end:
            break
        batch = examples.batch(count, seed=count)
        share_end = begin + (end - begin) / (len(counts) - index)
        times: list[float] = []
        while len(times) < _COST_CURVE_RUNS:
            # The first run of a shape costs more than the others, so a second is worth more than its share.
            if times and clock() + times[-1] > (end if len(times) == 1 else share_end):
                break
            started = clock()
            predictor.run(batch)
            times.append(clock() - started)
        curve[count] = float(np.median(times[1:] or times))
    return curve


def measure_memory(package: Package, servable: Servable, *, threads: int = 1) -> Memory:
    """Load and run the servable in a fresh process, 1 and BATCH_ROWS rows at a time. Raises MeasurementFailed."""
    what = [servable.engine, servable.precision, servable.path]
    command = [sys.executable, "-m", "maas_engine.memory_probe", str(package.folder), *what, str(threads)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_TIMEOUT_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise MeasurementFailed(f"{servable.path} did not run within {_PROBE_TIMEOUT_SECONDS:g} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MeasurementFailed(f"{servable.path} could not be run by itself: {lines[-1][:300]}")
    return Memory(**json.loads(done.stdout))


def _time_call(examples: Examples, texts: Sequence[str], call: int, rows: int, clock: Clock) -> float:
    predictor = examples.predictor
    if texts:
        chosen = [texts[(call * rows + row) % len(texts)] for row in range(rows)]
        begin = clock()
        predictor.predict_texts(chosen)
        return clock() - begin
    batch = examples.batch(rows, seed=call)
    begin = clock()
    predictor.run(batch)
    return clock() - begin
