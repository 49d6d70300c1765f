"""Which trial is the better one, and which ones no other beats."""

import math
from collections.abc import Sequence

from maas_compression.limits import Limits
from maas_compression.searching.trials import Figures, Record, TrialState

_WEIGHTS = {"max_quality_loss": 10.0}
"""How much a broken limit counts: a loss of a tenth too much is as bad as being twice as large as allowed."""


def keeps_limits(record: Record, limits: Limits) -> bool:
    """Return whether a trial was measured as a whole, and breaks nothing."""
    return record.outcome.state is TrialState.MEASURED and not limits.failures(record.outcome.figures.limited)


def order(records: Sequence[Record], limits: Limits, objective: str, source: Figures) -> list[Record]:
    """Return the trials that made a package, the best first.

    Those that keep to all limits come first, by the objective; then the others, by how much they miss.
    """
    usable = [record for record in records if record.number and record.outcome.figures.size_bytes]

    def rank(record: Record) -> tuple[float, float, float]:
        figures = record.outcome.figures
        missed = sum(check.excess * _WEIGHTS.get(check.limit, 1.0) for check in limits.failures(figures.limited))
        # What nobody measured may be as bad as anything; what failed there is the last resort.
        unknown = {TrialState.MEASURED: 0.0, TrialState.STOPPED: 1.0, TrialState.FAILED: 2.0}[record.outcome.state]
        return (
            0.0 if keeps_limits(record, limits) else 1.0,
            missed + unknown,
            cost(figures, limits, objective, source),
        )

    return sorted(usable, key=rank)


def cost(figures: Figures, limits: Limits, objective: str, source: Figures) -> float:
    """Return what the objective wants little of.

    Fastest means what the limits speak of: rows a second, or the time of one row; where they speak of both or of
    neither, the geometric mean of the two gains.
    """
    match objective:
        case "smallest":
            return figures.size_bytes
        case "best_quality":
            return math.inf if figures.quality_loss is None else figures.quality_loss
    return slowness(figures, limits, source)


def slowness(figures: Figures, limits: Limits, source: Figures) -> float:
    """Return the time that it takes as a share of the source's; infinite when nobody measured it."""
    if figures.p50_seconds is None or figures.rows_per_second is None:
        return math.inf
    assert source.p50_seconds is not None
    assert source.rows_per_second is not None
    alone = figures.p50_seconds / source.p50_seconds
    in_batches = source.rows_per_second / figures.rows_per_second
    asks_alone = limits.max_p50_seconds is not None or limits.max_p99_seconds is not None
    asks_batches = limits.min_throughput_rows is not None
    if asks_alone != asks_batches:
        return alone if asks_alone else in_batches
    return math.sqrt(alone * in_batches)


def pareto_front(records: Sequence[Record]) -> frozenset[int]:
    """Return the numbers of the trials that no other one beats: in size, both speeds and quality."""
    whole = [record for record in records if record.number and record.outcome.state is TrialState.MEASURED]
    points = {record.number: _point(record.outcome.figures) for record in whole}
    return frozenset(
        number for number, point in points.items() if not any(_beats(other, point) for other in points.values())
    )


def _point(figures: Figures) -> tuple[float, ...]:
    assert figures.p50_seconds is not None
    assert figures.rows_per_second is not None
    assert figures.quality_loss is not None
    return figures.size_bytes, figures.p50_seconds, -figures.rows_per_second, figures.quality_loss


def _beats(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(left <= right for left, right in zip(one, other, strict=True))
