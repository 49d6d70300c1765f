"""What a compression job can be asked to do, made of plain values: recipes, searches, advice, limits."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration

from maas.compression.v1.compression_job_pb2 import (
    AdviceSettings,
    CompressionJob,
    Limits,
    Recipe,
    SearchSettings,
    SensitivitySettings,
)
from maas.compression.v1.technique_pb2 import Technique
from maas.recipes import parse_technique
from maas.units import parse_bytes, parse_rate, parse_seconds, parse_share

Work: TypeAlias = Sequence[Technique | str] | SearchSettings | AdviceSettings | SensitivitySettings
"""A recipe, as techniques or as the lines that stand for them: `int8(mode=static)`; or one of the others."""


def new_job(source_version: str, work: Work) -> CompressionJob:
    """Return a job that is to do this on a version. Raises RecipeUnreadable."""
    match work:
        case SearchSettings():
            return CompressionJob(source_version=source_version, search=work)
        case AdviceSettings():
            return CompressionJob(source_version=source_version, advice=work)
        case SensitivitySettings():
            return CompressionJob(source_version=source_version, sensitivity=work)
        case techniques:
            return CompressionJob(source_version=source_version, recipe=Recipe(techniques=_techniques(techniques)))


def search(
    *,
    objective: str | None = None,
    time_budget: str | None = None,
    allow_training: bool = False,
    most_trials: int | None = None,
    workers: int | None = None,
    seed: int = 0,
) -> SearchSettings:
    """Look for the recipe that meets the limits best. `time_budget`: `15m`. Raises QuantityInvalid."""
    return SearchSettings(
        objective=objective,
        time_budget=_duration(time_budget),
        allow_training=allow_training,
        most_trials=most_trials,
        workers=workers,
        seed=seed,
    )


def advice(*, allow_training: bool = False) -> AdviceSettings:
    """Say which recipes promise what, and change nothing."""
    return AdviceSettings(allow_training=allow_training)


def sensitivity(*, bits: int | None = None) -> SensitivitySettings:
    """Measure what each layer loses by itself, and change nothing."""
    return SensitivitySettings(bits=bits)


def limits(
    *,
    max_size: str | None = None,
    max_p50: str | None = None,
    max_p99: str | None = None,
    min_throughput: str | None = None,
    max_memory: str | None = None,
    max_accuracy_loss: str | None = None,
) -> Limits:
    """Return what a result has to keep to: `6MB`, `2ms`, `500/s`, `1%` (one point). Raises QuantityInvalid."""
    return Limits(
        max_size_bytes=None if max_size is None else parse_bytes(max_size),
        max_p50=_duration(max_p50),
        max_p99=_duration(max_p99),
        min_throughput_rows=None if min_throughput is None else parse_rate(min_throughput),
        max_memory_bytes=None if max_memory is None else parse_bytes(max_memory),
        max_quality_loss=None if max_accuracy_loss is None else parse_share(max_accuracy_loss),
    )


def _techniques(recipe: Iterable[Technique | str]) -> list[Technique]:
    return [parse_technique(one) if isinstance(one, str) else one for one in recipe]


def _duration(text: str | None) -> Duration | None:
    if text is None:
        return None
    duration = Duration()
    duration.FromNanoseconds(round(parse_seconds(text) * 1e9))
    return duration
