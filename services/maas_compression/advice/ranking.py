"""From trials to an order: what meets the limits first, then what wins most for what it loses."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from maas_compression.advice.candidates import Exclusion
from maas_compression.advice.trials import Trial
from maas_compression.limits import Figures, Limits
from maas_compression.spec import recipe_text

_SMALLER_SHARE = 0.95
_FASTER_FACTOR = 1.10
_PRICE_OF_QUALITY = 30.0
"""A recipe that loses one point has to win a third more (e^0.3) in size or speed for it."""
_USUAL_LOSS = 0.01
"""What a loss is held against where no limit is given."""


class Risk(StrEnum):
    """Whether the quality may fall further than it should: judged on the sample's interval."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    UNKNOWN = "unknown"
    """It was not trained, so nobody knows."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A recipe with what its trial came to. `unmet`: a sentence for each limit that it does not keep to."""

    trial: Trial
    unmet: tuple[str, ...]
    risk: Risk
    worth: float


def rank(trials: Iterable[Trial], source_bytes: int, limits: Limits) -> tuple[list[Recommendation], list[Exclusion]]:
    """Return the recommendations, best first, and what the trial showed to win nothing.

    worth = ln(times smaller) + ln(times faster) - 30 * loss, where faster is the geometric mean of one row's time and
    of rows a second, or what a limit names of the two; a loss that training may change counts as nothing.
    """
    recommendations: list[Recommendation] = []
    excluded: list[Exclusion] = []
    for trial in trials:
        size_gain = source_bytes / trial.servable_bytes
        if size_gain < 1 / _SMALLER_SHARE and max(trial.latency_gain, trial.throughput_gain) < _FASTER_FACTOR:
            excluded.append(Exclusion(" + ".join(recipe_text(trial.candidate.recipe)), _no_gain_text(trial, size_gain)))
            continue
        loss = 0.0 if trial.answers is None else max(trial.answers.loss, 0.0)
        worth = math.log(size_gain) + math.log(_speed_gain(trial, limits)) - _PRICE_OF_QUALITY * loss
        recommendations.append(Recommendation(trial, _unmet(trial, limits), _risk(trial, limits), worth))
    recommendations.sort(key=lambda one: (len(one.unmet), one.risk is Risk.HIGH, -one.worth))
    return recommendations, excluded


def _speed_gain(trial: Trial, limits: Limits) -> float:
    asks_latency = limits.max_p50_seconds is not None or limits.max_p99_seconds is not None
    asks_throughput = limits.min_throughput_rows is not None
    if asks_latency != asks_throughput:
        return trial.latency_gain if asks_latency else trial.throughput_gain
    return math.sqrt(trial.latency_gain * trial.throughput_gain)


def _unmet(trial: Trial, limits: Limits) -> tuple[str, ...]:
    figures = Figures(
        size_bytes=trial.servable_bytes,
        p50_seconds=trial.after.p50_seconds,
        p99_seconds=trial.after.p99_seconds,
        rows_per_second=trial.after.rows_per_second,
        quality_loss=None if trial.answers is None else trial.answers.loss,
    )
    return tuple(check.sentence for check in limits.failures(figures))


def _risk(trial: Trial, limits: Limits) -> Risk:
    if trial.answers is None:
        return Risk.UNKNOWN
    allowed = _USUAL_LOSS if limits.max_quality_loss is None else limits.max_quality_loss
    if trial.answers.loss > allowed:
        return Risk.HIGH
    return Risk.LOW if trial.answers.loss + trial.answers.margin <= allowed else Risk.MEDIUM


def _no_gain_text(trial: Trial, size_gain: float) -> str:
    return (
        f"tried: {_megabytes(trial.servable_bytes)} ({size_gain:.2f} times smaller), one row {trial.latency_gain:.2f} "
        f"times faster, {trial.throughput_gain:.2f} times as many rows a second: no gain here"
    )


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.2f} MB"
