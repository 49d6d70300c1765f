"""When a result is smaller, when it is faster, and the sentence that says so."""

from dataclasses import replace

import pytest

from maas.registry.v1 import version_pb2
from maas_compression.measuring.report import Findings, judge_findings


def measurement(servable_bytes: int = 1000, rows: float = 100.0, latency: float = 1.0) -> version_pb2.Measurement:
    return version_pb2.Measurement(servable_bytes=servable_bytes, throughput_rows=rows, latency_p50_ms=latency)


def quality(value: float) -> version_pb2.Evaluation:
    return version_pb2.Evaluation(metric="accuracy", value=value, low=value - 0.02, high=value + 0.02)


SAME = Findings(measurement(), measurement(), 1.0, 1.0, quality(0.8), quality(0.8), 1.0)


@pytest.mark.parametrize(("size", "smaller"), [(1000, False), (951, False), (950, True), (1100, False)])
def test_smaller_is_at_least_5_percent_less_to_serve(size: int, smaller: bool) -> None:
    assert judge_findings(replace(SAME, after=measurement(size))).smaller is smaller


@pytest.mark.parametrize(
    ("latency_gain", "throughput_gain", "faster"),
    [(1.0, 1.0, False), (1.09, 1.09, False), (1.1, 0.5, True), (0.5, 1.1, True)],
)
def test_faster_is_at_least_10_percent_better_in_one_of_both(
    latency_gain: float, throughput_gain: float, faster: bool
) -> None:
    findings = replace(SAME, latency_gain=latency_gain, throughput_gain=throughput_gain)
    assert judge_findings(findings).faster is faster


def test_what_is_neither_is_not_called_a_compression() -> None:
    report = judge_findings(SAME)
    assert not report.smaller
    assert not report.faster
    assert report.verdict == (
        "Neither smaller nor faster, so this is not a compression by itself; accuracy 0.8000 -> 0.8000 (+0.00 points, "
        "within the parent's interval), 100.00 % same answers."
    )


def test_the_verdict_says_what_was_won_and_what_it_cost() -> None:
    report = judge_findings(
        replace(
            SAME,
            after=measurement(250, rows=300.0, latency=0.5),
            latency_gain=1.9,
            throughput_gain=2.5,
            quality_after=quality(0.75),
            agreement=0.985,
        )
    )
    assert report.verdict == (
        "4.0 times smaller and 3.0 times as many rows a second; accuracy 0.8000 -> 0.7500 (-5.00 points, outside the "
        "parent's interval), 98.50 % same answers."
    )


def test_the_verdict_does_not_hide_that_a_faster_result_is_larger() -> None:
    findings = replace(SAME, after=measurement(1200, latency=0.5), latency_gain=1.8)
    assert judge_findings(findings).verdict.startswith("2.0 times faster for a single row though larger; ")
