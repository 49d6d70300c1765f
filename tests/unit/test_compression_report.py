"""When a result is smaller, when it is faster, and the sentence that says so."""

from dataclasses import replace

import pytest

from maas.names import DatasetVersionName
from maas.registry.v1 import version_pb2
from maas_compression.limits import Limits
from maas_compression.measuring.judging import Judgement, SliceQuality
from maas_compression.measuring.paired import Interval, paired_difference
from maas_compression.measuring.report import Findings, report_of


def measurement(servable_bytes: int = 1000, rows: float = 100.0, latency: float = 1.0) -> version_pb2.Measurement:
    return version_pb2.Measurement(servable_bytes=servable_bytes, throughput_rows=rows, latency_p50_ms=latency)


def accuracy(gained: int = 0, lost: int = 0, rows: int = 2000) -> Judgement:
    before, difference = Interval(0.8, 0.78, 0.82), paired_difference(gained, lost, rows)
    after = Interval(0.8 + difference.value, 0.78 + difference.value, 0.82 + difference.value)
    agreement = 1 - (gained + lost) / rows
    return Judgement("accuracy", rows, before, after, difference, agreement, 0.5, 0.1, (), 1.0)


SAME = Findings(measurement(), measurement(), 1.0, 1.0, accuracy())


@pytest.mark.parametrize(("size", "smaller"), [(1000, False), (951, False), (950, True), (1100, False)])
def test_smaller_is_at_least_5_percent_less_to_serve(size: int, smaller: bool) -> None:
    assert report_of(replace(SAME, after=measurement(size))).smaller is smaller


@pytest.mark.parametrize(
    ("latency_gain", "throughput_gain", "faster"),
    [(1.0, 1.0, False), (1.09, 1.09, False), (1.1, 0.5, True), (0.5, 1.1, True)],
)
def test_faster_is_at_least_10_percent_better_in_one_of_both(
    latency_gain: float, throughput_gain: float, faster: bool
) -> None:
    findings = replace(SAME, latency_gain=latency_gain, throughput_gain=throughput_gain)
    assert report_of(findings).faster is faster


def test_what_is_neither_is_not_called_a_compression() -> None:
    report = report_of(SAME)
    assert not report.smaller
    assert not report.faster
    assert report.verdict == (
        "Neither smaller nor faster, so this is not a compression by itself; accuracy 0.8000 -> 0.8000 (+0.00 points, "
        "95 % interval -0.14 to +0.14: 2,000 rows show no difference), 100.00 % same answers."
    )


def test_the_verdict_says_what_was_won_and_what_it_cost() -> None:
    report = report_of(
        replace(
            SAME,
            after=measurement(250, rows=300.0, latency=0.5),
            latency_gain=1.9,
            throughput_gain=2.5,
            judgement=accuracy(lost=30),
        )
    )
    assert report.verdict == (
        "4.0 times smaller and 3.0 times as many rows a second; accuracy 0.8000 -> 0.7850 (-1.50 points, 95 % interval "
        "-2.05 to -0.95: worse beyond chance), 98.50 % same answers."
    )
    assert "better beyond chance" in report_of(replace(SAME, judgement=accuracy(gained=30))).verdict


def test_rows_that_are_too_few_to_tell_whether_a_limit_is_kept_are_said_to_be() -> None:
    limits = Limits(max_quality_loss=0.01)
    surely = report_of(replace(SAME, judgement=accuracy(gained=3, lost=5), limits=limits))
    assert "too few" not in surely.verdict
    maybe = report_of(replace(SAME, judgement=accuracy(gained=40, lost=50), limits=limits))
    assert maybe.quality_difference.low < -0.01 < maybe.quality_difference.value
    assert "too few rows to be sure that the loss is at most 1.00 points, about 7,043 would do)" in maybe.verdict
    broken = report_of(replace(SAME, judgement=accuracy(lost=50), limits=limits))
    assert "too few" not in broken.verdict


def test_vectors_and_tensors_are_compared_with_the_parents() -> None:
    one = Interval(1.0, 1.0, 1.0)
    judgement = Judgement(
        "cosine", 500, one, Interval(0.995, 0.994, 0.996), Interval(-0.005, -0.006, -0.004), 0.9, None, 0.1, (), 1.0
    )
    report = report_of(replace(SAME, judgement=judgement))
    assert report.verdict.endswith(
        "; cosine to the parent's vectors 0.9950 (95 % interval 0.9940 to 0.9960), 90.00 % same nearest neighbours."
    )
    assert not report.HasField("mcnemar_p")
    assert (report.quality_after.dataset_version, report.quality_after.split) == ("", "")
    tensors = report_of(replace(SAME, judgement=replace(judgement, metric="fidelity"))).verdict
    assert tensors.endswith(
        "fidelity to the parent's tensors 0.9950 (95 % interval 0.9940 to 0.9960), 90.00 % same answers."
    )


def test_the_report_holds_all_that_was_found() -> None:
    slices = tuple(SliceQuality("class", f"c{index}", 30, 0.9, 0.8, Interval(-0.1, -0.2, 0.0)) for index in range(3))
    findings = replace(
        SAME,
        after=measurement(250),
        judgement=replace(accuracy(3, 5), slices=slices),
        dataset_version=DatasetVersionName("reviews", 1),
        split="test",
        limits=Limits(max_size_bytes=500),
        work_seconds=2.5,
    )
    report = report_of(findings)
    assert [(one.kind, one.slice, one.row_count, one.difference.low) for one in report.slices] == [
        ("class", f"c{index}", 30, -0.2) for index in range(3)
    ]
    assert [(one.limit, one.wanted, one.found) for one in report.limits] == [("max_size_bytes", 500.0, 250.0)]
    assert report.mcnemar_p == 0.5
    assert report.work_duration.ToNanoseconds() == 2_500_000_000
    assert report.quality_before.dataset_version == "datasets/reviews/versions/1"
    assert findings.figures.quality_loss == pytest.approx(0.001)


def test_of_very_many_slices_those_that_lost_most_are_kept_in_their_order() -> None:
    slices = tuple(
        SliceQuality("class", str(index), 30, 0.9, 0.8, Interval(-index / 1000, -1.0, 0.0)) for index in range(300)
    )
    report = report_of(replace(SAME, judgement=replace(accuracy(), slices=slices)))
    assert [one.slice for one in report.slices] == [str(index) for index in range(100, 300)]


def test_the_verdict_does_not_hide_that_a_faster_result_is_larger() -> None:
    findings = replace(SAME, after=measurement(1200, latency=0.5), latency_gain=1.8)
    assert report_of(findings).verdict.startswith("2.0 times faster for a single row though larger; ")
