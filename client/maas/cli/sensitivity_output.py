"""What each layer of a model loses with few bits: a table and a plot."""

from pathlib import Path
from typing import TYPE_CHECKING

from maas.cli.output import duration_text, say, short_version, write_table
from maas.cli.plotting import new_figure

if TYPE_CHECKING:
    from maas.compression.v1.compression_job_pb2 import CompressionJob
    from maas.compression.v1.sensitivity_pb2 import LayerSensitivity, SensitivityReport

_PLOTTED = 40
_INCHES_A_LAYER = 0.22


def write_sensitivity(job: "CompressionJob") -> None:
    """Write the layers, the one that loses most first, all together under them, and what to do about it."""
    report = job.sensitivity_report
    rows = [(str(place), *_cells(layer)) for place, layer in enumerate(report.layers, start=1)]
    rows.append(("", *_cells(report.all_layers)))
    write_table(
        ("", "LAYER", "OPERATOR", ">WEIGHTS", ">ERROR", f">LOSS OF {report.metric.upper()}", ">SAME ANSWERS"), rows
    )
    seconds = report.work_duration.ToNanoseconds() / 1e9
    say(f"each layer alone with {report.bits} bits, on {report.row_count:,} rows, in {duration_text(seconds)}")
    if not report.HasField("fewest_to_keep"):
        return
    source, count = short_version(job.source_version), report.fewest_to_keep
    if report.bits == 8:
        command = f"maas compress {source} --method 'int8(keep_most_sensitive={count})'"
        say(f"to lose no more than was allowed, keep {count} of them:\n    {command}")
    else:
        say(f"to lose no more than was allowed, keep the first {count} of them")


def plot_sensitivity(report: "SensitivityReport", path: Path) -> None:
    """Write a PNG: the error that each layer makes alone, for the layers that make most. Raises PlotLibraryMissing."""
    layers = list(report.layers[:_PLOTTED])
    figure = new_figure(9, 1.5 + _INCHES_A_LAYER * len(layers))
    axes = figure.subplots()
    axes.barh([layer.layer for layer in layers], [layer.error for layer in layers], color="tab:blue")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize="small")
    axes.set(xlabel="|y' - y| / |y| of the model's outputs", xscale="log")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(f"each layer alone with {report.bits} bits, on {report.row_count:,} rows", fontsize="medium")
    figure.savefig(path, format="png", dpi=120)


def _cells(layer: "LayerSensitivity") -> tuple[str, ...]:
    return (
        layer.layer or "all together",
        layer.operator,
        f"{layer.weight_count:,}",
        f"{layer.error:.5f}",
        f"{layer.quality_loss:+.4f}",
        f"{layer.agreement:.2%}",
    )
