"""What compression changed, and the sentence that says whether it was one."""

from dataclasses import dataclass

from maas.registry.v1 import version_pb2

SMALLER_SHARE = 0.95
"""A served file of at most this share of the parent's is smaller."""
FASTER_FACTOR = 1.10
"""This much more throughput, or this much less median latency, is faster."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What was measured on the parent and on the result, in turn in the same run."""

    before: version_pb2.Measurement
    after: version_pb2.Measurement
    latency_gain: float
    """How many times less time a single row took, at least."""
    throughput_gain: float
    """How many times more rows a second there were, at least."""
    quality_before: version_pb2.Evaluation
    quality_after: version_pb2.Evaluation
    agreement: float


def judge_findings(findings: Findings) -> version_pb2.CompressionReport:
    """Return the whole report."""
    before, after = findings.before, findings.after
    smaller = after.servable_bytes <= SMALLER_SHARE * before.servable_bytes
    faster = max(findings.throughput_gain, findings.latency_gain) >= FASTER_FACTOR
    return version_pb2.CompressionReport(
        before=before,
        after=after,
        quality_before=findings.quality_before,
        quality_after=findings.quality_after,
        agreement=findings.agreement,
        smaller=smaller,
        faster=faster,
        verdict=_verdict(findings, smaller=smaller, faster=faster),
    )


def _verdict(findings: Findings, *, smaller: bool, faster: bool) -> str:
    won = []
    if smaller:
        won.append(f"{findings.before.servable_bytes / findings.after.servable_bytes:.1f} times smaller")
    if faster:
        won.append(_speed_text(findings))
    cost = _cost_text(findings)
    if not won:
        return f"Neither smaller nor faster, so this is not a compression by itself; {cost}."
    lost = "" if smaller or findings.after.servable_bytes <= findings.before.servable_bytes else " though larger"
    return f"{' and '.join(won).capitalize()}{lost}; {cost}."


def _speed_text(findings: Findings) -> str:
    before, after = findings.before, findings.after
    if findings.throughput_gain >= findings.latency_gain:
        return f"{after.throughput_rows / before.throughput_rows:.1f} times as many rows a second"
    return f"{before.latency_p50_ms / after.latency_p50_ms:.1f} times faster for a single row"


def _cost_text(findings: Findings) -> str:
    before, after = findings.quality_before, findings.quality_after
    points = (after.value - before.value) * 100
    where = "within" if before.low <= after.value <= before.high else "outside"
    return (
        f"{after.metric} {before.value:.4f} -> {after.value:.4f} ({points:+.2f} points, {where} the parent's "
        f"interval), {findings.agreement * 100:.2f} % same answers"
    )
