"""Source and result, measured side by side: what they need, and how sure it is that one is faster."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from maas_engine.host import describe_hardware
from maas_engine.measure import Speed, compare_speed, measure_memory
from maas_engine.predictor import Predictor
from maas_package.manifest import Measurement, Servable
from maas_package.package import Package

THREADS = 1
_RUNS = 3
_ROUNDS_PER_RUN = 3


@dataclass(frozen=True, slots=True)
class Contender:
    """One side of the comparison: a package, the servable of it that is served, and that one loaded."""

    package: Package
    servable: Servable
    predictor: Predictor


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was measured. A gain is how many times better the result was in the run in which it did worst."""

    before: Measurement
    after: Measurement
    latency_gain: float
    throughput_gain: float


def compare(source: Contender, result: Contender, texts: Sequence[str]) -> Comparison:
    """Measure both in turn, in several runs, so that a moment in which the machine was busy decides nothing.

    On a busy machine two equal files differed by up to 20 % in the medians of one run.
    """
    runs = [compare_speed((source.predictor, result.predictor), texts, rounds=_ROUNDS_PER_RUN) for _ in range(_RUNS)]
    return Comparison(
        before=_measurement(source, [before for before, _ in runs]),
        after=_measurement(result, [after for _, after in runs]),
        latency_gain=min(before.p50_seconds / after.p50_seconds for before, after in runs),
        throughput_gain=min(after.rows_per_second / before.rows_per_second for before, after in runs),
    )


def _measurement(contender: Contender, speeds: Sequence[Speed]) -> Measurement:
    return Measurement(
        hardware=describe_hardware(),
        threads=THREADS,
        p50_seconds=median(speed.p50_seconds for speed in speeds),
        p99_seconds=median(speed.p99_seconds for speed in speeds),
        rows_per_second=median(speed.rows_per_second for speed in speeds),
        peak_memory_bytes=measure_memory(contender.package, contender.servable, threads=THREADS).peak_bytes,
    )
