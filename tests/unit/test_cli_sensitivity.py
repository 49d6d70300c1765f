"""What `maas compress --sensitivity` shows, and its plot."""

from pathlib import Path

import pytest

from maas.cli.sensitivity_output import plot_sensitivity, write_sensitivity
from maas.compression.v1.compression_job_pb2 import CompressionJob
from maas.compression.v1.sensitivity_pb2 import LayerSensitivity, SensitivityReport


def report(fewest_to_keep: int | None = None) -> SensitivityReport:
    layers = [
        LayerSensitivity(
            layer=f"encoder.{index}", operator="MatMul", weight_count=1000, error=0.1 / (index + 1), agreement=0.99
        )
        for index in range(3)
    ]
    together = LayerSensitivity(weight_count=3000, error=0.2, quality_loss=0.01, agreement=0.97)
    return SensitivityReport(
        bits=8, metric="accuracy", row_count=256, layers=layers, all_layers=together, fewest_to_keep=fewest_to_keep
    )


def test_layers_are_listed_with_all_together_under_them(capsys: pytest.CaptureFixture[str]) -> None:
    write_sensitivity(CompressionJob(source_version="models/a/versions/1", sensitivity_report=report()))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "1 encoder.0 MatMul 1,000 0.10000 +0.0000 99.00%" in lines
    assert "all together 3,000 0.20000 +0.0100 97.00%" in lines


def test_how_many_layers_to_keep_is_a_command_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    write_sensitivity(CompressionJob(source_version="models/a/versions/1", sensitivity_report=report(2)))
    captured = capsys.readouterr()
    assert "maas compress a@1 --method 'int8(keep_most_sensitive=2)'" in captured.out + captured.err


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    plot_sensitivity(report(), tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
