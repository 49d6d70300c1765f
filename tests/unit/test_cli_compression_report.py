"""What `maas models show` says of a compression."""

import pytest
from google.protobuf.duration_pb2 import Duration

from maas.cli.compression_reports import write_report
from maas.registry.v1 import version_pb2


def evaluation(metric: str, value: float, split: str = "test") -> version_pb2.Evaluation:
    return version_pb2.Evaluation(
        metric=metric, value=value, low=value - 0.02, high=value + 0.01, row_count=2000, split=split
    )


def test_a_report_is_shown_with_its_change_slices_and_limits(capsys: pytest.CaptureFixture[str]) -> None:
    measurement = version_pb2.Measurement(servable_bytes=91_000_000, latency_p50_ms=7.5, throughput_rows=1234)
    slices = [
        version_pb2.SliceQuality(
            kind="class",
            slice=f"class {index}",
            row_count=100,
            before=0.9,
            after=0.85,
            difference=version_pb2.QualityDifference(value=-0.01 * index, low=-0.3, high=0.2),
        )
        for index in range(14)
    ]
    write_report(
        version_pb2.CompressionReport(
            before=measurement,
            after=measurement,
            quality_before=evaluation("accuracy", 0.857),
            quality_after=evaluation("accuracy", 0.848),
            quality_difference=version_pb2.QualityDifference(value=-0.009, low=-0.0155, high=-0.002),
            mcnemar_p=0.0123,
            slices=slices,
            limits=[
                version_pb2.LimitCheck(limit="max_size_bytes", wanted=23e6, found=22.5e6),
                version_pb2.LimitCheck(limit="max_p50_seconds", wanted=0.0025, found=0.0022),
            ],
            verdict="4.0 times smaller; all is well.",
            work_duration=Duration(seconds=75),
        )
    )
    shown = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert "accuracy 0.857 [0.837, 0.867] 0.848 [0.828, 0.858]" in lines
    assert "accuracy changed by -0.90 points [-1.55, -0.20], McNemar's p 0.0123, on 2,000 rows of test" in lines
    assert "class class 13 100 0.900 0.850 -13.00 points [-30.00, +20.00]" in lines
    assert "(the 12 of 14 slices that lost most)" in lines
    assert not any(line.startswith("class class 1 ") for line in lines)
    assert "served file at most 23.0 MB 22.5 MB" in lines
    assert "p50 of one row at most 2.50 ms 2.20 ms" in lines
    assert lines[-2:] == ["4.0 times smaller; all is well.", "made and measured in 1 min"]


def test_vectors_have_no_points_and_made_up_rows_no_split(capsys: pytest.CaptureFixture[str]) -> None:
    write_report(
        version_pb2.CompressionReport(
            quality_before=evaluation("fidelity", 1.0, ""),
            quality_after=evaluation("fidelity", 0.99, ""),
            quality_difference=version_pb2.QualityDifference(value=-0.01, low=-0.011, high=-0.009),
        )
    )
    shown = capsys.readouterr().out
    assert "fidelity changed by -0.0100 [-0.0110, -0.0090], on 2,000 rows that were made up" in shown
