"""Advice as people read it: the answer, the recipes, what was found out, and a line to copy."""

import shlex
from typing import TYPE_CHECKING

from maas.cli.output import bytes_text, console, short_version, write_table

if TYPE_CHECKING:
    from maas.compression.v1.advice_pb2 import Advice, AdvisedRecipe
    from maas.compression.v1.compression_job_pb2 import CompressionJob

_SHOWN = 8


def write_advice(job: "CompressionJob") -> None:
    """Write what a job advises."""
    advice = job.advised
    out = console()
    out.print(advice.summary, markup=False, highlight=False)
    if advice.recipes:
        out.print(f"\n{_commands(job, advice)}", markup=False, highlight=False, soft_wrap=True)
        out.print()
        write_table(
            ("", "RECIPE", ">FILE", ">P50 OF 1 ROW", ">ROWS/S BY 32", ">SAME ANSWERS", ">QUALITY", "RISK", "LIMITS"),
            (_row(place, one) for place, one in enumerate(advice.recipes[:_SHOWN], start=1)),
        )
        out.print()
        for place, one in enumerate(advice.recipes[:_SHOWN], start=1):
            out.print(f"{place}. {' + '.join(one.lines)}: {one.reason}.", markup=False, highlight=False)
            for sentence in one.unmet_limits:
                out.print(f"   misses a limit: {sentence}", markup=False, highlight=False)
    out.print("\nWhat was found out:", markup=False)
    write_table(("", "", ""), ((one.subject, one.name, one.value) for one in advice.findings))
    if advice.excluded:
        out.print("\nNot advised:", markup=False)
        write_table(("", ""), ((one.technique, one.reason) for one in advice.excluded))


def recipe_options(lines: list[str]) -> str:
    """Return the options of `maas compress` that stand for a recipe, fit for a shell."""
    return " ".join(f"--method {shlex.quote(line)}" for line in lines)


def _commands(job: "CompressionJob", advice: "Advice") -> str:
    data = f" --dataset {short_version(job.dataset_version)}" if job.dataset_version else ""
    return (
        f"    maas compress {short_version(job.source_version)} {recipe_options(list(advice.recipes[0].lines))}{data}"
    )


def _row(place: int, one: "AdvisedRecipe") -> tuple[str, ...]:
    same = f"{one.quality.agreement:.1%}" if one.HasField("quality") else "after training"
    quality = f"{0.0 - 100 * one.quality.loss:+.2f} ±{100 * one.quality.margin:.2f}" if one.HasField("quality") else ""
    return (
        str(place),
        " + ".join(one.lines),
        f"{bytes_text(one.servable_bytes)} ({one.size_gain:.1f} x smaller)",
        f"{one.latency_p50_ms:.2f} ms ({one.latency_gain:.1f} x)",
        f"{one.throughput_rows:,.0f} ({one.throughput_gain:.1f} x)",
        same,
        quality,
        one.risk,
        f"misses {len(one.unmet_limits)}" if one.unmet_limits else "met",
    )
