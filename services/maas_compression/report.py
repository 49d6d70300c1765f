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
    quality_before: version_pb2.Evaluation
    quality_after: version_pb2.Evaluation
    agreement: float


def judge_findings(findings: Findings) -> version_pb2.CompressionReport:
    """Return the whole report."""
    before, after = findings.before, findings.after
    smaller = after.servable_bytes <= SMALLER_SHARE * before.servable_bytes
    faster = max(_throughput_gain(findings), _latency_gain(findings)) >= FASTER_FACTOR
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


def _throughput_gain(findings: Findings) -> float:
    return findings.after.throughput_rows / findings.before.throughput_rows


def _latency_gain(findings: Findings) -> float:
    return findings.before.latency_p50_ms / findings.after.latency_p50_ms


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
    throughput, latency = _throughput_gain(findings), _latency_gain(findings)
    if throughput >= latency:
        return f"{throughput:.1f} times as many rows a second"
    return f"{latency:.1f} times faster for a single row"


def _cost_text(findings: Findings) -> str:
    before, after = findings.quality_before, findings.quality_after
    points = (after.value - before.value) * 100
    change = f"{after.metric} {before.value:.3f} -> {after.value:.3f} ({points:+.1f} points"
    inside = before.low <= after.value <= before.high
    return (
        f"{change}, {'within' if inside else 'outside'} the parent's interval), {findings.agreement:.1%} same answers"
    )
