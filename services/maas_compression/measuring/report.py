"""What compression changed, and the sentence that says whether it was one."""

import math
from dataclasses import dataclass

from google.protobuf.duration_pb2 import Duration

from maas.names import DatasetVersionName
from maas.registry.v1 import version_pb2
from maas_compression.limits import NO_LIMITS, Figures, Limits
from maas_compression.measuring.judging import ACCURACY, COSINE, Judgement, SliceQuality
from maas_compression.measuring.paired import Interval

SMALLER_SHARE = 0.95
"""A served file of at most this share of the parent's is smaller."""
FASTER_FACTOR = 1.10
"""This much more throughput, or this much less median latency, is faster."""

_MOST_SLICES = 200
_MOST_CHARACTERS = 255


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured on the parent and on the result, in turn in the same run."""

    before: version_pb2.Measurement
    after: version_pb2.Measurement
    latency_gain: float
    """How many times less time a single row took, at least."""
    throughput_gain: float
    """How many times more rows a second there were, at least."""
    judgement: Judgement
    dataset_version: DatasetVersionName | None = None
    """None: the rows were made up."""
    split: str = ""
    limits: Limits = NO_LIMITS
    work_seconds: float = 0.0

    @property
    def smaller(self) -> bool:
        """Whether the served file is."""
        return self.after.servable_bytes <= SMALLER_SHARE * self.before.servable_bytes

    @property
    def faster(self) -> bool:
        """Whether a row alone is, or rows in batches are."""
        return max(self.throughput_gain, self.latency_gain) >= FASTER_FACTOR

    @property
    def figures(self) -> Figures:
        """What the limits are compared with."""
        return Figures(
            size_bytes=self.after.servable_bytes,
            p50_seconds=self.after.latency_p50_ms / 1000,
            p99_seconds=self.after.latency_p99_ms / 1000,
            rows_per_second=self.after.throughput_rows,
            memory_bytes=self.after.peak_memory_bytes,
            quality_loss=self.judgement.loss,
        )


def report_of(findings: Findings) -> version_pb2.CompressionReport:
    """Return the whole report."""
    judgement = findings.judgement
    work_duration = Duration()
    work_duration.FromNanoseconds(round(findings.work_seconds * 1e9))
    # Of very many classes, those that lost most.
    slices = sorted(judgement.slices, key=lambda one: one.difference.value)[:_MOST_SLICES]
    return version_pb2.CompressionReport(
        before=findings.before,
        after=findings.after,
        quality_before=_evaluation(findings, judgement.before),
        quality_after=_evaluation(findings, judgement.after),
        agreement=judgement.agreement,
        smaller=findings.smaller,
        faster=findings.faster,
        verdict=_verdict(findings),
        quality_difference=_difference(judgement.difference),
        mcnemar_p=judgement.mcnemar_p,
        slices=[_slice(one) for one in judgement.slices if one in slices],
        limits=[
            version_pb2.LimitCheck(limit=check.limit, wanted=check.wanted, found=check.found)
            for check in findings.limits.check(findings.figures)
        ],
        work_duration=work_duration,
    )


def _evaluation(findings: Findings, quality: Interval) -> version_pb2.Evaluation:
    return version_pb2.Evaluation(
        metric=findings.judgement.metric,
        value=quality.value,
        low=quality.low,
        high=quality.high,
        row_count=findings.judgement.rows,
        dataset_version=str(findings.dataset_version or ""),
        split=findings.split,
    )


def _difference(difference: Interval) -> version_pb2.QualityDifference:
    return version_pb2.QualityDifference(value=difference.value, low=difference.low, high=difference.high)


def _slice(quality: SliceQuality) -> version_pb2.SliceQuality:
    return version_pb2.SliceQuality(
        kind=quality.kind[:_MOST_CHARACTERS],
        slice=quality.name[:_MOST_CHARACTERS],
        row_count=quality.rows,
        before=quality.before,
        after=quality.after,
        difference=_difference(quality.difference),
    )


def _verdict(findings: Findings) -> str:
    won = []
    if findings.smaller:
        won.append(f"{findings.before.servable_bytes / findings.after.servable_bytes:.1f} times smaller")
    if findings.faster:
        won.append(_speed_text(findings))
    cost = _cost_text(findings)
    if not won:
        return f"Neither smaller nor faster, so this is not a compression by itself; {cost}."
    grew = findings.after.servable_bytes > findings.before.servable_bytes
    return f"{' and '.join(won).capitalize()}{' though larger' if grew else ''}; {cost}."


def _speed_text(findings: Findings) -> str:
    before, after = findings.before, findings.after
    if findings.throughput_gain >= findings.latency_gain:
        return f"{after.throughput_rows / before.throughput_rows:.1f} times as many rows a second"
    return f"{before.latency_p50_ms / after.latency_p50_ms:.1f} times faster for a single row"


def _cost_text(findings: Findings) -> str:
    """Say what it cost, and whether that could be chance."""
    judgement = findings.judgement
    after, agreement = judgement.after, f"{judgement.agreement * 100:.2f} % same"
    if judgement.metric == ACCURACY:
        difference = judgement.difference
        return (
            f"accuracy {judgement.before.value:.4f} -> {after.value:.4f} ({difference.value * 100:+.2f} points, 95 % "
            f"interval {difference.low * 100:+.2f} to {difference.high * 100:+.2f}: {_chance_text(judgement)}"
            f"{_limit_text(findings)}), {agreement} answers"
        )
    what, same = ("vectors", "nearest neighbours") if judgement.metric == COSINE else ("tensors", "answers")
    interval = f"95 % interval {after.low:.4f} to {after.high:.4f}"
    return f"{judgement.metric} to the parent's {what} {after.value:.4f} ({interval}), {agreement} {same}"


def _chance_text(judgement: Judgement) -> str:
    if judgement.difference.high < 0:
        return "worse beyond chance"
    if judgement.difference.low > 0:
        return "better beyond chance"
    return f"{judgement.rows:,} rows show no difference"


def _limit_text(findings: Findings) -> str:
    """Say so when the rows are too few to tell that a loss which was seen keeps to its limit, and how many would do."""
    limit, difference = findings.limits.max_quality_loss, findings.judgement.difference
    if limit is None or -difference.value > limit or -difference.low <= limit:
        return ""
    text = f"; too few rows to be sure that the loss is at most {limit * 100:.2f} points"
    room = limit + difference.value
    if room <= 0:
        return text
    # The interval shrinks with the square root of the rows.
    enough = math.ceil(findings.judgement.rows * ((difference.value - difference.low) / room) ** 2)
    return f"{text}, about {enough:,} would do"
