"""A compression's report, as people read it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from maas.cli.output import bytes_text, console, duration_text, write_table

if TYPE_CHECKING:
    from maas.registry.v1.version_pb2 import CompressionReport, Evaluation, QualityDifference

_MOST_SLICES = 12
_POINTS = ("accuracy",)
"""Qualities whose hundredths are called points."""


def write_report(report: "CompressionReport") -> None:
    """Write what compression changed: the figures, the rows on which it did, the limits, and the verdict."""
    before, after = report.before, report.after
    old, new = report.quality_before, report.quality_after
    rows = (
        (old.metric, _quality_text(old), _quality_text(new)),
        ("served file", bytes_text(before.servable_bytes), bytes_text(after.servable_bytes)),
        ("package", bytes_text(before.package_bytes), bytes_text(after.package_bytes)),
        ("p50 of one row", f"{before.latency_p50_ms:.2f} ms", f"{after.latency_p50_ms:.2f} ms"),
        ("p99 of one row", f"{before.latency_p99_ms:.2f} ms", f"{after.latency_p99_ms:.2f} ms"),
        ("rows a second", f"{before.throughput_rows:,.0f}", f"{after.throughput_rows:,.0f}"),
        ("peak memory", bytes_text(before.peak_memory_bytes), bytes_text(after.peak_memory_bytes)),
        ("non-zero share", f"{before.nonzero_share:.3f}", f"{after.nonzero_share:.3f}"),
        ("engine", before.engine, after.engine),
        ("agreement", "", f"{report.agreement:.4f}"),
    )
    write_table(("", ">BEFORE", ">AFTER"), rows)
    _write_difference(report)
    _write_slices(report)
    _write_limits(report)
    console().print()
    console().print(report.verdict, markup=False, highlight=False)
    if report.HasField("work_duration"):
        seconds = report.work_duration.ToNanoseconds() / 1e9
        console().print(f"made and measured in {duration_text(seconds)}", markup=False, highlight=False)


def _write_difference(report: "CompressionReport") -> None:
    if not report.HasField("quality_difference"):
        return
    metric = report.quality_after.metric
    p = f", McNemar's p {report.mcnemar_p:.3g}" if report.HasField("mcnemar_p") else ""
    rows = f"on {report.quality_after.row_count:,} rows"
    where = f"{rows} of {report.quality_after.split}" if report.quality_after.split else f"{rows} that were made up"
    changed = _change_text(report.quality_difference, metric)
    console().print(f"\n{metric} changed by {changed}{p}, {where}", markup=False, highlight=False)


def _write_slices(report: "CompressionReport") -> None:
    """Write the slices that lost most."""
    if not report.slices:
        return
    metric = report.quality_after.metric
    worst = sorted(report.slices, key=lambda one: one.difference.value)[:_MOST_SLICES]
    console().print()
    write_table(
        ("SLICE", "", ">ROWS", ">BEFORE", ">AFTER", ">CHANGE"),
        (
            (one.kind, one.slice, one.row_count, f"{one.before:.3f}", f"{one.after:.3f}",
             _change_text(one.difference, metric))
            for one in worst
        ),
    )  # fmt: skip
    if len(report.slices) > len(worst):
        console().print(f"(the {len(worst)} of {len(report.slices)} slices that lost most)", highlight=False)


def _write_limits(report: "CompressionReport") -> None:
    if not report.limits:
        return
    console().print()
    write_table(
        ("LIMIT", ">ASKED FOR", ">FOUND"),
        ((name, text(one.wanted), text(one.found)) for one in report.limits for name, text in (_limit(one.limit),)),
    )


def _quality_text(quality: "Evaluation") -> str:
    return f"{quality.value:.3f} [{quality.low:.3f}, {quality.high:.3f}]"


def _change_text(difference: "QualityDifference", metric: str) -> str:
    if metric in _POINTS:
        value, low, high = (part * 100 for part in (difference.value, difference.low, difference.high))
        return f"{value:+.2f} points [{low:+.2f}, {high:+.2f}]"
    return f"{difference.value:+.4f} [{difference.low:+.4f}, {difference.high:+.4f}]"


def _limit(name: str) -> tuple[str, Callable[[float], str]]:
    return _LIMITS.get(name, (name, str))


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms"


_LIMITS: dict[str, tuple[str, Callable[[float], str]]] = {
    "max_size_bytes": ("served file at most", bytes_text),
    "max_p50_seconds": ("p50 of one row at most", _milliseconds),
    "max_p99_seconds": ("p99 of one row at most", _milliseconds),
    "min_throughput_rows": ("rows a second at least", lambda rows: f"{rows:,.0f}"),
    "max_memory_bytes": ("peak memory at most", bytes_text),
    "max_quality_loss": ("loss of quality at most", lambda loss: f"{loss:.4f}"),
}
